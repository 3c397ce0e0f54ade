"""What Python code says to Recfuse without its jobs: `from recfuse import Log, evaluate, load_policy, train`.

Everything here calls what the jobs call; only learning and ingesting start Ray.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from recfuse.behaviours import Vocabulary
from recfuse.config import InvalidFieldError, require

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

    from recfuse.evaluation.evaluate import EvaluateResult
    from recfuse.learning.training import TrainFusionResult
    from recfuse.logs.account import Account

Array = NDArray[np.float64]


class Log:
    """A log as every job reads it: session logs, a Delta table or samples, on any filesystem that pyarrow knows.

    Args:
        path: directory or URI.
        reading: fields of `recfuse.logs.config.ReadingConfig`, as `gap_minutes` or `vocabulary`.

    Attributes:
        table: the kept requests, in the order of their sessions; candidates are checked and then left out.
        quarantine: the others, with field, value and what is allowed.
        account: of every row.

    Raises:
        InvalidFieldError: names the path or the field, and what is allowed.
    """

    def __init__(self, path: str | Path, **reading: Any) -> None:
        from recfuse.logs.config import ReadingConfig
        from recfuse.logs.reading import read_log

        self.path, self.reading = str(path), ReadingConfig(**reading)
        found = read_log(self.path, self.reading)
        self.is_samples = found.source.kind == "samples"
        self.vocabulary: Vocabulary = found.source.vocabulary
        self.table: pa.Table = found.sessions.rows
        self.quarantine: pa.Table = found.quarantine
        self.account: Account = found.account
        self.sessions = int(found.sessions.end.sum())

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def __repr__(self) -> str:
        return f"Log({self.path!r}: {len(self):,} requests in {self.sessions:,} sessions; {self.account})"

    def to_pandas(self) -> pd.DataFrame:
        """The kept requests as a frame."""
        return self.table.to_pandas()


@dataclass(frozen=True)
class Ranked:
    """What a policy makes of one request.

    Attributes:
        order: int64, positions of the candidates, best first; those that were seen are left out.
        scores: float64[N], fused; of all candidates, in the order in which they were given.
        weights: fusion parameter → the weight that was used.
        mu, sigma: fusion parameter → the Gaussian's.
        log_prob: of the weights under the policy.
    """

    order: NDArray[np.int64]
    scores: Array
    weights: dict[str, float]
    mu: dict[str, float]
    sigma: dict[str, float]
    log_prob: float


class RankingPolicy:
    """A fusion policy in this process, which ranks as serving does; `load_policy` reads one.

    Attributes:
        vocabulary: names of weights, behaviours and state features. version: of the bundle.
    """

    def __init__(self, path: str | Path) -> None:
        from recfuse.bundle import newest_bundle, read_bundle
        from recfuse.fusion.inference import FusionActor
        from recfuse.serving.fusion import FusionModel

        self._model = FusionModel(FusionActor.from_bundle(read_bundle(newest_bundle(path, "fusion"), "fusion")))
        self.vocabulary, self.version = self._model.vocabulary, self._model.version

    def rank(self, state: ArrayLike | Mapping[str, Any], predictions: Mapping[str, ArrayLike] | ArrayLike, *,
             seen: Sequence[bool] | None = None, explore: bool = False, seed: int | None = None,
             stage: str = "") -> Ranked:
        """Ranks the candidates of one request.

        Args:
            state: context by the names of the state features, or the encoded context, [vocabulary.context_size].
            predictions: fusion parameter → N numbers, or an array [M, N] in the order of the fusion parameters.
            seen: N; who is not to be shown again.
            explore: draw the weights, instead of taking their mean; seed: of the draw.
            stage: of the request, whose own policy decides where the bundle has one; empty takes the default policy.

        Raises:
            InvalidFieldError: names the field, its value and what is allowed.
        """
        from recfuse.serving.formats import RefusedError
        from recfuse.serving.fusion import best_first, fuse_columns

        vocabulary, names = self.vocabulary, self.vocabulary.fusion_parameters
        require(stage in ("", *vocabulary.stages), "stage", stage, ", ".join(vocabulary.stages))
        columns = self._rounded(self._columns(predictions))
        shown = None if seen is None else np.asarray(seen, bool)
        require(shown is None or shown.shape == columns.shape[1:], "seen", seen, f"{columns.shape[1]} booleans")
        encoded = self._context(state)
        if self._model.candidates is not None:
            part = self._model.candidates.encode(columns[None], None if shown is None else shown[None])[0]
            encoded = np.concatenate([encoded, part])
        decision = self._model.actor.of(stage).act(encoded[None], explore, seed=seed)
        try:
            keys, scores = fuse_columns(columns, decision.action[0], vocabulary)
        except RefusedError as error:
            raise InvalidFieldError(error.field or "predictions", error.value, error.allowed) from None
        weights, mu, sigma = (dict(zip(names, values[0].astype(float).tolist(), strict=True))
                              for values in (decision.action, decision.mu, decision.sigma))
        return Ranked(best_first(keys, "descending", shown), scores, weights, mu, sigma,
                      float(decision.action_logp[0]))

    def _columns(self, predictions: Mapping[str, ArrayLike] | ArrayLike) -> Array:
        """float64[M, N], finite."""
        names = self.vocabulary.fusion_parameters
        if isinstance(predictions, Mapping):
            for name in names:
                require(name in predictions, f"predictions.{name}", None, f"numbers for each of {', '.join(names)}")
            predictions = [np.asarray(predictions[name], np.float64).ravel() for name in names]
            sizes = [len(column) for column in predictions]
            require(len(set(sizes)) == 1, "predictions", sizes, "as many numbers for every fusion parameter")
        columns: Array = np.array(predictions, np.float64)
        require(columns.ndim == 2 and columns.shape[0] == len(names) and columns.shape[1] > 0, "predictions",
                columns.shape, f"{len(names)} rows ({', '.join(names)}) of at least one candidate")
        require(bool(np.isfinite(columns).all()), "predictions", "not finite", "finite numbers")
        return columns

    def _rounded(self, columns: Array) -> Array:
        """As a log keeps them, by which serving ranks; as they are where half precision does not hold them."""
        from recfuse.state.candidates import as_logged

        rounded = as_logged(columns)
        taken = rounded is not None and (
            self.vocabulary.formula == "linear" or float(rounded.min()) + self.vocabulary.offset > 0)
        return rounded.astype(np.float64) if rounded is not None and taken else columns

    def _context(self, state: ArrayLike | Mapping[str, Any]) -> NDArray[np.float32]:
        """The part of the state that says who asks and when, float32[context_size]."""
        size = self.vocabulary.context_size
        if isinstance(state, Mapping):
            if self._model.encoder is None:
                require(size == 0, "state", "a mapping", f"{size} numbers: the policy declares no state features")
                return np.zeros(0, np.float32)
            context: NDArray[np.float32] = self._model.encoder.encode_one(state)
            return context
        given = np.asarray(state, np.float64)
        require(given.shape == (size,), "state", given.shape, f"{size} numbers")
        require(bool(np.isfinite(given).all()), "state", "not finite", "finite numbers")
        return given.astype(np.float32)


def load_policy(path: str | Path) -> RankingPolicy:
    """The fusion policy of a bundle, or of the newest in a directory.

    Raises:
        BundleError: there is none, or it is damaged.
    """
    return RankingPolicy(path)


def train(log: Log | str | Path, output: str | Path = "runs/fusion", algorithm: str = "two_stage", scorer: str = "",
          policy_per_stage: Sequence[str] = (), **learning: Any) -> TrainFusionResult:
    """Learns a policy from a log: session logs become samples in `output`/samples, samples are taken as they are.

    Args:
        output: gets bundle, history and checkpoint, from which a rerun goes on.
        scorer: a scorer's bundle, whose slopes of realised on predicted help; empty for none.
        policy_per_stage: stages that get policies of their own, from their own requests.
        learning: fields of the algorithm's settings, as `seed` or `replay={"floor": .03}`.

    Raises:
        InvalidFieldError: a bad log, or a setting that the algorithm refuses.
    """
    from recfuse.learning import registry
    from recfuse.learning.config import TrainFusionConfig
    from recfuse.learning.training import train_fusion
    from recfuse.logs.config import IngestConfig
    from recfuse.logs.ingest import ingest
    from recfuse.logs.source import open_log
    from recfuse.runtime.cluster import cluster, resuming

    settings, path = registry.settings(algorithm, **learning), log.path if isinstance(log, Log) else str(log)
    reading = log.reading.to_dict() if isinstance(log, Log) else {}
    with cluster():
        if open_log(path, reading.get("vocabulary", "")).kind != "samples":
            path = ingest(IngestConfig(logs=path, output=f"{output}/samples", **reading)).samples
        config = TrainFusionConfig(samples=path, output=str(output), scorer=scorer, learning=settings,
                                   policy_per_stage=tuple(policy_per_stage))
        return resuming(lambda: train_fusion(config))


def evaluate(policy: str | Path, log: Log | str | Path, output: str | Path = "runs/report", samples: str = "",
             **options: Any) -> EvaluateResult:
    """What a log that the policy was not trained on says of it, by question; and `metrics.json` in `output`.

    Args:
        policy: a fusion bundle, or a directory that holds one.
        samples: what the policy was trained on, for critics and to see that the log is another; empty for none.
        options: fields of `recfuse.evaluation.config.EvaluateConfig`.

    Raises:
        InvalidFieldError: a bad log, or rows that the policy was trained on.
    """
    from recfuse.evaluation.config import EvaluateConfig
    from recfuse.evaluation.evaluate import evaluate as run

    if isinstance(log, Log):
        options = {"reading": log.reading, **options}
    path = log.path if isinstance(log, Log) else str(log)
    return run(EvaluateConfig(fusion=str(policy), holdout=path, output=str(output), samples=samples, **options))
