"""Actions that were not drawn train critics, and nothing else; and values of any scale train."""

from __future__ import annotations

import numpy as np
import pytest
import samples as toy
import torch
from learners import build, fit, fit_all, settings_of

from recfuse.fusion.config import NetworkConfig
from recfuse.learning import registry
from recfuse.learning.settings import StoppingRule

ONCE = StoppingRule(iterations=1)
DRAWN = np.arange(1500) % 3 > 0


def quick(algorithm: str, **changes):
    rules = {name: ONCE for name in ("critics", "cloning", "stage_one", "stage_two", "policy", "search")
             if name in registry.find(algorithm).model_fields}
    return settings_of(algorithm, **rules, **changes)


def state_of(learner) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in learner.fusion.state_dict().items()}


def samples(tmp_path, name: str, action: float, density: float):
    columns = toy.bandit(len(DRAWN))
    columns["action"][~DRAWN], columns["action_logp"][~DRAWN] = action, density
    return toy.write(tmp_path / name, {**columns, "explored": DRAWN})


@pytest.mark.parametrize(("algorithm", "changes"), [
    ("two_stage", {}), ("two_stage", {"auxiliary": "sequential"}), ("two_stage", {"density": "estimated"}),
    ("two_stage", {"targets": "v_trace"}), ("actor_critic", {"targets": "v_trace"}), ("rcpo_mixed", {}),
    ("behaviour_cloning", {}), ("cem", {}), ("iql", {}), ("td3_bc", {}),
])
def test_what_was_not_drawn_is_no_part_of_any_policy(tmp_path, algorithm, changes):
    """Whatever actions and densities these rows carry, no bit of what critics of states do not decide changes."""
    settings = quick(algorithm, **changes)
    found = []
    for name, action, density in (("a", 0.25, 0.0), ("b", -40.0, np.nan)):
        directory = samples(tmp_path, name, action, density)
        learner = build(directory, settings)
        history = fit_all(learner, directory, settings)
        assert all(np.isfinite(entry["loss"]) for entries in history.values() for entry in entries)
        found.append(state_of(learner))
    # Values of actions read the action that was taken, and steer the policies that are weighted by them.
    reads_actions = algorithm in ("iql", "td3_bc")
    for name, value in found[0].items():
        assert torch.isfinite(value).all(), name
        if not reads_actions:
            assert torch.equal(value, found[1][name]), name


@pytest.mark.parametrize("algorithm", ["iql", "td3_bc"])
def test_values_of_actions_learn_from_all_and_policies_imitate_what_was_drawn(tmp_path, algorithm):
    settings = quick(algorithm)
    found = []
    for name, action in (("a", 0.25), ("b", -4.0)):
        directory = samples(tmp_path, name, action, np.nan)
        learner = build(directory, settings)
        fit(learner, directory, "cloning", 2)
        found.append(state_of(learner))
        fit(learner, directory, "action_values" if algorithm == "iql" else "actor", 1)
        found[-1] |= {name: value for name, value in state_of(learner).items() if name.startswith("action_values")}
    for name, value in found[0].items():
        if name.startswith("policy."):
            assert torch.equal(value, found[1][name]), name
    assert any(not torch.equal(value, found[1][name]) for name, value in found[0].items()
               if name.startswith("action_values.network"))


def test_critics_learn_from_what_was_not_drawn(tmp_path):
    columns = toy.bandit(len(DRAWN))
    found = []
    for name, change in (("a", 0.0), ("b", 5.0)):
        columns["feedback"][~DRAWN] += change
        directory = toy.write(tmp_path / name, {**columns, "explored": DRAWN})
        learner = build(directory, quick("two_stage"))
        fit(learner, directory, "critics", 2)
        found.append(state_of(learner))
    assert not torch.equal(*(state["critics.network.weights.0"] for state in found))


def test_null_counts_as_drawn(tmp_path):
    settings, found = quick("two_stage"), []
    for name, more in (("a", {}), ("b", {"explored": np.ones(len(DRAWN), bool)})):
        directory = toy.write(tmp_path / name, {**toy.bandit(len(DRAWN)), **more})
        learner = build(directory, settings)
        fit_all(learner, directory, settings)
        found.append(state_of(learner))
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())


