"""The learner by itself: an RLlib Learner in this process, fed without Ray, on a bandit whose optimum is known."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import samples as toy
import torch
from learners import PHASES, SETTINGS, Reader, build, fit, fit_all, settings_of
from ray.rllib.core.learner.training_data import TrainingData

from recfuse.behaviours import Behaviour, Vocabulary
from recfuse.config import InvalidFieldError
from recfuse.fusion import losses
from recfuse.fusion.networks import gaussian_kl
from recfuse.learning.critics import CRITICS
from recfuse.learning.density import logged_density
from recfuse.learning.gradients import PairwiseSum
from recfuse.learning.phases import Step
from recfuse.learning.samples import SampleSet
from recfuse.learning.settings import StoppingRule

STATE = torch.from_numpy(toy.bandit(500, seed=9)["state"])

@pytest.fixture(scope="module")
def samples(tmp_path_factory: Any) -> Path:
    return toy.write(tmp_path_factory.mktemp("samples"), toy.bandit())


def distance(first: Any, second: Any) -> float:
    return float(np.sqrt(((np.asarray(first) - np.asarray(second)) ** 2).sum(1)).mean())


def test_the_multiplier_decides_between_the_long_term_optimum_and_the_auxiliary(samples):
    """A small λ moves the policy to the action that watch time prefers in each state, against what `like` wants; a
    large one holds it at the policy of `like`; and those between lie between (maths 1.5, 1.6)."""
    best = toy.optimum(STATE.numpy())
    distances = []
    before = build(samples, SETTINGS)  # the multiplier matters in stage two alone
    for phase in SETTINGS.phases[:-1]:
        fit(before, samples, phase.name, phase.rule(SETTINGS).iterations)
    for multiplier in (0.02, 0.5, 1000.0):
        settings = SETTINGS.replace(multipliers={"like": multiplier})
        learner = build(samples, settings)
        learner.restore(before.snapshot())
        metrics = fit(learner, samples, "stage_two", settings.stage_two.iterations)
        with torch.no_grad():
            policy, auxiliary = learner.fusion.policy(STATE), learner.fusion.auxiliaries(STATE)
        distances.append(distance(policy[0][:, 0], best))
        if multiplier == 0.02:
            assert distances[-1] < 0.55 * distance(np.zeros_like(best), best)
            assert metrics[-1]["tau"] < 1
            assert metrics[-1]["ess_share"] == pytest.approx(settings.ess_floor, rel=1e-3)
        if multiplier == 1000.0:
            assert float(gaussian_kl(*policy, *auxiliary).mean()) < 0.1
    assert distances == sorted(distances)
    nothing = distance(np.zeros_like(best), np.broadcast_to(toy.LIKED, best.shape))
    assert distance(auxiliary[0][:, 0], np.broadcast_to(toy.LIKED, best.shape)) < 0.6 * nothing


def test_critics_learn_what_can_be_known(tmp_path):
    """Reward = first state feature + noise of the same variance: half of the variance can be explained (P1)."""
    columns = toy.bandit()
    noise = np.random.default_rng(1).standard_normal(len(columns["done"])).astype(np.float32)
    columns["feedback"][:, 1] = columns["state"][:, 0] + noise
    metrics = fit(build(toy.write(tmp_path, columns), SETTINGS), tmp_path, "critics", 15)
    assert metrics[-1]["explained_variance/like"] == pytest.approx(0.5, abs=0.05)
    assert metrics[-1]["loss/like"] == pytest.approx(0.5, abs=0.05)


def test_a_restored_learner_continues_to_the_last_bit(samples):
    whole, first, second = (build(samples, SETTINGS) for _ in range(3))
    phases = [("critics", 0), ("critics", 1), ("cloning", 0), ("stage_one", 0), ("stage_one", 1), ("stage_two", 0)]
    data = TrainingData(data_iterators=[Reader(samples)])
    for position, (phase, iteration) in enumerate(phases):
        whole.update(data, phase=phase, iteration=iteration)
        current = first if position < 4 else second
        if position == 4:
            second.restore(first.snapshot())
        current.update(data, phase=phase, iteration=iteration)
    expected, found = whole.snapshot(), second.snapshot()
    assert expected.keys() == found.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)


def test_streamed_samples_give_what_kept_ones_give(samples):
    kept, streamed = (build(samples, SETTINGS.replace(memory_mib=size)) for size in (512, 0))
    settings = SETTINGS.replace(**{phase: StoppingRule(iterations=2) for phase in PHASES})
    for learner in (kept, streamed):
        fit_all(learner, samples, settings)
    for name, values in kept.snapshot().items():
        np.testing.assert_array_equal(streamed.snapshot()[name], values, err_msg=name)


def test_phases_leave_the_other_networks_alone(samples):
    learner = build(samples, SETTINGS)
    before = learner.snapshot()
    for phase, part in (("critics", "critics"), ("cloning", "policy"), ("stage_one", "auxiliaries"),
                        ("stage_two", "policy")):
        fit(learner, samples, phase, 1)
        after = learner.snapshot()
        changed = {name.split(".")[1] for name, values in after.items()
                   if name.startswith("module.") and not np.array_equal(before[name], values)}
        assert changed == {part}
        before = after


def test_behaviour_cloning_imitates_the_log(samples):
    settings = settings_of("behaviour_cloning", cloning=StoppingRule(iterations=5),
                                   policy_learning_rate=1e-3)
    learner = build(samples, settings)
    fit_all(learner, samples, settings)
    with torch.no_grad():
        mu, log_sigma = learner.fusion.policy(STATE)
    assert float(mu.abs().mean()) < 0.1 * toy.SIGMA
    torch.testing.assert_close(log_sigma.exp().mean((0, 1)), torch.full((2,), toy.SIGMA), rtol=0.05, atol=0)


def test_p3_the_learner_arrives_at_the_geometric_mean_of_its_auxiliaries(tmp_path):
    """A ≡ 0, two auxiliaries that are known Gaussians, λ = 1 and 3: 1/σ*² = Σ p/σ², μ* = σ*² Σ p μ/σ²."""
    behaviours = (toy.vocabulary().behaviours[0], Behaviour(name="like", kind="short_term", multiplier=1.0),
                  Behaviour(name="follow", kind="short_term", multiplier=3.0))
    vocabulary = Vocabulary(behaviours=behaviours, fusion_parameters=("first", "second"), state_size=toy.STATES)
    columns = toy.bandit(8_000)
    columns["feedback"] = np.zeros((8_000, 3), np.float32)
    samples = toy.write(tmp_path, columns, vocabulary)
    settings = SETTINGS.replace(advantage="sampled", critics=StoppingRule(iterations=1), holdout=0.0,
                                   network=SETTINGS.network.replace(hidden=(), sigma="free"))
    learner = build(samples, settings)
    with torch.no_grad():  # critics that say 0 of rewards that are 0
        for parameter in learner.fusion.critics.parameters():
            parameter.zero_()
    fit(learner, samples, "cloning", 2)
    auxiliaries = learner.fusion.auxiliaries
    with torch.no_grad():
        for parameter in auxiliaries.parameters():
            parameter.zero_()
        auxiliaries.network.biases[-1].copy_(torch.tensor([[[-0.5, 0.2]], [[0.5, 0.4]]]))
        auxiliaries.free.copy_(torch.tensor([[0.3, -0.4], [-0.5, 0.2]]))
        mu, log_sigma = (moment[0].double() for moment in auxiliaries(STATE[:1]))
    metrics = fit(learner, samples, "stage_two", 40)
    share = torch.tensor([[0.25], [0.75]]).double()
    precision = (share / log_sigma.exp() ** 2).sum(0)
    with torch.no_grad():
        found_mu, found_log_sigma = learner.fusion.policy(STATE)
    expected = (share * mu / log_sigma.exp() ** 2).sum(0) / precision
    torch.testing.assert_close(found_mu.double().mean((0, 1)), expected, atol=0.02, rtol=0)
    torch.testing.assert_close(found_log_sigma.double().exp().mean((0, 1)), precision.rsqrt(), atol=0.02, rtol=0)
    assert metrics[-1]["kl/follow"] < metrics[-1]["kl/like"]


def test_p6_the_order_of_the_behaviours_does_not_matter_to_the_learner(tmp_path):
    """From critics to the long-term policy, which each behaviour is read by its name for."""
    watch, like = toy.vocabulary().behaviours
    behaviours = (watch, like, Behaviour(name="follow", kind="short_term", multiplier=3.0))
    columns = toy.bandit(2000)
    mirrored = -((columns["action"] - toy.LIKED * [1, -1]) ** 2).sum(1, keepdims=True).astype(np.float32)
    feedback = np.concatenate([columns["feedback"], mirrored], 1)
    settings = SETTINGS.replace(**{phase: StoppingRule(iterations=2) for phase in PHASES})
    found = []
    for order in ([0, 1, 2], [2, 0, 1]):
        vocabulary = Vocabulary(behaviours=tuple(behaviours[index] for index in order),
                                fusion_parameters=("first", "second"), state_size=toy.STATES)
        directory = tmp_path / str(order[0])
        directory.mkdir()
        samples = toy.write(directory, columns | {"feedback": feedback[:, order]}, vocabulary)
        learner = build(samples, settings)
        metrics = fit_all(learner, samples, settings)
        with torch.no_grad():
            found.append((learner.fusion.policy(STATE), learner.fusion.critics(STATE), metrics))
    (policy, critics, metrics), (other_policy, other_critics, other_metrics) = found
    torch.testing.assert_close(other_policy, policy, atol=1e-4, rtol=0)
    torch.testing.assert_close(other_critics, critics[:, [2, 0, 1]], atol=1e-4, rtol=0)
    for name in ("holdout_loss", "tau", "ess_share", "kl/like", "kl/follow"):
        assert other_metrics["stage_two"][-1][name] == pytest.approx(metrics["stage_two"][-1][name], abs=1e-3), name


def test_one_intermediate_policy_is_updated_by_every_short_term_critic_in_turn(tmp_path):
    """`like` wants LIKED, `follow` its mirror image in the second parameter: the one policy settles between them."""
    behaviours = (*toy.vocabulary().behaviours, Behaviour(name="follow", kind="short_term", multiplier=3.0))
    vocabulary = Vocabulary(behaviours=behaviours, fusion_parameters=("first", "second"), state_size=toy.STATES)
    columns = toy.bandit()
    mirrored = -((columns["action"] - toy.LIKED * [1, -1]) ** 2).sum(1, keepdims=True)
    columns["feedback"] = np.concatenate([columns["feedback"], mirrored.astype(np.float32)], 1)
    samples = toy.write(tmp_path, columns, vocabulary)
    learner = build(samples, SETTINGS.replace(auxiliary="sequential"))
    fit(learner, samples, "critics", 3)
    fit(learner, samples, "cloning", 1)
    metrics = fit(learner, samples, "stage_one", 8)[-1]
    assert {"loss/like", "loss/follow", "gain/like", "kl/intermediate", "entropy/intermediate"} <= set(metrics)
    assert learner.fusion.auxiliaries.names == ("intermediate",)
    with torch.no_grad():
        mean = learner.fusion.auxiliaries(STATE)[0].mean((0, 1))
    assert mean[0] > 0.25
    assert abs(mean[1]) < 0.1
    assert {"tau", "kl/intermediate"} <= set(fit(learner, samples, "stage_two", 1)[-1])


@pytest.mark.parametrize("second", [0.0, 3.0])
def test_long_term_behaviours_count_by_their_weights(tmp_path, second):
    """Watch time wants one action, reading depth another; with weight 0 the second says nothing."""
    behaviours = (*toy.vocabulary().behaviours,
                  Behaviour(name="depth", kind="long_term", discount=0.9, weight=second))
    vocabulary = Vocabulary(behaviours=behaviours, fusion_parameters=("first", "second"), state_size=toy.STATES)
    columns = toy.bandit()
    wanted = np.array([-0.5, -0.5])
    depth = -((columns["action"] - wanted) ** 2).sum(1, keepdims=True)
    columns["feedback"] = np.concatenate([columns["feedback"], depth.astype(np.float32)], 1)
    samples = toy.write(tmp_path, columns, vocabulary)
    settings = settings_of("actor_critic", critics=StoppingRule(iterations=5),
                                   policy=StoppingRule(iterations=12))
    learner = build(samples, settings)
    fit_all(learner, samples, settings)
    with torch.no_grad():
        mean = learner.fusion.policy(STATE)[0][:, 0]
    to_depth = distance(mean, np.broadcast_to(wanted, mean.shape))
    to_watch = distance(mean, toy.optimum(STATE.numpy()))
    assert (to_depth < to_watch) == (second > 1)


def test_v_trace_learns_what_a_session_brings(tmp_path):
    """Sessions of four requests that each bring 1, γ = ½: V = 1.875, 1.75, 1.5, 1 by the request's place, which is all
    that the state shows. In units of the reward's deviation, which is 1 where the reward never varies."""
    rows = 2000
    columns = toy.bandit(rows)
    place = np.arange(rows) % 4
    columns["state"][:, 0] = place
    columns["next_state"] = np.roll(columns["state"], -1, 0)
    columns["done"] = (place == 3).astype(np.float32)
    columns["feedback"][:, 0] = 1.0
    samples = toy.write(tmp_path, columns, files=1)
    settings = SETTINGS.replace(targets="v_trace", cloning=StoppingRule(iterations=5))
    learner = build(samples, settings)
    fit(learner, samples, "cloning", 5)
    fit(learner, samples, "critics", 25)
    with torch.no_grad():
        value = learner.fusion.critics(torch.from_numpy(columns["state"][:400]))[:, 0].reshape(-1, 4).mean(0)
    torch.testing.assert_close(value, torch.tensor([1.875, 1.75, 1.5, 1.0]), atol=0.08, rtol=0)


