"""Who gains: what a request would bring under the policy, for each group of requests by itself."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from recfuse.evaluation.case import Case
from recfuse.evaluation.ope import ncis


def gains_per_group(case: Case, groups: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """NCIS of single requests (maths 4.1) within each group.

    Args:
        groups: `feature` and `value` of each, as `weights_per_group` chose them; the feature `all` has every request.

    Returns:
        feature, value, requests, and change, low, high relative to the group's own log, [m] each, null where nobody
        knows; `refused` says why. Empty where no request has a density.
    """
    if not case.explore or not case.weighed.any():
        return []
    log_prob, logged, feedback, cap, users = case.request_arguments
    state, gains = case.log.state[case.weighed], []
    for group in groups:
        rows = _members(case, state, group["feature"], group["value"])
        if not rows.any():
            continue
        answer = ncis(log_prob[rows], logged[rows], feedback[rows], cap, np.asarray(users)[rows], case.options)
        gains.append({
            "feature": group["feature"], "value": group["value"], "requests": int(rows.sum()),
            "refused": answer.refused, "change": _plain(answer.change), "low": _plain(answer.change_low),
            "high": _plain(answer.change_high)})
    return gains


def _members(case: Case, state: np.ndarray, feature: str, value: str) -> np.ndarray:
    """bool[k]: the requests of a group."""
    place = dict(_places(case)).get((feature, value))
    return np.ones(len(state), bool) if place is None else np.asarray(state[:, place] > .5)


def _places(case: Case) -> Iterator[tuple[tuple[str, str], int]]:
    """(feature, category) → its column of the state."""
    start = 0
    for feature in case.actor.vocabulary.state_features:
        for place, category in enumerate(feature.categories):
            yield (feature.name, category), start + place
        start += feature.width


def _plain(values: np.ndarray) -> list[float | None]:
    return [float(value) if math.isfinite(value) else None for value in values]
