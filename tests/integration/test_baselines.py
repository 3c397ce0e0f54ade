"""Every algorithm by its name: one test of fit, resume, export and decisions for all, and where each one moves."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ranked_samples
import samples as toy
import torch
from learners import SETTINGS, Reader, build, fit_all
from numpy.typing import NDArray
from ray.rllib.core.learner.training_data import TrainingData

from recfuse.bundle import read_bundle
from recfuse.bundle.pointer import Pointer, write_pointer
from recfuse.fusion.inference import FusionActor, export_policy
from recfuse.fusion.policies import FixedGaussian
from recfuse.learning import registry
from recfuse.learning.phases import names_of
from recfuse.learning.settings import LearningSettings, StoppingRule
from recfuse.serving.config import ServingConfig
from recfuse.serving.formats import Body
from recfuse.serving.replicas import FusionReplica

STATE = toy.bandit(500, seed=9)["state"]
BEST = toy.optimum(STATE)
LIKED = np.broadcast_to(toy.LIKED, BEST.shape)
# Every algorithm, and every option that changes what is trained.
ALGORITHMS: dict[str, dict[str, Any]] = {
    **{name: {"algorithm": name} for name in registry.names()},
    "sequential": {"auxiliary": "sequential"},
    "shared trunk": {"network": SETTINGS.network.replace(trunk="shared")},
    "squashed": {"network": SETTINGS.network.replace(action_range=(-4.0, 4.0))},
    "target networks": {"target_rate": 0.05},
    "target networks of a policy that climbs": {"target_rate": 0.05, "algorithm": "actor_critic"},
    "v-trace": {"targets": "v_trace", "algorithm": "actor_critic"},
    "estimated density": {"density": "estimated"},
    "two_stage on replay": {"advantage": "replay"},
    "closed form on replay": {"advantage": "replay", "extraction": "closed_form"},
    "interaction_only on replay": {"advantage": "replay", "algorithm": "interaction_only"},
}


@pytest.fixture(scope="module")
def ranked(tmp_path_factory):
    return ranked_samples.write(tmp_path_factory.mktemp("ranked"), users=300, spread=1.0)


@pytest.fixture(scope="module")
def samples(tmp_path_factory: Any) -> Path:
    return toy.write(tmp_path_factory.mktemp("samples"), toy.bandit(1500), files=1)


def settings_of(algorithm: str = "two_stage", **changes: Any) -> LearningSettings:
    quick = SETTINGS.replace(critics=StoppingRule(iterations=8), minibatch_size=128)
    settings = registry.adapted(quick, algorithm)
    if "policy" in type(settings).model_fields:
        settings = settings.replace(policy=StoppingRule(iterations=25))
    return settings.replace(**changes)


def distance(first: NDArray[Any], second: NDArray[Any]) -> float:
    return float(np.sqrt(((first - second) ** 2).sum(1)).mean())


def learned(samples: Path, **changes: Any) -> tuple[NDArray[Any], dict[str, list[dict[str, float]]]]:
    """Means of the policy on STATE, and the metrics of every pass."""
    settings = settings_of(**changes)
    learner = build(samples, settings)
    metrics = fit_all(learner, samples, settings)
    if settings.algorithm == "cem":
        return np.tile(learner.fusion.served().mu, (len(STATE), 1)), metrics
    with torch.no_grad():
        return learner.fusion.policy(torch.from_numpy(STATE))[0][:, 0].numpy(), metrics


@pytest.mark.parametrize("name", ALGORITHMS)
def test_fit_resume_export_and_act(samples, ranked, tmp_path, name):
    """A learner that takes over in the middle of every fit ends with the same bits; its bundle decides as it does."""
    settings, vocabulary, states = settings_of(**ALGORITHMS[name]), toy.vocabulary(), STATE
    own_formula = name in ("item_value", "monotone")
    if "replay" in name or own_formula:
        samples, vocabulary = ranked, ranked_samples.vocabulary()
        states = np.ascontiguousarray(STATE[:, :vocabulary.state_size])
        settings = settings.resolved(True, True)
    data = TrainingData(data_iterators=[Reader(samples)])
    whole, resumed = build(samples, settings), build(samples, settings)
    for phase in names_of(settings.phases):
        for iteration in range(2):
            whole.update(data, phase=phase, iteration=iteration)
            if iteration:
                fresh = build(samples, settings)
                fresh.restore(resumed.snapshot())
                resumed = fresh
            resumed.update(data, phase=phase, iteration=iteration)
    expected, found = whole.snapshot(), resumed.snapshot()
    assert expected.keys() == found.keys()
    for key, values in expected.items():
        np.testing.assert_array_equal(found[key], values, err_msg=key)

    if own_formula:  # The job exports it with its formula: tests/integration/test_train_fusion.py.
        return
    served = whole.fusion.served()
    bundle = export_policy(tmp_path, served, vocabulary, training=settings.to_dict(),
                           data_fingerprint="", metrics={})
    actor = FusionActor.from_bundle(read_bundle(bundle))
    decision = actor.act(states, explore=True, seed=1)
    np.testing.assert_allclose(actor.log_prob(states, decision.action), decision.action_logp, atol=1e-5)
    serve_and_compare(tmp_path, bundle, actor, states)
    if isinstance(served, FixedGaussian):
        np.testing.assert_array_equal(decision.mu, np.tile(served.mu, (len(states), 1)))
        return
    with torch.no_grad():
        state = torch.from_numpy(states)
        mu, log_sigma = served(state)
        density = served.log_prob(state, torch.from_numpy(decision.action))
    np.testing.assert_allclose(decision.mu, mu[:, 0].numpy(), atol=1e-6, rtol=0)
    np.testing.assert_allclose(decision.sigma, log_sigma.exp()[:, 0].numpy(), atol=1e-6, rtol=0)
    np.testing.assert_allclose(decision.action_logp, density[:, 0].numpy(), atol=1e-3, rtol=0)


def serve_and_compare(root: Path, bundle: Path, actor: FusionActor, states: NDArray[Any]) -> None:
    """The server's own code loads the bundle and answers with its decision."""
    write_pointer(root, Pointer(fusion=bundle.name))
    replica = FusionReplica(ServingConfig(models=str(root), decision_log=str(root / "log")))
    try:
        predictions = {name: [0.1, 0.9] for name in actor.vocabulary.fusion_parameters}
        body = {"user_id": "1", "state": states[0].tolist(), "explore": False, "seed": 1,
                "candidates": {"item_id": [1, 2], "predictions": predictions}}
        reply = asyncio.run(replica.rank("fine", Body(json.dumps(body).encode())))
    finally:
        replica.close()
    answer = json.loads(reply.body)
    assert reply.status == 200, answer
    assert answer["model_version"] == bundle.name
    np.testing.assert_allclose(list(answer["mu"].values()), actor.act(states[:1], explore=False).mu[0], atol=1e-6)