@pytest.mark.parametrize(("algorithm", "last"), [("two_stage", "stage_two"), ("actor_critic", "policy")])
def test_v_trace_goes_on_to_the_last_bit_after_its_policy_has_moved(tmp_path, algorithm, last):
    """Within the last phase the policy is no longer the one that the critics' traces were corrected to."""
    columns = toy.bandit(1500)
    columns["done"] = (np.arange(1500) % 4 == 3).astype(np.float32)
    columns["next_state"] = np.roll(columns["state"], -1, 0)
    samples = toy.write(tmp_path, columns, files=1)
    settings = settings_of(algorithm, targets="v_trace")
    phases = [(phase.name, 0) for phase in settings.phases] + [(last, 1), (last, 2), (last, 3)]
    data = TrainingData(data_iterators=[Reader(samples)])
    whole, resumed = build(samples, settings), build(samples, settings)
    for number, (phase, iteration) in enumerate(phases):
        whole.update(data, phase=phase, iteration=iteration)
        if number == len(phases) - 3:
            resumed.restore(whole.snapshot())
        if number > len(phases) - 3:
            resumed.update(data, phase=phase, iteration=iteration)
    expected, found = whole.snapshot(), resumed.snapshot()
    assert expected.keys() == found.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)


def test_target_networks_follow_at_their_rate(samples):
    settings = SETTINGS.replace(target_rate=0.1, minibatch_size=1024, critics=StoppingRule(iterations=1))
    learner = build(samples, settings)
    before = learner.snapshot()
    name = "network.biases.1"
    expected = before[f"module.critics.{name}"].astype(np.float64)
    step = learner._step

    def recording(*arguments):
        nonlocal expected
        metrics = step(*arguments)
        expected = 0.9 * expected + 0.1 * learner.snapshot()[f"module.critics.{name}"]
        return metrics

    learner._step = recording
    fit(learner, samples, "critics", 1)
    after = learner.snapshot()
    np.testing.assert_allclose(after[f"module.target_critics.{name}"], expected, rtol=1e-5)
    assert not np.array_equal(after[f"module.critics.{name}"], after[f"module.target_critics.{name}"])


