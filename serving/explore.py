"""Today's weights and a σ about them as a fusion bundle: where exploration starts, before anything was learned."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from recfuse.behaviours import Vocabulary
from recfuse.bundle.pointer import POINTER, Pointer, read_pointer
from recfuse.config import InvalidFieldError, require
from recfuse.fusion.exploration import Exploration, Pages, widest
from recfuse.fusion.inference import export_policy
from recfuse.fusion.policies import FixedGaussian
from recfuse.logs.pools import Pools, read_pools
from recfuse.logs.schema import VOCABULARY_FILE
from recfuse.logs.source import read_vocabulary
from recfuse.serving.config import ExploreConfig
from recfuse.serving.publish import publish
from recfuse.state.candidates import as_logged


@dataclass(frozen=True)
class ExploreResult:
    """What was published.

    Attributes:
        parameters: the fusion parameters; weights: float64[M], of them.
        exploration: σ and what it changes.
        requests: how many it was tried on; left_out: requests without usable candidates.
        pointer: to the bundle; before: the policy that served until now, None for none.
    """

    parameters: tuple[str, ...]
    weights: np.ndarray
    exploration: Exploration
    requests: int
    left_out: int
    pointer: Pointer
    before: str | None


def explore(config: ExploreConfig) -> ExploreResult:
    """Chooses σ and publishes the bundle.

    Raises:
        InvalidFieldError: bad weights, no candidates, or no vocabulary.
    """
    require(bool(config.candidates), "candidates", config.candidates,
            "requests to try σ on: a session log with candidates, or a Parquet or CSV file with request_id and a "
            "column for each prediction")
    vocabulary = find_vocabulary(config)
    weights = parse_weights(config.weights, vocabulary)
    pools = read_pools(config.candidates, vocabulary, config.requests, config.seed)
    exploration = widest(_pages(config, pools, vocabulary, weights), config.change)
    policy = FixedGaussian(weights, exploration.sigma)
    before = read_pointer(config.models).fusion if (Path(config.models) / POINTER).exists() else None
    fingerprint = hashlib.sha256(pools.predictions.tobytes() + pools.is_open.tobytes()).hexdigest()
    bundle = export_policy(config.models, policy, vocabulary, training={"explore": config.to_dict()},
                           data_fingerprint=fingerprint,
                           metrics={"reach": exploration.reach, **asdict(exploration.change)})
    pointer = publish(config.models, fusion=bundle, supplements=config.supplements)
    return ExploreResult(vocabulary.fusion_parameters, weights, exploration, len(pools.is_open), pools.left_out,
                         pointer, before)


def find_vocabulary(config: ExploreConfig) -> Vocabulary:
    """The vocabulary that the config names, or that lies here, or in the log."""
    if config.vocabulary or Path(VOCABULARY_FILE).is_file():
        return read_vocabulary("", config.vocabulary or VOCABULARY_FILE)
    if Path(config.candidates).is_file():
        raise InvalidFieldError("vocabulary", "", "a YAML file that names behaviours and predictions; `recfuse init` "
                                                  "writes one")
    return read_vocabulary(config.candidates)


def parse_weights(text: str, vocabulary: Vocabulary) -> np.ndarray:
    """float64[M] of `name:number,…`.

    Raises:
        InvalidFieldError: a pair that is none, a name that is no prediction or stands twice, or a bad number.
    """
    names = vocabulary.fusion_parameters
    weights: dict[str, float] = {}
    for pair in filter(None, (each.strip() for each in text.split(","))):
        name, _, number = (part.strip() for part in pair.rpartition(":"))
        require(name in names and name not in weights, "weights", pair,
                f"name:number, each once, of {', '.join(names)}")
        try:
            weights[name] = float(number)
        except ValueError:
            raise InvalidFieldError(f"weights.{name}", number, "a number") from None
    return np.array([weights.get(name, 0.0) for name in names])


def _pages(config: ExploreConfig, pools: Pools, vocabulary: Vocabulary, weights: np.ndarray) -> Pages:
    """By the predictions as serving rounds them."""
    rounded = as_logged(pools.predictions)
    predictions = pools.predictions if rounded is None else rounded
    return Pages(predictions, pools.is_open, vocabulary, weights, config.top, config.draws, config.seed)
