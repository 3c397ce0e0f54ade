"""What a candidate must show offline: each check passes and fails for its own reason."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import session_logs

from recfuse.behaviours import Vocabulary
from recfuse.bundle import Bundle, read_bundle
from recfuse.evaluation.answers import OffPolicyEstimate
from recfuse.evaluation.blocks import Block
from recfuse.evaluation.config import Targets
from recfuse.evaluation.estimator import CHANGED_REQUEST, WHOLE_SESSION
from recfuse.evaluation.evaluate import EvaluateResult
from recfuse.evaluation.gate import Gate, gate_policy, gate_scorer, to_figures
from recfuse.fusion.config import NetworkConfig
from recfuse.fusion.inference import FusionActor, StagePolicy, export_policy
from recfuse.fusion.networks import GaussianPolicies, Normalisation

TARGETS = Targets(floors={"like": -.05, "requests": -.01})


def policy(root: Path, parameters: int = 2, seed: int = 0, **network: object) -> Bundle:
    policies, of = networks(parameters, seed, **network)
    return read_bundle(export_policy(root, policies, of, training={}, data_fingerprint="", metrics={}))


def networks(parameters: int = 2, seed: int = 0, **network: object) -> tuple[GaussianPolicies, Vocabulary]:
    of = session_logs.vocabulary(parameters=parameters)
    normalisation = Normalisation((1.0, -2.0, 0.0), (.5, 3.0, 1.0), (.2,) * parameters, (1.5,) * parameters)
    policies = GaussianPolicies(("policy",), NetworkConfig(hidden=(8, 8), **network), normalisation, seed=seed)
    for parameter in policies.parameters():
        parameter.data.mul_(5.0)  # so that the mean depends on the state
    return policies, of


def estimate(change_low: float, ratio: float = 1.0, refused: str = "", **changes: object) -> OffPolicyEstimate:
    none = np.full(2, np.nan)
    numbers = np.array([.1, .1])
    return OffPolicyEstimate(**{
        **dict(estimate=numbers, low=numbers, high=numbers, logged=numbers, effective_sample_size=np.full(2, 400.0),
               requests=1_000, users=100, capped_share=0.0, mean_ratio=ratio, refused=refused, change=numbers,
               change_low=none if refused else np.array([0.0, change_low]), change_high=numbers), **changes})


def evaluation(*answers: tuple[object, OffPolicyEstimate]) -> EvaluateResult:
    names = ("watch_time", "like")
    blocks = tuple(Block(question, answer.logged, (answer,), ("",), names, ()) for question, answer in answers)
    return EvaluateResult("new", tuple(answer for _, answer in answers), blocks, names, None, 1, {})


@pytest.mark.parametrize("network", [{}, {"sigma": "free"}, {"action_range": (-3.0, 3.0)}, {"activation": "tanh"}])
def test_what_serving_computes_is_what_the_network_computes(tmp_path, network) -> None:
    candidate = policy(tmp_path, seed=1, **network)
    gate = gate_policy(candidate, policy(tmp_path, **network), None, TARGETS)
    assert gate.failure is None
    assert float(gate.rows[1].found.split()[0]) < 1e-4
    assert gate.words == "the gate is passed: 2 checks"


def test_every_stage_of_a_bundle_must_serve_what_its_network_computes(tmp_path, monkeypatch) -> None:
    policies, of = networks(seed=1)
    stages = {"mix": StagePolicy(networks(seed=2)[0], of, {}, "", {})}
    candidate = read_bundle(export_policy(tmp_path, policies, of, training={}, data_fingerprint="", metrics={},
                                          stages=stages))
    gate = gate_policy(candidate, policy(tmp_path), None, TARGETS)
    assert (gate.failure, gate.words) == (None, "the gate is passed: 3 checks")
    candidate.tensors["policy-mix"]["network.biases.2"] += .1  # what the network computes, and serving does not
    actor = FusionActor.from_bundle(read_bundle(candidate.path))
    monkeypatch.setattr(FusionActor, "from_bundle", lambda bundle: actor)
    failure = gate_policy(candidate, policy(tmp_path), None, TARGETS).failure
    assert failure is not None
    assert failure.check == "serving against the network of mix"


def test_what_serving_computes_otherwise_fails(tmp_path, monkeypatch) -> None:
    candidate, act = policy(tmp_path, seed=1), FusionActor.act

    def shifted(self, *args, **options):
        decision = act(self, *args, **options)
        return replace(decision, mu=decision.mu + .01 * decision.sigma)

    monkeypatch.setattr(FusionActor, "act", shifted)
    failure = gate_policy(candidate, candidate, None, TARGETS).failure
    assert failure.check == "serving against the network"
    assert failure.found == "0.01 σ"


def test_another_vocabulary_fails(tmp_path) -> None:
    failure = gate_policy(policy(tmp_path, 3), policy(tmp_path), None, TARGETS).failure
    assert (failure.check, failure.found) == ("vocabulary", "other fusion_parameters")


def checked(tmp_path, *answers: tuple[object, OffPolicyEstimate]) -> Gate:
    candidate = policy(tmp_path)
    return gate_policy(candidate, candidate, evaluation(*answers), TARGETS)


@pytest.mark.parametrize(("answers", "check"), [
    (((CHANGED_REQUEST, estimate(-.04)),), None),
    (((CHANGED_REQUEST, estimate(-.06)),), "lower end of like (NCIS, a request)"),
    (((CHANGED_REQUEST, estimate(.1, ratio=.85)),), "mean ratio of densities"),
    (((CHANGED_REQUEST, estimate(.1, refused="too few requests")),), "support of the log"),
    (((CHANGED_REQUEST, estimate(np.nan)),), "lower end of like"),
    # The whole session says more than one changed request; where it does not answer, the request counts.
    (((CHANGED_REQUEST, estimate(.1)), (WHOLE_SESSION, estimate(-.2, per="session"))),
     "lower end of like (NCIS, a session)"),
    (((CHANGED_REQUEST, estimate(.1)), (WHOLE_SESSION, estimate(-.2, refused="no"))), None)])
def test_what_the_log_says_of_it(tmp_path, answers, check) -> None:
    gate = checked(tmp_path, *answers)
    assert (None if gate.failure is None else gate.failure.check) == check
    assert set(to_figures(gate)) == {row.check for row in gate.rows}
    if check is not None:
        assert gate.words.startswith(f"the gate is not passed: {check} is ")


@pytest.mark.parametrize(("tasks", "ratio", "positives", "check"), [
    (("click", "like"), 1.05, 1_000, None), (("click",), 1.0, 1_000, "tasks"),
    (("click", "like"), 1.2, 1_000, "predicted over observed like in all"), (("click", "like"), 1.2, 30, None)])
def test_a_scorer(tasks, ratio, positives, check) -> None:
    pair = {"scene": "all", "task": "like", "positives": positives, "predicted_over_observed": ratio}

    def bundle(names: tuple[str, ...]) -> Bundle:
        return Bundle(Path("scenes-x"), {"kind": "scenes", "registry": {"scenes": [{"name": "1", "tasks": names}]},
                                         "metrics": {"by_pair": [pair]}}, {})

    failure = gate_scorer(bundle(tasks), bundle(("click", "like"))).failure
    assert (None if failure is None else failure.check) == check