def test_where_the_log_has_no_density_a_fitted_gaussian_takes_its_place(tmp_path):
    columns = toy.bandit()
    columns["action"] += np.array([0.2, -0.1], np.float32) * columns["state"][:, :1]  # μ depends on the state
    mu = np.array([0.2, -0.1]) * columns["state"][:, :1]
    truth = (-0.5 * ((columns["action"] - mu) / toy.SIGMA) ** 2 - np.log(toy.SIGMA) - 0.5 * np.log(2 * np.pi)).sum(1)
    columns["action_logp"][:] = np.nan
    samples = toy.write(tmp_path, columns)
    learner = build(samples, SETTINGS.replace(policy_learning_rate=2e-3))
    assert learner._settings.density == "estimated"
    fit(learner, samples, "critics", 1)
    fit(learner, samples, "cloning", 10)
    metrics = fit(learner, samples, "stage_one", 1)[-1]
    estimate = np.concatenate([logged_density(learner.context, window, position).cpu().numpy()
                               for position, window in learner.context.windows])
    assert np.abs(estimate - truth).mean() < 0.1
    assert metrics["ess_share/like"] > 0.7  # near the logged policy, in whose place the estimate stands
    # What was estimated stays, also where the policy that it was copied from goes on learning.
    kept = learner.snapshot()
    fit(learner, samples, "stage_two", 1)
    for name, values in learner.snapshot().items():
        if name.startswith("module.behaviour."):
            np.testing.assert_array_equal(values, kept[name])


