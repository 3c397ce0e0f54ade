"""What exposures say of staying: is another exposure of the user more likely after a click, after a like?

A linear probability model within users (each user's own mean is taken out, so that who uses the app more says
nothing), with scene, day, part of the day, place in the day, duration and watch time beside the responses; errors are
clustered by user. `WorldConfig.stay_effect` and `interaction_value` can be held against it; public exposures are a
small part of what was shown, so that effects are thinned as much as the rows are, but the likes' and the clicks' alike.

    python -m benchmarks.staying --exposures DIR
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from pydantic import Field

from recfuse.config import Config
from recfuse.logs.exposures import Exposures
from recfuse.runtime.console import start, table
from recfuse.simulation.sources import read_source
from recfuse.stats.intervals import sum_per_user

HALF_HOUR, DAY = 1_800.0, 86_400.0
_FEW = 1_000  # rows of a scene below which it shares a column with the others


class StayingConfig(Config):
    """Which log is asked."""

    exposures: str = Field("embedded", description=(
        "A directory with KuaiRand files is read; `embedded` is a generator."))


def main(config: StayingConfig) -> dict[str, dict[str, tuple[float, float]]]:
    """Prints, and returns, (points, half of the 95% interval) per outcome and response."""
    changes = effects(read_source(config.exposures).exposures)
    names = next(iter(changes.values()))
    table("Another exposure follows: percentage points more after a response, with 95% intervals; within users",
          ["outcome", *names], [[outcome, *(f"{100 * point:+.1f} ± {100 * half:.1f}" for point, half in of.values())]
                                for outcome, of in changes.items()])
    return changes


def effects(exposures: Exposures) -> dict[str, dict[str, tuple[float, float]]]:
    """Outcome → response → (change of the probability, half of its 95% interval)."""
    user, day = exposures.column("user_id"), exposures.column("day")
    seconds = exposures.rows["ts"].cast("int64").to_numpy() / 1e6
    order = np.lexsort([seconds, user])
    user, day, seconds = user[order], day[order], seconds[order]
    same = np.concatenate([user[1:] == user[:-1], [False]])
    gap = np.where(same, np.concatenate([seconds[1:], [np.inf]]) - seconds, np.inf)
    today = same & np.concatenate([day[1:] == day[:-1], [False]])
    known = seconds < seconds.max() - DAY  # for the rest the next day is not in the log
    responses = _responses(exposures, order)
    inputs = np.column_stack([*responses.values(), _beside(exposures, order, user, day)])
    outcomes = {"within 30 minutes": (gap < HALF_HOUR, np.ones(len(user), bool)),
                "the same day": (today, np.ones(len(user), bool)), "within 24 hours": (gap < DAY, known)}
    return {name: dict(zip(responses, zip(*within_users(inputs[rows], happened[rows], user[rows], len(responses)),
                                          strict=True), strict=True))
            for name, (happened, rows) in outcomes.items()}


def _column(exposures: Exposures, name: str, order: np.ndarray) -> np.ndarray:
    return np.asarray(exposures.column(name)[order], np.float64)


def _responses(exposures: Exposures, order: np.ndarray) -> dict[str, np.ndarray]:
    """Response → float64[N], 0 or 1."""
    comment, forward, follow = (_column(exposures, name, order) for name in ("comment", "forward", "follow"))
    columns = {name: _column(exposures, name.replace(" ", "_"), order) for name in ("click", "long view", "like")}
    return {**columns, "comment, forward, follow": np.clip(comment + forward + follow, 0, 1),
            "hate": _column(exposures, "hate", order)}


def _beside(exposures: Exposures, order: np.ndarray, user: np.ndarray, day: np.ndarray) -> np.ndarray:
    """float64[N, k]: watch time, duration, place in the day, scene, day and part of the day, which may hide behind a
    response."""
    place = pd.Series(np.ones(len(user))).groupby([user, day]).cumsum().to_numpy()
    items = exposures.items.to_pandas().set_index("item_id")["duration"]
    length = np.nan_to_num(items.reindex(exposures.column("item_id")[order]).to_numpy(np.float64))
    scene = pd.Series(exposures.rows["scene"].to_numpy(zero_copy_only=False)[order])
    scene = scene.where(scene.map(scene.value_counts()) >= _FEW, "few")
    groups = [pd.get_dummies(pd.Series(values), drop_first=True).to_numpy(np.float64)
              for values in (scene, day, _column(exposures, "hour", order) // 4)]
    watch = np.log1p(_column(exposures, "watch_time", order))
    return np.column_stack([watch, np.log1p(length), np.log(place), *groups])


def within_users(inputs: np.ndarray, outcome: np.ndarray, user: np.ndarray,
                 first: int) -> tuple[list[float], list[float]]:
    """Coefficients of the first inputs and half of their 95% intervals: least squares after taking out every user's
    mean, errors clustered by user."""
    codes, _ = pd.factorize(user)
    count = np.bincount(codes)
    x, y = (values - (sum_per_user(values, user) / count[:, None])[codes]
            for values in (inputs, outcome.astype(np.float64)[:, None]))
    inverse = np.linalg.pinv(x.T @ x)
    slope = inverse @ x.T @ y
    score = sum_per_user(x * (y - x @ slope), user)
    error = np.sqrt(np.diag(inverse @ score.T @ score @ inverse))
    return slope[:first, 0].tolist(), (1.96 * error[:first]).tolist()


if __name__ == "__main__":
    main(start(StayingConfig, description=__doc__))
