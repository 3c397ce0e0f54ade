"""State features of a world's users, from the exposures' user table and from how they answered before."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recfuse.behaviours import StateFeature
from recfuse.logs.exposures import RESPONSE_SHARE, Exposures, row_share
from recfuse.simulation.responses import FEED, Responses

_CATEGORIES, _NUMBERS = 5, 4
_MOST_VALUES = 8


def user_features(exposures: Exposures, user_ids: np.ndarray,
                  responses: Responses = FEED) -> tuple[dict[str, np.ndarray], tuple[StateFeature, ...]]:
    """State features of the users: how they answered before (in rows the response model has not seen), and of the
    table's columns those that say most about the long-term behaviour there.

    Args:
        user_ids: [U], ascending.

    Returns:
        Feature → column `[U]`; and the features, in the same order.
    """
    answered = _answered(exposures, user_ids, responses)
    features = [_numeric(name, column, log=name == "past_exposures") for name, column in answered.items()]
    past = answered[f"past_{responses.amount or f'{responses.primary}_rate'}"]
    target = past - past.mean()
    columns, chosen = _of_table(exposures, user_ids, target)
    columns, features = {**answered, **columns}, [*features, *chosen]
    return {feature.name: columns[feature.name] for feature in features}, tuple(features)


def _answered(exposures: Exposures, user_ids: np.ndarray, responses: Responses) -> dict[str, np.ndarray]:
    """Feature → column `[U]` of how often and how the users answered in the scorer's share of the rows."""
    shared = row_share(exposures) >= RESPONSE_SHARE
    user = exposures.column("user_id")[shared]
    place = np.searchsorted(user_ids, user).clip(max=len(user_ids) - 1)
    inside = user_ids[place] == user
    place = place[inside]
    counts = np.bincount(place, minlength=len(user_ids)).astype(np.float64)

    def mean(values: np.ndarray) -> np.ndarray:
        # Means are drawn to the pooled one by two exposures' worth, so that one exposure is no verdict.
        pooled = values.mean() if len(values) else 0.0
        drawn: np.ndarray = (np.bincount(place, values, len(user_ids)) + 2 * pooled) / (counts + 2)
        return drawn

    amounts = {f"past_{name}": mean(np.log1p(np.maximum(exposures.column(name)[shared][inside].astype(np.float64), 0)))
               for name in responses.amounts}
    return {"past_exposures": counts, **amounts,
            **{f"past_{name}_rate": mean((exposures.column(name)[shared][inside] > 0).astype(np.float64))
               for name in (*responses.ladder, *responses.interactions[:1])}}


def _of_table(exposures: Exposures, user_ids: np.ndarray,
              target: np.ndarray) -> tuple[dict[str, np.ndarray], list[StateFeature]]:
    """The columns `[U]` of the user table, and the features of those whose groups differ most in the target."""
    table = exposures.users.filter(pc.is_in(exposures.users["user_id"], pa.array(user_ids))).sort_by("user_id")
    columns: dict[str, np.ndarray] = {}
    numbers: list[tuple[float, StateFeature]] = []
    categories: list[tuple[float, StateFeature]] = []
    for name in table.column_names:
        if name == "user_id":
            continue
        if pa.types.is_floating(table[name].type):
            columns[name] = values = np.nan_to_num(table[name].to_numpy().astype(np.float64))
            # Of all users, since a state is refused where a logarithm meets a number below 0.
            log = bool((np.nan_to_num(exposures.users[name].to_numpy()) >= 0).all())
            numbers.append((_strength(_ranks(values), target), _numeric(name, values, log=log)))
        else:
            texts = pc.fill_null(table[name].cast(pa.string()), "").to_numpy(zero_copy_only=False).astype(str)
            frequent = [str(text) for text in np.unique(texts)]
            if 1 < len(frequent) <= _MOST_VALUES:
                columns[name] = texts
                categories.append((_strength(np.searchsorted(frequent, texts), target),
                                   StateFeature(name=name, categories=tuple(frequent))))
    return columns, [feature for candidates, most in ((categories, _CATEGORIES), (numbers, _NUMBERS))
                     for _, feature in sorted(candidates, key=lambda pair: -pair[0])[:most]]


def _numeric(name: str, values: np.ndarray, log: bool) -> StateFeature:
    # The default is what an average user has, so that a context without the feature is encoded as 0.
    moved = np.log1p(values) if log else values
    mean = round(float(moved.mean()), 6)
    return StateFeature(name=name, mean=mean, std=round(float(moved.std()) + 1e-6, 6), log=log,
                        default=round(float(np.expm1(mean)) if log else mean, 6))


def _ranks(values: np.ndarray, bins: int = 8) -> np.ndarray:
    return np.searchsorted(np.unique(np.quantile(values, np.linspace(0, 1, bins + 1)[1:-1])), values)


def _strength(group: np.ndarray, target: np.ndarray) -> float:
    """Variance of the target between groups over the whole (correlation ratio)."""
    counts = np.bincount(group).clip(min=1)
    means = np.bincount(group, target) / counts
    return float((counts * means**2).sum() / max((target**2).sum(), 1e-12))
