"""Fits the response model to exposures, sets its rates right, and measures it on a day that it has not seen."""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass

import numpy as np
import torch

from recfuse.config import require
from recfuse.logs.exposures import RESPONSE_SHARE, Exposures, row_share
from recfuse.simulation.config import ResponseConfig
from recfuse.simulation.response import (
    WATCH_QUANTILES,
    ResponseModel,
    shrunk_rates,
    solve_shift,
)
from recfuse.simulation.response_network import (
    ResponseNetwork,
    Rows,
    factors_of,
    item_numbers,
    train,
    watch_levels,
)
from recfuse.simulation.response_stack import Held, Stack, empty_stack, fit_stack, group_means
from recfuse.simulation.responses import FEED, Responses
from recfuse.stats.ranking import auc, metric_intervals

logger = logging.getLogger("recfuse")
_FOLDS = 3


@dataclass(frozen=True)
class ResponseFit:
    """A fit and what it is worth.

    Attributes:
        stack: what a scorer's predictions add; of no scorer where none were given.
        auc: behaviour → AUC of its marginal probability on all rows of the last day, none of which was fitted to; NaN
            where a class is absent. interval: its 95% interval, a bootstrap over users. positives: on the last day.
        rates: behaviour → (mean predicted, observed) on the rows of the fit.
        rows: rows of the fit; test_rows: rows of the last day.
    """

    model: ResponseModel
    stack: Stack
    auc: dict[str, float]
    interval: dict[str, tuple[float, float]]
    positives: dict[str, int]
    rates: dict[str, tuple[float, float]]
    rows: int
    test_rows: int


def fit_response(exposures: Exposures, scenes: tuple[str, ...], config: ResponseConfig | None = None,
                 predictions: np.ndarray | None = None, responses: Responses = FEED) -> ResponseFit:
    """Fits the response model on `row_share` < RESPONSE_SHARE before the last day; measures it on the last day.

    Args:
        exposures: with every user and item of the rows in `users` and `items`.
        scenes: those to model; rows of others are left out.
        predictions: float32[N, M], a scorer's for every row, of a scorer fitted on other rows; what they are worth is
            part of the fit then.
        responses: which labels the exposures have, and how they hang together.

    Raises:
        InvalidFieldError: a scene without rows, or too few rows to fit.
    """
    config = config or ResponseConfig()
    known, day = exposures.column("scene"), exposures.column("day")
    for name in scenes:
        require(bool((known == name).any()), "scenes", name, f"scenes that occur: {', '.join(sorted(set(known)))}")
    modelled = np.isin(known, scenes)
    fitted = modelled & (row_share(exposures) < RESPONSE_SHARE) & (day < day.max())
    rows = Rows.read(exposures.filter(fitted), scenes, responses)
    require(len(rows.user) >= 100, "exposures", len(rows.user), "at least 100 rows with row_share below "
            f"{RESPONSE_SHARE} before the last day, in scenes {', '.join(scenes)}")
    tested = modelled & (day == day.max())
    test = Rows.read(exposures.filter(tested), scenes, responses)
    number = _item_numbers(exposures, responses)
    level = watch_levels(rows, _ranges_of(number, responses)[rows.item])
    network = train(exposures, rows, level, len(scenes), config)
    model = _calibrate(_export(network, exposures, scenes, rows, responses), rows, config.shrinkage)
    predictions = np.zeros((len(known), 0), np.float32) if predictions is None else predictions
    of_rows = Rows.read(exposures.filter(modelled), scenes, responses)
    stack = empty_stack(predictions[modelled], number[of_rows.item], len(scenes), model.outcome.shape)
    columns = stack.inputs(predictions[modelled], number[of_rows.item])
    around = group_means(columns, of_rows.user, of_rows.scene)
    given = [(columns[mask[modelled]], around[mask[modelled]]) for mask in (fitted, tested)]
    if predictions.shape[1]:
        stack = _stack(exposures, rows, level, given[0], stack, model, config)
    return _measured(model, stack, responses.heads, *((some, _stacked(model, stack, some, *inputs))
                                                      for some, inputs in zip((rows, test), given, strict=True)))


def _stack(exposures: Exposures, rows: Rows, level: np.ndarray, given: tuple[np.ndarray, np.ndarray], empty: Stack,
           model: ResponseModel, config: ResponseConfig) -> Stack:
    """What the predictions for the rows of the fit, as inputs and their means, are worth beside the response model."""
    scenes = len(model.scenes)
    fold = np.random.default_rng([config.seed, 0xF0]).integers(0, _FOLDS, len(rows.user))
    own = np.zeros((len(rows.user), model.mixing.shape[0]), np.float32)
    for index in range(_FOLDS):
        inside = fold == index
        fitted = rows.take(~inside)
        network = _forget_unseen(train(exposures, fitted, level[~inside], scenes, config), fitted)
        with torch.no_grad():
            part = rows.take(inside)
            own[inside] = network(*(torch.from_numpy(a) for a in (part.user, part.item, part.scene))).cpu().numpy()
    stack = fit_stack(Held(own, *given, rows.scene, rows.outcome, rows.labels, level.astype(np.float64),
                           model.outcome), empty)
    target = shrunk_rates(rows.labels, rows.scene, scenes, config.shrinkage, rows.ladder)
    logits, base = _stacked(model, stack, rows, *given), stack.base.copy()
    for index in range(scenes):
        base[index, :target.shape[1]] += solve_shift(logits[rows.scene == index], model.outcome, target[index])
    return dataclasses.replace(stack, base=base)


