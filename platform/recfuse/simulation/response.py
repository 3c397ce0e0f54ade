"""The response model: how a user answers an item in a scene, fitted to exposures.

It is a logistic factorisation, another kind of model than the scorer, fitted on other rows (`row_share` below
RESPONSE_SHARE) with another seed, so that a policy is never graded by the predictions that it fuses.

An exposure is answered in three steps, so that what is drawn is consistent: the *outcome* (no click; a click; a click
and a long view), then every interaction given the outcome, then the watch time, resampled from real rows of the same
scene, outcome and range of durations.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor, nn
from torch.nn import functional

from recfuse.config import require
from recfuse.logs.exposures import RESPONSE_SHARE, Exposures, row_share
from recfuse.stats.ranking import auc, metric_intervals

logger = logging.getLogger("recfuse")

INTERACTIONS = ("like", "comment", "forward", "follow", "hate")
HEADS = ("click", "long_view", *INTERACTIONS)
OUTCOMES = ("no_click", "click", "long_view")
# Edges in seconds: the shorter of 18 s and the duration makes a long view, so that short videos stand apart.
DURATION_EDGES = np.array([1.0, 7.0, 12.0, 18.0, 30.0, 60.0, 120.0, 240.0])
WATCH_QUANTILES = 256
_BINS = 16
_MAX_CATEGORIES = 2_000


@dataclass(frozen=True, kw_only=True)
class ResponseConfig:
    """Of the fit.

    Attributes:
        factors: width of the user and item factors.
        epochs, batch_size, learning_rate, weight_decay: of the optimiser.
        seed: of initial values and batches; not the scorer's.
        shrinkage: rows' worth of the pooled rate that a scene's rate is drawn to; a rare behaviour has too few
            positives in a small scene to say anything by itself.
    """

    factors: int = 8
    epochs: int = 3
    batch_size: int = 1_024
    learning_rate: float = 0.003
    weight_decay: float = 1.0
    seed: int = 101
    shrinkage: float = 2_000.0

    def __post_init__(self) -> None:
        for name in ("factors", "epochs", "batch_size"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "an integer ≥ 1")
        require(self.learning_rate > 0, "learning_rate", self.learning_rate, "a number > 0")
        require(self.weight_decay >= 0, "weight_decay", self.weight_decay, "a number ≥ 0")
        require(self.shrinkage >= 0, "shrinkage", self.shrinkage, "a number ≥ 0")


@dataclass(frozen=True)
class ResponseModel:
    """A fitted response model; plain arrays, so that a step of the simulator is gathers only.

    Attributes:
        scenes: S names, the order of the scene index.
        user_ids: int64[U], item_ids: int64[I], both ascending; the position is the index used below.
        users, items, scene: float32[U | I | S, factors + heads]: factors, then one bias per head.
        mixing: float32[heads, factors]: how much each factor counts in each head.
        outcome: float32[3, interactions]: log-odds that the outcome adds to an interaction.
        watch_time: float32[S, 3, durations, WATCH_QUANTILES]: real watch times in seconds, ascending.
        duration_bin: int64[I].
    """

    scenes: tuple[str, ...]
    user_ids: np.ndarray
    item_ids: np.ndarray
    users: np.ndarray
    items: np.ndarray
    scene: np.ndarray
    mixing: np.ndarray
    outcome: np.ndarray
    watch_time: np.ndarray
    duration_bin: np.ndarray

    def logits(self, user: np.ndarray, item: np.ndarray, scene: np.ndarray) -> np.ndarray:
        """float32[N, heads] of index arrays `[N]`: click; long view given a click; interactions given no click."""
        factors = self.mixing.shape[1]
        left = self.users[user] + self.scene[scene]
        right = self.items[item]
        taste = (left[:, :factors] * right[:, :factors]) @ self.mixing.T
        logits: np.ndarray = taste + left[:, factors:] + right[:, factors:]
        return logits

    def marginals(self, logits: np.ndarray) -> np.ndarray:
        """P(behaviour) in the order of HEADS, float32[..., heads], of logits `[..., heads]`."""
        return marginals(logits, self.outcome)


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """1 / (1 + e^−x), once, for any x."""
    result: np.ndarray = .5 * (1.0 + np.tanh(.5 * logits))
    return result


def marginals(logits: np.ndarray, outcome: np.ndarray) -> np.ndarray:
    """P(behaviour), float[..., heads]: the outcome summed out."""
    click, given = sigmoid(logits[..., 0]), sigmoid(logits[..., 1])
    shares = np.stack([1 - click, click * (1 - given), click * given], -1)
    interactions = sigmoid(logits[..., None, 2:] + outcome)
    result: np.ndarray = np.concatenate([
        click[..., None], (click * given)[..., None], (shares[..., None] * interactions).sum(-2)], -1)
    return result


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
    known = exposures.column("scene")
    for name in scenes:
        require(bool((known == name).any()), "scenes", name, f"scenes that occur: {', '.join(sorted(set(known)))}")
    there = np.isin(known, scenes)
    mine = (row_share(exposures) < RESPONSE_SHARE) & there
    day = exposures.column("day")
    rows = _Rows.read(exposures.filter(mine & (day < day.max())), scenes)
    test = _Rows.read(exposures.filter(there & (day == day.max())), scenes)
    require(len(rows.user) >= 100, "exposures", len(rows.user), "at least 100 rows with row_share below "
            f"{RESPONSE_SHARE} before the last day, in scenes {', '.join(scenes)}")
    network = _train(exposures, rows, len(scenes), config)
    model = _export(network, exposures, rows, scenes)
    model = _calibrate(model, rows, config.shrinkage)
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


@dataclass(frozen=True)
class _Rows:
    """Exposures as index and label arrays."""

    user: np.ndarray
    item: np.ndarray
    scene: np.ndarray
    outcome: np.ndarray
    interactions: np.ndarray
    watch_time: np.ndarray

    @classmethod
    def read(cls, exposures: Exposures, scenes: tuple[str, ...]) -> _Rows:
        click = exposures.column("click") > 0
        # The source counts a handful of long views without a click; here a long view implies one.
        outcome = np.where(exposures.column("long_view") > 0, 2, click.astype(np.int64))
        return cls(
            user=positions(exposures.users["user_id"], exposures.column("user_id"), "user_id"),
            item=positions(exposures.items["item_id"], exposures.column("item_id"), "item_id"),
            scene=pc.index_in(exposures.rows["scene"], pa.array(scenes)).to_numpy().astype(np.int64),
            outcome=outcome,
            interactions=np.stack([exposures.column(name) > 0 for name in INTERACTIONS], 1).astype(np.float32),
            watch_time=exposures.column("watch_time"),
        )

    def label(self, name: str) -> np.ndarray:
        if name in INTERACTIONS:
            return self.interactions[:, INTERACTIONS.index(name)] > 0
        return self.outcome >= OUTCOMES.index(name)


def positions(table: pa.ChunkedArray, ids: np.ndarray, field: str) -> np.ndarray:
    """The position of every id among the ascending ids of a table.

    Raises:
        InvalidFieldError: an id that the table lacks.
    """
    known = np.sort(table.to_numpy())
    found = np.searchsorted(known, ids).clip(max=len(known) - 1)
    missing = known[found] != ids
    require(not missing.any(), field, ids[missing][:1].tolist(), f"ids of the {field.removesuffix('_id')}s table")
    return found


def _codes(table: pa.Table, key: str) -> np.ndarray:
    """Every feature as a category, int64[rows in ascending id, 1 + features]; the id itself takes the first codes."""
    table = table.sort_by(key)
    columns, start = [], 0
    for name in [key, *(name for name in table.column_names if name != key)]:
        column = table[name]
        if pa.types.is_floating(column.type):
            values = column.to_numpy().astype(np.float64)
            edges = np.unique(np.nanquantile(values, np.linspace(0, 1, _BINS + 1)[1:-1])) if len(values) else values
            codes = np.where(np.isnan(values), _BINS, np.searchsorted(edges, values, side="right"))
        elif pa.types.is_list(column.type):
            continue
        else:
            codes = _frequent(column) if name != key else np.arange(len(column))
        columns.append(codes + start)
        start += int(codes.max(initial=0)) + 1
    return np.stack(columns, 1).astype(np.int64)


def _frequent(column: pa.ChunkedArray) -> np.ndarray:
    """Categories by frequency; all beyond the most frequent share one."""
    encoded = pc.fill_null(column.cast(pa.string()), "").combine_chunks().dictionary_encode()
    codes = encoded.indices.to_numpy(zero_copy_only=False)
    place = np.empty(len(encoded.dictionary), np.int64)
    place[np.argsort(-np.bincount(codes, minlength=len(place)), kind="stable")] = np.arange(len(place))
    frequent: np.ndarray = place[codes].clip(max=_MAX_CATEGORIES)
    return frequent


class _Network(nn.Module):
    """Sums of embeddings: users from id, features and history; items from id and features."""

    def __init__(self, users: np.ndarray, items: np.ndarray, history: tuple[np.ndarray, np.ndarray], scenes: int,
                 config: ResponseConfig) -> None:
        super().__init__()
        width = config.factors + len(HEADS)
        self.factors = config.factors
        self.user_codes, self.item_codes = torch.from_numpy(users), torch.from_numpy(items)
        self.history, self.lengths = torch.from_numpy(history[0]), torch.from_numpy(history[1])
        self.user = nn.Embedding(int(users.max()) + 1, width)
        self.item = nn.Embedding(int(items.max()) + 1, width)
        self.past = nn.Embedding(len(items) + 1, width, padding_idx=len(items))
        self.scene = nn.Embedding(scenes, width)
        self.mixing = nn.Parameter(torch.full((len(HEADS), config.factors), 1.0))
        self.outcome = nn.Parameter(torch.zeros(len(OUTCOMES), len(INTERACTIONS)))
        for table in (self.user, self.item, self.past, self.scene):
            nn.init.normal_(table.weight, std=.05)
            with torch.no_grad():
                table.weight[:, config.factors:] = 0.0

    def left(self, user: Tensor) -> Tensor:
        """[B, factors + heads]"""
        past = self.past(self.history[user]).sum(1) / (1.0 + self.lengths[user].unsqueeze(1)).sqrt()
        return self.user(self.user_codes[user]).sum(1) + past

    def right(self, item: Tensor) -> Tensor:
        """[B, factors + heads]"""
        return self.item(self.item_codes[item]).sum(1)

    def forward(self, user: Tensor, item: Tensor, scene: Tensor) -> Tensor:
        """Logits [B, heads]."""
        left, right = self.left(user) + self.scene(scene), self.right(item)
        f = self.factors
        return (left[:, :f] * right[:, :f]) @ self.mixing.T + left[:, f:] + right[:, f:]


def _history(exposures: Exposures, users: int, last: int = 20) -> tuple[np.ndarray, np.ndarray]:
    """Padded positions of each user's last watched items, int64[users, last], and how many there are."""
    known = np.sort(exposures.items["item_id"].to_numpy())
    padded = np.full((users, last), len(known), np.int64)
    lists = exposures.history["items"].combine_chunks()
    owner = np.repeat(np.arange(len(lists)), pc.list_value_length(lists).to_numpy(zero_copy_only=False))
    flat = lists.flatten().to_numpy(zero_copy_only=False)
    place = np.searchsorted(known, flat).clip(max=len(known) - 1)
    keep = known[place] == flat
    owner, place = owner[keep], place[keep]
    from_end = np.searchsorted(owner, owner, side="right") - 1 - np.arange(len(owner))
    recent = from_end < last
    ids = exposures.history["user_id"].to_numpy()[owner[recent]]
    known_users = np.sort(exposures.users["user_id"].to_numpy())
    row = np.searchsorted(known_users, ids).clip(max=users - 1)
    inside = known_users[row] == ids
    padded[row[inside], from_end[recent][inside]] = place[recent][inside]
    return padded, (padded < len(known)).sum(1).astype(np.float32)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Many small operations: a second thread waits more than it computes, above all where cores are shared."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _train(exposures: Exposures, rows: _Rows, scenes: int, config: ResponseConfig) -> _Network:
    with _one_thread(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        users, items = _codes(exposures.users, "user_id"), _codes(exposures.items, "item_id")
        network = _Network(users, items, _history(exposures, len(users)), scenes, config)
        base = np.array([rows.label(name).mean() for name in HEADS]).clip(1e-6, 1 - 1e-6)
        base[1] = np.clip(base[1] / base[0], 1e-6, 1 - 1e-6)
        with torch.no_grad():
            network.scene.weight[:, config.factors:] = torch.from_numpy(np.log(base / (1 - base))).float()
        decayed = [network.user.weight, network.item.weight, network.past.weight]
        others = [network.scene.weight, network.mixing, network.outcome]
        optimiser = torch.optim.AdamW([{"params": decayed, "weight_decay": config.weight_decay},
                                       {"params": others, "weight_decay": 0.0}], lr=config.learning_rate)
        tensors = [torch.from_numpy(a) for a in (rows.user, rows.item, rows.scene, rows.outcome, rows.interactions)]
        generator = torch.Generator().manual_seed(config.seed)
        for _ in range(config.epochs):
            for batch in torch.randperm(len(rows.user), generator=generator).split(config.batch_size):
                optimiser.zero_grad(set_to_none=True)
                _loss(network, *(tensor[batch] for tensor in tensors)).backward()
                optimiser.step()
    return network


def _loss(network: _Network, user: Tensor, item: Tensor, scene: Tensor, outcome: Tensor,
          interactions: Tensor) -> Tensor:
    """Click on all rows, long view on clicked rows, interactions given the outcome; sums of cross-entropies."""
    logits = network(user, item, scene)
    clicked = (outcome > 0).float()
    click = functional.binary_cross_entropy_with_logits(logits[:, 0], clicked)
    given = functional.binary_cross_entropy_with_logits(logits[:, 1], (outcome == 2).float(), weight=clicked)
    rest = functional.binary_cross_entropy_with_logits(logits[:, 2:] + network.outcome[outcome], interactions)
    return click + given + rest * len(INTERACTIONS)


@torch.no_grad()
def _export(network: _Network, exposures: Exposures, rows: _Rows, scenes: tuple[str, ...]) -> ResponseModel:
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
        users=users.numpy(),
        items=network.right(torch.arange(len(network.item_codes))).numpy(),
        scene=network.scene.weight.numpy().copy(),
        mixing=network.mixing.numpy().copy(),
        outcome=network.outcome.numpy().copy(),
        watch_time=_watch_times(rows, bins[rows.item], len(scenes)),
        duration_bin=bins.astype(np.int64),
    )


