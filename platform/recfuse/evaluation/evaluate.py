"""A trained policy on held-out logs, and the report of all that the jobs measured: what the job `evaluate` runs."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from recfuse.behaviours import Vocabulary
from recfuse.bundle import newest_bundle, read_bundle
from recfuse.config import InvalidFieldError, require
from recfuse.evaluation.fitted_q import ActionMoments, LinearCritics, Transitions, fit_critics
from recfuse.evaluation.ope import direct_method, doubly_robust, importance_sampling, ncis
from recfuse.evaluation.sequential import (
    Sessions,
    critic_weights,
    fitted_q_estimate,
    per_decision,
    sequential_doubly_robust,
    supported_horizon,
    trajectory_importance_sampling,
)
from recfuse.evaluation.streaming import estimates_of_sums, merge, user_sums
from recfuse.evaluation.support import MIN_ESS, EstimateOptions, OffPolicyEstimate
from recfuse.fusion.inference import FusionActor
from recfuse.logs.schema import ACCOUNT_FILE, VOCABULARY_FILE
from recfuse.report.report import ReportData, write_report
from recfuse.stats.intervals import LEVEL

logger = logging.getLogger("recfuse")
REPORT, METRICS = "report.html", "metrics.json"
_ROWS = 65_536
_DRAWS = 32  # of actions, where their mean and variance have no closed form
_MOST_FEATURES, _MOST_GROUPS = 3, 8


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Config of the job.

    Attributes:
        fusion: a fusion bundle, or a directory that holds one and its `metrics.json` and `history.jsonl`.
        holdout: native session logs or samples that the policy was not trained on.
        after: ISO time; only held-out requests from then on count, so that logs are split by time. Empty for all.
        new_users: only held-out requests of users whom the samples lack count, so that logs are split by user.
        samples: what it was trained on; the critics of the doubly robust estimators and of fitted Q evaluation are
            fitted to it (those by critics alone see the policy with the luck that it learned from), and a row of it
            among the held-out ones is an error.
        scenes, simulation, ab_test: outputs of the jobs; what is missing there is missing in the report.
        serving: a JSON file with `latency_ms`; optional.
        output: gets `report.html` and `metrics.json`.
        cap: of the importance weights; min_ess: below it no estimate is given but the reason.
        session_discount: γ of a session's value; 1 is what a session brings in total.
        critic_rows: samples that the critics are fitted to, the first ones.
        streaming: for logs that do not fit in memory: NCIS and IS go over all of them in batches, by Ray Data, and all
            else over the first `critic_rows` requests.
    """

    fusion: str = "runs/fusion"
    holdout: str = "runs/simulation/holdout"
    after: str = ""
    new_users: bool = False
    samples: str = "runs/samples"
    scenes: str = "runs/scenes"
    simulation: str = "runs/simulation"
    ab_test: str = "runs/ab_test"
    serving: str = "runs/serving.json"
    output: str = "runs/report"
    cap: float = 10.0
    min_ess: float = MIN_ESS
    session_discount: float = 1.0
    critic_rows: int = 100_000
    streaming: bool = False
    level: float = LEVEL
    seed: int = 0

    def __post_init__(self) -> None:
        require(self.cap > 0, "cap", self.cap, "a number > 0")
        require(0 < self.level < 1, "level", self.level, "a number in (0, 1)")
        require(not self.after or _time(self.after) is not None, "after", self.after,
                "an ISO time, as 2022-05-04T00:00")
        require(not (self.after and self.streaming), "after", self.after, "nothing with streaming")
        require(not (self.new_users and self.streaming), "new_users", self.new_users, "False with streaming")
        require(0 <= self.session_discount <= 1, "session_discount", self.session_discount, "a number in [0, 1]")
        require(self.critic_rows >= 1, "critic_rows", self.critic_rows, "an integer ≥ 1")
        require(self.min_ess >= 0, "min_ess", self.min_ess, "a number ≥ 0")

    @property
    def options(self) -> EstimateOptions:
        """Of every estimator."""
        return EstimateOptions(min_ess=self.min_ess, level=self.level, seed=self.seed)


