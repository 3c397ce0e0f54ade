"""The network behind the response model, and how its weights are learned from exposures."""

from __future__ import annotations

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
from recfuse.logs.exposures import Exposures
from recfuse.simulation.config import ResponseConfig
from recfuse.simulation.response import conditional
from recfuse.simulation.responses import FEED, Responses

_BINS = 16
_MAX_CATEGORIES = 2_000


@dataclass(frozen=True)
class Rows:
    """Exposures as arrays `[N]`.

    Attributes:
        user, item: int64, positions among the ascending ids of their tables; scene: int64, position among the scenes.
        outcome: int64, how many steps of the ladder there were.
        interactions: float32[N, interactions], 0 or 1; watch_time: the amount, or the multiple that it is.
        ladder: steps that there may be.
    """

    user: np.ndarray
    item: np.ndarray
    scene: np.ndarray
    outcome: np.ndarray
    interactions: np.ndarray
    watch_time: np.ndarray
    ladder: int = len(FEED.ladder)

    @classmethod
    def read(cls, exposures: Exposures, scenes: tuple[str, ...], responses: Responses = FEED) -> Rows:
        """Reads exposures, all of them in these scenes.

        Raises:
            InvalidFieldError: a column is missing, or an amount is where the declaration has none.
        """
        columns = exposures.rows.column_names
        for field, names in (("amount", responses.amounts), ("ladder", responses.ladder),
                             ("interactions", responses.interactions)):
            for name in names:
                require(name in columns, f"responses.{field}", name, f"a column of the exposures: {', '.join(columns)}")
        outcome = outcomes_of(exposures, responses)
        if responses.amount_after:
            amount = exposures.column(responses.amount)
            early = outcome <= responses.ladder.index(responses.amount_after)
            require(not (amount[early] != 0).any(), responses.amount, float(amount[early].max(initial=0)),
                    f"0 in exposures without {responses.amount_after}, after which it is declared")
        item = item_positions(exposures)
        return cls(
            user=_positions(exposures.users["user_id"], exposures.column("user_id"), "user_id"),
            item=item,
            scene=pc.index_in(exposures.rows["scene"], pa.array(scenes)).to_numpy().astype(np.int64),
            outcome=outcome,
            interactions=interactions_of(exposures, responses).astype(np.float32),
            watch_time=amounts_of(exposures, responses, item),
            ladder=len(responses.ladder),
        )

    @property
    def labels(self) -> np.ndarray:
        """float64[N, heads], 0 or 1: steps of the ladder, then interactions."""
        steps = self.outcome[:, None] > np.arange(self.ladder)
        return np.concatenate([steps, self.interactions > 0], 1).astype(np.float64)

    def take(self, index: np.ndarray) -> Rows:
        """The rows at these positions, or in this mask."""
        return Rows(ladder=self.ladder, **{name: column[index] for name, column in self.__dict__.items()
                                           if name != "ladder"})


def interactions_of(exposures: Exposures, responses: Responses) -> np.ndarray:
    """bool[N, interactions]"""
    found = np.zeros((exposures.rows.num_rows, len(responses.interactions)), bool)
    for place, name in enumerate(responses.interactions):
        found[:, place] = exposures.column(name) > 0
    return found


def outcomes_of(exposures: Exposures, responses: Responses) -> np.ndarray:
    """int64[N]: how many steps of the ladder each exposure has; a later step without an earlier one implies it."""
    outcome = np.zeros(exposures.rows.num_rows, np.int64)
    for step, name in enumerate(responses.ladder, 1):
        outcome = np.where(exposures.column(name) > 0, step, outcome)
    return outcome


def item_positions(exposures: Exposures) -> np.ndarray:
    """int64[N]: the rows' positions among the ascending ids of the items."""
    return _positions(exposures.items["item_id"], exposures.column("item_id"), "item_id")


