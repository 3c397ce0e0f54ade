"""Where a policy's fusion weights go: their mean direction per group of requests."""

from __future__ import annotations

from typing import Any

import numpy as np

from recfuse.evaluation.answers import MIN_ESS
from recfuse.evaluation.case import who_decides
from recfuse.evaluation.held_out import HeldOut
from recfuse.fusion.inference import FusionActor

_MOST_FEATURES, _MOST_GROUPS = 3, 8
Group = dict[str, Any]


def weights_per_group(actor: FusionActor, log: HeldOut) -> dict[str, Any]:
    """Mean fusion weights of the policy (without exploration) and of the log, in all and per group of requests: the
    values of those categorical features of the state that move them most. Each vector is scaled to the length 1, which
    changes no ranking."""
    weights = np.empty((len(log.state), actor.vocabulary.action_size))
    for own, places in who_decides(actor, log):
        weights[places] = own.act(log.state[places], explore=False).action
    everybody = _group("all", "", weights)
    by_feature = _groups_by_feature(actor, log, weights)
    chosen = sorted(by_feature, key=lambda groups: -_distance(groups, everybody))[:_MOST_FEATURES]
    return {"parameters": list(actor.vocabulary.fusion_parameters), "logged": _unit(log.action).mean(0).tolist(),
            "groups": [everybody, *(group for groups in chosen for group in groups)]}


def _groups_by_feature(actor: FusionActor, log: HeldOut, weights: np.ndarray) -> list[list[Group]]:
    """The groups of every categorical feature that has at least two of a fair size."""
    by_feature, start = [], 0
    for feature in actor.vocabulary.state_features:
        groups = []
        for place, value in enumerate(feature.categories[:_MOST_GROUPS]):
            members = log.state[:, start + place] > .5
            if members.sum() >= MIN_ESS:
                groups.append(_group(feature.name, value, weights[members]))
        start += feature.width
        if len(groups) > 1:
            by_feature.append(groups)
    return by_feature


def _distance(groups: list[Group], everybody: Group) -> float:
    """How far groups lie from everybody, in the mean over their requests."""
    away = [group["requests"] * float(np.square(np.subtract(group["mean"], everybody["mean"])).sum())
            for group in groups]
    return sum(away) / sum(group["requests"] for group in groups)


def _group(feature: str, value: str, weights: np.ndarray) -> Group:
    return {"feature": feature, "value": value, "requests": len(weights), "mean": _unit(weights).mean(0).tolist()}


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors.astype(np.float64) / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
