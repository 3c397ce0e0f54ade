from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from recfuse.behaviours import Behaviour, Vocabulary
from recfuse.bundle import BundleError, read_bundle, write_bundle
from recfuse.config import InvalidFieldError
from recfuse.fusion.config import NetworkConfig
from recfuse.fusion.geometric_mean import GeometricMean
from recfuse.fusion.inference import FusionActor, StagePolicy, export_policy
from recfuse.fusion.networks import GaussianPolicies, Normalisation, long_term_policy
from recfuse.fusion.policies import FixedGaussian

STATES, ACTIONS = 12, 4
VOCABULARY = Vocabulary(
    behaviours=(Behaviour(name="watch_time", kind="long_term"), Behaviour(name="like", kind="short_term")),
    fusion_parameters=tuple("abcd"), state_size=STATES,
)


def trained(config: NetworkConfig) -> GaussianPolicies:
    """A policy whose parameters are far from where they started."""
    rng = np.random.default_rng(0)
    normalisation = Normalisation(tuple(rng.normal(size=STATES)), tuple(rng.uniform(0.1, 5, STATES)),
                                  tuple(rng.normal(size=ACTIONS)), tuple(rng.uniform(0.1, 1, ACTIONS)))
    policy = long_term_policy(VOCABULARY, config, normalisation)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return policy


def export(root, policy):
    return export_policy(root, policy, VOCABULARY, training={"seed": 0}, data_fingerprint="abc",
                         metrics={"loss": float("nan")})


@pytest.mark.parametrize("config", [
    NetworkConfig(), NetworkConfig(sigma="free", activation="tanh"), NetworkConfig(hidden=()),
    NetworkConfig(activation="silu", hidden=(256, 128)), NetworkConfig(action_range=(-1.0, 3.0)),
])
def test_the_actor_agrees_with_the_trained_policy(config, tmp_path):
    """Mean within 1e-6 on 1,000 states, through a bundle and back."""
    policy = trained(config)
    state = np.random.default_rng(1).normal(policy.state_mean, policy.state_std, (1000, STATES)).astype(np.float32)
    actor = FusionActor.from_bundle(read_bundle(export(tmp_path, policy), "fusion"))
    with torch.no_grad():
        mu, log_sigma = (tensor[:, 0].numpy() for tensor in policy(torch.from_numpy(state)))
    decision = actor.act(state, explore=False)
    assert mu.std() > 0.01
    np.testing.assert_allclose(decision.mu, mu, atol=1e-6, rtol=0)
    np.testing.assert_allclose(decision.sigma, np.exp(log_sigma), atol=1e-6, rtol=0)
    if config.action_range is None:
        assert np.array_equal(decision.action, decision.mu)
    with torch.no_grad():
        density = policy.log_prob(torch.from_numpy(state), torch.from_numpy(decision.action))[:, 0].numpy()
    np.testing.assert_allclose(actor.log_prob(state, decision.action), density, atol=2e-3, rtol=1e-4)
    np.testing.assert_allclose(actor.log_prob(state, decision.action), decision.action_logp, atol=1e-6)
    one = np.concatenate([actor.act(row[None], explore=False).mu for row in state[:50]])
    np.testing.assert_allclose(one, decision.mu[:50], atol=1e-6, rtol=0)


