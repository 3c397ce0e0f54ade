"""What an estimator answers, and how sums over users become an answer with its intervals."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import Field

from recfuse.config import Config, require
from recfuse.stats.intervals import DRAWS, LEVEL, UserSums, bootstrap, percentiles, relative_change

# Below it an estimate says more about a few requests than about the policy.
MIN_ESS = 100.0
# Ratios, and products of them, have the mean 1 where the log has everything that the policy does. Below this, what is
# missing or capped would pass for an effect, also where the weights are normalised.
MIN_MEAN_RATIO = 0.9
# By how much the mean ratio of an estimate that is not normalised may leave 1: it is wrong by about that share.
RATIO_TOLERANCE = 0.02
# Of fewer effective events a bootstrap's draws are so skewed that its intervals hold the truth less than nine times in
# ten.
MIN_EVENTS = 20.0
# An interval of which what is hidden is more than chance says little that the log knows.
MOST_HIDDEN = 1.0
Vector = NDArray[np.float64]
Statistic = Callable[[Vector], Vector]


class EstimateOptions(Config):
    """What every estimator is told beside its data."""

    min_ess: float = Field(MIN_ESS, ge=0, description="Below this effective sample size an estimator gives its reason "
                                                      "instead of a number.")
    ratio_tolerance: float = Field(RATIO_TOLERANCE, ge=0, allow_inf_nan=True, description=(
        "An estimate that is not normalised is refused where the mean ratio leaves 1 by more; inf asks nothing of what "
        "is missing."))
    min_mean_ratio: float = Field(MIN_MEAN_RATIO, ge=0, le=1, description="A normalised estimate is refused where the "
                                                                          "mean of the capped ratios is below it.")
    min_events: float = Field(MIN_EVENTS, ge=0, description="Of feedback with a smaller effective number of events an "
                                                            "estimator gives no interval.")
    draws: int = Field(DRAWS, ge=1, description="The bootstrap over users draws this many times.")
    level: float = Field(LEVEL, gt=0, lt=1, description="Intervals hold the truth with this probability.")
    seed: int = Field(0, description="The seed of the bootstrap.")

    @property
    def of_products(self) -> EstimateOptions:
        """The same for products of ratios, whose few large weights make intervals too narrow up to four times the
        effective sample size that ratios need."""
        return self.replace(min_ess=4 * self.min_ess)


DEFAULTS = EstimateOptions()


@dataclass(frozen=True)
class TrendPoint:
    """The relative change by one window of ratios, [m] each, with its interval; `window` requests long."""

    window: int
    change: Vector
    low: Vector
    high: Vector


@dataclass(frozen=True)
class OffPolicyEstimate:
    """What a log says about another policy; float64[m] each, one a behaviour.

    Attributes:
        estimate, low, high: value per request, per session or per user, and its bootstrap interval over users; NaN
            where refused.
        logged: the same of the logged policy, from the log alone.
        effective_sample_size: (Σρ)² / Σρ², the same for every behaviour as the weights are; of a sequential estimate,
            in sessions, at the request where it is smallest.
        requests, users: rows and distinct users of the log; capped_share: of the weights.
        mean_ratio: mean of the capped ratios, 1 where the log supports all that the policy does.
        estimator: its name; per: its unit, `request`, `session` or `user`.
        refused: why no number is given, "" where one is.
        change, change_low, change_high: relative to the log, with an interval that draws estimate and log together; NaN
            where nobody knows.
        cap: of the weights, inf for none; window: the requests of a product of ratios, None where there is no product.
        allowance: by how much both ends lie further out than chance alone asks, for weights that are cut or missing.
        bias_bound: what the cap hides at most, of feedback between the smallest and the largest of the log; None where
            nothing is capped on the way.
        feedback_share: of the value, what logged feedback carries and not critics; None where no critic speaks.
        ranks_only: no interval, since the estimate leans on critics: policies may be ordered by it, no more.
        warnings: whole sentences. trend: the changes by windows of 1, 2, … requests.
        drawn: float64[draws, m], the changes of the bootstrap; None where it cannot be compared with other estimates'.
    """

    estimate: Vector
    low: Vector
    high: Vector
    logged: Vector
    effective_sample_size: Vector
    requests: int
    users: int
    capped_share: float
    mean_ratio: float = math.nan
    estimator: str = "NCIS"
    per: str = "request"
    refused: str = ""
    change: Vector = dataclasses.field(default_factory=lambda: np.zeros(0))
    change_low: Vector = dataclasses.field(default_factory=lambda: np.zeros(0))
    change_high: Vector = dataclasses.field(default_factory=lambda: np.zeros(0))
    cap: float = math.inf
    window: int | None = None
    allowance: Vector | None = None
    bias_bound: Vector | None = None
    feedback_share: float | None = None
    ranks_only: bool = False
    warnings: tuple[str, ...] = ()
    trend: tuple[TrendPoint, ...] = ()
    drawn: Vector | None = dataclasses.field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        for name in ("change", "change_low", "change_high"):
            if len(getattr(self, name)) != len(self.logged):
                object.__setattr__(self, name, nan_vector(len(self.logged)))

    @property
    def interval(self) -> tuple[Vector, Vector]:
        """(low, high)"""
        return self.low, self.high

    @property
    def ess(self) -> Vector:
        """Short for `effective_sample_size`."""
        return self.effective_sample_size

    def warned(self, *sentences: str) -> OffPolicyEstimate:
        """The same with more warnings."""
        return dataclasses.replace(self, warnings=(*self.warnings, *sentences))

    def with_trend(self, *points: TrendPoint) -> OffPolicyEstimate:
        """The same with the changes by windows of 1, 2, … requests."""
        return dataclasses.replace(self, trend=points)

    def ranking(self, *sentences: str) -> OffPolicyEstimate:
        """The same without intervals, and why."""
        none = nan_vector(len(self.logged))
        return dataclasses.replace(self, low=none, high=none, change_low=none, change_high=none, ranks_only=True,
                                   warnings=(*self.warnings, *sentences))

    def refuse(self, reason: str) -> OffPolicyEstimate:
        """The reason in place of all numbers."""
        none = nan_vector(len(self.logged))
        return dataclasses.replace(self, estimate=none, low=none, high=none, change=none, change_low=none,
                                   change_high=none, refused=reason, drawn=None)


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What a log has for an estimate; the fields are those of `OffPolicyEstimate`, `size` its effective sample size.

    Attributes:
        hidden: [m], by how much the weights that are missing would move a normalised estimate, by what requests of
            large weights bring; None where the mean ratio itself decides.
        events: [m], how many events the weights leave, inf of feedback that has no small number of them; None where
            nobody counts.
    """

    estimator: str
    logged: Vector
    size: float
    requests: int
    users: int
    capped_share: float
    mean_ratio: float
    per: str = "request"
    refused: str = ""
    cap: float = math.inf
    window: int | None = None
    bias_bound: Vector | None = None
    hidden: Vector | None = None
    events: Vector | None = None