def amounts_of(exposures: Exposures, responses: Responses, item: np.ndarray) -> np.ndarray:
    """float32[N]: the amounts of the rows, or the multiples that they are of a number of the item; 0 without any.

    Args:
        item: [N], as of `item_positions`.

    Raises:
        InvalidFieldError: an amount that is no number ≥ 0.
    """
    if not responses.amount:
        return np.zeros(len(item), np.float32)
    amount: np.ndarray = exposures.column(responses.amount)
    bad = ~(np.isfinite(amount) & (amount >= 0))
    require(not bad.any(), responses.amount, amount[bad][:1].tolist(), "finite numbers ≥ 0")
    return (amount / factors_of(exposures, responses)[item]).astype(np.float32) if responses.amount_of else amount


def factors_of(exposures: Exposures, responses: Responses) -> np.ndarray:
    """float32[I]: what amounts are multiples of, in ascending ids of the items; 1 where they are none.

    Raises:
        InvalidFieldError: the items lack the column, or have a number in it that is not above 0.
    """
    if not responses.amount_of:
        return np.ones(exposures.items.num_rows, np.float32)
    factor = item_numbers(exposures, responses.amount_of, "amount_of").astype(np.float32)
    bad = ~(factor > 0)
    require(not bad.any(), f"items.{responses.amount_of}", factor[bad][:1].tolist(), "numbers > 0 for every item")
    return factor


def item_numbers(exposures: Exposures, name: str, field: str) -> np.ndarray:
    """float64[I], a number of the items in ascending ids; NaN where unknown. `field`: of the declaration."""
    require(name in exposures.items.column_names, f"responses.{field}", name,
            f"a column of the items: {', '.join(exposures.items.column_names)}")
    numbers: np.ndarray = exposures.items.sort_by("item_id")[name].to_numpy().astype(np.float64)
    return numbers


def watch_levels(rows: Rows, duration_bin: np.ndarray) -> np.ndarray:
    """float32[N]: log-odds of a watch time's mid-rank among the rows of its scene, outcome and range of durations.

    Args:
        duration_bin: int64[N].
    """
    cell = (rows.scene * (rows.ladder + 1) + rows.outcome) * (int(duration_bin.max(initial=0)) + 1) + duration_bin
    order = np.lexsort((rows.watch_time, cell))
    first, size = (np.searchsorted(cell[order], cell[order], side=side) for side in ("left", "right"))
    size = size - first
    # Ties share the middle of their ranks.
    tied = np.concatenate([[True], (np.diff(cell[order]) != 0) | (np.diff(rows.watch_time[order]) != 0)])
    group = np.cumsum(tied) - 1
    middle = (np.bincount(group, np.arange(len(cell)) - first) / np.bincount(group))[group]
    share = (middle + .5) / size
    level = np.empty(len(cell), np.float32)
    level[order] = np.log(share) - np.log1p(-share)
    return level


def _positions(table: pa.ChunkedArray, ids: np.ndarray, field: str) -> np.ndarray:
    """The position of every id among the ascending ids of a table.

    Raises:
        InvalidFieldError: an id that the table lacks.
    """
    known = np.sort(table.to_numpy())
    place = np.searchsorted(known, ids).clip(max=len(known) - 1)
    missing = known[place] != ids
    require(not missing.any(), field, ids[missing][:1].tolist(), f"ids of the {field.removesuffix('_id')}s table")
    return place


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