def _watch_times(rows: _Rows, bins: np.ndarray, scenes: int, least: int = 30) -> np.ndarray:
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


def _calibrate(model: ResponseModel, rows: _Rows, shrinkage: float, rounds: int = 6) -> ResponseModel:
    """Moves the intercepts so that every scene's mean predicted rate is the observed one (drawn to the pooled one)."""
    factors = model.mixing.shape[1]
    target = observed_rates(rows, len(model.scenes), shrinkage)
    scene = model.scene.copy()
    logits = model.logits(rows.user, rows.item, rows.scene)
    for index in range(len(model.scenes)):
        scene[index, factors:] += solve_shift(logits[rows.scene == index], model.outcome, target[index], rounds)
    return ResponseModel(**{**model.__dict__, "scene": scene.astype(np.float32)})


def observed_rates(rows: _Rows, scenes: int, shrinkage: float) -> np.ndarray:
    """float64[S, heads]: positives over rows, drawn to the pooled rate by `shrinkage` rows; click and long view not."""
    labels = np.stack([rows.label(name) for name in HEADS], 1).astype(np.float64)
    pooled = labels.mean(0)
    weight = np.where(np.arange(len(HEADS)) < 2, 1e-9, shrinkage)
    sums = np.stack([labels[rows.scene == scene].sum(0) for scene in range(scenes)])
    counts = np.bincount(rows.scene, minlength=scenes)[:, None]
    rates: np.ndarray = (sums + weight * pooled) / (counts + weight)
    return rates


def solve_shift(logits: np.ndarray, outcome: np.ndarray, target: np.ndarray, rounds: int = 6) -> np.ndarray:
    """Per-head shift of the logits [N, heads] after which the mean marginals are the target; steps in log-odds.

    The second head is conditional on the first, so its own target is target[1] / target[0].
    """
    shift = np.zeros(len(HEADS))
    for _ in range(rounds):
        rates = marginals(logits + shift.astype(np.float32), outcome).mean(0).astype(np.float64)
        shift += _log_odds(_conditional(target)) - _log_odds(_conditional(rates))
    return shift


def _conditional(rates: np.ndarray) -> np.ndarray:
    result = rates.copy()
    result[1] = rates[1] / max(rates[0], 1e-12)
    return result


def _log_odds(rates: np.ndarray) -> np.ndarray:
    rates = rates.clip(1e-7, 1 - 1e-7)
    odds: np.ndarray = np.log(rates / (1 - rates))
    return odds
