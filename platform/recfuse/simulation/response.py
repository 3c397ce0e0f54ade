"""The response model: how a user answers an item in a scene; `response_fit` fits it to exposures.

It is a logistic factorisation, another kind of model than the scorer, fitted on other rows (`row_share` below
RESPONSE_SHARE) with another seed. `response_stack` adds what the scorer's predictions are worth on those rows.

An exposure is answered in three steps, so that what is drawn is consistent: the *outcome* (no click; a click; a click
and a long view), then every interaction given the outcome, then the watch time, resampled from real rows of the same
scene, outcome and range of durations. At which quantile of these it lies is a matter of the user and the item (the
*level*, in log-odds of the quantile) and of chance.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

WATCH_QUANTILES = 256


@dataclass(frozen=True)
class ResponseModel:
    """A fitted response model; plain arrays, so that a step of the simulator is gathers only.

    Attributes:
        scenes: S names, the order of the scene index.
        user_ids: int64[U], item_ids: int64[I], both ascending; the position is the index used below.
        users, items, scene: float32[U | I | S, factors + outputs]: factors, then one bias per output; the outputs are
            the heads, then the watch level by outcome.
        mixing: float32[outputs, factors]: how much each factor counts in each output.
        outcome: float32[3, interactions]: log-odds that the outcome adds to an interaction.
        watch_time: float32[S, 3, durations, WATCH_QUANTILES]: real watch times in seconds, ascending.
        duration_bin: int64[I]; duration: float64[I], seconds.
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
    duration: np.ndarray
    factor: np.ndarray

    def logits(self, user: np.ndarray, item: np.ndarray, scene: np.ndarray) -> np.ndarray:
        """float32[N, heads] of index arrays `[N]`: click; long view given a click; interactions given no click."""
        ends, interactions = self.outcome.shape
        return self.outputs(user, item, scene)[:, :ends - 1 + interactions]

    def outputs(self, user: np.ndarray, item: np.ndarray, scene: np.ndarray) -> np.ndarray:
        """float32[N, outputs]: the heads' logits, then the watch level after every outcome."""
        factors = self.mixing.shape[1]
        left = self.users[user] + self.scene[scene]
        right = self.items[item]
        taste = (left[:, :factors] * right[:, :factors]) @ self.mixing.T
        result: np.ndarray = taste + left[:, factors:] + right[:, factors:]
        return result

    def marginals(self, logits: np.ndarray) -> np.ndarray:
        """P(behaviour) in the order of HEADS, float32[..., heads], of logits `[..., heads]`."""
        return marginals(logits, self.outcome)


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """1 / (1 + e^−x), once, for any x."""
    result: np.ndarray = .5 * (1.0 + np.tanh(.5 * logits))
    return result


def marginals(logits: np.ndarray, outcome: np.ndarray) -> np.ndarray:
    """P(behaviour), float[..., heads]: the outcome summed out.

    Args:
        logits: of the steps of the ladder, each given the one before, then of the interactions.
        outcome: [outcomes, interactions], what each end of the ladder adds to an interaction.
    """
    ladder = len(outcome) - 1
    steps = sigmoid(logits[..., :ladder])
    reached = np.cumprod(steps, -1)
    before = np.concatenate([np.ones_like(steps[..., :1]), reached[..., :-1]], -1)
    shares = np.concatenate([before * (1 - steps), reached[..., -1:]], -1)
    interactions = sigmoid(logits[..., None, ladder:] + outcome)
    result: np.ndarray = np.concatenate([reached, (shares[..., None] * interactions).sum(-2)], -1)
    return result


def shrunk_rates(labels: np.ndarray, scene: np.ndarray, scenes: int, shrinkage: float, ladder: int) -> np.ndarray:
    """float64[S, heads]: positives over rows, drawn to the pooled rate by `shrinkage` rows; steps of the ladder not.

    Args:
        labels: float64[N, heads], 0 or 1; scene: [N], a row's scene, or −1 for a row that does not count.
        scenes: S; shrinkage: rows' worth of the pooled rate, since a rare behaviour has few positives in a small scene.
    """
    pooled = labels[scene >= 0].mean(0)
    weight = np.where(np.arange(labels.shape[1]) < ladder, 1e-9, shrinkage)
    sums = np.stack([labels[scene == index].sum(0) for index in range(scenes)])
    counts = np.bincount(scene[scene >= 0], minlength=scenes)[:, None]
    rates: np.ndarray = (sums + weight * pooled) / (counts + weight)
    return rates


def solve_shift(logits: np.ndarray, outcome: np.ndarray, target: np.ndarray, rounds: int = 6) -> np.ndarray:
    """Per-head shift of the logits [N, heads] after which the mean marginals are the target; steps in log-odds.

    A step of the ladder is conditional on the one before, so its own target is target[k] / target[k − 1].
    """
    ladder, shift = len(outcome) - 1, np.zeros(logits.shape[1])
    for _ in range(rounds):
        rates = marginals(logits + shift.astype(np.float32), outcome).mean(0).astype(np.float64)
        shift += _log_odds(conditional(target, ladder)) - _log_odds(conditional(rates, ladder))
    return shift


def conditional(rates: np.ndarray, ladder: int) -> np.ndarray:
    """Rates of the heads, those of steps of the ladder given the step before."""
    result = rates.copy()
    result[1:ladder] = rates[1:ladder] / rates[:ladder - 1].clip(min=1e-12)
    return result


def _log_odds(rates: np.ndarray) -> np.ndarray:
    rates = rates.clip(1e-7, 1 - 1e-7)
    odds: np.ndarray = np.log(rates / (1 - rates))
    return odds
