"""How a text becomes an arm."""

import json

import numpy as np
import pytest

from recfuse.config import InvalidFieldError
from recfuse.fusion.inference import export_policy
from recfuse.fusion.policies import FixedGaussian
from recfuse.simulation.arms import explored_alike, fixed_weights, read_arm
from tests.unit.simulation import worlds


def test_fixed_weights_are_a_policy():
    np.testing.assert_array_equal(fixed_weights("click:1.5,follow:-2", worlds.world()), [1.5, 0, 0, 0, 0, -2])
    with pytest.raises(InvalidFieldError, match=r"policies: weight order: got 1\.0; allowed: weights of click"):
        fixed_weights("order:1", worlds.world())


def test_an_arm_reads_the_states_of_its_world(tmp_path):
    """A bundle whose vocabulary says nothing of candidates reads the rest; one of other predictions is of another
    world."""
    world = worlds.world()
    good = export_policy(tmp_path / "good", worlds.LOGGED, world.vocabulary, training={}, data_fingerprint="none",
                         metrics={})
    assert read_arm(f"own={good}", tmp_path, world).name == "own"
    plain = world.vocabulary.replace(candidate_features=None, state_size=world.vocabulary.context_size)
    other = export_policy(tmp_path / "plain", worlds.LOGGED, plain, training={}, data_fingerprint="none", metrics={})
    assert read_arm(f"plain={other}", tmp_path, world).in_world(world).vocabulary == plain
    strange = plain.replace(fusion_parameters=tuple(f"{name}s" for name in plain.fusion_parameters))
    strange = export_policy(tmp_path / "strange", worlds.LOGGED, strange, training={}, data_fingerprint="none",
                            metrics={})
    with pytest.raises(InvalidFieldError, match=r"a policy with the world's state features and fusion parameters"):
        read_arm(f"strange={strange}", tmp_path, world)


@pytest.fixture
def simulation(tmp_path):
    declared = {"mu": dict.fromkeys(worlds.TASKS, 1.0), "sigma": .5}
    (tmp_path / "metrics.json").write_text(json.dumps({"run": "r1", "behaviour_policy": declared}))
    return tmp_path


def test_all_arms_explore_by_one_switch_and_means_never(simulation):
    world = worlds.world()
    bundle = export_policy(simulation / "own", worlds.LOGGED, world.vocabulary, training={}, data_fingerprint="none",
                           metrics={})
    texts = ("logged", "logged_mean", f"own={bundle}", f"own:mean={bundle}", "mine=click:1", "mine:mean=click:1")
    explored = {switch: [read_arm(text, simulation, world, switch).explore for text in texts]
                for switch in (True, False)}
    assert explored[True] == [True, False, True, False, True, False]
    assert explored[False] == [True, False, False, False, False, False], "`logged` is always as it logged"
    assert read_arm(texts[3], simulation, world).name == "own:mean"


def test_fixed_weights_explore_as_far_as_the_logged_policy(simulation):
    """By hand: the logged mean is six ones, of length √6, and its σ is .5; so rankings turn alike."""
    policy = read_arm("mine=click:3,like:-4", simulation, worlds.world()).policy
    assert policy.mu[[0, 2]] == pytest.approx(np.array([.6, -.8]) * np.sqrt(6))
    assert policy.sigma == pytest.approx(.5)
    np.testing.assert_array_equal(explored_alike(np.zeros(2), FixedGaussian([1, 1], .5)).mu, [0, 0])
