"""How the gates of a trained model use its experts, and whether experts have collapsed."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from recfuse.scenes.dataset import EncodedRows
from recfuse.scenes.mixture import MultiSceneModel
from recfuse.scenes.registry import Registry

logger = logging.getLogger("recfuse")

_BATCH = 8192


@dataclass(frozen=True)
class ExpertHealth:
    """How one pair's gate uses the experts.

    Attributes:
        use: [K], mean share of each expert over the scene's rows.
        entropy: mean entropy of the gate by row, over log K: 1 mixes all experts alike, 0 takes one.
    """

    scene: str
    task: str
    use: tuple[float, ...]
    entropy: float


def expert_health(model: MultiSceneModel, rows: EncodedRows, registry: Registry) -> list[ExpertHealth]:
    """How each pair's gate uses the experts on its scene's rows.

    Logs a warning where experts have collapsed: a pair that lives on one expert, or an expert that no pair uses.
    """
    shares, health = _gates(model, rows), []
    for index, (pair, scene) in enumerate(zip(registry.pairs, registry.pair_scene, strict=True)):
        pair_shares = shares[rows.scene == scene, index]
        if len(pair_shares):
            use = tuple(pair_shares.mean(0).tolist())
            health.append(ExpertHealth(pair.scene, pair.task, use, _entropy(pair_shares)))
    for problem in collapsed(health):
        logger.warning("experts have collapsed: %s", problem)
    return health


def collapsed(health: Sequence[ExpertHealth], share: float = 0.95) -> list[str]:
    """In words: each pair with an expert of at least this share, and each expert used below 1/20 of an even share."""
    problems = [f"({gate.scene}, {gate.task}) takes {max(gate.use):.0%} from expert {int(np.argmax(gate.use))}"
                for gate in health if len(gate.use) > 1 and max(gate.use) >= share]
    most = np.max([gate.use for gate in health], axis=0) if health else np.zeros(0)
    return problems + [f"no pair takes more than {most[expert]:.2%} from expert {expert}"
                       for expert in np.flatnonzero(most < 0.05 / max(len(most), 1))]


def _gates(model: MultiSceneModel, rows: EncodedRows) -> NDArray[np.float64]:
    """Shares [N, T, K] of every pair's gate on every row."""
    device, parts = model.embedding.device, []
    with torch.inference_mode():
        for start in range(0, len(rows), _BATCH):
            part = rows.take(np.arange(start, min(start + _BATCH, len(rows))))
            inputs = (torch.from_numpy(values).to(device) for values in (part.ids(), part.numbers(), part.history))
            parts.append(model.gates(*inputs))
    return torch.cat(parts).cpu().double().numpy()


def _entropy(shares: NDArray[np.float64]) -> float:
    """Mean over rows [N, K] of the entropy, over log K."""
    if shares.shape[1] == 1:
        return 1.0
    entropy = -(shares * np.log(np.maximum(shares, 1e-30))).sum(1).mean()
    return float(entropy / np.log(shares.shape[1]))
