"""What the parts of the learner that no longer change say about every sample, by its position in the samples."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from recfuse.behaviours import Vocabulary
from recfuse.fusion import losses
from recfuse.fusion.advantages import RegressedAdvantage, regress_advantage
from recfuse.fusion.traces import v_trace
from recfuse.learning.module import FusionPolicyModule
from recfuse.learning.samples import Windows
from recfuse.learning.settings import LearningSettings, Phase

logger = logging.getLogger("recfuse")
# Rows of one pass through frozen networks.
CHUNK = 1 << 15


class Objective:
    """What is learned, in numbers: which behaviours, with which discounts, multipliers and weights.

    Attributes:
        short, long: positions of the behaviours of each kind.
        discount: [c], of the critics; ahead: the run of them with a discount, whose targets read the next state.
        lambdas: λ of the auxiliary policies: [|S|], or their sum [1] where all critics share one (maths 1.5).
        alpha: [|L|], sums to 1.
        mixture: [m], weights of the behaviours in one mixed reward or advantage; floors: [|S|], of RCPO.
    """

    def __init__(self, settings: LearningSettings, vocabulary: Vocabulary, device: torch.device) -> None:
        def constant(values: list[float]) -> Tensor:
            return torch.tensor(values, dtype=torch.float32, device=device)

        behaviours = vocabulary.behaviours
        self.short = [index for index, b in enumerate(behaviours) if b.kind == "short_term"]
        self.long = [index for index, b in enumerate(behaviours) if b.kind == "long_term"]
        discounts = [b.gamma for b in behaviours]
        if settings.one_critic:
            discounts = [max(behaviours[index].gamma for index in self.long)]
        self.discount = constant(discounts)
        ahead = [index for index, gamma in enumerate(discounts) if gamma > 0]
        self.ahead = slice(ahead[0], ahead[-1] + 1) if ahead else slice(0, 0)
        self.lambdas = constant([behaviours[index].multiplier for index in self.short])
        if settings.auxiliary == "sequential":
            self.lambdas = self.lambdas.sum(0, keepdim=True)
        alpha = constant([behaviours[index].weight for index in self.long])
        self.alpha = alpha / alpha.sum()
        self.mixture = constant(list(settings.scalarisation(vocabulary)))
        self.floors = constant([settings.floors.get(behaviours[index].name, 0.0) for index in self.short])
        self._one_critic, self._rcpo = settings.one_critic, settings.is_rcpo

    def weights(self, module: FusionPolicyModule) -> Tensor:
        """[m], of the behaviours in the mixture, with the multipliers of RCPO as they stand."""
        weights = self.mixture.clone()
        if self._rcpo:
            weights[self.short] = module.multipliers
        return weights

    def rewards(self, feedback: Tensor, module: FusionPolicyModule) -> Tensor:
        """What the critics predict: the reward of every behaviour [n, m], or their mixture [n, 1]."""
        return (feedback @ self.weights(module)).unsqueeze(1) if self._one_critic else feedback

    def next_values(self, next_state: Tensor, like: Tensor, module: FusionPolicyModule) -> Tensor:
        """V(s') of the behaviours with a discount, zero for the others, whose targets do not read it."""
        values = torch.zeros_like(like)
        if self.ahead.stop > self.ahead.start:
            values[:, self.ahead] = module.target("critics")(next_state, self.ahead)
        return values


@dataclass
class _Kept:
    sampled: Tensor | None = None
    advantage: Tensor | None = None
    regressed: RegressedAdvantage | None = None
    target: Tensor | None = None
    weights: losses.TargetWeights | None = None
    mixed: Tensor | None = None
    mixed_sampled: Tensor | None = None


class Frozen:
    """Computes once a phase what its steps would otherwise ask the frozen networks for again and again.

    All on the CPU, in the order of the samples. Advantages have unit variance over the samples (maths 1.6).
    """

    def __init__(
        self, settings: LearningSettings, objective: Objective, module: FusionPolicyModule, windows: Windows
    ) -> None:
        self._settings, self._objective, self._module, self._windows = settings, objective, module, windows
        self._kept = _Kept()
        self._behaviour: Tensor | None = None

    @torch.no_grad()
    def prepare(self, phase: Phase) -> None:
        """Computes what the phase needs and is not there yet; what has changed since is computed anew."""
        if phase == "cloning":
            self._behaviour = None
        if phase in ("critics", "cloning", "action_values", "actor") or (
                phase == "policy" and self._settings.critics_follow):
            self._kept = _Kept()
        kept = self._kept
        if phase == "critics" and self._settings.targets == "v_trace":
            self._advantages()
        if phase in ("stage_one", "stage_two", "policy", "search") and kept.sampled is None:
            kept.sampled = kept.advantage = self._advantages()
            if self._settings.advantage == "regressed" and phase != "search":
                kept.regressed = self._regress(kept.sampled)
                kept.advantage = self._regressed(kept.regressed)
        if phase == "stage_two" and kept.weights is None:
            assert kept.advantage is not None
            kept.weights = self._target_weights(kept.advantage)
        if phase == "extraction" and kept.weights is None:
            kept.weights = self._implicit_weights()
        if phase in ("policy", "search") and (kept.mixed is None or self._settings.is_rcpo):
            assert kept.advantage is not None
            assert kept.sampled is not None
            kept.mixed = self._mix(kept.advantage)
            if not bool(kept.mixed.any()):
                logger.warning("%s: the regressed advantage does not depend on the action, so the policy stays where "
                               "the logged one is; more samples, or `advantage: sampled`", self._settings.algorithm)
            kept.mixed_sampled = kept.mixed if kept.advantage is kept.sampled else self._mix(kept.sampled)

    def behaviour_log_prob(self, window: dict[str, Tensor], position: int) -> Tensor:
        """log π_b(a|s) of a window's samples [n]: as logged, or as the cloned policy estimates it."""
        if self._module.behaviour is None:
            return window["action_logp"]
        if self._behaviour is None:
            self._behaviour = self._estimate()
        return self._behaviour[position : position + len(window["done"])].to(window["done"].device)

    def per_behaviour(self, places: Tensor, held_out: bool) -> Tensor:
        """Short-term advantages [k, |S|] of these samples; those held out judge by what was sampled, never by the model
        that the policy was fitted to."""
        source = self._kept.sampled if held_out else self._kept.advantage
        assert source is not None
        return source.index_select(0, places)[:, self._objective.short]

    def mixed(self, places: Tensor, held_out: bool) -> Tensor:
        """What the rivals' policy climbs, [k]: mean 0, variance 1. The mean matters, because clipped ratios do not
        cancel it."""
        source = self._kept.mixed_sampled if held_out else self._kept.mixed
        assert source is not None
        return source.index_select(0, places)

    def target(self, places: Tensor) -> Tensor | None:
        """What the critics are fitted to, [k, c], where that is more than one step ahead."""
        return None if self._kept.target is None else self._kept.target.index_select(0, places)

    @property
    def weights(self) -> losses.TargetWeights | None:
        """Of every sample, in stage two and IQL's extraction: floor and normalisation hold over all of them."""
        return self._kept.weights

    @property
    def explained_variance(self) -> Tensor | None:
        """[c], the share of the sampled advantages' variance that the regression explains out of fold."""
        return None if self._kept.regressed is None else self._kept.regressed.explained_variance

    def _chunks(self) -> Iterator[tuple[int, dict[str, Tensor]]]:
        """Position and columns of every chunk of the samples."""
        for position, window in self._windows:
            columns = {**window, "action_logp": self.behaviour_log_prob(window, position)}
            for start in range(0, len(window["done"]), CHUNK):
                yield position + start, {name: column[start : start + CHUNK] for name, column in columns.items()}

    def _fill(self, width: int, parts: Iterator[tuple[int, Tensor]]) -> Tensor:
        """[n, width] from parts by their position; written in place, so that it is in memory once."""
        result = torch.empty(self._windows.rows, width)
        for position, part in parts:
            result[position : position + len(part)] = part
        return result

    def _estimate(self) -> Tensor:
        behaviour = self._module.behaviour
        assert behaviour is not None

        def parts() -> Iterator[tuple[int, Tensor]]:
            for position, window in self._windows:
                for start in range(0, len(window["done"]), CHUNK):
                    rows = slice(start, start + CHUNK)
                    yield position + start, behaviour.log_prob(window["state"][rows], window["action"][rows])

        return self._fill(1, parts())[:, 0]

    def _advantages(self) -> Tensor:
        """A of every sample and critic (maths 1.3, or V-trace), [n, c]; V-trace's targets are kept beside it."""
        trace = self._v_trace() if self._settings.targets == "v_trace" else self._one_step()
        return _to_unit_variance(self._fill(len(self._objective.discount), trace))

    def _one_step(self) -> Iterator[tuple[int, Tensor]]:
        objective, module = self._objective, self._module
        for position, chunk in self._chunks():
            value = module.critics(chunk["state"])
            following = objective.next_values(chunk["next_state"], value, module)
            yield position, losses.advantage(value, following, objective.rewards(chunk["feedback"], module),
                                             chunk["done"], objective.discount)

    def _v_trace(self) -> Iterator[tuple[int, Tensor]]:
        objective, module = self._objective, self._module
        target = torch.empty(self._windows.rows, len(objective.discount))
        for position, window in self._windows:
            chunks = range(0, len(window["done"]), CHUNK)
            cuts = [{name: column[start : start + CHUNK] for name, column in window.items()} for start in chunks]
            values = [module.critics(cut["state"]) for cut in cuts]
            following = torch.cat([objective.next_values(cut["next_state"], like, module)
                                   for cut, like in zip(cuts, values, strict=True)])
            value = torch.cat(values)
            log_prob = torch.cat([module.policy.log_prob(cut["state"], cut["action"])[:, 0] for cut in cuts])
            continues = torch.zeros(len(value), dtype=torch.bool, device=value.device)
            # Whoever shuffled the samples gets one step; a session is followed only where it goes on in the next row.
            continues[:-1] = (window["done"][:-1] == 0) & (window["next_state"][:-1] == window["state"][1:]).all(1)
            result = v_trace(value, following, objective.rewards(window["feedback"], module), window["done"],
                             objective.discount, log_prob - self.behaviour_log_prob(window, position), continues,
                             self._settings.trace_max)
            target[position : position + len(value)] = result.target
            yield position, result.advantage
        self._kept.target = target

    def _standardised(self) -> Iterator[tuple[int, tuple[Tensor, Tensor]]]:
        for position, chunk in self._chunks():
            yield position, self._module.policy.standardise(chunk["state"], chunk["action"])

    def _regress(self, sampled: Tensor) -> RegressedAdvantage:
        return regress_advantage(
            (first, *terms, sampled[first : first + len(terms[0])].to(terms[0].device))
            for first, terms in self._standardised())

    def _regressed(self, model: RegressedAdvantage) -> Tensor:
        width = len(self._objective.discount)
        return _to_unit_variance(self._fill(width, ((first, model(*terms)) for first, terms in self._standardised())))

    def _mix(self, advantage: Tensor) -> Tensor:
        """The mixed advantage [n] of advantages [n, c]: mean 0, variance 1."""
        if not self._settings.one_critic:
            advantage = (advantage @ self._objective.weights(self._module).cpu()).unsqueeze(1)
        return _to_unit_variance(advantage - _mean(advantage).to(advantage.dtype))[:, 0]

    def _target_weights(self, advantage: Tensor) -> losses.TargetWeights:
        auxiliaries, objective = self._module.auxiliaries, self._objective
        assert auxiliaries is not None
        long_term = _to_unit_variance((advantage[:, objective.long] @ objective.alpha.cpu()).unsqueeze(1))[:, 0]

        def parts() -> Iterator[tuple[int, Tensor]]:
            for first, chunk in self._chunks():
                share = long_term[first : first + len(chunk["done"])].to(chunk["done"].device)
                log_probs = auxiliaries.log_prob(chunk["state"], chunk["action"])
                exponent = losses.target_exponent(chunk["action_logp"], log_probs, share, objective.lambdas)
                yield first, exponent.unsqueeze(1)

        return self._weights_of(self._fill(1, parts())[:, 0])

    def _implicit_weights(self) -> losses.TargetWeights:
        """IQL's exp(β A), A = min Q̄(s, a) − V(s) in its standard deviations."""
        module = self._module

        def parts() -> Iterator[tuple[int, Tensor]]:
            for first, chunk in self._chunks():
                terms = module.policy.standardise(chunk["state"], chunk["action"])
                best = module.target("action_values")(*terms).amin(1, keepdim=True)
                yield first, best - module.critics(chunk["state"])

        return self._weights_of(self._settings.iql.temperature * _to_unit_variance(self._fill(1, parts()))[:, 0])

    def _weights_of(self, exponent: Tensor) -> losses.TargetWeights:
        return losses.target_weights(exponent, self._settings.ess_floor, True, self._settings.weight_cap)


def _to_unit_variance(values: Tensor) -> Tensor:
    """Columns [n, k] divided, in place, by their standard deviation; a constant column stays as it is."""
    count, mean = len(values), _mean(values)
    square = sum((part.double() - mean).square().sum(0) for part in values.split(CHUNK))
    std = (square / count).sqrt()
    return values.div_(torch.where(std > 1e-12, std, torch.ones_like(std)).to(values.dtype))


def _mean(values: Tensor) -> Tensor:
    """Means of columns, float64[k], in chunks: `mean(dtype=…)` would make a copy of all in double first."""
    return torch.stack([part.double().sum(0) for part in values.split(CHUNK)]).sum(0) / len(values)
