"""What a session log can tell before anything is learned from it: its rows, its exploration, and for every behaviour
how many more days until an effect of a given size can be seen (maths 7.7)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from recfuse.evaluation.advice import mean_square
from recfuse.evaluation.answers import MIN_ESS
from recfuse.evaluation.config import CheckConfig
from recfuse.evaluation.held_out import HeldOut
from recfuse.logs.account import Account
from recfuse.logs.reading import LogRows, read_log
from recfuse.logs.source import BROKEN, LogSource, Piece, piece_columns, pieces, read_piece
from recfuse.stats.intervals import sum_per_user
from recfuse.stats.significance import POWER, detectable_effect

_DAY = 86_400e6  # microseconds
Vector = NDArray[np.float64]


@dataclass(frozen=True)
class Outlook:
    """One behaviour.

    Attributes:
        name: of the behaviour; mean: per request; daily: per day of the log.
        test: more days until an A/B test of two halves of this traffic sees the effect with a power of 80%.
        estimate: likewise for an off-policy estimate from the log's own exploration. Either is 0 where the log is long
            enough, and inf where no length of it would do.
    """

    name: str
    mean: float
    daily: float
    test: float
    estimate: float


@dataclass(frozen=True)
class CheckResult:
    """What a log has.

    Attributes:
        account: of its rows; users, sessions, requests: that are kept; days: from the first to the last of them.
        with_candidates: share of the rows that say what there was to rank and what was shown; None for samples.
        drawn: share of the requests whose weights were drawn, with a known density.
        sigma: logged σ per fusion parameter, the mean over those requests; empty where there is none.
        support: requests of the log that a policy one step away has of its own (effective sample size).
        outlook: of every behaviour.
        verdict: one sentence.
    """

    account: Account
    users: int
    sessions: int
    requests: int
    days: float
    with_candidates: float | None
    drawn: float
    sigma: dict[str, float]
    support: float
    outlook: tuple[Outlook, ...]
    verdict: str


def check_log(config: CheckConfig) -> CheckResult:
    """Reads the log whole and says what it has.

    Raises:
        InvalidFieldError: it cannot be read, or holds no good row.
    """
    rows = read_log(config.logs, config)
    rows.account.require(1.0, "logs")
    vocabulary = rows.source.vocabulary
    log = HeldOut.of_sessions(rows.sessions, vocabulary)
    days = _days(log)
    known = log.take(log.known)
    square = _mean_square(known, config.step)
    sums = sum_per_user(log.feedback, log.user_id)
    outlook = tuple(_outlooks(vocabulary.behaviour_names, log, sums, days, square, config))
    sigma = {} if known.sigma is None or not len(known.sigma) else dict(zip(
        vocabulary.fusion_parameters, known.sigma.mean(0).tolist(), strict=True))
    support = len(known.state) / square if math.isfinite(square) else 0.0
    return CheckResult(
        rows.account, len(sums), int(log.session.max()) + 1, len(log.state), days, _with_candidates(rows),
        len(known.state) / len(log.state), sigma, support, outlook,
        _verdict(rows.account, support, outlook, config))


def _days(log: HeldOut) -> float:
    if log.ts is None:
        return math.nan
    return max(float(log.ts.max() - log.ts.min()) / _DAY, 1 / 1440)  # a minute at least


def _mean_square(log: HeldOut, step: float) -> float:
    """E ρ² of a policy whose mean lies `step` logged σ away; inf where nothing was drawn."""
    if log.mu is None or log.sigma is None or not len(log.state):
        return math.inf
    mu, sigma = log.mu.astype(np.float64), log.sigma.astype(np.float64)
    return mean_square(mu + step * sigma / math.sqrt(mu.shape[1]), sigma, mu, sigma)


def _outlooks(names: tuple[str, ...], log: HeldOut, sums: Vector, days: float, square: float, config: CheckConfig
              ) -> Iterator[Outlook]:
    requests, total = len(log.state), log.feedback.astype(np.float64).sum(0)
    normal = NormalDist()
    wanted = normal.inv_cdf((1 + config.level) / 2) + normal.inv_cdf(POWER)
    with np.errstate(divide="ignore", invalid="ignore"):
        # Halves of these users; what they find falls with the root of the time.
        halves = (detectable_effect(sums, len(sums), level=config.level) * math.sqrt(2) if len(sums) > 1
                  else np.full(len(names), np.inf))
        alone = np.sqrt((log.feedback.astype(np.float64)**2).sum(0)) / np.abs(total)
        ratios = wanted * math.sqrt(max(square - 1, 0.0)) * alone * math.sqrt(requests / max(log.known.sum(), 1))
    for place, name in enumerate(names):
        test, estimate = (_more(float(each[place]), config.effect, days) for each in (halves, ratios))
        yield Outlook(name, float(total[place]) / requests, float(total[place]) / days, test, estimate)


def _more(found: float, effect: float, days: float) -> float:
    """More days until what `days` find, a relative effect, has shrunk to the wanted one."""
    if not math.isfinite(found):
        return math.inf
    return max(days * ((found / effect)**2 - 1), 0.0)


def _with_candidates(rows: LogRows) -> float | None:
    if rows.source.kind == "samples":
        return None
    counts = [_shown(rows.source, piece) for piece in pieces(rows.source)[0]]
    return sum(shown for shown, _ in counts) / max(sum(all_of_them for _, all_of_them in counts), 1)


def _shown(source: LogSource, piece: Piece) -> tuple[int, int]:
    names = piece_columns(source, piece)
    if "shown" not in names or "candidates" not in names:
        return 0, piece.kept
    try:
        table = read_piece(source, piece, [name for name in names if name != "shown"])
    except BROKEN:  # its rows are quarantined
        return 0, piece.kept
    return int(pc.sum(pc.is_valid(table["shown"])).as_py() or 0), table.num_rows


def _verdict(account: Account, support: float, outlook: tuple[Outlook, ...], config: CheckConfig) -> str:
    if account.quarantined_share > config.quarantine_limit:
        return f"not yet: {account.quarantined_share:.1%} of the rows are quarantined, more than ingest takes"
    if support == 0:
        return "not yet: no request was drawn with a known density, so that there is nothing to learn from"
    if support < MIN_ESS:
        return (f"not yet: the log is worth {support:,.0f} requests of a policy {config.step:g} σ away, and "
                f"{MIN_ESS:g} are needed")
    waiting = {each.name: min(each.test, each.estimate) for each in outlook}
    behind = {name: days for name, days in waiting.items() if days > 0}
    if not behind:
        return f"learn: {config.effect:.2%} of every behaviour can be seen"
    parts = [f"{name} in {math.ceil(days):,} days" if math.isfinite(days) else f"{name} never" for name, days in
             sorted(behind.items(), key=lambda item: item[1])]
    return f"learn, and keep logging: {config.effect:.2%} can be seen of {', '.join(parts)}" + (
        "; of the others today" if len(behind) < len(waiting) else "")
