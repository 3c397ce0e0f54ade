"""Fits the response model to exposures, sets its rates right, and measures it on a day that it has not seen."""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass

import numpy as np
import torch

from recfuse.config import require
from recfuse.logs.exposures import RESPONSE_SHARE, Exposures, row_share
from recfuse.simulation.response import (
    DURATION_EDGES,
    HEADS,
    OUTCOMES,
    WATCH_QUANTILES,
    ResponseModel,
    shrunk_rates,
    solve_shift,
)
from recfuse.simulation.response_network import ResponseConfig, ResponseNetwork, Rows, train
from recfuse.stats.ranking import auc, metric_intervals

logger = logging.getLogger("recfuse")


@dataclass(frozen=True)
class ResponseFit:
    """A fit and what it is worth.

    Attributes:
        auc: behaviour → AUC of its marginal probability on all rows of the last day, none of which was fitted to; NaN
            where a class is absent. interval: its 95% interval, a bootstrap over users. positives: on the last day.
        rates: behaviour → (mean predicted, observed) on the rows of the fit.
        rows: rows of the fit; test_rows: rows of the last day.
    """

    model: ResponseModel
    auc: dict[str, float]
    interval: dict[str, tuple[float, float]]
    positives: dict[str, int]
    rates: dict[str, tuple[float, float]]
    rows: int
    test_rows: int


def fit_response(exposures: Exposures, scenes: tuple[str, ...], config: ResponseConfig | None = None) -> ResponseFit:
    """Fits the response model on `row_share` < RESPONSE_SHARE before the last day; measures it on the last day.

    Args:
        exposures: with every user and item of the rows in `users` and `items`.
        scenes: those to model; rows of others are left out.

    Raises:
        InvalidFieldError: a scene without rows, or too few rows to fit.
    """
    config = config or ResponseConfig()
    known, day = exposures.column("scene"), exposures.column("day")
    for name in scenes:
        require(bool((known == name).any()), "scenes", name, f"scenes that occur: {', '.join(sorted(set(known)))}")
    modelled = np.isin(known, scenes)
    fitted = modelled & (row_share(exposures) < RESPONSE_SHARE) & (day < day.max())
    rows = Rows.read(exposures.filter(fitted), scenes)
    require(len(rows.user) >= 100, "exposures", len(rows.user), "at least 100 rows with row_share below "
            f"{RESPONSE_SHARE} before the last day, in scenes {', '.join(scenes)}")
    network = train(exposures, rows, len(scenes), config)
    model = _calibrate(_export(network, exposures, rows, scenes), rows, config.shrinkage)
    return _measured(model, rows, Rows.read(exposures.filter(modelled & (day == day.max())), scenes))


def _measured(model: ResponseModel, rows: Rows, test: Rows) -> ResponseFit:
    """The model with its rates on the rows of the fit and its AUC on those of the test."""
    predicted = model.marginals(model.logits(test.user, test.item, test.scene))
    labels = {name: test.label(name).astype(np.float64) for name in HEADS}
    areas = {name: _auc(labels[name], predicted[:, index]) for index, name in enumerate(HEADS)}
    intervals = {name: metric_intervals(labels[name], predicted[:, index], test.user, draws=100).auc
                 for index, name in enumerate(HEADS)}
    on_fit = model.marginals(model.logits(rows.user, rows.item, rows.scene)).mean(0)
    rates = {name: (float(on_fit[index]), float(rows.label(name).mean())) for index, name in enumerate(HEADS)}
    logger.info("response model: %s rows; AUC on the last day: %s", f"{len(rows.user):,}",
                ", ".join(f"{name} {area:.3f}" for name, area in areas.items()))
    return ResponseFit(model=model, auc=areas, interval=intervals, rates=rates, rows=len(rows.user),
                       test_rows=len(test.user), positives={name: int(label.sum()) for name, label in labels.items()})


def _auc(labels: np.ndarray, scores: np.ndarray) -> float:
    return float(auc(labels, scores)) if 0 < labels.sum() < len(labels) else float("nan")


@torch.no_grad()
def _export(network: ResponseNetwork, exposures: Exposures, rows: Rows, scenes: tuple[str, ...]) -> ResponseModel:
    """The network's embeddings of every user, item and scene as plain arrays."""
    # An id that no row of the fit has says nothing; its initial values are noise.
    for table, seen, count in ((network.user, rows.user, len(network.user_codes)),
                               (network.item, rows.item, len(network.item_codes))):
        unseen = np.setdiff1d(np.arange(count), seen)
        table.weight[torch.from_numpy(unseen)] = 0.0
    users = torch.cat([network.left(part) for part in torch.arange(len(network.user_codes)).split(8_192)])
    duration = exposures.items.sort_by("item_id")["duration"].to_numpy()
    bins = np.searchsorted(DURATION_EDGES, np.nan_to_num(duration), side="right")
    return ResponseModel(
        scenes=scenes,
        user_ids=np.sort(exposures.users["user_id"].to_numpy()),
        item_ids=np.sort(exposures.items["item_id"].to_numpy()),
        users=users.cpu().numpy(),
        items=network.right(torch.arange(len(network.item_codes))).cpu().numpy(),
        scene=network.scene.weight.cpu().numpy().copy(),
        mixing=network.mixing.cpu().numpy().copy(),
        outcome=network.outcome.cpu().numpy().copy(),
        watch_time=_watch_times(rows, bins[rows.item], len(scenes)),
        duration_bin=bins.astype(np.int64),
    )


def _watch_times(rows: Rows, bins: np.ndarray, scenes: int, least: int = 30) -> np.ndarray:
    """Real watch times per scene, outcome and range of durations; a cell with few rows takes those of all scenes."""
    table = np.zeros((scenes, len(OUTCOMES), len(DURATION_EDGES) + 1, WATCH_QUANTILES), np.float32)
    levels = (np.arange(WATCH_QUANTILES) + .5) / WATCH_QUANTILES
    for outcome in range(len(OUTCOMES)):
        same = rows.outcome == outcome
        for bin_index in range(table.shape[2]):
            pooled = same & (bins == bin_index)
            for scene in range(scenes):
                chosen = pooled & (rows.scene == scene)
                for wider in (pooled, same & (rows.scene == scene), same):
                    if chosen.sum() >= least:
                        break
                    chosen = wider
                if chosen.any():
                    table[scene, outcome, bin_index] = np.quantile(rows.watch_time[chosen], levels)
    return table


def _calibrate(model: ResponseModel, rows: Rows, shrinkage: float, rounds: int = 6) -> ResponseModel:
    """Moves the intercepts so that every scene's mean predicted rate is the observed one (drawn to the pooled one)."""
    factors = model.mixing.shape[1]
    target = shrunk_rates(rows.labels, rows.scene, len(model.scenes), shrinkage)
    scene = model.scene.copy()
    logits = model.logits(rows.user, rows.item, rows.scene)
    for index in range(len(model.scenes)):
        scene[index, factors:] += solve_shift(logits[rows.scene == index], model.outcome, target[index], rounds)
    return dataclasses.replace(model, scene=scene.astype(np.float32))
