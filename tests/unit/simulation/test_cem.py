"""The objective of the search in the simulator."""

import numpy as np

from recfuse.fusion.policies import FixedGaussian
from recfuse.simulation.arms import Arm
from recfuse.simulation.cem import rollout_objective
from tests.unit.simulation import worlds

GOOD = Arm("good", FixedGaussian([2, 2, 0, 0, 0, 0], .5))
BAD = Arm("bad", FixedGaussian([-2, -2, 0, 0, 0, 0], .5))


def test_the_objective_scores_each_vector_by_itself():
    objective = rollout_objective(worlds.world(), persons=100, seed=1)
    together = objective(np.array([GOOD.policy.mu, BAD.policy.mu], np.float64))
    alone = [objective(np.array([arm.policy.mu], np.float64))[0] for arm in (GOOD, BAD)]
    np.testing.assert_allclose(together, alone)
    assert together[0] > together[1]