def _stacked(model: ResponseModel, stack: Stack, rows: Rows, columns: np.ndarray, around: np.ndarray) -> np.ndarray:
    """float32[N, heads]: logits of rows with these inputs [N, M + 1] of a scorer."""
    outputs = model.outputs(rows.user, rows.item, rows.scene) * stack.own + stack.base[rows.scene]
    heads = rows.ladder + rows.interactions.shape[1]
    logits: np.ndarray = (outputs + stack.scorer_term(columns, around))[:, :heads]
    return logits


def _measured(model: ResponseModel, stack: Stack, heads: tuple[str, ...], fit: tuple[Rows, np.ndarray],
              tested: tuple[Rows, np.ndarray]) -> ResponseFit:
    """The model with its rates on the rows of the fit and its AUC on those of the test, from their logits."""
    (rows, fitted), (test, logits) = fit, tested
    predicted = model.marginals(logits)
    labels = dict(zip(heads, test.labels.T, strict=True))
    areas = {name: _auc(labels[name], predicted[:, index]) for index, name in enumerate(heads)}
    intervals = {name: metric_intervals(labels[name], predicted[:, index], test.user, draws=100).auc
                 for index, name in enumerate(heads)}
    on_fit, observed = model.marginals(fitted).mean(0), rows.labels.mean(0)
    rates = {name: (float(on_fit[index]), float(observed[index])) for index, name in enumerate(heads)}
    logger.info("response model: %s rows; AUC on the last day: %s", f"{len(rows.user):,}",
                ", ".join(f"{name} {area:.3f}" for name, area in areas.items()))
    return ResponseFit(model=model, stack=stack, auc=areas, interval=intervals, rates=rates, rows=len(rows.user),
                       test_rows=len(test.user), positives={name: int(label.sum()) for name, label in labels.items()})


def _auc(labels: np.ndarray, scores: np.ndarray) -> float:
    return float(auc(labels, scores)) if 0 < labels.sum() < len(labels) else float("nan")


def _item_numbers(exposures: Exposures, responses: Responses) -> np.ndarray:
    """float64[I], the number by which amounts tell items apart, in ascending ids; NaN where unknown, 0 for none."""
    for field in ("item_column", "amount_of"):
        if name := getattr(responses, field):
            return item_numbers(exposures, name, field)
    return np.zeros(exposures.items.num_rows)


def _ranges_of(number: np.ndarray, responses: Responses) -> np.ndarray:
    """int64[I]: the range in which every item's number [I] is; 0 where the declaration has none."""
    if not responses.item_edges:
        return np.zeros(len(number), np.int64)
    return np.searchsorted(np.array(responses.item_edges), np.nan_to_num(number), side="right").astype(np.int64)


@torch.no_grad()
def _forget_unseen(network: ResponseNetwork, rows: Rows) -> ResponseNetwork:
    """An id that no row of the fit has says nothing; its initial values are noise."""
    for table, seen, count in ((network.user, rows.user, len(network.user_codes)),
                               (network.item, rows.item, len(network.item_codes))):
        unseen = np.setdiff1d(np.arange(count), seen)
        table.weight[torch.from_numpy(unseen)] = 0.0
    return network


@torch.no_grad()
def _export(network: ResponseNetwork, exposures: Exposures, scenes: tuple[str, ...], rows: Rows,
            responses: Responses) -> ResponseModel:
    """The network's embeddings of every user, item and scene as plain arrays, and the real amounts."""
    number = _item_numbers(exposures, responses)
    bins = _ranges_of(number, responses)
    network = _forget_unseen(network, rows)
    users = torch.cat([network.left(part) for part in torch.arange(len(network.user_codes)).split(8_192)])
    items = len(network.item_codes)
    return ResponseModel(
        scenes=scenes,
        user_ids=np.sort(exposures.users["user_id"].to_numpy()),
        item_ids=np.sort(exposures.items["item_id"].to_numpy()),
        users=users.cpu().numpy(),
        items=network.right(torch.arange(items)).cpu().numpy(),
        scene=network.scene.weight.cpu().numpy().copy(),
        mixing=network.mixing.cpu().numpy().copy(),
        outcome=network.outcome.cpu().numpy().copy(),
        watch_time=_watch_times(rows, bins[rows.item], len(scenes), len(responses.item_edges) + 1),
        duration_bin=bins, duration=number, factor=factors_of(exposures, responses),
    )


def _watch_times(rows: Rows, bins: np.ndarray, scenes: int, ranges: int, least: int = 30) -> np.ndarray:
    """Real amounts per scene, outcome and range of items; a cell with few rows takes those of all scenes."""
    table = np.zeros((scenes, rows.ladder + 1, ranges, WATCH_QUANTILES), np.float32)
    levels = (np.arange(WATCH_QUANTILES) + .5) / WATCH_QUANTILES
    for outcome in range(rows.ladder + 1):
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
    target = shrunk_rates(rows.labels, rows.scene, len(model.scenes), shrinkage, rows.ladder)
    scene = model.scene.copy()
    logits = model.logits(rows.user, rows.item, rows.scene)
    for index in range(len(model.scenes)):
        shift = solve_shift(logits[rows.scene == index], model.outcome, target[index], rounds)
        scene[index, factors:factors + len(shift)] += shift
    return dataclasses.replace(model, scene=scene.astype(np.float32))
