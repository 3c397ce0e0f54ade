"""The offline gate: what a candidate must show before any user gets it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from recfuse.behaviours import Vocabulary
from recfuse.bundle import Bundle
from recfuse.evaluation.answers import OffPolicyEstimate
from recfuse.evaluation.config import Targets
from recfuse.evaluation.estimator import CHANGED_REQUEST, FOLLOWED_REQUEST, WHOLE_SESSION
from recfuse.evaluation.evaluate import EvaluateResult
from recfuse.fusion.config import NetworkConfig
from recfuse.fusion.inference import FusionActor, file_of
from recfuse.fusion.networks import GaussianPolicies, Normalisation

# The widest question first: what answers it says most of what users will see.
_QUESTIONS = (WHOLE_SESSION, FOLLOWED_REQUEST, CHANGED_REQUEST)
RATIO_TOLERANCE = 0.1  # of the mean ratio of densities, which is 1 where they are right
PREDICTED_TOLERANCE = 0.1  # of a scorer's predicted over observed
_POSITIVES = 4 / PREDICTED_TOLERANCE**2  # of fewer, chance alone moves the ratio by the tolerance
PARITY = 1e-3  # of a σ, between what serves and the trained network
_STATES = 256


@dataclass(frozen=True)
class GateRow:
    """One check: what was found, what is wanted, and whether it is so."""

    check: str
    found: str
    wanted: str
    passed: bool


@dataclass(frozen=True)
class Gate:
    """All checks of a candidate."""

    rows: tuple[GateRow, ...]

    @property
    def failure(self) -> GateRow | None:
        """The first check that failed."""
        return next((row for row in self.rows if not row.passed), None)

    @property
    def words(self) -> str:
        """The outcome in a sentence."""
        failure = self.failure
        if failure is None:
            return f"the gate is passed: {len(self.rows)} checks"
        return f"the gate is not passed: {failure.check} is {failure.found}, wanted {failure.wanted}"


def gate_policy(candidate: Bundle, base: Bundle, evaluation: EvaluateResult | None, targets: Targets) -> Gate:
    """The checks of a policy.

    Args:
        evaluation: of the candidate, on held-out requests; None where there are none, and then only the bundle itself
            is checked.
    """
    rows = [_meaning(candidate, base), *_parities(candidate)]
    if evaluation is not None:
        rows += [*_support(evaluation), *_floors(evaluation, targets)]
    return Gate(tuple(rows))


def gate_scorer(candidate: Bundle, base: Bundle) -> Gate:
    """The checks of a scorer: it predicts what the served one predicts, and its means are right on its test day."""
    tasks, wanted = (sorted(_registry_tasks(bundle)) for bundle in (candidate, base))
    missing = sorted(set(wanted) - set(tasks))
    rows = [GateRow("tasks", ", ".join(tasks), f"all of {', '.join(wanted)}", not missing)]
    for pair in candidate.manifest.get("metrics", {}).get("by_pair", ()):
        ratio = pair.get("predicted_over_observed")
        if ratio is not None and pair.get("positives", 0) >= _POSITIVES:
            rows.append(GateRow(f"predicted over observed {pair['task']} in {pair['scene']}", f"{ratio:.3f}",
                                f"1 ± {PREDICTED_TOLERANCE}", abs(ratio - 1) <= PREDICTED_TOLERANCE))
    return Gate(tuple(rows))


def _registry_tasks(bundle: Bundle) -> set[str]:
    scenes: Any = bundle.manifest.get("registry", {}).get("scenes", ())
    return {str(task) for scene in scenes for task in scene["tasks"]}


def _meaning(candidate: Bundle, base: Bundle) -> GateRow:
    """Both write rows that may stand in one table."""
    own, other = (Vocabulary.from_dict(bundle.manifest["vocabulary"]) for bundle in (candidate, base))
    fields = own.differences(other)
    return GateRow("vocabulary", f"other {', '.join(fields)}" if fields else "the same", "the same as the served one's",
                   not fields)


def _parities(candidate: Bundle) -> Iterator[GateRow]:
    """Of the policy for all stages, and of those of single ones."""
    actor = FusionActor.from_bundle(candidate)
    yield _parity("serving against the network", actor, candidate.manifest["network"], candidate.tensors[file_of()])
    for stage, told in candidate.manifest.get("stages", {}).items():
        yield _parity(f"serving against the network of {stage}", actor.of(stage), told["network"],
                      candidate.tensors[file_of(stage)])


def _parity(check: str, actor: FusionActor, network: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> GateRow:
    """What serving computes is what the network computes, on drawn states."""
    wanted = f"at most {PARITY:g} σ"
    if network["type"] != "gaussian_mlp":
        return GateRow(check, "no network", wanted, True)
    vocabulary = actor.vocabulary
    config = NetworkConfig.from_dict({name: value for name, value in network.items() if name != "type"})
    policies = GaussianPolicies(("policy",), config, Normalisation.identity(vocabulary.state_size,
                                                                            vocabulary.action_size))
    policies.load_state_dict(tensors)
    draws = np.random.default_rng(0).standard_normal((_STATES, vocabulary.state_size))
    mean, std = (tensors[f"state_{name}"].double().cpu().numpy() for name in ("mean", "std"))
    state = (mean + std * draws).astype(np.float32)
    with torch.no_grad():
        mu, log_sigma = (part[:, 0].double().cpu().numpy() for part in policies(torch.from_numpy(state)))
    served = actor.act(state, explore=False)
    apart = max(float(np.abs((served.mu - mu) / served.sigma).max()),
                float(np.abs(np.log(served.sigma) - log_sigma).max()))
    return GateRow(check, f"{apart:.2g} σ", wanted, apart <= PARITY)


def _support(evaluation: EvaluateResult) -> Iterator[GateRow]:
    answers = [answer for answer in evaluation.estimates if not answer.refused]
    first = evaluation.off_policy
    why = first.refused if not answers else f"{float(first.effective_sample_size[0]):,.0f} requests of its own"
    yield GateRow("support of the log", why, "an estimate that is not refused", bool(answers))
    if math.isfinite(first.mean_ratio):
        yield GateRow("mean ratio of densities", f"{first.mean_ratio:.3f}", f"1 ± {RATIO_TOLERANCE}",
                      abs(first.mean_ratio - 1) <= RATIO_TOLERANCE)


def _floors(evaluation: EvaluateResult, targets: Targets) -> Iterator[GateRow]:
    """Of the behaviours with a floor; what is counted of requests and sessions no log estimates."""
    for name, floor in targets.floors.items():
        if name not in evaluation.behaviours:
            continue
        answer = _widest(evaluation, evaluation.behaviours.index(name))
        check, wanted = f"lower end of {name}", f"at least {floor:+.2%}"
        if answer is None:
            yield GateRow(check, "not estimated", wanted, False)
        else:
            low = float(answer.change_low[evaluation.behaviours.index(name)])
            yield GateRow(f"{check} ({answer.estimator}, a {answer.per})", f"{low:+.2%}", wanted, low >= floor)


def _widest(evaluation: EvaluateResult, place: int) -> OffPolicyEstimate | None:
    """The answer with an interval for one behaviour that speaks of most."""
    blocks = {block.question.name: block for block in evaluation.blocks}
    for question in _QUESTIONS:
        for answer in blocks[question.name].answers if question.name in blocks else ():
            if not answer.refused and math.isfinite(float(answer.change_low[place])):
                return answer
    return None


def to_figures(gate: Gate) -> dict[str, list[str]]:
    """Plain values, for an audit."""
    return {row.check: [row.found, row.wanted] for row in gate.rows}