def _time(text: str) -> datetime | None:
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


@dataclass(frozen=True)
class Separation:
    """How the held-out rows are kept apart from the samples.

    Attributes:
        users: distinct held-out users; shared_users: of them, those whom the samples have too.
        shared_rows: held-out rows that are in the samples; evaluation refuses any.
        of_shared_users: bool[n], which held-out rows are theirs.
    """

    users: int
    shared_users: int
    shared_rows: int
    of_shared_users: np.ndarray = field(compare=False, repr=False)

    def __str__(self) -> str:
        return (f"{self.shared_rows} held-out rows and {self.shared_users:,} of {self.users:,} held-out users "
                "are in the samples")


@dataclass(frozen=True)
class EvaluateResult:
    """Attributes:
        report: the HTML page.
        off_policy: NCIS on held-out logs.
        estimates: by every estimator, those of requests first.
        behaviours: the names of their columns.
        separation: of held-out rows and samples; None where there are no samples.
        horizon: requests of a session over which the log supports products of ratios.
    """

    report: Path
    off_policy: OffPolicyEstimate
    estimates: tuple[OffPolicyEstimate, ...]
    behaviours: tuple[str, ...]
    separation: Separation | None
    horizon: int

    def rows(self) -> list[list[str]]:
        """A line per behaviour, as text: mean in the log, estimate, interval, ESS."""
        found = self.off_policy
        return [[name, f"{found.logged[index]:.5g}",
                 "–" if found.refused else f"{found.estimate[index]:.5g}",
                 "–" if found.refused else f"[{found.low[index]:.5g}, {found.high[index]:.5g}]",
                 f"{found.effective_sample_size[index]:,.0f}"] for index, name in enumerate(self.behaviours)]

    def estimator_rows(self) -> list[list[str]]:
        """A line per estimator, as text: its difference to the log per behaviour ± half its interval, or why none."""
        return [[one.estimator, one.per, f"{one.effective_sample_size[0]:,.0f}",
                 *([one.refused] + [""] * (len(self.behaviours) - 1) if one.refused else
                   [_relative(one, index) for index in range(len(self.behaviours))])] for one in self.estimates]


def _relative(found: OffPolicyEstimate, index: int) -> str:
    logged = found.logged[index]
    if not logged:
        return f"{found.estimate[index]:.3g}"
    return f"{found.estimate[index] / logged - 1:+.1%} ± {(found.high[index] - found.low[index]) / 2 / logged:.1%}"


@dataclass(frozen=True)
class HeldOut:
    """Logged requests, those of a session in the order of time: state [n, S], action [n, M], log_prob [n] under the
    behaviour policy, feedback [n, m], session [n]."""

    user_id: np.ndarray
    state: np.ndarray
    action: np.ndarray
    log_prob: np.ndarray
    feedback: np.ndarray
    session: np.ndarray

    def take(self, mask: np.ndarray) -> HeldOut:
        """The requests in the mask bool[n]."""
        return HeldOut(**{name: column[mask] for name, column in self.__dict__.items()})


class Dataset(Protocol):
    """What is needed of a ray.data.Dataset."""

    def map_batches(self, function: Callable[..., pa.Table], **options: Any) -> Dataset:
        """Applies the function to every batch."""
        ...

    def iter_batches(self, **options: Any) -> Iterable[pa.Table]:
        """The batches."""
        ...


