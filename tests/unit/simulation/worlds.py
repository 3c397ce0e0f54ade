"""A small world for tests: embedded exposures, a response model fitted to them, and a scorer that sees it in noise."""

from __future__ import annotations

import functools
from unittest import mock

import numpy as np
from numpy.typing import NDArray

from recfuse.fusion.policies import FixedGaussian
from recfuse.logs.exposures import RESPONSE_SHARE, Exposures, row_share
from recfuse.simulation.build import build_world
from recfuse.simulation.calibration import Calibration
from recfuse.simulation.config import ResponseConfig
from recfuse.simulation.exposures import SCENES, Truth, generate_with_truth
from recfuse.simulation.response_fit import ResponseFit, fit_response
from recfuse.simulation.world import World, WorldConfig

TASKS = ("click", "long_view", "like", "comment", "forward", "follow")
LOGGED = FixedGaussian([.5, .5, 1, 1, 1, 1], .5)


class NoisyScorer:
    """The response model's marginals with noise in their log-odds, in the form of a scorer."""

    version = "scenes-noisy"

    def __init__(self, fit: ResponseFit, noise: float = .5) -> None:
        self._model, self._noise = fit.model, noise
        self.tasks = {scene: TASKS if scene != "6" else TASKS[:3] for scene in fit.model.scenes}

    def score_exposures(self, exposures: Exposures) -> dict[str, NDArray[np.float32]]:
        model = self._model
        scene = np.searchsorted(np.array(model.scenes), exposures.rows["scene"].to_numpy(zero_copy_only=False))
        logits = model.logits(np.searchsorted(model.user_ids, exposures.column("user_id")),
                              np.searchsorted(model.item_ids, exposures.column("item_id")), scene)
        p = model.marginals(logits)
        rng = np.random.default_rng(0)
        odds = np.log(p / (1 - p)) + self._noise * rng.standard_normal(p.shape)
        found = 1 / (1 + np.exp(-odds))
        found[scene == model.scenes.index("6"), 3:] = np.nan
        return {task: found[:, index].astype(np.float32) for index, task in enumerate(TASKS)}


@functools.cache
def exposures() -> tuple[Exposures, Truth]:
    return generate_with_truth(seed=3, users=1_500, items=300, rows=12_000)


@functools.cache
def response() -> ResponseFit:
    return fit_response(exposures()[0], tuple(SCENES), ResponseConfig(epochs=3))


@functools.cache
def world_and_calibration(responsive: bool = True) -> tuple[World, Calibration]:
    from recfuse.simulation.predictions import predictor

    source, fit = exposures()[0], response()
    scorer = NoisyScorer(fit)
    config = WorldConfig(users=150, pool=40, candidates=20, page=4, responsive=responsive)
    return build_world(source, fit.model, predictor(scorer, source, fit.model.scenes), TASKS, LOGGED, config)


@functools.cache
def scorer() -> NoisyScorer:
    """A scorer fitted to the rows that the response model is not fitted to."""
    source = exposures()[0]
    others = source.filter(row_share(source) >= RESPONSE_SHARE)
    with mock.patch("recfuse.simulation.response_fit.RESPONSE_SHARE", 1.0):
        return NoisyScorer(fit_response(others, tuple(SCENES), ResponseConfig(epochs=3)), noise=0.0)


@functools.cache
def predictions() -> NDArray[np.float32]:
    """float32[N, tasks]: the scorer's, of every exposure."""
    scores = scorer().score_exposures(exposures()[0])
    return np.nan_to_num(np.stack([scores[task] for task in TASKS], 1))


@functools.cache
def stacked() -> ResponseFit:
    """A fit that knows what the scorer's predictions are worth."""
    return fit_response(exposures()[0], tuple(SCENES), ResponseConfig(epochs=1), predictions())


@functools.cache
def fit_alone() -> ResponseFit:
    """The same fit of no scorer."""
    return fit_response(exposures()[0], tuple(SCENES), ResponseConfig(epochs=1))


@functools.cache
def stacked_world(meaning_spread: float = 0.0) -> World:
    from recfuse.simulation.predictions import predictor

    source, fit = exposures()[0], stacked()
    predict = predictor(scorer(), source, fit.model.scenes)
    config = WorldConfig(users=150, pool=40, candidates=20, page=4, meaning_spread=meaning_spread)
    return build_world(source, fit.model, predict, TASKS, LOGGED, config, stack=fit.stack)[0]


def world(responsive: bool = True) -> World:
    return world_and_calibration(responsive)[0]
