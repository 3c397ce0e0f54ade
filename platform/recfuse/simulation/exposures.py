"""The embedded source of exposures: a documented generator with a known truth, for use where no real logs are at hand.

It has the shape, the columns and the rates of the real source (short-video exposures in five scenes), but every number
is made up from a seed, so that what a model recovers can be compared with the truth.

The truth, for user u, item i, scene s and behaviour b (click; long view, like, … given a click; hate):
`P(b) = sigmoid(c[s, b] + a_u[b] + k_i[b] + g_b · ⟨p_u, W_b q_i⟩)`, where `p_u` and `q_i` are latent factors, `a_u` and
`k_i` biases, `W_b` rotates the taste per behaviour (about half of it is shared: with one taste for all there would be
nothing to fuse), and the intercepts `c[s, b]` are solved for, so that the mean probability over a scene's rows is the
declared rate of that scene. Watch time follows from click, long view and the item's duration. Features carry the
factors: categories quantise them, numbers are noisy projections of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa

from recfuse.config import require
from recfuse.logs.account import Account
from recfuse.logs.exposures import LABELS, ROWS_SCHEMA, Exposures, sort_rows

FACTORS = 8
HISTORY = 50
LONG_VIEW_SECONDS = 18.0
CLICK_SECONDS = 7.0


@dataclass(frozen=True, kw_only=True)
class SceneTruth:
    """One scene of the generator: its share of the rows and the marginal rate of every behaviour in it."""

    share: float
    click: float
    long_view: float
    like: float
    follow: float
    comment: float
    forward: float
    hate: float


# Sizes and rates of the five large pages of the real source.
SCENES: dict[str, SceneTruth] = {
    "0": SceneTruth(share=.093, click=.085, long_view=.036, like=.0044, follow=.0004, comment=.0009, forward=.0003,
                    hate=.0009),
    "1": SceneTruth(share=.786, click=.497, long_view=.350, like=.0197, follow=.0014, comment=.0029, forward=.0009,
                    hate=.0008),
    "2": SceneTruth(share=.030, click=.471, long_view=.356, like=.0134, follow=.0029, comment=.0034, forward=.0013,
                    hate=.0021),
    "4": SceneTruth(share=.062, click=.598, long_view=.460, like=.0183, follow=.0005, comment=.0022, forward=.0006,
                    hate=.0006),
    "6": SceneTruth(share=.029, click=.143, long_view=.075, like=.0073, follow=.0023, comment=.0015, forward=.0003,
                    hate=.0006),
}
# How strongly taste (the factors) and the biases of user and item act on each behaviour, in log-odds.
_TASTE = {"click": .9, "long_view": .8, "like": 1.2, "follow": 1.2, "comment": 1.2, "forward": 1.2, "hate": .8}
_USER_BIAS = {"click": .5, "long_view": .3, "like": 1.2, "follow": .8, "comment": 1.0, "forward": .8, "hate": .8}
_ITEM_BIAS = {"click": .5, "long_view": .4, "like": .5, "follow": .5, "comment": .8, "forward": .8, "hate": .5}


@dataclass(frozen=True)
class Truth:
    """What the generator knows.

    Attributes:
        probabilities: behaviour → marginal `float64[N]` of every row, in the order of `Exposures.rows`.
        user_factors: `[users, FACTORS]`; item_factors: `[items, FACTORS]`.
    """

    probabilities: dict[str, np.ndarray]
    user_factors: np.ndarray
    item_factors: np.ndarray


def generate(seed: int = 0, users: int = 6_000, items: int = 1_000, rows: int = 60_000, days: int = 11) -> Exposures:
    """Exposures from the generator; the same arguments give the same rows.

    Args:
        seed: of everything random.
        users, items: distinct ids; rows: exposures; days: calendar days from 25 April 2022 on, local time UTC+8.
    """
    return generate_with_truth(seed=seed, users=users, items=items, rows=rows, days=days)[0]


def generate_with_truth(
    *, seed: int = 0, users: int = 6_000, items: int = 1_000, rows: int = 60_000, days: int = 11
) -> tuple[Exposures, Truth]:
    """`generate`, with the probabilities that the responses were drawn from.

    Raises:
        InvalidFieldError: fewer than 2 days, or too few users, items or rows to hold five scenes.
    """
    require(users >= 10, "users", users, "an integer ≥ 10")
    require(items >= 20, "items", items, "an integer ≥ 20")
    require(rows >= 100, "rows", rows, "an integer ≥ 100")
    require(2 <= days <= 31, "days", days, "an integer in [2, 31]")
    rng = np.random.default_rng([seed, 0xE0])
    user_factors, item_factors = (rng.normal(size=(count, FACTORS)) for count in (users, items))
    duration = np.exp(rng.normal(4.0, .9, items)).clip(5.0, 900.0)
    popularity = rng.gamma(.6, size=items) + 1e-3
    activity = rng.gamma(1.2, size=users) + .05

    user = rng.choice(users, size=rows, p=activity / activity.sum())
    item = _shown_items(rng, user, user_factors, item_factors, popularity)
    scene = rng.choice(np.array(list(SCENES)), size=rows, p=_shares())
    ts, day, hour = _times(rng, user, days)
    probabilities, labels = _respond(rng, user, item, scene, user_factors, item_factors)
    watch = _watch_time(rng, labels["click"], labels["long_view"], duration[item], scene)

    table, order = _sorted_rows({
        "user_id": user.astype(np.int64), "item_id": item.astype(np.int64), "scene": scene.astype(str),
        "ts": pa.array(ts).cast(pa.timestamp("us", "UTC")), "day": day, "hour": hour,
        "watch_time": watch, **{name: labels[name].astype(np.int8) for name in LABELS}})
    exposures = Exposures(
        rows=table,
        users=_user_features(rng, user_factors, activity),
        items=_item_features(rng, item_factors, duration),
        history=_history(rng, user_factors, item_factors, popularity),
        account=Account(rows_in=rows, kept=rows),
        quarantine=table.slice(0, 0).append_column("reason", pa.array([], pa.string())),
    )
    return exposures, Truth({name: p[order] for name, p in probabilities.items()}, user_factors, item_factors)


def _sorted_rows(columns: dict[str, object]) -> tuple[pa.Table, np.ndarray]:
    """The columns as rows of exposures in the order of time, and where each of them was."""
    table = pa.table(columns)
    table = sort_rows(table.append_column("row", pa.array(np.arange(table.num_rows))))
    return table.drop_columns(["row"]).cast(ROWS_SCHEMA), table["row"].to_numpy()


def _shares() -> np.ndarray:
    shares = np.array([scene.share for scene in SCENES.values()])
    return shares / shares.sum()


def _shown_items(rng: np.random.Generator, user: np.ndarray, user_factors: np.ndarray, item_factors: np.ndarray,
                 popularity: np.ndarray, choices: int = 4) -> np.ndarray:
    """What a recommender showed: of a few popular items the one nearest to the user's taste, with noise."""
    pool = rng.choice(len(popularity), size=(len(user), choices), p=popularity / popularity.sum())
    affinity = np.einsum("nf,ncf->nc", user_factors[user], item_factors[pool]) / np.sqrt(FACTORS)
    best = (affinity + rng.gumbel(scale=1.5, size=affinity.shape)).argmax(1)
    return pool[np.arange(len(user)), best]


