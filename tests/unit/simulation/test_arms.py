"""How a text becomes an arm."""

import numpy as np
import pytest

from recfuse.config import InvalidFieldError
from recfuse.fusion.inference import export_policy
from recfuse.simulation.arms import fixed_weights, read_arm
from tests.unit.simulation import worlds


def test_fixed_weights_are_a_policy():
    np.testing.assert_array_equal(fixed_weights("click:1.5,follow:-2", worlds.world()).mu, [1.5, 0, 0, 0, 0, -2])
    with pytest.raises(InvalidFieldError, match=r"policies: weight order: got 1\.0; allowed: weights of click"):
        fixed_weights("order:1", worlds.world())


def test_an_arm_reads_the_states_of_its_world(tmp_path):
    """A bundle whose vocabulary says nothing of candidates is of another world."""
    world = worlds.world()
    good = export_policy(tmp_path / "good", worlds.LOGGED, world.vocabulary, training={}, data_fingerprint="none",
                         metrics={})
    assert read_arm(f"own={good}", tmp_path, world).name == "own"
    plain = world.vocabulary.replace(candidate_features=None, state_size=world.vocabulary.context_size)
    other = export_policy(tmp_path / "plain", worlds.LOGGED, plain, training={}, data_fingerprint="none", metrics={})
    with pytest.raises(InvalidFieldError, match=r"a policy with the world's state features, candidate features and"):
        read_arm(f"plain={other}", tmp_path, world)