def test_td3_bc_leaves_sigma_where_cloning_left_it(samples):
    settings = settings_of("td3_bc", cloning=StoppingRule(iterations=2))
    learner = build(samples, settings)
    fit(learner, samples, "cloning", 2)
    cloned = learner.fusion.policy.free.detach().clone()
    metrics = fit(learner, samples, "actor", 2)[-1]
    assert torch.equal(learner.fusion.policy.free, cloned)
    assert {"explained_variance/action_value", "policy_loss", "distance", "entropy"} <= set(metrics)


def test_actions_beyond_the_stated_range_are_named(samples):
    with pytest.raises(InvalidFieldError, match=r"samples.action: got .*; allowed: numbers within network.action_ra"):
        SampleSet.open(samples, (-0.1, 0.1))


def test_a_pairwise_sum_has_the_same_bits_however_its_parts_are_dealt_out():
    parts = torch.randn(8, 1000, generator=torch.Generator().manual_seed(0))

    def total(of: torch.Tensor) -> torch.Tensor:
        result = PairwiseSum()
        for part in of:
            result.add([part.clone()])
        return result.sum()[0]

    alone = total(parts)
    for workers in (2, 4):
        torch.testing.assert_close(total(torch.stack([total(share) for share in parts.chunk(workers)])), alone,
                                   atol=0, rtol=0)
    torch.testing.assert_close(total(parts[:5]), parts[:5].sum(0))
    assert not torch.equal(alone, parts.sum(0)), "the order matters to the last bit"


