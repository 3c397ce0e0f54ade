"""An A/B test of two served models, from a log of what was served: every measure's effect, surely at any look
(maths 7.8, 7.9), and what it says about goals and floors."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, datetime
from statistics import NormalDist

import numpy as np

from recfuse.bundle.pointer import read_pointer
from recfuse.config import require
from recfuse.evaluation.config import AbConfig, Targets, parse_time
from recfuse.evaluation.served import (
    VERSIONS,
    NothingServedError,
    Served,
    Split,
    first_decision,
    measure_names,
    read_served,
)
from recfuse.logs.source import LogSource, log_end, open_log, pieces
from recfuse.stats.moments import Moments, effect
from recfuse.stats.sequential import always_valid_p, always_valid_reach, mixture_spread
from recfuse.stats.significance import adjust

_DAY = 86_400e6  # microseconds
_FAR = 1 << 62  # after every decision
# Half a relative deviation of the smaller share that the check of the ratio is best at finding.
_RATIO_EFFECT = 0.05


@dataclass(frozen=True)
class DayEffect:
    """The effect on users' `day`-th day since their first decision (from 0), with an interval for one look."""

    day: int
    users: int
    estimate: float
    low: float
    high: float


@dataclass(frozen=True)
class MeasureEffect:
    """One measure per user.

    Attributes:
        base: mean of the base, adjusted; estimate, error: of the relative difference (`recfuse.stats.moments.Effect`).
        low, high: interval that holds at all looks at once; NaN where too little happened.
        p: always valid; adjusted: for all measures (Holm).
        reduction: share of the variance that behaviour before the test took away.
        fading: (estimate, low, high) of the effect in the last half of users' days less that in the first, for one
            look. days: the effect by users' days.
    """

    name: str
    base: float
    estimate: float
    error: float
    low: float
    high: float
    p: float
    adjusted: float
    reduction: float
    fading: tuple[float, float, float]
    days: tuple[DayEffect, ...]


@dataclass(frozen=True)
class SampleRatio:
    """Users of the arms against the canary's share.

    Attributes:
        base, canary: users. share: that was declared.
        chi_square, p: of this look alone. valid_p: at all looks at once (Lindon and Malek 2022).
    """

    base: int
    canary: int
    share: float
    chi_square: float
    p: float
    valid_p: float


@dataclass(frozen=True)
class ServedTest:
    """An A/B test of served models.

    Attributes:
        split: whom it compares. spread: τ of the intervals. targets: that it was asked about.
        ratio: of the arms. strays: share of decisions that were not made by the model of the user's arm.
        decisions: of the test; days: from its beginning to its last decision; left_out: rows that could not be read.
        effects: of every measure.
    """

    split: Split
    spread: float
    targets: Targets
    ratio: SampleRatio
    strays: float
    decisions: int
    days: float
    left_out: int
    effects: tuple[MeasureEffect, ...]

    def effect(self, name: str) -> MeasureEffect:
        """Of one measure.

        Raises:
            InvalidFieldError: there is no such measure.
        """
        found = {each.name: each for each in self.effects}
        require(name in found, "targets", name, ", ".join(found))
        return found[name]

    @property
    def last(self) -> datetime:
        """Time of the last decision."""
        return datetime.fromtimestamp(self.split.begin / 1e6 + self.days * 86_400, UTC)

    def rows(self) -> list[list[str]]:
        """A line per measure, as text."""
        return [[each.name, f"{each.base:,.4g}", span(each.estimate, each.low, each.high),
                 f"{each.adjusted:.2g}", f"{each.reduction:.0%}", span(*each.fading)] for each in self.effects]

    def day_rows(self, names: tuple[str, ...] = ()) -> list[list[str]]:
        """A line per day since users' first decision, as text, for the named measures, or all."""
        chosen = [each for each in self.effects if not names or each.name in names]
        count = max((len(each.days) for each in chosen), default=0)
        return [[str(day + 1), f"{chosen[0].days[day].users:,}", *(
            span(each.days[day].estimate, each.days[day].low, each.days[day].high) for each in chosen)]
            for day in range(count)]


def span(estimate: float, low: float, high: float) -> str:
    """A relative difference and its interval, as text."""
    if not math.isfinite(estimate):
        return "none"
    return f"{estimate:+.2%} [{low:+.2%}, {high:+.2%}]" if math.isfinite(low) else f"{estimate:+.2%} (too few)"


def run_ab(config: AbConfig) -> ServedTest:
    """Reads the log and compares the arms.

    Raises:
        NothingServedError: no decision is of the test.
        InvalidFieldError: no such log, or no canary.
        BundleError: what is not named is not in `models` either.
    """
    source = open_log(config.logs, config.vocabulary)
    require(source.kind == "session_log", "logs", config.logs, "session logs; these are samples")
    measures = measure_names(source.vocabulary.behaviour_names)
    strangers = [name for name in config.targets.names if name not in measures]
    require(not strangers, "targets", strangers, f"names of measures: {', '.join(measures)}")
    split = split_of(config, source)
    return compare(read_served(source, split), split, config.targets)