class ResponseNetwork(nn.Module):
    """Sums of embeddings: users from id, features and history; items from id and features."""

    def __init__(self, users: np.ndarray, items: np.ndarray, history: tuple[np.ndarray, np.ndarray], scenes: int,
                 config: ResponseConfig, ladder: int, interactions: int) -> None:
        super().__init__()
        outputs = ladder + interactions + ladder + 1
        width = config.factors + outputs
        self.factors = config.factors
        self.user_codes, self.item_codes = torch.from_numpy(users), torch.from_numpy(items)
        self.history, self.lengths = torch.from_numpy(history[0]), torch.from_numpy(history[1])
        self.user = nn.Embedding(int(users.max()) + 1, width)
        self.item = nn.Embedding(int(items.max()) + 1, width)
        self.past = nn.Embedding(len(items) + 1, width, padding_idx=len(items))
        self.scene = nn.Embedding(scenes, width)
        self.mixing = nn.Parameter(torch.full((outputs, config.factors), 1.0))
        self.outcome = nn.Parameter(torch.zeros(ladder + 1, interactions))
        for table in (self.user, self.item, self.past, self.scene):
            nn.init.normal_(table.weight, std=.05)
            with torch.no_grad():
                table.weight[:, config.factors:] = 0.0

    def left(self, user: Tensor) -> Tensor:
        """[B, factors + outputs]"""
        past = self.past(self.history[user]).sum(1) / (1.0 + self.lengths[user].unsqueeze(1)).sqrt()
        return self.user(self.user_codes[user]).sum(1) + past

    def right(self, item: Tensor) -> Tensor:
        """[B, factors + outputs]"""
        return self.item(self.item_codes[item]).sum(1)

    def forward(self, user: Tensor, item: Tensor, scene: Tensor) -> Tensor:
        """Logits of the heads, then watch levels by outcome, [B, outputs]."""
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


def train(exposures: Exposures, rows: Rows, level: np.ndarray, scenes: int,
          config: ResponseConfig) -> ResponseNetwork:
    """Fits a network to the rows; the same config gives the same network.

    Args:
        exposures: whose users, items and histories the network embeds.
        level: float32[N], where the rows' watch times lie among those of their kind (`watch_levels`).
        scenes: how many there are.
    """
    with _one_thread(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        users, items = _codes(exposures.users, "user_id"), _codes(exposures.items, "item_id")
        network = ResponseNetwork(users, items, _history(exposures, len(users)), scenes, config, rows.ladder,
                                  rows.interactions.shape[1])
        _start_at_rates(network, rows)
        optimiser = _optimiser(network, config)
        tensors = [torch.from_numpy(a) for a in (rows.user, rows.item, rows.scene, rows.outcome, rows.interactions,
                                                  level)]
        generator = torch.Generator().manual_seed(config.seed)
        for _ in range(config.epochs):
            for batch in torch.randperm(len(rows.user), generator=generator).split(config.batch_size):
                optimiser.zero_grad(set_to_none=True)
                _loss(network, *(tensor[batch] for tensor in tensors)).backward()
                optimiser.step()
    return network


@torch.no_grad()
def _start_at_rates(network: ResponseNetwork, rows: Rows) -> None:
    """Sets the scenes' biases to the log-odds of the rows' rates."""
    base = conditional(rows.labels.mean(0).clip(1e-6, 1 - 1e-6), rows.ladder).clip(1e-6, 1 - 1e-6)
    heads = slice(network.factors, network.factors + len(base))
    network.scene.weight[:, heads] = torch.from_numpy(np.log(base / (1 - base))).float()


def _optimiser(network: ResponseNetwork, config: ResponseConfig) -> torch.optim.Optimizer:
    decayed = [network.user.weight, network.item.weight, network.past.weight]
    others = [network.scene.weight, network.mixing, network.outcome]
    return torch.optim.AdamW([{"params": decayed, "weight_decay": config.weight_decay},
                              {"params": others, "weight_decay": 0.0}], lr=config.learning_rate)


def _loss(network: ResponseNetwork, user: Tensor, item: Tensor, scene: Tensor, outcome: Tensor,
          interactions: Tensor, level: Tensor) -> Tensor:
    """Every step of the ladder on the rows that had the step before, interactions and amounts given the outcome:
    cross-entropies, and a squared error in units of a logistic deviate's variance."""
    logits, (ends, interacted) = network(user, item, scene), network.outcome.shape
    ladder = ends - 1
    loss = logits.new_zeros(())
    for step in range(ladder):
        loss = loss + functional.binary_cross_entropy_with_logits(
            logits[:, step], (outcome > step).float(), weight=(outcome >= step).float())
    if interacted:
        loss = loss + interacted * functional.binary_cross_entropy_with_logits(
            logits[:, ladder:ladder + interacted] + network.outcome[outcome], interactions)
    predicted = logits[:, ladder + interacted:].gather(1, outcome[:, None])[:, 0]
    return loss + (predicted - level).square().mean() * 3 / torch.pi**2