@pytest.mark.parametrize("advantage", ["regressed", "sampled"])
def test_actor_critic_moves_to_what_watch_time_wants(samples, advantage):
    mean, _ = learned(samples, algorithm="actor_critic", advantage=advantage)
    assert distance(mean, BEST) < 0.55 * distance(0 * BEST, BEST)


def test_products_in_bfloat16_end_where_those_in_float32_do(samples, monkeypatch):
    """Within a tenth of the logged σ; networks of a test are small, so that the size from which it counts is too."""
    monkeypatch.setattr("recfuse.fusion.networks._LARGE", 1)
    exact, rounded = (learned(samples, algorithm="actor_critic", network=SETTINGS.network.replace(
        arithmetic=arithmetic))[0] for arithmetic in ("float32", "bfloat16"))
    assert 0 < distance(exact, rounded) < 0.1 * toy.SIGMA
    assert distance(rounded, BEST) < 0.55 * distance(0 * BEST, BEST)


def test_interaction_only_moves_to_the_liked_action(samples):
    mean, _ = learned(samples, algorithm="interaction_only")
    assert distance(mean, LIKED) < 0.55 * distance(0 * LIKED, LIKED)


def test_pareto_lies_where_its_weights_say(samples):
    """Equal weights pull it further to the liked action than watch time alone does, which is the weight 0."""
    alone, _ = learned(samples, algorithm="pareto", weights={"like": 0.0})
    both, _ = learned(samples, algorithm="pareto")
    assert distance(both, LIKED) < 0.8 * distance(alone, LIKED)
    assert distance(alone, BEST) < distance(both, BEST) < distance(LIKED, BEST)