def policy_after(tmp_path, columns, algorithm="two_stage", **changes):
    settings = quick(algorithm, **changes)
    directory = toy.write(tmp_path, columns)
    learner = build(directory, settings)
    fit_all(learner, directory, settings)
    with torch.no_grad():
        return torch.cat(learner.fusion.policy(torch.from_numpy(columns["state"][:200])), -1).double().numpy()[:, 0]


@pytest.mark.parametrize("algorithm", ["two_stage", "actor_critic", "iql", "td3_bc", "cem"])
@pytest.mark.parametrize("scale", [1e30, 1e-9])
def test_the_scale_of_rewards_changes_no_policy(tmp_path, algorithm, scale):
    columns = toy.bandit(2000)
    plain = policy_after(tmp_path / "plain", columns, algorithm)
    scaled = {**columns, "feedback": (columns["feedback"].astype(float) * scale).astype(np.float32)}
    np.testing.assert_allclose(policy_after(tmp_path / "scaled", scaled, algorithm), plain, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("scale", "shift"), [(3e-7 / toy.SIGMA, 0.0), (1e20, -5e20), (1e-3, -7.0)])
def test_the_scale_of_actions_is_kept(tmp_path, scale, shift):
    """The same policy in other units: μ and σ scale with the actions."""
    columns = toy.bandit(2000)
    plain = policy_after(tmp_path / "plain", columns)
    action = (columns["action"].astype(float) * scale + shift).astype(np.float32)
    density = columns["action_logp"] - toy.ACTIONS * np.log(scale)
    found = policy_after(tmp_path / "scaled", {**columns, "action": action, "action_logp": density.astype(np.float32)})
    mean, log_sigma = found[:, : toy.ACTIONS], found[:, toy.ACTIONS :]
    np.testing.assert_allclose((mean - shift) / scale, plain[:, : toy.ACTIONS], atol=1e-2)
    np.testing.assert_allclose(log_sigma - np.log(scale), plain[:, toy.ACTIONS :], atol=1e-2)


def test_a_vector_is_searched_far_from_zero(tmp_path):
    """Actions 10⁴ standard deviations from zero: the estimates of the search lose no digits."""
    columns, settings = toy.bandit(2000), quick("cem")
    entropy = []
    for name, scale, shift in (("plain", 1.0, 0.0), ("far", 2.0**-10, -4.0)):
        changed = {**columns, "action": (columns["action"] * scale + shift).astype(np.float32),
                   "action_logp": (columns["action_logp"] - toy.ACTIONS * np.log(scale)).astype(np.float32)}
        directory = toy.write(tmp_path / name, changed)
        learner = build(directory, settings)
        entropy.append(fit_all(learner, directory, settings)["search"][0]["ess_share"])
    assert entropy[1] == pytest.approx(entropy[0], rel=0.05)


@pytest.mark.parametrize("constant", [0.0, 1e-9, -3.0, 1e30])
def test_constant_columns_train(tmp_path, constant):
    columns = toy.bandit(1000)
    columns["state"][:, 0] = constant
    columns["action"][:, 1] = 0.5
    columns["feedback"][:, 1] = constant
    assert np.isfinite(policy_after(tmp_path, columns)).all()


@pytest.mark.parametrize("states", [512, 2000])
def test_wide_states_train(tmp_path, states):
    rng = np.random.default_rng(0)
    columns = toy.bandit(700)
    columns["state"] = rng.standard_normal((700, states)).astype(np.float32)
    columns["next_state"] = columns["state"][::-1].copy()
    words = toy.vocabulary().replace(state_size=states)
    directory = toy.write(tmp_path, columns, words)
    settings = quick("two_stage", network=NetworkConfig(hidden=(8,)), regression_columns=60)
    learner = build(directory, settings)
    history = fit_all(learner, directory, settings)
    assert all(np.isfinite(entries[-1]["loss"]) for entries in history.values())


def test_very_wide_states_have_smaller_windows():
    settings = quick("two_stage").replace(window_rows=262_144)
    assert settings.window_rows_of(toy.vocabulary()) == 262_144
    rows = settings.window_rows_of(toy.vocabulary().replace(state_size=2000))
    assert rows * 2 * 2000 * 4 <= 1 << 30
    assert settings.window_rows_of(toy.vocabulary().replace(state_size=10_000_000)) == settings.minibatch_size