@dataclass(frozen=True, kw_only=True)
class Part:
    """An answer before its intervals.

    Attributes:
        evidence: of the log.
        sums: [U, k], one row a user.
        statistic: sums [B, k] → values [B, m], row by row.
        change: sums [B, k] → relative changes [B, m] from the logged policy; None where nobody knows.
    """

    evidence: Evidence
    sums: Vector | UserSums
    statistic: Statistic
    change: Statistic | None = None


def paired(statistic: Statistic, logged: Statistic) -> Statistic:
    """The relative change of a statistic from the log's own mean of the same draw (maths 4.6)."""
    return lambda sums: relative_change(statistic(sums), logged(sums))


def conclude(evidence: Evidence, sums: Vector | UserSums, statistic: Statistic, options: EstimateOptions,
             change: Statistic | None = None) -> OffPolicyEstimate:
    """A function of sums over users with its intervals, or NaN where the evidence is refused; arguments as of `Part`.
    """
    return conclude_all([Part(evidence=evidence, sums=sums, statistic=statistic, change=change)], options)[0]


def conclude_all(parts: Sequence[Part], options: EstimateOptions) -> list[OffPolicyEstimate]:
    """Answers whose users are the same ones, by one bootstrap for all of them."""
    alive = [part for part in parts if not part.evidence.refused]
    estimates, drawn = _bootstrap(alive, options) if alive else ({}, {})
    answers = []
    for part in parts:
        none = nan_vector(len(part.evidence.logged))
        answer = _blank(part.evidence, none)
        if id(part) in estimates:
            width = len(none)
            interval = percentiles(estimates[id(part)], drawn[id(part)], options.level)
            value, change = (slice(0, width), slice(width, 2 * width))
            answer = dataclasses.replace(
                answer, estimate=interval.estimate[value], low=interval.low[value], high=interval.high[value],
                change=interval.estimate[change], change_low=interval.low[change], change_high=interval.high[change],
                drawn=drawn[id(part)][:, change])
            if part.evidence.hidden is not None:
                answer = _allow(answer, part.evidence.hidden, options)
            if part.evidence.events is not None:
                answer = _without_interval(answer, part.evidence.events < options.min_events)
        answers.append(answer)
    return answers


def _blank(evidence: Evidence, none: Vector) -> OffPolicyEstimate:
    return OffPolicyEstimate(
        none, none, none, logged=evidence.logged, effective_sample_size=np.full(len(none), evidence.size),
        requests=evidence.requests, users=evidence.users, capped_share=evidence.capped_share,
        mean_ratio=evidence.mean_ratio, estimator=evidence.estimator, per=evidence.per, refused=evidence.refused,
        cap=evidence.cap, window=evidence.window, bias_bound=evidence.bias_bound)


