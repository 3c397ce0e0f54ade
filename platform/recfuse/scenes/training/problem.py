"""Everything a training needs: the pairs that the rows support, encoded rows, weights, and what is held out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from recfuse.config import require
from recfuse.logs.exposures import Exposures
from recfuse.scenes.architectures import build_model
from recfuse.scenes.config import ModelConfig
from recfuse.scenes.dataset import EncodedRows, count_pairs, encode_exposures, in_registry
from recfuse.scenes.encoder import FeatureEncoder
from recfuse.scenes.features import Feature, declared_features
from recfuse.scenes.inference import SceneScorer
from recfuse.scenes.model import SceneModel
from recfuse.scenes.registry import Registry
from recfuse.scenes.training.config import TrainingConfig
from recfuse.scenes.weights import task_weights


@dataclass(frozen=True)
class Problem:
    """Everything a training needs.

    Attributes:
        registry: the pairs that the training rows support, or those of the scorer that training goes on from.
        encoder: features, fitted on the training rows.
        rows: the training rows, encoded.
        positive_weight, task_weight: p_t and ω_t [T].
        prior_logits: log(p_t N_t⁺ / N_t⁻) [T], where the towers start.
        recent: positions in `rows` of the last training days, whose rates the predictions are shifted to.
        validation: the rows that early stopping watches; empty without it.
        start: the scorer that training goes on from, with the registry's pairs; None from scratch.
    """

    registry: Registry
    encoder: FeatureEncoder
    rows: EncodedRows
    positive_weight: Tensor
    task_weight: Tensor
    prior_logits: Tensor
    recent: np.ndarray
    validation: EncodedRows
    model: ModelConfig
    training: TrainingConfig
    start: SceneScorer | None = None

    @property
    def steps(self) -> int:
        """Of one epoch."""
        return -(-len(self.rows) // self.training.batch_size)


def prepare(exposures: Exposures, training_rows: np.ndarray, registry: Registry, model: ModelConfig,
            training: TrainingConfig, features: tuple[Feature, ...] = (), start: SceneScorer | None = None) -> Problem:
    """Decides the pairs, fits features and weights, and encodes the training rows.

    Args:
        exposures: rows of registered scenes; those outside the training rows only lend their histories, as do those of
            scenes that are left out.
        training_rows: bool[rows].
        features: declared features; empty takes every column of users and items.
        start: a scorer to go on from; its features and sizes are taken instead of `features` and `model`.

    Raises:
        InvalidFieldError: a pair without positives or negatives, a missing column, no training row, or a scene that
            `start` neither has nor finds under the name of `like`.
    """
    require(training.epochs > 0 or start is not None, "epochs", training.epochs, "an integer ≥ 1 without a start")
    training_rows, validation_rows = _hold_out(exposures, training_rows, training)
    chosen = exposures.filter(training_rows)
    require(chosen.rows.num_rows > 0, "training rows", 0, "at least one")
    if start:
        start = start.for_registry(registry.known_to(start.tasks))
        registry, model = start.registry, start.model_config
    else:
        registry = registry.supported(count_pairs(chosen.rows, registry)[0], training.minimum_positives)
    inside = in_registry(exposures, registry)
    chosen = exposures.filter(training_rows & inside)
    weights = _weights(chosen, registry, model, training, start)
    encoder = start.encoder if start else FeatureEncoder.fit(
        features or declared_features(exposures), exposures, training_rows & inside, model.history_length)
    encoded = encode_exposures(exposures, registry, encoder)
    return Problem(
        registry, encoder, encoded.take(np.flatnonzero(training_rows[inside])), weights.positive, weights.task,
        weights.prior_logits, _recent(chosen, training), encoded.take(np.flatnonzero(validation_rows[inside])), model,
        training, start)


def untrained(problem: Problem) -> SceneModel:
    """The network that training starts with: from the problem's seed, or the one it goes on from."""
    torch.manual_seed(problem.training.seed)
    encoder = problem.encoder
    fields = [fitted for fitted in encoder.fitted if fitted.offset >= 0]
    item = next((index for index, fitted in enumerate(fields) if fitted is encoder.item_feature), 0)
    model = build_model(problem.model, table_rows=encoder.table_rows, fields=encoder.fields, numeric=encoder.numeric,
                        item_field=item, pair_scene=problem.registry.pair_scene, pair_task=problem.registry.pair_task,
                        field_rows=[(fitted.offset, fitted.size) for fitted in fields],
                        prior_logits=problem.prior_logits)
    if problem.start:
        model.load_state_dict(problem.start.parameters())
    return model


@dataclass(frozen=True)
class _Weights:
    """p_t, ω_t and log(p_t N_t⁺ / N_t⁻), [T] each."""

    positive: Tensor
    task: Tensor
    prior_logits: Tensor


def _weights(chosen: Exposures, registry: Registry, model: ModelConfig, training: TrainingConfig,
             start: SceneScorer | None) -> _Weights:
    """The weights of the training rows by the config's strategy; a pair of `start` that no row says anything of keeps
    its p_t, and weighs like the mean of the others."""
    plus, minus = (torch.tensor([float(counts[pair]) for pair in registry.pairs])
                   for counts in count_pairs(chosen.rows, registry))
    silent = ((plus <= 0) | (minus <= 0)) & (start is not None)
    for counts in (plus, minus):
        counts[silent] = counts[~silent].mean() if (~silent).any() else 1.0
    manual: dict[str, list[float] | None] = {"positive_weight": None, "task_weight": None}
    if training.strategy == "manual":
        manual = {"positive_weight": _by_pair(training.positive_weight, registry, "positive_weight"),
                  "task_weight": _by_pair(training.task_weight, registry, "task_weight", 1.0)}
    positive, task = task_weights(plus, minus, training.strategy, names=registry.pairs, **manual,
                                  largest_positive_weight=training.largest_positive_weight)
    if start:
        positive = torch.where(silent, start.positive_weight.cpu().to(positive), positive)
    # A product of probabilities (ESMM) has no room for weights of positives, and a number has no positives.
    plain = torch.tensor([model.architecture == "esmm" or pair.task in registry.numbers for pair in registry.pairs])
    positive = torch.where(plain, torch.ones_like(positive), positive)
    return _Weights(positive, task, torch.log(positive * plus / minus))


def _by_pair(given: dict[str, float], registry: Registry, name: str, default: float | None = None) -> list[float]:
    """The operator's weight of every pair: its own, or that of its task."""
    values = [given.get(f"{pair.scene}/{pair.task}", given.get(pair.task, default)) for pair in registry.pairs]
    for pair, value in zip(registry.pairs, values, strict=True):
        require(value is not None, f"{name} of {pair}", value, "a number, by task or by scene/task")
    return [value for value in values if value is not None]


def _recent(chosen: Exposures, training: TrainingConfig) -> np.ndarray:
    """Positions, among the training rows, of those of the last days."""
    days = chosen.column("day")
    first = len(np.unique(days)) - training.calibration_days
    return np.flatnonzero(np.isin(days, np.unique(days)[first:]) & (training.calibration_days > 0))


def _hold_out(exposures: Exposures, training_rows: np.ndarray,
              training: TrainingConfig) -> tuple[np.ndarray, np.ndarray]:
    """Training and validation rows, bool[rows] each: with patience the last training day validates."""
    days = exposures.column("day")
    if not training.patience or not training_rows.any():
        return training_rows, np.zeros_like(training_rows)
    last = days[training_rows].max()
    return training_rows & (days < last), training_rows & (days == last)