def evaluate(config: EvaluateConfig, dataset: Dataset | None = None) -> EvaluateResult:
    """Estimates the policy's value on held-out logs and writes the report.

    Args:
        dataset: the held-out logs as a Ray dataset, where the config asks for `streaming`.

    Raises:
        InvalidFieldError: bad logs, or held-out rows that the policy was trained on.
    """
    bundle = newest_bundle(config.fusion, "fusion")
    actor = FusionActor.from_bundle(read_bundle(bundle, "fusion"))
    names = actor.vocabulary.behaviour_names
    log = read_held_out(config.holdout, actor.vocabulary, config.critic_rows if config.streaming else None,
                        config.after)
    require(config.streaming == (dataset is not None), "streaming", config.streaming, "a dataset with it, none without")
    separation = separate(config.samples, log)
    if separation:
        logger.info("evaluate: %s", separation)
        require(separation.shared_rows == 0, "holdout", f"{separation.shared_rows} rows that are in {config.samples}",
                "rows that the policy was not trained on")
    if config.new_users:
        require(separation is not None, "new_users", True, f"samples in {config.samples} to know their users from")
        assert separation is not None
        require(separation.shared_users < separation.users, "holdout", f"{separation.users} users, all in the samples",
                "a user whom the samples lack")
        log = log.take(~separation.of_shared_users)
        separation = separate(config.samples, log)
    estimates, horizon = estimate(config, actor, log)
    if dataset is not None:
        estimates[:2] = estimate_streaming(config, actor, dataset)
    found = estimates[0]
    logger.info("evaluate: NCIS of %s on %s requests: effective sample size %.0f%s", actor.version,
                f"{found.requests:,}", found.effective_sample_size[0], f"; {found.refused}" if found.refused else "")
    output = Path(config.output)
    output.mkdir(parents=True, exist_ok=True)
    off_policy = _plain(found, names) | {
        "estimators": [_plain(one, names) for one in estimates], "horizon": horizon,
        "separation": str(separation) if separation else None}
    groups = weights_per_group(actor, log)
    metrics = output / METRICS
    temporary = metrics.with_name(f".{METRICS}.{os.getpid()}")
    temporary.write_text(json.dumps({"policy": actor.version, "off_policy": off_policy, "weights": groups}, indent=1))
    os.replace(temporary, metrics)
    report = write_report(output / REPORT, collect(config, off_policy, actor.version, groups))
    return EvaluateResult(report, found, tuple(estimates), names, separation, horizon)


def estimate(config: EvaluateConfig, actor: FusionActor, log: HeldOut) -> tuple[list[OffPolicyEstimate], int]:
    """Every estimator, NCIS first, and the supported horizon; without samples, those that need no critic."""
    target = policy_log_prob(actor, log)
    options = config.options
    one = (target, log.log_prob, log.feedback, config.cap, log.user_id)
    sessions = Sessions.of(target, log.log_prob, log.feedback, config.session_discount, config.cap, log.session,
                           log.user_id)
    horizon = supported_horizon(sessions, config.min_ess)
    first = max(horizon, 1)
    requests = [ncis(*one, options), importance_sampling(*one, options)]
    whole = [trajectory_importance_sampling(sessions, options, normalise=True, horizon=first),
             per_decision(sessions, options, horizon=first),
             per_decision(sessions, options, normalise=True, horizon=first)]
    samples = read_transitions(config.samples, actor.vocabulary, config.critic_rows)
    if samples is not None:
        moments = action_moments(actor, config.seed)
        of_request, of_session = fit_critics(samples, moments, [0.0, config.session_discount])
        q, v = of_request.predict(log.state, log.action), of_request.expect(log.state, moments)
        requests += [doubly_robust(*one, q, v, options), doubly_robust(*one, q, v, options, normalise=True),
                     direct_method(v, log.feedback, log.user_id, options,
                                   fit_error=of_request.fit_error(samples, moments, log.state))]
        whole += _with_critics(sessions, of_session, log, moments, options, first, samples)
    return requests + whole, horizon


def estimate_streaming(config: EvaluateConfig, actor: FusionActor, dataset: Dataset) -> list[OffPolicyEstimate]:
    """NCIS and IS of a whole dataset; what comes back of a batch is a row a user."""
    parts = dataset.map_batches(_sums_of_batch, fn_args=(actor, config.cap), batch_format="pyarrow", batch_size=_ROWS)
    sums = merge(parts.iter_batches(batch_format="pyarrow", batch_size=None))
    return estimates_of_sums(sums, config.options)


