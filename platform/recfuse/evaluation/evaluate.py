"""A trained policy on held-out logs, and the report of all that the jobs measured: what the job `evaluate` runs."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds

from recfuse.behaviours import Vocabulary
from recfuse.bundle import newest_bundle, read_bundle
from recfuse.density import gaussian_log_density
from recfuse.errors import InvalidFieldError, require
from recfuse.evaluation.intervals import LEVEL
from recfuse.evaluation.ope import MIN_ESS, OffPolicyEstimate, ncis
from recfuse.evaluation.report import ReportData, write_report
from recfuse.fusion.inference import FusionActor
from recfuse.logs.schema import ACCOUNT_FILE, VOCABULARY_FILE

logger = logging.getLogger("recfuse")
REPORT, METRICS = "report.html", "metrics.json"
_ROWS = 65_536


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Config of the job.

    Attributes:
        fusion: a fusion bundle, or a directory that holds one and its `metrics.json` and `history.jsonl`.
        holdout: native session logs or samples that the policy was not trained on.
        samples, scenes, simulation, ab_test: outputs of the jobs; what is missing there is missing in the report.
        serving: a JSON file with `latency_ms`; optional.
        output: gets `report.html` and `metrics.json`.
        cap: of the importance weights; min_ess: below it no estimate is given but the reason.
    """

    fusion: str = "runs/fusion"
    holdout: str = "runs/simulation/holdout"
    samples: str = "runs/samples"
    scenes: str = "runs/scenes"
    simulation: str = "runs/simulation"
    ab_test: str = "runs/ab_test"
    serving: str = "runs/serving.json"
    output: str = "runs/report"
    cap: float = 10.0
    min_ess: float = MIN_ESS
    level: float = LEVEL
    seed: int = 0

    def __post_init__(self) -> None:
        require(self.cap > 0, "cap", self.cap, "a number > 0")
        require(0 < self.level < 1, "level", self.level, "a number in (0, 1)")


@dataclass(frozen=True)
class EvaluateResult:
    """Attributes:
        report: the HTML page.
        off_policy: the estimate on held-out logs.
        behaviours: the names of its columns.
    """

    report: Path
    off_policy: OffPolicyEstimate
    behaviours: tuple[str, ...]

    def rows(self) -> list[list[str]]:
        """A line per behaviour, as text: mean in the log, estimate, interval, ESS."""
        found = self.off_policy
        return [[name, f"{found.logged[index]:.5g}",
                 "–" if found.refused else f"{found.estimate[index]:.5g}",
                 "–" if found.refused else f"[{found.low[index]:.5g}, {found.high[index]:.5g}]",
                 f"{found.effective_sample_size[index]:,.0f}"] for index, name in enumerate(self.behaviours)]


@dataclass(frozen=True)
class HeldOut:
    """Logged requests: state [n, S], action [n, M], log_prob [n] under the behaviour policy, feedback [n, m]."""

    user_id: np.ndarray
    state: np.ndarray
    action: np.ndarray
    log_prob: np.ndarray
    feedback: np.ndarray


def evaluate(config: EvaluateConfig) -> EvaluateResult:
    """Estimates the policy's value on held-out logs and writes the report."""
    bundle = newest_bundle(config.fusion, "fusion")
    actor = FusionActor.from_bundle(read_bundle(bundle, "fusion"))
    names = actor.vocabulary.behaviour_names
    log = read_held_out(config.holdout, actor.vocabulary)
    found = ncis(policy_log_prob(actor, log), log.log_prob, log.feedback, config.cap, log.user_id,
                 min_ess=config.min_ess, level=config.level, seed=config.seed)
    logger.info("evaluate: NCIS of %s on %s requests: effective sample size %.0f%s", actor.version,
                f"{found.requests:,}", found.effective_sample_size[0], f"; {found.refused}" if found.refused else "")
    output = Path(config.output)
    output.mkdir(parents=True, exist_ok=True)
    off_policy = _plain(found, names)
    (output / METRICS).write_text(json.dumps({"policy": actor.version, "off_policy": off_policy}, indent=1))
    report = write_report(output / REPORT, collect(config, off_policy, actor.version))
    return EvaluateResult(report, found, names)


def read_held_out(directory: str | Path, vocabulary: Vocabulary) -> HeldOut:
    """Reads native session logs (`feedback` is a struct) or samples (`feedback` is a list).

    Raises:
        InvalidFieldError: no such directory, no rows, a column is missing, or the vocabularies do not fit.
    """
    directory = Path(directory)
    require(directory.is_dir(), "holdout", str(directory), "a directory of session logs or samples")
    own = Vocabulary.load(directory / VOCABULARY_FILE)
    for name in ("behaviour_names", "fusion_parameters", "state_size"):
        require(getattr(own, name) == getattr(vocabulary, name), f"holdout {name}", getattr(own, name),
                f"{getattr(vocabulary, name)}, as in the policy's vocabulary")
    files = sorted(str(file) for file in directory.glob("*.parquet"))
    require(bool(files), "holdout", str(directory), "a directory with *.parquet")
    wanted = ["user_id", "state", "action", "action_logp", "feedback"]
    source = ds.dataset(files)
    for name in wanted:
        require(name in source.schema.names, f"holdout column {name}", source.schema.names, f"a column {name}")
    try:
        table = source.to_table(columns=wanted).combine_chunks()
    except (pa.ArrowInvalid, OSError) as error:
        raise InvalidFieldError("holdout", str(directory), f"readable Parquet ({error})") from None
    require(table.num_rows > 0, "holdout", table.num_rows, "at least one request")
    return HeldOut(
        user_id=table["user_id"].to_numpy(), state=_matrix(table["state"], vocabulary.state_size),
        action=_matrix(table["action"], vocabulary.action_size),
        log_prob=table["action_logp"].to_numpy().astype(np.float64),
        feedback=_feedback(table["feedback"], vocabulary.behaviour_names))


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
        decision = actor.act(log.state[part].astype(np.float32), explore=False)
        parts.append(gaussian_log_density(log.action[part], decision.mu, decision.sigma))
    return np.concatenate(parts)


def collect(config: EvaluateConfig, off_policy: dict[str, Any], policy: str) -> ReportData:
    """What the jobs left in their directories."""
    simulation = _json(Path(config.simulation) / METRICS) or {}
    scorer = (_json(Path(config.scenes) / METRICS) or {}).get("by_pair", ())
    subject = {"policy": policy, "held-out logs": config.holdout}
    if "exposures" in simulation:
        subject["exposures"] = simulation["exposures"]
    account = (_json(Path(config.samples) / ACCOUNT_FILE) or {}).get("account")
    return ReportData(
        account=account, history=_lines(Path(config.fusion) / "history.jsonl"),
        ab_test=_json(Path(config.ab_test) / METRICS), off_policy=off_policy, scorer=scorer,
        response=simulation.get("response"), calibration=simulation.get("calibration", ()),
        serving=_json(Path(config.serving)), subject=subject)


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
    return {"behaviours": list(names), **vectors, "requests": found.requests, "users": found.users,
            "capped_share": found.capped_share, "refused": found.refused}