def test_exploration_and_its_density(tmp_path):
    actor = FusionActor.from_bundle(read_bundle(export(tmp_path, trained(NetworkConfig()))))
    state = np.zeros((3, STATES), np.float32)
    first, again, other = (actor.act(state, True, seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(first.action, again.action)
    assert not np.array_equal(first.action, other.action)
    expected = stats.norm(first.mu, first.sigma).logpdf(first.action.astype(float)).sum(1)
    np.testing.assert_allclose(first.action_logp, expected, rtol=1e-5)
    by_generator = actor.act(state, True, np.random.default_rng(1))
    assert np.array_equal(by_generator.action, first.action)


def test_one_vector_for_all_states_travels_too(tmp_path):
    actor = FusionActor.from_bundle(read_bundle(export(tmp_path, FixedGaussian([1, 2, 3, 4], 0.5))))
    decision = actor.act(np.zeros((2, STATES), np.float32), explore=False)
    assert decision.mu.tolist() == [[1, 2, 3, 4]] * 2
    assert decision.sigma.tolist() == [[0.5] * 4] * 2


def test_manifest(tmp_path):
    bundle = read_bundle(export(tmp_path, trained(NetworkConfig())))
    assert bundle.manifest["training"] == {"seed": 0}
    assert bundle.manifest["metrics"] == {"loss": None}
    assert bundle.manifest["data_fingerprint"] == "abc"
    assert FusionActor.from_bundle(bundle).vocabulary == VOCABULARY


def test_bad_states_are_named(tmp_path):
    actor = FusionActor.from_bundle(read_bundle(export(tmp_path, trained(NetworkConfig()))))
    with pytest.raises(InvalidFieldError, match=r"state: got \(1, 3\); allowed: an array \[B, 12\]"):
        actor.act(np.zeros((1, 3), np.float32), explore=False)
    state = np.zeros((2, STATES), np.float32)
    state[1, 4] = np.nan
    with pytest.raises(InvalidFieldError, match=r"state\[1, 4\]: got nan; allowed: finite numbers"):
        actor.act(state, explore=False)


def test_a_bundle_that_does_not_fit_is_refused(tmp_path):
    with pytest.raises(InvalidFieldError, match="policy: got 2; allowed: 4 fusion parameters"):
        export(tmp_path, FixedGaussian([1, 2], 0.5))
    good = read_bundle(export(tmp_path, trained(NetworkConfig())))
    manifest = {key: value for key, value in good.manifest.items() if key not in ("kind", "format", "files")}
    tensors = dict(good.tensors["policy"])
    del tensors["network.weights.1"]
    broken = write_bundle(tmp_path, kind="fusion", tensors={"policy": tensors}, manifest=manifest)
    with pytest.raises(BundleError, match=r"network.weights.1.*expected a policy that fits the vocabulary"):
        FusionActor.from_bundle(read_bundle(broken))
    nan = {**good.tensors["policy"], "network.biases.2": torch.full_like(good.tensors["policy"]["network.biases.2"],
                                                                         float("nan"))}
    broken = write_bundle(tmp_path, kind="fusion", tensors={"policy": nan}, manifest=manifest)
    with pytest.raises(BundleError, match="expected a policy that fits the vocabulary"):
        FusionActor.from_bundle(read_bundle(broken))
    scenes = write_bundle(tmp_path, kind="scenes", tensors={"policy": good.tensors["policy"]}, manifest=manifest)
    with pytest.raises(BundleError, match="kind is 'scenes'; expected 'fusion'"):
        FusionActor.from_bundle(read_bundle(scenes))


def of_stage(policy, vocabulary=VOCABULARY) -> StagePolicy:
    return StagePolicy(policy, vocabulary, {"seed": 1}, "of coarse", {"loss": 1.0})


def test_a_stage_is_decided_by_its_own_policy(tmp_path):
    """Each policy's answers are those of a bundle that holds it alone."""
    whole, coarse = trained(NetworkConfig()), FixedGaussian([1, 2, 3, 4], .5)
    options = {"training": {"seed": 0}, "data_fingerprint": "abc", "metrics": {}}
    bundle = read_bundle(export_policy(tmp_path, whole, VOCABULARY, **options, stages={"coarse": of_stage(coarse)}))
    actor, alone = FusionActor.from_bundle(bundle), FusionActor.from_bundle(read_bundle(export(tmp_path, whole)))
    state = np.random.default_rng(0).standard_normal((5, STATES)).astype(np.float32)
    for stage in ("fine", "rerank", "mix"):
        assert actor.of(stage) is actor
        np.testing.assert_array_equal(actor.of(stage).act(state, True, seed=3).action,
                                      alone.act(state, True, seed=3).action)
    decision = actor.of("coarse").act(state, explore=True, seed=3)
    np.testing.assert_array_equal(decision.mu, np.tile(np.float32([1, 2, 3, 4]), (5, 1)))
    density = stats.norm.logpdf(decision.action, decision.mu, .5).sum(1)
    np.testing.assert_allclose(decision.action_logp, density, rtol=1e-6)
    assert actor.of("coarse").version == actor.version == bundle.version
    told = bundle.manifest["stages"]["coarse"]
    assert (told["data_fingerprint"], told["training"], told["metrics"]) == ("of coarse", {"seed": 1}, {"loss": 1.0})


def test_a_bundle_without_policies_of_stages_says_nothing_of_them(tmp_path):
    bundle = read_bundle(export(tmp_path, FixedGaussian([1, 2, 3, 4], .5)))
    assert set(bundle.manifest) == {"kind", "format", "vocabulary", "shapes", "network", "training",
                                    "data_fingerprint", "metrics", "files"}
    assert set(bundle.manifest["files"]) == {"policy.safetensors"}


@pytest.mark.parametrize(("stages", "message"), [
    ({"last": of_stage(FixedGaussian([1] * 4, 1))}, r"stages: got 'last'; allowed: stages of the vocabulary"),
    ({"fine": of_stage(FixedGaussian([1] * 3, 1))}, r"policy: got 3; allowed: 4 fusion parameters"),
    ({"fine": of_stage(FixedGaussian([1] * 4, 1), VOCABULARY.replace(formula="log_sum"))}, r"stages.fine: got 'a pol"),
])
def test_a_policy_that_does_not_fit_its_bundle_is_not_exported(tmp_path, stages, message):
    with pytest.raises(InvalidFieldError, match=message):
        export_policy(tmp_path, FixedGaussian([1] * 4, 1), VOCABULARY, training={}, data_fingerprint="", metrics={},
                      stages=stages)


def test_a_bundle_that_lacks_the_policy_it_names_is_refused(tmp_path):
    given = {"a": torch.zeros(1)}
    whole = read_bundle(export(tmp_path, FixedGaussian([1] * 4, 1)))
    told = {name: whole.manifest[name] for name in ("vocabulary", "network", "training")}
    path = write_bundle(tmp_path, kind="fusion", tensors={"policy": whole.tensors["policy"], "other": given},
                        manifest={**told, "stages": {"coarse": {"network": {"type": "fixed"}}}})
    with pytest.raises(BundleError, match=r"policy-coarse.*expected a policy that fits the vocabulary"):
        FusionActor.from_bundle(read_bundle(path))


@pytest.mark.parametrize("config", [
    NetworkConfig(hidden=(8,)), NetworkConfig(hidden=(8, 8), sigma="free", trunk="shared"),
    NetworkConfig(hidden=(8,), action_range=(-1.0, 3.0)),
])
def test_a_mean_of_policies_has_their_weighted_log_density_up_to_a_constant(config, tmp_path):
    """log π(a|s) − Σ p_j log π_j(a|s) is the same for every action of a state."""
    rng, shares = np.random.default_rng(0), (.2, .3, .5)
    policies = GaussianPolicies(("x", "y", "z"), config, Normalisation.identity(STATES, ACTIONS), seed=2)
    with torch.no_grad():
        for parameter in policies.parameters():
            parameter.add_(.3 * torch.from_numpy(rng.standard_normal(parameter.shape).astype(np.float32)))
    actor = FusionActor.from_bundle(read_bundle(export(tmp_path, GeometricMean(policies, shares)), "fusion"))
    state = np.repeat(rng.standard_normal((7, STATES)).astype(np.float32), 9, 0)
    action = rng.uniform(-.8, .8, (63, ACTIONS)).astype(np.float32)
    with torch.no_grad():
        each = policies.log_prob(torch.from_numpy(state), torch.from_numpy(action)).double().numpy()
    apart = (actor.log_prob(state, action) - each @ np.array(shares)).reshape(7, 9)
    np.testing.assert_allclose(apart - apart.mean(1, keepdims=True), 0, atol=2e-3)
    assert apart.mean(1).min() >= -1e-6, "its normaliser is at most 1 (Hölder)"


@pytest.mark.parametrize("shares", [(.5,), (.5, .6), (1.0, 0.0), (1.5, -.5)])
def test_shares_are_positive_and_add_up(shares):
    policies = GaussianPolicies(("x", "y"), NetworkConfig(), Normalisation.identity(STATES, ACTIONS))
    with pytest.raises(InvalidFieldError, match="shares"):
        GeometricMean(policies, shares)