def _bootstrap(parts: Sequence[Part], options: EstimateOptions) -> tuple[dict[int, Vector], dict[int, Vector]]:
    """Values and changes of every part, [2m], and of their draws, [draws, 2m]."""
    blocks, columns, widths, users = [], [], [], 0
    for part in parts:
        sums = part.sums if isinstance(part.sums, UserSums) else UserSums(
            len(part.sums), ((slice(0, len(part.sums)), part.sums),))
        require(sums.users >= 2, "users", sums.users, "at least 2 users")
        blocks += list(sums.blocks)
        columns.append(sum(values.shape[1] for _, values in sums.blocks))
        widths.append(2 * len(part.evidence.logged))
        users = max(users, sums.users)

    def statistic(sums: Vector) -> Vector:
        found, start = [], 0
        for part, width in zip(parts, columns, strict=True):
            own = sums[:, start:start + width]
            value = part.statistic(own)
            found += [value, np.full_like(value, np.nan) if part.change is None else part.change(own)]
            start += width
        return np.concatenate(found, 1)

    estimate, drawn = bootstrap(UserSums(users, tuple(blocks)), statistic, draws=options.draws, seed=options.seed)
    edges = np.concatenate([[0], np.cumsum(widths)])
    return ({id(part): estimate[edges[place]:edges[place + 1]] for place, part in enumerate(parts)},
            {id(part): drawn[:, edges[place]:edges[place + 1]] for place, part in enumerate(parts)})


def _without_interval(answer: OffPolicyEstimate, few: NDArray[np.bool_]) -> OffPolicyEstimate:
    """The answer without the intervals of these behaviours [m], of which too few events are weighed."""
    if answer.refused or not few.any():
        return answer
    low, high, change_low, change_high = (
        np.where(few, np.nan, ends) for ends in (answer.low, answer.high, answer.change_low, answer.change_high))
    drawn = None if answer.drawn is None else np.where(few, np.nan, answer.drawn)
    return dataclasses.replace(answer, low=low, high=high, change_low=change_low, change_high=change_high, drawn=drawn)


def _allow(answer: OffPolicyEstimate, hidden: Vector, options: EstimateOptions) -> OffPolicyEstimate:
    """The answer with ends that are further out by what weights hide that are cut or missing (maths 4.7), or why not.

    References:
        Armstrong & Kolesár, "Optimal Inference in a Class of Regression Models", Econometrica 86, 2018: an interval
        holds the truth where its half is that of chance and the largest bias.
    """
    half = (answer.high - answer.low) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        share, relative = np.where(half > 0, hidden / half, 0.0), hidden / np.abs(answer.logged)
    if math.isfinite(options.ratio_tolerance) and (share > MOST_HIDDEN).any():
        return answer.refuse(
            f"the mean ratio is {answer.mean_ratio:.2f}, where 1 is expected: what is missing would move the estimate "
            f"by {np.nanmax(share):.0%} of half its interval, by what requests of large ratios bring")
    return dataclasses.replace(
        answer, allowance=hidden, low=answer.low - hidden, high=answer.high + hidden,
        change_low=answer.change_low - relative, change_high=answer.change_high + relative)


def with_fit_error(sums: Vector, fit_error: ArrayLike | None, behaviours: int,
                   statistic: Statistic | None = None) -> tuple[Vector, Statistic]:
    """What `conclude` takes, for an estimate of which critics are a part.

    Args:
        sums: [U, k] of the users that are evaluated.
        fit_error: [U', m], what the users of the critics' samples add to the estimate (`LinearCritics.fit_error`);
            None for critics without error. The two sets of users are taken to be different ones.
        behaviours: m.
        statistic: sums [B, k] → estimates [B, m]; None for the mean of sums [U, m + 1], of values and of how many.

    Returns:
        Sums [U + U', k + m], and the statistic with both.
    """
    error, width = fit_errors(fit_error, behaviours), sums.shape[1]
    both = np.zeros((len(sums) + len(error), width + behaviours))
    both[:len(sums), :width], both[len(sums):, width:] = sums, error
    of_users = statistic or (lambda s: s[:, :behaviours] / s[:, behaviours:])
    return both, lambda s: of_users(s[:, :width]) + s[:, width:]


def fit_errors(fit_error: ArrayLike | None, behaviours: int) -> Vector:
    """[U', m] of `with_fit_error`, no rows where None.

    Raises:
        InvalidFieldError: another shape, or a value that is not finite.
    """
    error = np.zeros((0, behaviours)) if fit_error is None else np.asarray(fit_error, np.float64)
    require(error.ndim == 2 and error.shape[1] == behaviours, "fit_error", error.shape,
            f"an array [users, {behaviours}]")
    require(bool(np.isfinite(error).all()), "fit_error", "not finite", "finite numbers")
    return error


def nan_vector(behaviours: int) -> Vector:
    """float64[m] of NaN: no estimate."""
    return np.full(behaviours, np.nan)
