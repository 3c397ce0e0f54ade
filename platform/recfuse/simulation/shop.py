"""A shop: pages with click, order and revenue, and a catalogue, from a generator with known truth.

The demo has a home page and a cart. The scorer is measured on four pages: the cart with items in it, the empty cart,
the details of an order, the tracking of one. No public data at scale has such pages; every number here is made up from
a seed.

The truth, for user u of segment m and age group n, and item i of kind y and colour z, on page s:
`P(click) = σ(c_s + a_u + k_i + g_s (A[m, y] + ½ B[n, z]) + 1.5 log(before / now))` and
`P(order | click) = σ(d_s + ½ a_u + ½ k_i + ½ A[m, y] − .8 |log now − log budget_u|)`, with tables of tastes A and B and
biases a, k. Segment, age group, kind, colour and prices are in the features; biases and budget show through noise.
Each page has its own strength g_s of taste: what somebody adds to a full cart is more a matter of it than what they see
while they track a parcel. An order pays the item's price now.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from recfuse.config import require
from recfuse.logs.exposures import Exposures
from recfuse.logs.orders import order_exposures
from recfuse.scenes.registry import Registry, Scene
from recfuse.simulation.responses import Responses

FIRST_DAY = 20240301


@dataclass(frozen=True, kw_only=True)
class Page:
    """One page: its share of the rows, base log-odds of a click, and of an order given it, and strength of taste."""

    share: float
    click: float
    order: float
    taste: float


PAGES = {
    "cart": Page(share=.40, click=-1.6, order=-1.3, taste=1.6),
    "empty_cart": Page(share=.25, click=-2.1, order=-1.9, taste=1.2),
    "order_details": Page(share=.20, click=-2.5, order=-1.7, taste=1.0),
    "order_tracking": Page(share=.15, click=-2.9, order=-2.0, taste=.8),
}
# Those of the demo: where people come in, and where they are about to pay.
HOME_AND_CART = {
    "home": Page(share=.60, click=-2.0, order=-1.8, taste=1.2),
    "cart": Page(share=.40, click=-1.6, order=-1.3, taste=1.6),
}
# An order follows a click and pays the item's price.
RESPONSES = Responses(ladder=("click", "order"), amount="revenue", amount_after="order", amount_of="price")
_KINDS = ("phone", "shoe", "lamp", "book", "toy", "jacket", "kettle", "bag")
_COLOURS = ("black", "white", "red", "blue", "green", "grey")
_SEGMENTS, _AGES = 6, 5


@dataclass(frozen=True)
class Truth:
    """Probabilities that the labels were drawn from, float64[N], in the order of `Exposures.rows`.

    `order` is that of an order at all, not given a click; `revenue` the mean of what is paid.
    """

    click: np.ndarray
    order: np.ndarray
    revenue: np.ndarray


def registry(pages: Iterable[str]) -> Registry:
    """The scenes of these pages, all of their answers predicted."""
    return Registry(scenes=tuple(Scene(name=name, tasks=("click", "order", "revenue")) for name in pages),
                    numbers={"revenue": 100.0})


def generate(seed: int = 0, users: int = 3_000, items: int = 400, rows: int = 60_000, days: int = 10,
             pages: Mapping[str, Page] = PAGES) -> tuple[Exposures, Truth]:
    """Exposures of the shop and their truth; the same arguments give the same rows.

    Raises:
        InvalidFieldError: too few users, items, rows or days.
    """
    for name, value, least in (("users", users, 10), ("items", items, 20), ("rows", rows, 200), ("days", days, 2)):
        require(value >= least, name, value, f"an integer ≥ {least}")
    rng = _generator(seed)
    truth = _tastes(rng, users, items)
    user, item = rng.integers(0, users, rows), rng.choice(items, rows, p=_popularity(rng, items))
    page = rng.choice(len(pages), rows, p=[page.share for page in pages.values()])
    click, given = truth.probabilities(user, item, page, pages)
    day, hour = rng.integers(0, days, rows), rng.integers(0, 24, rows)
    seconds = day * 86_400 + hour * 3_600 + rng.permutation(rows) * 3_600 // rows
    clicked = rng.random(rows) < click
    order = clicked & (rng.random(rows) < given)
    columns = {
        "user_id": user.astype(np.int64), "item_id": item.astype(np.int64),
        "scene": np.array(list(pages))[page],
        "ts": pa.array(1_709_251_200_000_000 + seconds * 1_000_000).cast(pa.timestamp("us", "UTC")),
        "day": (FIRST_DAY + day).astype(np.int32), "hour": hour.astype(np.int8),
        "click": clicked.astype(np.int8), "order": order.astype(np.int8),
        "revenue": np.where(order, truth.now[item], 0.0).astype(np.float32), "drawn": np.arange(rows)}
    exposures = order_exposures(columns, _users(rng, truth), _catalogue(rng, truth))
    drawn = exposures.rows["drawn"].to_numpy()
    paid = click * given * truth.now[item]
    return _without(exposures, "drawn"), Truth(click[drawn], (click * given)[drawn], paid[drawn])


@dataclass(frozen=True)
class Tastes:
    """What the generator draws of users [U] and items [I]."""

    segment: np.ndarray
    age: np.ndarray
    kind: np.ndarray
    colour: np.ndarray
    user_bias: np.ndarray
    item_bias: np.ndarray
    now: np.ndarray
    before: np.ndarray
    budget: np.ndarray
    kind_taste: np.ndarray
    colour_taste: np.ndarray

    def probabilities(self, user: np.ndarray, item: np.ndarray, page: np.ndarray,
                      pages: Mapping[str, Page]) -> tuple[np.ndarray, np.ndarray]:
        """P(click) and P(order | click), float64[N] each; `page`: positions among the pages."""
        kind = self.kind_taste[self.segment[user], self.kind[item]]
        colour = self.colour_taste[self.age[user], self.colour[item]]
        bias = self.user_bias[user] + self.item_bias[item]
        base, strength, order = (np.array([getattr(each, name) for each in pages.values()])[page]
                                 for name in ("click", "taste", "order"))
        click = base + bias + strength * (kind + colour / 2) + 1.5 * np.log(self.before / self.now)[item]
        dear = np.abs(np.log(self.now[item]) - np.log(self.budget[user]))
        given = order + bias / 2 + kind / 2 - .8 * dear
        return 1 / (1 + np.exp(-click)), 1 / (1 + np.exp(-given))


def tastes(seed: int = 0, users: int = 3_000, items: int = 400) -> Tastes:
    """Those of `generate` with the same arguments: the truth of any user and item."""
    return _tastes(_generator(seed), users, items)


def _generator(seed: int) -> np.random.Generator:
    return np.random.default_rng([seed, 0x5409])


def _tastes(rng: np.random.Generator, users: int, items: int) -> Tastes:
    now, before = _prices(rng, items)
    return Tastes(
        segment=rng.integers(0, _SEGMENTS, users), age=rng.integers(0, _AGES, users),
        kind=rng.integers(0, len(_KINDS), items), colour=rng.integers(0, len(_COLOURS), items),
        user_bias=rng.normal(0, .4, users), item_bias=rng.normal(0, .4, items), now=now, before=before,
        budget=np.exp(rng.normal(3.2, .8, users)), kind_taste=rng.normal(0, 1, (_SEGMENTS, len(_KINDS))),
        colour_taste=rng.normal(0, 1, (_AGES, len(_COLOURS))))


def _catalogue(rng: np.random.Generator, truth: Tastes) -> pa.Table:
    """The items: price now and before, image, and parameters; the rating shows the bias through noise."""
    count = len(truth.kind)
    return pa.table({
        "item_id": np.arange(count, dtype=np.int64),
        "price": truth.now.astype(np.float32), "price_before": truth.before.astype(np.float32),
        "image": pa.array([f"images/{index}.webp" for index in range(count)]),
        "kind": pa.array(np.array(_KINDS)[truth.kind]), "colour": pa.array(np.array(_COLOURS)[truth.colour]),
        "reduced": (1 - truth.now / truth.before).astype(np.float32),
        "rating": (3.5 + truth.item_bias + rng.normal(0, .1, count)).clip(1, 5).astype(np.float32)})


def _without(exposures: Exposures, column: str) -> Exposures:
    return Exposures(exposures.rows.drop_columns([column]), exposures.users, exposures.items, exposures.history,
                     exposures.account, exposures.quarantine.drop_columns([column]))


def _prices(rng: np.random.Generator, items: int) -> tuple[np.ndarray, np.ndarray]:
    """Now and before, in the shop's currency; two thirds are reduced, by up to half."""
    before = np.exp(rng.normal(3.2, .8, items)).round(2)
    cut = np.where(rng.random(items) < 2 / 3, rng.uniform(.02, .5, items), 0.0)
    return (before * (1 - cut)).round(2).clip(min=.5), before


def _popularity(rng: np.random.Generator, items: int) -> np.ndarray:
    weight = rng.gamma(1.0, size=items) + .05
    share: np.ndarray = weight / weight.sum()
    return share


def _users(rng: np.random.Generator, truth: Tastes) -> pa.Table:
    count = len(truth.segment)
    return pa.table({
        "user_id": np.arange(count, dtype=np.int64), "segment": truth.segment.astype(np.int64),
        "age_group": truth.age.astype(np.int64),
        "spent_before": (truth.budget * np.exp(rng.normal(0, .2, count))).astype(np.float32),
        "activity": (truth.user_bias + rng.normal(0, .1, count)).astype(np.float32)})