def _sums_of_batch(batch: pa.Table, actor: FusionActor, cap: float) -> pa.Table:
    if not batch.num_rows:
        return pa.table({})
    log = _held_out(batch, actor.vocabulary)
    return user_sums(policy_log_prob(actor, log), log.log_prob, log.feedback, cap, log.user_id)


def _with_critics(sessions: Sessions, critics: LinearCritics, log: HeldOut, moments: ActionMoments,
                  options: EstimateOptions, horizon: int, samples: Transitions) -> list[OffPolicyEstimate]:
    if critics.refused:
        return [fitted_q_estimate(sessions, np.zeros_like(log.feedback), options, refused=critics.refused)]
    q, v = critics.predict(log.state, log.action), critics.expect(log.state, moments)
    robust = []
    for normalise in (False, True):
        of_action, of_value = critic_weights(sessions, normalise=normalise, horizon=horizon)
        error = critics.fit_error(samples, moments, log.state, of_value=of_value, action=log.action,
                                  of_action=of_action)
        robust.append(sequential_doubly_robust(sessions, q, v, options, normalise=normalise, horizon=horizon,
                                               fit_error=error))
    return [*robust, fitted_q_estimate(
        sessions, v, options, fit_error=critics.fit_error(samples, moments, log.state[sessions.step == 0]))]


