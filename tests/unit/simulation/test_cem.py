"""The objective of the search in the simulator."""

import numpy as np
import pytest

from recfuse.fusion.policies import FixedGaussian
from recfuse.simulation.arms import Arm
from recfuse.simulation.cem import rollout_objective, search
from recfuse.simulation.config import CemConfig
from tests.unit.simulation import worlds

GOOD = Arm("good", FixedGaussian([2, 2, 0, 0, 0, 0], .5))
BAD = Arm("bad", FixedGaussian([-2, -2, 0, 0, 0, 0], .5))


def test_the_objective_scores_each_vector_by_itself():
    objective = rollout_objective(worlds.world(), persons=100, seed=1)
    together = objective(np.array([GOOD.policy.mu, BAD.policy.mu], np.float64))
    alone = [objective(np.array([arm.policy.mu], np.float64))[0] for arm in (GOOD, BAD)]
    np.testing.assert_allclose(together, alone)
    assert together[0] > together[1]


def test_floors_cost_what_lacks_to_them():
    """By hand: the change of watch time, less ten times the shares that clicks lack."""
    world = worlds.world()
    logged = FixedGaussian(np.ones(world.vocabulary.action_size), 0.5)
    vectors = np.stack([np.ones(world.vocabulary.action_size), -np.ones(world.vocabulary.action_size)])
    watch, click = (rollout_objective(world, persons=60, seed=1, measure=name)(vectors)
                    for name in ("watch_time", "click"))
    found = rollout_objective(world, persons=60, seed=1, floors={"click": 0.2}, logged=logged)(vectors)
    lacking = np.maximum(0.2 - (click / click[0] - 1), 0)
    assert found == pytest.approx(watch / watch[0] - 1 - 10 * lacking)
    assert lacking[0] == pytest.approx(0.2)


def test_of_several_searches_the_best_on_other_lives_is_taken():
    world = worlds.world()
    logged = FixedGaussian(np.ones(world.vocabulary.action_size), 0.5)
    config = CemConfig(persons=20, population=4, iterations=1, searches=2, seed=3)
    judge = rollout_objective(world, persons=80, seed=5)
    each = [search(world, logged, config.replace(searches=1, seed=seed)).vector for seed in (3, 4)]
    best = each[int(np.argmax(judge(np.stack(each))))]
    assert search(world, logged, config).vector == pytest.approx(best)
    assert config.lives == 160