def test_shards_change_nothing_but_rounding(samples):
    settings = SETTINGS.replace(**{phase: StoppingRule(iterations=1) for phase in PHASES})
    whole, parts = (build(samples, settings.replace(shards=shards)) for shards in (1, 4))
    for learner in (whole, parts):
        fit_all(learner, samples, settings)
    for name, values in whole.snapshot().items():
        np.testing.assert_allclose(parts.snapshot()[name], values, atol=1e-5, rtol=1e-3, err_msg=name)


@pytest.mark.parametrize("shards", [1, 2])
def test_a_step_is_that_of_backward_and_adam(samples, shards):
    """Of several networks, whose gradients come out of autograd with strides of their own."""
    learner = build(samples, SETTINGS.replace(shards=shards))
    reference = copy.deepcopy(learner.fusion.critics)
    optimizer = torch.optim.Adam(reference.parameters(), lr=SETTINGS.critic_learning_rate)
    generator = torch.Generator().manual_seed(0)
    learner._context = learner._open(TrainingData(data_iterators=[Reader(samples)]))
    discount = learner.context.rewards.discount
    for _ in range(3):
        batch = {name: torch.randn(64, width, generator=generator)
                 for name, width in (("state", toy.STATES), ("next_state", toy.STATES), ("feedback", 2))}
        batch["done"] = torch.zeros(64)
        learner._step(Step(batch, CRITICS.loss, CRITICS.networks), shards)
        following = reference(batch["next_state"]).detach()
        optimizer.zero_grad()
        value = reference(batch["state"])
        losses.critic_loss(value, following, batch["feedback"], batch["done"], discount).loss.backward()
        optimizer.step()
    for found, expected in zip(learner.fusion.critics.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