def action_moments(actor: FusionActor, seed: int = 0) -> ActionMoments:
    """Mean and variance of the policy's actions with its exploration: those of the Gaussian, or, where it is squashed
    to a range, of draws."""
    rng = np.random.default_rng([seed, 0xAD])

    def moments(state: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        decision = actor.act(state, explore=False)
        if np.array_equal(decision.action, decision.mu):
            return decision.mu.astype(np.float64), decision.sigma.astype(np.float64) ** 2
        draws = np.stack([actor.act(state, explore=True, rng=rng).action.astype(np.float64) for _ in range(_DRAWS)])
        return draws.mean(0), draws.var(0, ddof=1)

    return moments


def weights_per_group(actor: FusionActor, log: HeldOut) -> dict[str, Any]:
    """Mean fusion weights of the policy (without exploration) and of the log, in all and per group of requests: the
    values of those categorical features of the state that move them most. Each vector is scaled to the length 1, which
    changes no ranking."""
    weights = np.concatenate([actor.act(log.state[start:start + _ROWS], explore=False).action
                              for start in range(0, len(log.state), _ROWS)]).astype(np.float64)
    everybody = _group("all", "", _unit(weights))
    found: list[tuple[float, list[dict[str, Any]]]] = []
    start = 0
    for feature in actor.vocabulary.state_features:
        groups = []
        for place, value in enumerate(feature.categories[:_MOST_GROUPS]):
            mine = log.state[:, start + place] > .5
            if mine.sum() >= MIN_ESS:
                groups.append(_group(feature.name, value, _unit(weights[mine])))
        start += feature.width
        if len(groups) > 1:
            # Features by how far their groups lie from everybody, in the mean over requests.
            away = [one["requests"] * float(np.square(np.subtract(one["mean"], everybody["mean"])).sum())
                    for one in groups]
            found.append((sum(away) / sum(one["requests"] for one in groups), groups))
    chosen = sorted(found, key=lambda pair: -pair[0])[:_MOST_FEATURES]
    return {"parameters": list(actor.vocabulary.fusion_parameters), "logged": _unit(log.action).mean(0).tolist(),
            "groups": [everybody, *(group for _, groups in chosen for group in groups)]}


def _group(feature: str, value: str, weights: np.ndarray) -> dict[str, Any]:
    return {"feature": feature, "value": value, "requests": len(weights), "mean": weights.mean(0).tolist()}


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors.astype(np.float64) / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def separate(samples: str | Path, log: HeldOut) -> Separation | None:
    """Compares held-out rows with the samples, by state and action; None where there are no samples."""
    files = sorted(str(file) for file in Path(samples).glob("*.parquet"))
    if not files:
        return None
    mine, shared_rows = _keys(log.state, log.action), 0
    of_row = pa.array(log.user_id).cast(pa.string())
    own_users = pc.unique(of_row)
    shared = np.zeros(len(own_users), bool)
    for batch in ds.dataset(files).to_batches(columns=["user_id", "state", "action"]):
        table = pa.Table.from_batches([batch])
        if not table.num_rows:
            continue
        keys = _keys(*(_matrix(table[name], getattr(log, name).shape[1]) for name in ("state", "action")))
        shared_rows += int(np.isin(mine, keys).sum())
        shared |= pc.is_in(own_users, pc.unique(table["user_id"].cast(pa.string()))).to_numpy(zero_copy_only=False)
    rows = pc.is_in(of_row, own_users.filter(pa.array(shared))).to_numpy(zero_copy_only=False)
    return Separation(len(own_users), int(shared.sum()), shared_rows, rows)


def _keys(state: np.ndarray, action: np.ndarray) -> np.ndarray:
    """uint64[n] of rows of float32: the same for the same bits."""
    bits = np.ascontiguousarray(np.concatenate([state, action], 1), np.float32).view(np.uint32).astype(np.uint64)
    factors = np.random.default_rng(0).integers(1, 1 << 63, bits.shape[1], np.uint64) | np.uint64(1)
    with np.errstate(over="ignore"):
        keys: np.ndarray = (bits * factors).sum(1, dtype=np.uint64)
    return keys


def read_transitions(directory: str | Path, vocabulary: Vocabulary, rows: int) -> Transitions | None:
    """The first samples of a directory; None where it holds none."""
    directory = Path(directory)
    files = sorted(str(file) for file in directory.glob("*.parquet"))
    if not files:
        return None
    _check_vocabulary(directory, vocabulary, "samples")
    table = ds.dataset(files).head(rows, columns=["user_id", "state", "action", "feedback", "next_state", "done"])
    widths = {"state": vocabulary.state_size, "action": vocabulary.action_size, "next_state": vocabulary.state_size,
              "feedback": len(vocabulary.behaviour_names)}
    return Transitions(**{name: _matrix(table[name], width) for name, width in widths.items()},
                       done=table["done"].to_numpy(), user=table["user_id"].to_numpy())


def _check_vocabulary(directory: Path, vocabulary: Vocabulary, field: str) -> None:
    own = Vocabulary.load(directory / VOCABULARY_FILE)
    for name in ("behaviour_names", "fusion_parameters", "state_size"):
        require(getattr(own, name) == getattr(vocabulary, name), f"{field} {name}", getattr(own, name),
                f"{getattr(vocabulary, name)}, as in the policy's vocabulary")


def read_held_out(directory: str | Path, vocabulary: Vocabulary, rows: int | None = None,
                  after: str = "") -> HeldOut:
    """Reads native session logs (`feedback` is a struct) or samples (`feedback` is a list, a row with `done` ends a
    session); the first rows, where a number of them is given; those from a time on, where one is given.

    Raises:
        InvalidFieldError: no such directory, no rows, a column is missing, or the vocabularies do not fit.
    """
    directory = Path(directory)
    require(directory.is_dir(), "holdout", str(directory), "a directory of session logs or samples")
    _check_vocabulary(directory, vocabulary, "holdout")
    files = sorted(str(file) for file in directory.glob("*.parquet"))
    require(bool(files), "holdout", str(directory), "a directory with *.parquet")
    wanted = ["user_id", "state", "action", "action_logp", "feedback"]
    source = ds.dataset(files)
    for name in wanted:
        require(name in source.schema.names, f"holdout column {name}", source.schema.names, f"a column {name}")
    wanted += [name for name in ("session_id", "ts", "done") if name in source.schema.names]
    require(not after or "ts" in wanted, "after", after, "session logs with a column ts")
    late = ds.field("ts") >= pa.scalar(_time(after), pa.timestamp("us", "UTC")) if after else None
    try:
        table = (source.to_table(columns=wanted, filter=late) if rows is None else
                 source.head(rows, columns=wanted, filter=late))
    except (pa.ArrowInvalid, OSError) as error:
        raise InvalidFieldError("holdout", str(directory), f"readable Parquet ({error})") from None
    require(table.num_rows > 0, "holdout", table.num_rows, "at least one request")
    if "ts" in wanted:
        table = table.sort_by("ts")
    return _held_out(table.combine_chunks(), vocabulary)


def _held_out(table: pa.Table, vocabulary: Vocabulary) -> HeldOut:
    return HeldOut(
        user_id=table["user_id"].to_numpy(), state=_matrix(table["state"], vocabulary.state_size),
        action=_matrix(table["action"], vocabulary.action_size),
        log_prob=table["action_logp"].to_numpy().astype(np.float64),
        feedback=_feedback(table["feedback"], vocabulary.behaviour_names), session=_session(table))


def _session(table: pa.Table) -> np.ndarray:
    """A session id a row; without any, every request is a session of its own."""
    if "session_id" in table.column_names and table["session_id"].null_count == 0:
        return table["session_id"].to_numpy()
    if "done" in table.column_names:
        done = table["done"].to_numpy() > .5
        return np.concatenate([[0], np.cumsum(done)[:-1]])
    return np.arange(table.num_rows)


def _matrix(column: pa.ChunkedArray, width: int) -> np.ndarray:
    flat = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    require(len(flat) == len(column) * width, column.type, len(flat), f"lists of {width} numbers in every row")
    return flat.reshape(len(column), width)


def _feedback(column: pa.ChunkedArray, names: tuple[str, ...]) -> np.ndarray:
    if not pa.types.is_struct(column.type):
        return _matrix(column, len(names))
    fields = column.combine_chunks()
    # A behaviour that a row does not report did not happen in it.
    return np.stack([np.nan_to_num(fields.field(name).to_numpy(zero_copy_only=False)) for name in names], 1)


def policy_log_prob(actor: FusionActor, log: HeldOut) -> np.ndarray:
    """log π(a_t|s_t) of the logged actions under the policy with its exploration, float64[n]."""
    parts = []
    for start in range(0, len(log.state), _ROWS):
        part = slice(start, start + _ROWS)
        parts.append(actor.log_prob(log.state[part].astype(np.float32), log.action[part]))
    return np.concatenate(parts)


def collect(config: EvaluateConfig, off_policy: dict[str, Any], policy: str,
            weights: dict[str, Any] | None = None) -> ReportData:
    """What the jobs left in their directories."""
    simulation = _json(Path(config.simulation) / METRICS) or {}
    scorer = (_json(Path(config.scenes) / METRICS) or {}).get("by_pair", ())
    subject = {"policy": policy, "held-out logs": config.holdout}
    if off_policy.get("separation"):
        subject["kept apart"] = off_policy["separation"]
    if "exposures" in simulation:
        subject["exposures"] = simulation["exposures"]
    account = (_json(Path(config.samples) / ACCOUNT_FILE) or {}).get("account")
    return ReportData(
        account=account, history=_lines(Path(config.fusion) / "history.jsonl"),
        ab_test=_json(Path(config.ab_test) / METRICS), off_policy=off_policy, scorer=scorer,
        response=simulation.get("response"), calibration=simulation.get("calibration", ()),
        serving=_json(Path(config.serving)), weights=weights, subject=subject)


def _json(path: Path) -> Any:
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise InvalidFieldError(path.name, str(path), f"a JSON file ({error})") from None


def _lines(path: Path) -> list[dict[str, Any]]:
    path = path.parent / "history.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def _plain(found: OffPolicyEstimate, names: tuple[str, ...]) -> dict[str, Any]:
    vectors = {key: [None if np.isnan(value) else float(value) for value in getattr(found, key)]
               for key in ("estimate", "low", "high", "logged", "effective_sample_size")}
    numbers = {key: getattr(found, key) for key in ("estimator", "per", "requests", "users", "capped_share",
                                                    "mean_ratio", "refused")}
    return {"behaviours": list(names), **vectors, **numbers}