def _times(rng: np.random.Generator, user: np.ndarray, days: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """ts (µs, UTC), local day yyyymmdd and local hour; a user's exposures of a day come in one evening-heavy burst."""
    start = pd.Timestamp("2022-04-25")
    day_index = rng.integers(0, days, len(user))
    # One visit per user and day: its hour is a function of both, and the exposures follow within half an hour.
    visit = np.random.default_rng(rng.integers(2**63)).beta(3.0, 1.8, size=(user.max() + 1, days))
    second = (visit[user, day_index] * 84_000).astype(np.int64) + rng.integers(0, 1_800, len(user))
    local = start.value // 1_000 + (day_index * 86_400 + second) * 1_000_000 + rng.integers(0, 1_000_000, len(user))
    calendar = pd.date_range(start, periods=days + 1).strftime("%Y%m%d").to_numpy().astype(np.int32)
    # A burst that would pass midnight ends before it, so that the day stays the visit's.
    overflow = second >= 86_400
    local = np.where(overflow, local - 1_800 * 1_000_000, local)
    hour = ((local // 1_000_000) % 86_400 // 3_600).astype(np.int8)
    return local - 8 * 3_600 * 1_000_000, calendar[day_index], hour


def _respond(rng: np.random.Generator, user: np.ndarray, item: np.ndarray, scene: np.ndarray,
             user_factors: np.ndarray, item_factors: np.ndarray) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Marginal probabilities and drawn labels. Everything but click and hate needs a click."""
    probabilities: dict[str, np.ndarray] = {}
    labels: dict[str, np.ndarray] = {}
    for name in ("click", "long_view", "like", "follow", "comment", "forward", "hate"):
        rotation = np.linalg.qr((np.eye(FACTORS) + rng.normal(size=(FACTORS, FACTORS))) * .5)[0]
        taste = np.einsum("nf,nf->n", user_factors[user] @ rotation, item_factors[item]) / np.sqrt(FACTORS)
        sign = -1.0 if name == "hate" else 1.0
        bias = (_USER_BIAS[name] * _bias(rng, user_factors)[user]
                + _ITEM_BIAS[name] * _bias(rng, item_factors)[item])
        score = sign * _TASTE[name] * taste + bias
        gate = np.ones(len(user)) if name in ("click", "hate") else probabilities["click"]
        given = np.empty(len(user))
        for key, truth in SCENES.items():
            rows = scene == key
            given[rows] = _calibrated(score[rows], gate[rows], getattr(truth, name))
        probabilities[name] = gate * given
        drawn = rng.random(len(user)) < given
        labels[name] = drawn if name in ("click", "hate") else drawn & labels["click"]
    return probabilities, labels


def _bias(rng: np.random.Generator, factors: np.ndarray) -> np.ndarray:
    """A bias per user or item: half of it shows in the factors (and so in the features), half of it does not."""
    direction = rng.normal(size=FACTORS)
    seen = factors @ (direction / np.linalg.norm(direction))
    return np.sqrt(.5) * (seen + rng.normal(size=len(factors)))


def _calibrated(score: np.ndarray, gate: np.ndarray, rate: float) -> np.ndarray:
    """sigmoid(score + c) with c such that the mean of gate · sigmoid is the rate (bisection)."""
    if len(score) == 0:
        return score
    low, high = -30.0, 30.0
    for _ in range(60):
        middle = (low + high) / 2
        mean = (gate / (1 + np.exp(-(score + middle)))).mean()
        low, high = (middle, high) if mean < rate else (low, middle)
    given: np.ndarray = 1 / (1 + np.exp(-(score + (low + high) / 2)))
    return given


def _watch_time(rng: np.random.Generator, click: np.ndarray, long_view: np.ndarray, duration: np.ndarray,
                scene: np.ndarray) -> np.ndarray:
    """Seconds: a glance without a click (none on scene "0", whose items play only on click), some seconds with one,
    and for a long view at least the shorter of 18 s and the duration, up to about the whole of it."""
    glance = np.minimum(np.exp(rng.normal(.8, .6, len(click))), CLICK_SECONDS) * (scene != "0")
    brief = rng.triangular(CLICK_SECONDS, 9.0, LONG_VIEW_SECONDS, len(click)).clip(max=duration)
    floor = np.minimum(LONG_VIEW_SECONDS, duration)
    long = floor + (duration - floor) * rng.beta(.8, .6, len(click)) * np.exp(rng.normal(0, .15, len(click)))
    watch: np.ndarray = np.where(long_view, long, np.where(click, brief, glance)).astype(np.float32)
    return watch


def _quantised(factor: np.ndarray, bins: int) -> np.ndarray:
    """Equal-count bins 0..bins−1 of a factor."""
    edges = np.quantile(factor, np.linspace(0, 1, bins + 1)[1:-1])
    return np.searchsorted(edges, factor)


def _user_features(rng: np.random.Generator, factors: np.ndarray, activity: np.ndarray) -> pa.Table:
    noisy = factors + rng.normal(scale=.3, size=factors.shape)
    degree = np.array(["low_active", "middle_active", "high_active", "full_active"])
    columns = {
        "user_id": np.arange(len(factors), dtype=np.int64),
        "user_active_degree": pa.array(degree[_quantised(activity, 4)]),
        "register_days": (800 * np.exp(.5 * noisy[:, 0])).astype(np.float32),
    }
    for index in range(FACTORS - 1):
        columns[f"onehot_feat{index}"] = _quantised(noisy[:, index + 1], 6).astype(np.int64)
    return pa.table(columns)


def _item_features(rng: np.random.Generator, factors: np.ndarray, duration: np.ndarray) -> pa.Table:
    noisy = factors + rng.normal(scale=.3, size=factors.shape)
    cluster = (noisy[:, :5] > 0) @ (1 << np.arange(5))
    kind = np.array(["NORMAL", "AD"])
    return pa.table({
        "item_id": np.arange(len(factors), dtype=np.int64),
        "duration": duration.astype(np.float32),
        "author_id": (cluster * 16 + rng.integers(0, 8, len(factors))).astype(np.int64),
        "video_type": pa.array(kind[(rng.random(len(factors)) < .02).astype(int)]),
        "upload_type": pa.array([f"upload_{value}" for value in _quantised(noisy[:, 5], 5)]),
        "music_type": _quantised(noisy[:, 6], 4).astype(np.int64),
        "tag": _quantised(noisy[:, 7], 8).astype(np.int64) * 32 + cluster.astype(np.int64),
        "age_days": np.exp(rng.normal(1.5, .8, len(factors))).astype(np.float32),
    })


def _history(rng: np.random.Generator, user_factors: np.ndarray, item_factors: np.ndarray,
             popularity: np.ndarray) -> pa.Table:
    """What each user watched before: up to 50 items near to the user's taste, oldest first."""
    users = len(user_factors)
    lengths = rng.integers(0, HISTORY + 1, users)
    owner = np.repeat(np.arange(users), lengths)
    watched = _shown_items(rng, owner, user_factors, item_factors, popularity)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    lists = pa.ListArray.from_arrays(pa.array(offsets), pa.array(watched.astype(np.int64)))
    return pa.table({"user_id": np.arange(users, dtype=np.int64), "items": lists})
