"""Values of candidates as a policy: by hand, through a bundle, and how far its exploration turns rankings."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from recfuse.behaviours import Behaviour, CandidateFeatures, StateFeature, Vocabulary
from recfuse.bundle import read_bundle
from recfuse.config import InvalidFieldError
from recfuse.fusion.effects import Modifiers, coefficients_of
from recfuse.fusion.inference import FusionActor, export_policy
from recfuse.fusion.item_values import linear_vocabulary, matched_sigma, scene_columns, value_policy, without_scenes
from recfuse.fusion.policies import LinearGaussian

PLAIN = Vocabulary(
    behaviours=(Behaviour(name="watch_time", kind="long_term"), Behaviour(name="like", kind="short_term")),
    fusion_parameters=("watch_time", "like"), state_size=4, formula="log_sum", scenes=("feed", "shop"),
    state_features=(StateFeature(name="age"), StateFeature(name="scene", categories=("shop", "feed"))))
FEATURES = CandidateFeatures(page=3)
WITH_CANDIDATES = PLAIN.replace(candidate_features=FEATURES, state_size=4 + CandidateFeatures.width_of(2))
MEAN, STD = torch.tensor([30.0, 0.5, 0.5, 0.0]), torch.tensor([10.0, 0.5, 0.5, 1.0])
MODIFIERS = Modifiers(2, 4)
# Rows 1, feed, shop, then the four numbers of the state; columns watch_time, like; objectives long term, like.
EFFECTS = torch.zeros(7, 2, 2, dtype=torch.float64)
EFFECTS[0] = torch.tensor([[2.0, 0.0], [0.5, 4.0]])
EFFECTS[1, :, 0] = torch.tensor([0.1, 0.0])
EFFECTS[2, :, 0] = torch.tensor([-0.1, 1.0])
EFFECTS[3, :, 0] = torch.tensor([0.2, -0.3])
SIGMA = torch.tensor([0.5, 0.25])


def policy(vocabulary: Vocabulary = PLAIN, **changes: torch.Tensor) -> LinearGaussian:
    given = {"effects": EFFECTS, "worth": torch.tensor([1.0, 0.5]), "state_mean": MEAN, "state_std": STD,
             "sigma": SIGMA, **changes}
    return value_policy(modifiers=MODIFIERS, vocabulary=vocabulary, reach=3.0, **given)


def test_values_by_hand():
    """At worth (1, ½) the constant is (2, 2.5). A user of 40 is 1 from the mean and of 90 counts as 3 from it."""
    state = np.array([[40, 0, 1, 0], [40, 1, 0, 0], [90, 1, 0, 0], [40, 0, 0, 1]], np.float32)
    np.testing.assert_allclose(policy().moments(state)[0], [
        [2 + .1 + .2, 2.5 - .3], [2 - .1 + .2, 2.5 + 1 - .3], [2 - .1 + .6, 2.5 + 1 - .9], [2 + .2, 2.5 - .3]],
        rtol=1e-6)


def test_values_are_the_regressed_coefficients_of_every_state():
    rng = np.random.default_rng(0)
    effects = torch.from_numpy(rng.normal(size=(7, 2, 2)))
    scene = torch.from_numpy(rng.integers(0, 2, 50))
    state = torch.zeros(50, 4)
    state[:, 0] = torch.from_numpy(rng.normal(30, 20, 50)).float()
    state[torch.arange(50), 2 - scene] = 1.0  # the categories are in another order than the scenes
    numbers = ((state - MEAN) / STD).clamp(-3, 3)
    worth = torch.tensor([1.0, 0.5], dtype=torch.float64)
    expected = coefficients_of(effects, MODIFIERS.of(scene, numbers.double())) @ worth
    found = policy(effects=effects).moments(state.numpy())[0]
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-6, atol=1e-6)


def test_a_state_that_does_not_tell_the_scene_takes_the_mean_over_scenes():
    untold = PLAIN.replace(state_features=(StateFeature(name="age"),), state_size=1)
    assert scene_columns(untold) is None
    assert scene_columns(PLAIN) == (2, 1)
    effects = without_scenes(EFFECTS, MODIFIERS, torch.tensor([0.75, 0.25]))
    assert effects[0, :, 0].tolist() == pytest.approx([2 + .75 * .1 - .25 * .1, .5 + .25])
    assert not effects[1:3].any()
    assert torch.equal(effects[3:], EFFECTS[3:])


def test_what_a_state_says_of_candidates_is_left_out():
    assert linear_vocabulary(WITH_CANDIDATES) == linear_vocabulary(PLAIN) == PLAIN.replace(formula="linear")
    moments = {name: torch.cat([moment, torch.ones(11)]) for name, moment in (("state_mean", MEAN),
                                                                              ("state_std", STD))}
    np.testing.assert_array_equal(policy(WITH_CANDIDATES, **moments).weights, policy().weights)


def test_a_bundle_decides_as_the_policy_does(tmp_path):
    own = policy()
    bundle = export_policy(tmp_path, own, linear_vocabulary(PLAIN), training={}, data_fingerprint="", metrics={})
    actor = FusionActor.from_bundle(read_bundle(bundle, "fusion"))
    state = np.random.default_rng(1).normal(20, 10, (9, 4)).astype(np.float32)
    for explore in (False, True):
        first, second = (each.act(state, explore, np.random.default_rng(5)) for each in (own, actor))
        np.testing.assert_array_equal(first.action, second.action)
        np.testing.assert_allclose(actor.log_prob(state, first.action), second.action_logp)
    with pytest.raises(InvalidFieldError, match="policy: got 4; allowed: state size 15"):
        export_policy(tmp_path, own, WITH_CANDIDATES, training={}, data_fingerprint="", metrics={})


@pytest.mark.parametrize(("change", "field"), [
    ({"sigma": np.array([1, 0], np.float32)}, "sigma"), ({"bias": np.array([np.nan, 0])}, "bias"),
    ({"state_mean": np.zeros(3)}, "state_mean"), ({"reach": 0.0}, "reach")])
def test_bad_values(change, field):
    given = {"weights": np.zeros((2, 2)), "bias": np.zeros(2), "state_mean": np.zeros(2), "state_std": np.ones(2),
             "reach": 3.0, "sigma": np.ones(2, np.float32)}
    with pytest.raises(InvalidFieldError, match=rf"^{field}: "):
        LinearGaussian(**{**given, **change})


def test_exploration_turns_rankings_as_far_as_the_logged_one():
    """Kendall's distance between the ranking by the mean and by drawn vectors is the same in both formulas."""
    generator = torch.Generator().manual_seed(0)
    p = torch.rand(400, 12, 2, generator=generator, dtype=torch.float64) * torch.tensor([60.0, 0.2]) + 1e-3
    is_open, mu = torch.ones(400, 12, dtype=torch.bool), torch.tensor([[0.8, 0.5]]).double().expand(400, 2)
    sigma, vectors = torch.full((400, 2), 0.5).double(), torch.tensor([[0.03, 4.0]]).double().expand(400, 2)
    found = matched_sigma(is_open, (p.log(), mu), sigma, (p, vectors))

    def turned(terms: torch.Tensor, mean: torch.Tensor, spread: torch.Tensor) -> float:
        drawn = mean + spread * torch.randn(400, 2, generator=generator, dtype=torch.float64)
        first, second = ((terms * vector.unsqueeze(1)).sum(2) for vector in (mean, drawn))
        pairs = [(scores.unsqueeze(2) > scores.unsqueeze(1)) for scores in (first, second)]
        return float((pairs[0] != pairs[1]).double().mean())

    assert turned(p, vectors, found.expand(400, 2)) == pytest.approx(turned(p.log(), mu, sigma), rel=0.2)
    torch.testing.assert_close(matched_sigma(is_open, (p, mu), sigma, (p, mu)), sigma[0])
    torch.testing.assert_close(matched_sigma(is_open, (p, mu), sigma, (p * 7, mu / 7)), sigma[0] / 7)