def split_of(config: AbConfig, source: LogSource) -> Split:
    """The two arms and their times; what the config does not name is as it is served."""
    base, canary, share = config.base, config.canary, config.share
    if not (base and canary and share):
        pointer = read_pointer(config.models)
        base = base or getattr(pointer, config.part) or ""
        canary = canary or getattr(pointer, f"{config.part}_canary") or ""
        share = share or pointer.canary_share
    require(bool(canary), "canary", canary, "the version of a model; current.json names no canary")
    require(bool(base) and base != canary, "base", base, f"the version of another model than {canary}")
    require(0 < share < 1, "share", share, "a number in (0, 1); current.json has none")
    version = VERSIONS[config.part]
    begin = _microseconds(config.since) if config.since else first_decision(source, version, canary)
    require(begin is not None, "logs", config.logs, f"decisions of {canary}")
    assert begin is not None
    # Whole days of users end with the log, also where the test goes on.
    end = min(_microseconds(config.until) if config.until else _FAR, (log_end(source, pieces(source)[0]) or _FAR) + 1)
    if end <= begin:
        raise NothingServedError("logs", config.logs, "decisions after the beginning of the test")
    known = min(_microseconds(config.known_until) if config.known_until else begin, begin)
    return Split(base=base, canary=canary, share=share, begin=begin, end=end, version=version,
                 known_from=known - round(config.known_days * _DAY), known_until=known,
                 gap_seconds=config.gap_minutes * 60)


def compare(served: Served, split: Split, targets: Targets) -> ServedTest:
    """The arms' sums → the test."""
    base, canary = served.arms
    spread = mixture_spread(targets.effect, targets.level)
    raw = [effect(base, canary, place, _covariates(place, len(served.measures)))
           for place in range(len(served.measures))]
    known = [_is_enough(served, place, targets) and math.isfinite(each.error) and each.error > 0
             for place, each in enumerate(raw)]
    estimate = np.array([each.estimate for each in raw])
    error = np.array([each.error if is_known else math.nan for each, is_known in zip(raw, known, strict=True)])
    reach = always_valid_reach(error, spread, targets.level)
    p = always_valid_p(estimate, error, spread)
    adjusted = adjust(p, "holm")
    effects = tuple(MeasureEffect(
        name, each.base, each.estimate, float(error[place]), each.estimate - float(reach[place]),
        each.estimate + float(reach[place]), float(p[place]), float(adjusted[place]), each.reduction,
        _fading(served.halves, place, targets.level), _days(served, place, targets.level))
        for place, (name, each) in enumerate(zip(served.measures, raw, strict=True)))
    return ServedTest(split, spread, targets, sample_ratio(base.count, canary.count, split.share),
                      served.strays / served.decisions, served.decisions, (served.last - split.begin) / _DAY,
                      served.left_out, effects)


def sample_ratio(base: int, canary: int, share: float) -> SampleRatio:
    """Whether the arms have the users that the canary's share gives them."""
    from statsmodels.stats.gof import chisquare  # most of a second

    total = base + canary
    require(total > 0, "users", total, "at least one user")
    statistic, p = chisquare(np.array([base, canary]), np.array([1 - share, share]) * total)
    error = math.sqrt(share * (1 - share) / total)
    spread = mixture_spread(_RATIO_EFFECT * min(share, 1 - share))
    return SampleRatio(base, canary, share, float(statistic), float(p),
                       float(always_valid_p(canary / total - share, error, spread)))


def _covariates(place: int, measures: int) -> tuple[int, ...]:
    """The same measure before the test, requests before it, and whether there was anything before it."""
    return tuple(sorted({measures + place, 2 * measures - 3, 2 * measures}))


def _is_enough(served: Served, place: int, targets: Targets) -> bool:
    return all(arm.count >= targets.min_users and arm.events[place] >= targets.min_events for arm in served.arms)


def _fading(halves: tuple[Moments, Moments], place: int, level: float) -> tuple[float, float, float]:
    """The effect in users' last half of days less that in the first, by the delta method."""
    base, canary = halves
    measures = len(base.mean) // 2
    first, last = place, measures + place
    if min(base.count, canary.count) < 2 or base.mean[first] == 0 or base.mean[last] == 0:
        return (math.nan,) * 3
    ratio = {column: float(canary.mean[column] / base.mean[column]) for column in (first, last)}
    on_canary, on_base = np.zeros(2 * measures), np.zeros(2 * measures)
    for column, sign in ((first, -1.0), (last, 1.0)):
        on_canary[column] = sign / abs(float(base.mean[column]))
        on_base[column] = on_canary[column] * ratio[column]
    reach = NormalDist().inv_cdf((1 + level) / 2) * math.sqrt(canary.variance(on_canary) + base.variance(on_base))
    estimate = ratio[last] - ratio[first]
    return estimate, estimate - reach, estimate + reach


def _days(served: Served, place: int, level: float) -> tuple[DayEffect, ...]:
    found = []
    for day, (of_base, of_canary) in enumerate(zip(*served.days[:, :, place], strict=True)):
        arms = [_of_sums(*map(float, sums)) for sums in (of_base, of_canary)]
        if min(arm.count for arm in arms) < 2:
            break
        each = effect(arms[0], arms[1], 0)
        reach = NormalDist().inv_cdf((1 + level) / 2) * each.error
        found.append(DayEffect(day, sum(arm.count for arm in arms), each.estimate, each.estimate - reach,
                               each.estimate + reach))
    return tuple(found)


def _of_sums(count: float, total: float, squares: float) -> Moments:
    mean = total / max(count, 1.0)
    return Moments(int(count), np.array([mean]), np.array([[max(squares - count * mean**2, 0.0)]]))


def _microseconds(text: str) -> int:
    time = parse_time(text)
    assert time is not None
    return round(time.timestamp() * 1e6)
