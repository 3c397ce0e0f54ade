"""How much predictions mean for each user of a world (maths 4.8): slopes, and what a state shows of them.

Where they are the same for everybody, one fusion vector serves everybody. A user's slope multiplies what a prediction,
as far as it differs from the user's others, adds to the log-odds of an answer. It is visible as far as the user's
features tell, and in an estimate from so many past exposures as the user has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recfuse.behaviours import StateFeature
from recfuse.simulation.responses import FEED, Responses

GROUPS = ("views", "interactions", "watch")
_VISIBLE = .8  # share of a slope's variance (of its logarithm) that is a function of the features
# The variance with which one past exposure tells a slope: of click in the public log, 1 / (p (1 − p) var log-odds).
_NOISE = 30.0


@dataclass(frozen=True)
class Slopes:
    """Attributes:
        slope: float32[U, groups], > 0, with mean 1.
        columns: state feature → [U], an estimate of a slope less 1 from past exposures; features: the same, in order.
    """

    slope: NDArray[np.float32]
    columns: dict[str, NDArray[np.float64]]
    features: tuple[StateFeature, ...]


def group_of_output(responses: Responses) -> NDArray[np.int64]:
    """Outputs of the response model → group: the ladder, interactions, the level of the amount after every outcome."""
    return np.repeat(np.arange(len(GROUPS)), (len(responses.ladder), len(responses.interactions), responses.outcomes))


def draw_slopes(spread: float, columns: Mapping[str, NDArray], features: Sequence[StateFeature],
                rng: np.random.Generator, responses: Responses = FEED) -> Slopes:
    """Log-normal slopes of the users, with this standard deviation; none where it is 0.

    Args:
        columns: state feature → [U], of users, `past_exposures` among them; features: of the same names.
    """
    users = len(columns[features[0].name])
    if spread == 0:
        return Slopes(np.ones((users, len(GROUPS)), np.float32), {}, ())
    sigma = np.log1p(spread**2)**.5
    past = np.asarray(columns["past_exposures"], np.float64)
    slope, shown, described = np.empty((users, len(GROUPS)), np.float32), {}, []
    for index, group in enumerate(GROUPS):
        if not {"interactions": responses.interactions, "watch": responses.amount}.get(group, True):
            slope[:, index] = 1.0
            continue
        seen, unseen = _projection(columns, features, rng), rng.standard_normal(users)
        slope[:, index] = np.exp(sigma * (_VISIBLE**.5 * seen + (1 - _VISIBLE)**.5 * unseen) - sigma**2 / 2)
        # Drawn to 1 by its reliability, as who estimates slopes from few exposures would.
        estimate = slope[:, index] - 1 + rng.standard_normal(users) * np.sqrt(_NOISE / past.clip(min=.5))
        of = responses.amount.removesuffix("_time") if group == "watch" else group
        name = f"past_meaning_{of}"
        shown[name] = np.round(estimate * past / (past + _NOISE / spread**2), 6)
        described.append(StateFeature(name=name, mean=round(float(shown[name].mean()), 6),
                                      std=round(float(shown[name].std()) + 1e-6, 6)))
    return Slopes(slope, shown, tuple(described))


def _projection(columns: Mapping[str, NDArray], features: Sequence[StateFeature],
                rng: np.random.Generator) -> NDArray[np.float64]:
    """float64[U], mean 0 and variance 1: a random linear function of the features as a state has them."""
    total = np.zeros(len(columns[features[0].name]))
    for feature in features:
        values = np.asarray(columns[feature.name])
        if feature.categories:
            effect = rng.standard_normal(len(feature.categories))
            total += effect[np.searchsorted(np.array(feature.categories), values)]
        else:
            numbers = np.log1p(values) if feature.log else values.astype(np.float64)
            total += rng.standard_normal() * ((numbers - feature.mean) / feature.std).clip(-3, 3)
    spread = total.std()
    # Users who are alike in everything have no visible part; their slopes are chance.
    result: NDArray[np.float64] = (total - total.mean()) / spread if spread > 1e-9 else rng.standard_normal(len(total))
    return result