@pytest.mark.parametrize(("name", "changes"), [("iql", {"critics": StoppingRule(iterations=40)}), ("td3_bc", {})])
def test_those_that_learn_the_value_of_actions_move_to_what_watch_time_wants(samples, name, changes):
    mean, metrics = learned(samples, algorithm=name, policy=StoppingRule(iterations=60), **changes)
    assert distance(mean, BEST) < 0.75 * distance(0 * BEST, BEST)
    values = metrics["action_values" if name == "iql" else "actor"]
    assert values[-1]["explained_variance/action_value"] > 0.5


def test_cem_finds_the_one_vector_that_the_log_speaks_for(tmp_path):
    """Watch time wants (0.3, −0.4) in every state."""
    columns = toy.bandit(4000)
    wanted = np.array([0.3, -0.4])
    columns["feedback"][:, 0] = -((columns["action"] - wanted) ** 2).sum(1)
    mean, metrics = learned(toy.write(tmp_path, columns, files=1), algorithm="cem", search=StoppingRule(iterations=20))
    np.testing.assert_allclose(mean[0], wanted, atol=0.08)
    last = metrics["search"][-1]
    assert last["gain"] > 0.3
    assert last["ess_share"] > 0.1


@pytest.mark.parametrize("algorithm", ["rcpo", "rcpo_mixed"])
def test_rcpo_lies_on_its_floor(samples, algorithm):
    """Watch time alone raises like by about 0.2 of its logged mean; a floor of 0.5 binds, and is neither missed nor
    passed by much. A floor below what comes by itself leaves the multiplier at 0."""
    mean, metrics = learned(samples, algorithm=algorithm, floors={"like": 0.5})
    free, free_metrics = learned(samples, algorithm=algorithm, floors={"like": -0.5})
    assert all(entry["multiplier/like"] == 0 for entry in free_metrics["policy"])
    assert distance(mean, LIKED) < 0.9 * distance(free, LIKED)
    last = metrics["policy"][-5:]
    assert np.mean([entry["change/like"] for entry in last]) == pytest.approx(0.5, abs=0.06)
    assert 0 < last[-1]["multiplier/like"] < settings_of("rcpo").multiplier_max
    assert last[-1]["change/watch_time"] > 0.25


def test_multipliers_stay_within_their_bound(samples):
    _, metrics = learned(samples, algorithm="rcpo", floors={"like": 50.0}, multiplier_max=2.0,
                         critics=StoppingRule(iterations=1), policy=StoppingRule(iterations=3))
    assert [entry["multiplier/like"] for entry in metrics["policy"]] == [0.0, 2.0, 2.0]


def test_what_does_not_depend_on_the_action_leaves_the_policy_alone_and_says_so(tmp_path, caplog):
    columns = toy.bandit(1500)
    columns["feedback"][:, 0] = np.random.default_rng(1).standard_normal(1500)
    noise = toy.write(tmp_path, columns, files=1)
    mean, metrics = learned(noise, algorithm="actor_critic", policy=StoppingRule(iterations=2))
    assert distance(mean, 0 * mean) < 0.3 * toy.SIGMA
    assert metrics["policy"][-1]["advantage_explained/watch_time"] == 0
    assert "actor_critic: the regressed advantage does not depend on the action" in caplog.text
