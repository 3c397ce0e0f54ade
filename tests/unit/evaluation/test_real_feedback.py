"""Rankings on real feedback: counted by hand, and what each of them must find in sets whose truth is known."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest

from benchmarks.real_feedback import RealFeedbackConfig, judge, unseen
from benchmarks.real_rankings import (
    FEEDBACK,
    Curved,
    Regressed,
    Searched,
    Sets,
    Worth,
    about,
    by_scene,
    crossed,
    fused,
    hand_tuned_level,
)
from recfuse.config import InvalidFieldError
from recfuse.scenes.config import ModelConfig
from recfuse.scenes.inference import SceneScorer
from recfuse.scenes.registry import KUAIRAND, Registry, Scene
from recfuse.scenes.sources import Source
from recfuse.simulation.exposures import generate

NAMES = ("click", "long_view", "watch_time", "like", "comment")


def made(users: int = 400, rows: int = 8, seed: int = 0, noise: float = 1.0, size: int = 2) -> Sets:
    """Watch time is the prediction of it plus 20 times that of a comment, which the scorer's own prediction misses."""
    rng = np.random.default_rng(seed)
    user = np.repeat(np.arange(users), rows)
    predictions = rng.uniform(.1, .9, (len(user), len(NAMES)))
    predictions[:, 2] *= 20
    watch = predictions[:, 2] + 20 * predictions[:, 4] + noise * rng.normal(size=len(user))
    labels = (rng.random((len(user), 3)) < predictions[:, [0, 1, 3]]).astype(float)
    return Sets(user, NAMES, predictions, rng.integers(0, 2, len(user)), 2, rng.uniform(5, 60, len(user)),
                np.c_[watch, watch, labels], size)


def test_the_first_k_of_each_user_count() -> None:
    sets = Sets(np.array([0, 0, 0, 1, 1]), NAMES, np.ones((5, 5)), np.zeros(5, np.int64), 1, np.ones(5),
                np.arange(25.).reshape(5, 5), 2)
    assert sets.top(np.array([3., 1., 2., 5., 5.]))[:, 0].tolist() == [5.0, 17.5]  # rows 0 and 2; rows 3 and 4
    assert replace(sets, size=1).top(np.array([1., 1., 1., 2., 3.]))[:, 0].tolist() == [0.0, 20.0]
    orders = [sets.top(np.array([*order, 0., 0.])) for order in permutations([1., 2., 3.])]
    np.testing.assert_allclose(sets.anyhow(), np.mean(orders, axis=0))
    only = sets.of_users(np.array([False, True]))
    assert only.user.tolist() == [0, 0]
    assert only.feedback[:, 0].tolist() == [15.0, 20.0]


def test_no_ranking_is_fitted_on_whom_it_ranks() -> None:
    sets = made(users=20)
    seen = []

    def fit(others: Sets, _seed: int):
        seen.append(set(others.duration.tolist()))
        return lambda judged: np.full(len(judged.user), float(not seen[-1] & set(judged.duration.tolist())))

    assert crossed(fit, sets, np.arange(20) % 2, 0).tolist() == [1.0] * len(sets.user)
    assert len(seen) == 2


def test_a_value_learns_what_the_scorer_misses_and_a_search_weighs_it() -> None:
    sets, fold = made(), np.arange(400) % 2
    best = sets.top(sets.feedback[:, 0])[:, 0].mean()
    own = sets.top(sets.predictions[:, 2])[:, 0].mean()
    for fit in (Regressed(fused), Regressed(by_scene), Regressed(by_scene, about), Curved()):
        assert sets.top(crossed(Worth(fit), sets, fold, 0))[:, 0].mean() > own + .9 * (best - own)
    for values in (None, Worth(Regressed(fused))):
        search = Searched(NAMES, 24, 12, values=values)
        assert sets.top(crossed(search, sets, fold, 0))[:, 0].mean() > own + .7 * (best - own)


def test_where_the_columns_tell_nothing_the_scorer_s_prediction_stays() -> None:
    sets = made(noise=30.0)
    sets = replace(sets, feedback=np.c_[sets.predictions[:, [2, 2]] + 30 * np.random.default_rng(1).normal(
        size=(len(sets.user), 2)), sets.feedback[:, 2:]])
    values = Regressed(by_scene)(sets, 0)(sets)[:, 0]
    assert np.corrcoef(sets.centred(values[:, None])[:, 0], sets.centred(sets.predictions)[:, 2])[0, 1] > .97


def test_floors_are_kept_where_they_can_be() -> None:
    """Long views cost watch time here: what is watched long is seldom viewed long."""
    sets = made(users=1_500)
    sets.predictions[:, 1] = np.clip(1 - sets.predictions[:, 2] / 20, .05, .95)
    rng = np.random.default_rng(3)
    sets.feedback[:, 3] = rng.random(len(sets.user)) < sets.predictions[:, 1]
    fold, place = np.arange(1_500) % 2, FEEDBACK.index("long_view")
    floor = hand_tuned_level(sets)[place]
    for free, floored in ((Worth(Regressed(fused)), Worth(Regressed(fused), True)),
                          (Searched(NAMES, 24, 12), Searched(NAMES, 24, 12, floors=True))):
        without, held = (sets.top(crossed(fit, sets, fold, 0)).mean(0) for fit in (free, floored))
        assert without[place] < .8 * floor
        assert held[place] > .95 * floor
        assert held[0] < without[0]


def test_real_rows_become_sets_and_every_ranking_judges_them() -> None:
    exposures = generate(seed=1, users=60, items=60, rows=3_000)
    config = RealFeedbackConfig(exposures="embedded", cem_seeds=1, population=4, iterations=2, least=6)
    scorer = SceneScorer.untrained(exposures, KUAIRAND, ModelConfig(
        embedding_size=4, history_length=3, experts=2, expert_layers=(8,), tower_layers=()))
    sets = unseen(config, Source(exposures, KUAIRAND), scorer)
    assert sets.names == KUAIRAND.task_names
    assert (np.diff(sets.user) >= 0).all()
    assert sets.counts.min() >= 2
    assert sets.feedback[:, 0].max() <= 180
    found = judge(config, sets)
    assert {values.shape for values in found.values()} == {(int((sets.counts >= 6).sum()), len(FEEDBACK))}
    most = found.pop("oracle of watch_180")[:, 0].mean()
    assert all(values[:, 0].mean() < most for values in found.values())
    with pytest.raises(InvalidFieldError, match="least: got 5000"):
        unseen(config.replace(least=5000), Source(exposures, KUAIRAND), scorer)
    clicks = Registry(scenes=(Scene(name="1", tasks=("click",)),))
    with pytest.raises(InvalidFieldError, match=r"scorer: got .*a scorer with the task watch_time"):
        unseen(config, Source(exposures, clicks), scorer.only("1").for_registry(clicks))
