"""The RLlib Learner of two-stage constrained actor-critic: passes over windows of samples, one phase at a time."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed
from numpy.typing import NDArray
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.learner.torch.torch_learner import TorchLearner
from ray.rllib.core.learner.training_data import TrainingData
from torch import Tensor

from recfuse.behaviours import Vocabulary
from recfuse.errors import require
from recfuse.fusion import losses
from recfuse.fusion.advantages import RegressedAdvantage, regress_advantage
from recfuse.fusion.networks import gaussian_entropy, gaussian_kl
from recfuse.learning.module import FusionPolicyModule
from recfuse.learning.samples import Windows, is_held_out, minibatches
from recfuse.learning.settings import LearningSettings, Phase

logger = logging.getLogger("recfuse")
Metrics = dict[str, Tensor]
# The phase's name goes into the seed of the order of its samples.
_PHASE_SEEDS: dict[Phase, int] = {"critics": 1, "cloning": 2, "stage_one": 3, "stage_two": 4, "policy": 5}
_OPTIMIZERS: dict[Phase, str] = {
    "critics": "critics", "cloning": "policy", "stage_one": "auxiliaries", "stage_two": "policy", "policy": "policy",
}
# Rows of one pass through frozen networks.
_CHUNK = 1 << 15
# Rows on which the policies are compared after a pass.
_DIAGNOSTIC_ROWS = 4096


@dataclass
class _Frozen:
    """What the parts that no longer change say about every sample, by its position: computed once a phase.

    Attributes:
        sampled: [n, m], the advantages of FORMULAS 1.3, each behaviour scaled to unit variance over the samples
            (FORMULAS 1.6); on the CPU.
        advantage: what the policies learn from: `sampled`, or its regression on state and action, likewise scaled.
        weights: of stage two, over all samples.
        mixed, mixed_sampled: [n], what the rivals' policy climbs, from `advantage` and from `sampled`: mean 0, variance
            1. The mean matters, because the clipped ratios do not cancel it.
    """

    sampled: Tensor | None = None
    advantage: Tensor | None = None
    regressed: RegressedAdvantage | None = None
    weights: losses.TargetWeights | None = None
    mixed: Tensor | None = None
    mixed_sampled: Tensor | None = None


@dataclass
class _Held:
    """Sum of the losses on samples held out, and their number: [2]."""

    sums: Tensor


class TwoStageLearner(TorchLearner):
    """Fits critics, then auxiliary policies, then the long-term policy (FORMULAS 1.2 to 1.6); or, for the rivals of
    `LearningSettings.algorithm`, critics and then the policy on one mixed advantage.

    One `update` is one pass over the samples. Gradients are summed over the workers in one collective a step, each
    worker having taken its share of the same global minibatch; so the number of workers changes nothing but rounding.
    """

    def build(self) -> None:
        """Builds module and optimizers; see `TorchLearner.build`."""
        super().build()
        self._settings: LearningSettings = self.config.settings
        self._vocabulary: Vocabulary = self._settings.with_multipliers(self.config.samples.vocabulary)
        behaviours = self._vocabulary.behaviours
        self._short = [index for index, b in enumerate(behaviours) if b.kind == "short_term"]
        self._long = [index for index, b in enumerate(behaviours) if b.kind == "long_term"]
        self._discounts = [b.gamma for b in behaviours]
        if self._settings.mixed_critic:
            self._discounts = [max(behaviours[index].gamma for index in self._long)]
        self._discount = self._constant(self._discounts)
        self._lambdas = self._constant([behaviours[index].multiplier for index in self._short])
        alpha = self._constant([behaviours[index].weight for index in self._long])
        self._alpha = alpha / alpha.sum()
        # Only a run of the critics needs the next state's value: those with a discount.
        ahead = [index for index, gamma in enumerate(self._discounts) if gamma > 0]
        self._ahead = slice(ahead[0], ahead[-1] + 1) if ahead else slice(0, 0)
        self._mixture = self._constant(list(self._settings.scalarisation(self._vocabulary)))
        self._floors = self._constant([self._settings.floors.get(behaviours[index].name, 0.0) for index in self._short])
        self._windows: Windows | None = None
        self._frozen = _Frozen()

    def configure_optimizers_for_module(self, module_id: str, config: Any = None) -> None:
        """One Adam per kind of network, by name."""
        settings: LearningSettings = self.config.settings
        module = self._module[module_id]
        rates = {
            "critics": (module.critics, settings.critic_learning_rate),
            "auxiliaries": (module.auxiliaries, settings.auxiliary_learning_rate),
            "policy": (module.policy, settings.policy_learning_rate),
        }
        for name, (network, rate) in rates.items():
            if network is None:
                continue
            parameters = list(network.parameters())
            optimizer = torch.optim.Adam(parameters, lr=rate, fused=True)
            self.register_optimizer(module_id=module_id, optimizer_name=name, optimizer=optimizer, params=parameters)

    def _make_modules_ddp_if_necessary(self) -> None:
        """Nothing: `_step` sums the gradients itself, because each phase trains other parameters."""

    def update(self, training_data: TrainingData, *, phase: Phase, iteration: int, **_: Any) -> dict[str, Any]:
        """One pass over the samples.

        Args:
            training_data: one iterator, over all samples in the same order for every worker.
            phase: which fit.
            iteration: of this fit, from 0; with the seed it determines the order of the samples.
        """
        self._check_is_built()
        with _threads(self._settings.threads):
            self._run_pass(training_data, phase, iteration)
        return self.metrics.reduce()

    def _run_pass(self, training_data: TrainingData, phase: Phase, iteration: int) -> None:
        if self._windows is None:
            self._windows = self._open(training_data)
        if phase == "stage_one" and iteration == 0 and "cloning" in self._settings.phases:
            self.fusion.start_auxiliaries_at_policy()
        self._prepare(phase)
        self._weights_seq_no += 1
        optimizers = [self.get_optimizer(DEFAULT_MODULE_ID, _OPTIMIZERS[phase])]
        if phase == "policy" and self._settings.mixed_critic:
            optimizers.append(self.get_optimizer(DEFAULT_MODULE_ID, "critics"))
        seen: list[Metrics] = []
        held = _Held(self._constant([0.0, 0.0]))
        seed = (self._settings.seed, _PHASE_SEEDS[phase], iteration)
        workers = max(self.config.num_learners, 1)
        size = self._settings.minibatch_size
        for position, window in self._windows:
            count = len(window["done"])
            out = is_held_out(position, count, self._settings.holdout, self._settings.seed)
            learned = np.flatnonzero(~out)
            for places in minibatches(len(learned), size, (*seed, position), self._learner_index, workers):
                batch = self._gather(phase, window, position, learned[places])
                seen.append(self._step(batch, phase, optimizers, workers))
            self._hold(held, phase, window, position, np.flatnonzero(out)[self._learner_index :: workers])
        require(bool(seen), "holdout", self._settings.holdout, "a share that leaves at least one sample per learner")
        self._log(phase, seen, held, workers)

    def compute_loss_for_module(
        self, *, module_id: str, config: Any = None, batch: dict[str, Any], fwd_out: dict[str, Any]
    ) -> Tensor:
        """The loss of the phase that `fwd_out` names."""
        loss, metrics = self._losses[fwd_out["phase"]](batch)
        fwd_out["metrics"] = metrics
        return loss

    @property
    def fusion(self) -> FusionPolicyModule:
        """The one module."""
        return self._module[DEFAULT_MODULE_ID]

    def snapshot(self) -> dict[str, NDArray[Any]]:
        """Parameters and optimizer state, by name, for a checkpoint."""
        tensors = {f"module.{name}": tensor for name, tensor in self.fusion.state_dict().items()}
        for name, optimizer in self._named_optimizers.items():
            for index, state in optimizer.state_dict()["state"].items():
                tensors |= {f"optimizer.{name}.{index}.{key}": tensor for key, tensor in state.items()}
        return {name: tensor.detach().cpu().numpy().copy() for name, tensor in tensors.items()}

    def restore(self, snapshot: dict[str, NDArray[Any]]) -> None:
        """Takes what `snapshot` gave; any number of learners."""
        tensors = {name: torch.from_numpy(array.copy()).to(self._device) for name, array in snapshot.items()}
        prefix = "module."
        self.fusion.load_state_dict({k[len(prefix):]: v for k, v in tensors.items() if k.startswith(prefix)})
        for name, optimizer in self._named_optimizers.items():
            states: dict[int, dict[str, Tensor]] = {}
            for key, tensor in tensors.items():
                if key.startswith(f"optimizer.{name}."):
                    index, field = key[len(f"optimizer.{name}."):].split(".", 1)
                    states.setdefault(int(index), {})[field] = tensor
            optimizer.load_state_dict({**optimizer.state_dict(), "state": states})
        self._frozen = _Frozen()

    # One step

    def _step(
        self, batch: dict[str, Tensor], phase: Phase, optimizers: list[torch.optim.Optimizer], workers: int
    ) -> Metrics:
        fwd_out: dict[str, Any] = {"phase": phase}
        loss = self.compute_loss_for_module(module_id=DEFAULT_MODULE_ID, batch=batch, fwd_out=fwd_out)
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        parameters = [p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]
                      if p.grad is not None]
        if workers > 1:
            _average_gradients(parameters, workers)
        norm = torch.nn.utils.clip_grad_norm_(parameters, self._settings.max_gradient_norm, foreach=True)
        for optimizer in optimizers:
            optimizer.step()
        metrics: Metrics = fwd_out["metrics"]
        return {**metrics, "loss": loss.detach(), "gradient_norm": norm}

    @property
    def _losses(self) -> dict[str, Callable[[dict[str, Tensor]], tuple[Tensor, Metrics]]]:
        return {"critics": self._critics_loss, "cloning": self._cloning_loss, "stage_one": self._stage_one_loss,
                "stage_two": self._stage_two_loss, "policy": self._policy_loss}

    def _critics_loss(self, batch: dict[str, Tensor]) -> tuple[Tensor, Metrics]:
        reward = self._rewards(batch["feedback"])
        value = self.fusion.critics(batch["state"])
        with torch.no_grad():
            next_value = self._next_values(batch["next_state"], like=value)
        result = losses.critic_loss(value, next_value, reward, batch["done"], self._discount)
        target = losses.td_target(next_value, reward, batch["done"], self._discount, like=value)
        return result.loss, {"loss/": result.per_behaviour, "target/": target.mean(0),
                             "target²/": target.square().mean(0)}

    def _cloning_loss(self, batch: dict[str, Tensor]) -> tuple[Tensor, Metrics]:
        log_prob = self.fusion.policy.log_prob(batch["state"], batch["action"])[:, 0]
        return losses.weighted_likelihood_loss(log_prob, torch.ones_like(log_prob)), {}

    def _stage_one_loss(self, batch: dict[str, Tensor]) -> tuple[Tensor, Metrics]:
        auxiliaries = self.fusion.auxiliaries
        assert auxiliaries is not None
        log_prob = auxiliaries.log_prob(batch["state"], batch["action"])
        rho_max = self._settings.rho_max
        result = losses.auxiliary_policy_loss(log_prob, batch["action_logp"], batch["advantage"], rho_max)
        ratio = (log_prob.detach() - batch["action_logp"].unsqueeze(1)).clamp(max=math.log(rho_max)).exp()
        return result.loss, {"loss/": result.per_behaviour, "clipped_share/": result.clipped_share,
                             "ess_share/": result.ess_share, "gain/": (ratio * batch["advantage"]).mean(0)}

    def _stage_two_loss(self, batch: dict[str, Tensor]) -> tuple[Tensor, Metrics]:
        log_prob = self.fusion.policy.log_prob(batch["state"], batch["action"])[:, 0]
        return losses.weighted_likelihood_loss(log_prob, batch["weight"]), {}

    def _policy_loss(self, batch: dict[str, Tensor]) -> tuple[Tensor, Metrics]:
        """The off-policy gradient with clipped ratios on the mixed advantage, which is the form of stage one; with a
        mixed critic, its loss too, on parameters of its own."""
        log_prob = self.fusion.policy.log_prob(batch["state"], batch["action"])[:, 0]
        rho_max = self._settings.rho_max
        result = losses.auxiliary_policy_loss(log_prob, batch["action_logp"], batch["advantage"], rho_max)
        ratio = (log_prob.detach() - batch["action_logp"]).clamp(max=math.log(rho_max)).exp()
        metrics = {"clipped_share": result.clipped_share, "ess_share": result.ess_share,
                   "gain": (ratio * batch["advantage"]).mean(), "ratio": ratio.mean(),
                   "reward/": (ratio.unsqueeze(1) * batch["feedback"]).mean(0), "logged/": batch["feedback"].mean(0)}
        if not self._settings.mixed_critic:
            return result.loss, metrics
        critics, of_critics = self._critics_loss(batch)
        return result.loss + critics, {**metrics, "critic_loss": of_critics["loss/"].sum()}

    def _rewards(self, feedback: Tensor) -> Tensor:
        """What the critics predict: the reward of every behaviour [n, m], or their mixture [n, 1]."""
        return (feedback @ self._weights()).unsqueeze(1) if self._settings.mixed_critic else feedback

    def _weights(self) -> Tensor:
        """[m], of the behaviours in the mixture, with the multipliers of RCPO as they stand."""
        weights = self._mixture.clone()
        if self._settings.algorithm == "rcpo":
            weights[self._short] = self.fusion.multipliers
        return weights

    def _next_values(self, next_state: Tensor, like: Tensor) -> Tensor:
        """V(s') of the behaviours with a discount, zero for the others, whose targets do not read it."""
        values = torch.zeros_like(like)
        if self._ahead.stop > self._ahead.start:
            values[:, self._ahead] = self.fusion.critics(next_state, self._ahead)
        return values

    @torch.no_grad()
    def _hold(
        self, held: _Held, phase: Phase, window: dict[str, Tensor], position: int, rows: NDArray[np.int64]
    ) -> None:
        """Adds the loss on rows that are not learned from."""
        for start in range(0, len(rows), _CHUNK):
            batch = self._gather(phase, window, position, rows[start : start + _CHUNK], held_out=True)
            loss, metrics = self._losses[phase](batch)
            loss = metrics.get("gain/", metrics.get("gain", -loss)).sum().neg()
            held.sums += torch.stack([loss * len(batch["state"]), loss.new_tensor(len(batch["state"]))])

    # Samples of a phase

    def _open(self, training_data: TrainingData) -> Windows:
        settings, samples = self._settings, self.config.samples
        return Windows(training_data.data_iterators[0], self._vocabulary.behaviours, samples.reward_std, samples.rows,
                       settings.window_rows, settings.memory_mib << 20, self._device)

    def _gather(
        self, phase: Phase, window: dict[str, Tensor], position: int, rows: NDArray[Any], held_out: bool = False
    ) -> dict[str, Tensor]:
        names = {"critics": ("state", "next_state", "feedback", "done"), "cloning": ("state", "action"),
                 "stage_one": ("state", "action", "action_logp"), "stage_two": ("state", "action"),
                 "policy": ("state", "action", "action_logp", "feedback")}[phase]
        if phase == "policy" and self._settings.mixed_critic:
            names = (*names, "next_state", "done")
        index = torch.from_numpy(rows).to(self._device)
        batch = {name: window[name].index_select(0, index) for name in names}
        places = torch.from_numpy(rows + position)
        if phase == "stage_one":
            # What a policy is worth is judged by samples, never by the model that it was fitted to.
            source = self._frozen.sampled if held_out else self._frozen.advantage
            assert source is not None
            batch["advantage"] = source[places][:, self._short].to(self._device)
        if phase == "policy":
            source = self._frozen.mixed_sampled if held_out else self._frozen.mixed
            assert source is not None
            batch["advantage"] = source[places].to(self._device)
        if phase == "stage_two":
            assert self._frozen.weights is not None
            batch["weight"] = self._frozen.weights.weight[places].to(self._device)
        return batch

    @torch.no_grad()
    def _prepare(self, phase: Phase) -> None:
        """Computes what the frozen parts say, where the phase needs it and it is not there yet."""
        if phase in ("critics", "cloning"):
            self._frozen = _Frozen()
            return
        if phase == "policy" and self._settings.mixed_critic:
            self._frozen = _Frozen()  # the critic went on learning
        if self._frozen.advantage is None:
            self._frozen.sampled = self._frozen.advantage = self._sampled_advantages()
            if self._settings.advantage == "regressed":
                self._frozen.regressed = self._regress(self._frozen.sampled)
                self._frozen.advantage = self._regressed_advantages(self._frozen.regressed)
        if phase == "stage_two" and self._frozen.weights is None:
            self._frozen.weights = self._target_weights(self._frozen.advantage)
        if phase == "policy" and (self._frozen.mixed is None or self._settings.algorithm == "rcpo"):
            assert self._frozen.sampled is not None
            self._frozen.mixed = self._mix(self._frozen.advantage)
            if not bool(self._frozen.mixed.any()):
                logger.warning("%s: the regressed advantage does not depend on the action, so the policy stays where "
                               "the logged one is; more samples, or `advantage: sampled`", self._settings.algorithm)
            self._frozen.mixed_sampled = self._mix(self._frozen.sampled)

    def _mix(self, advantage: Tensor) -> Tensor:
        """The mixed advantage [n] of advantages [n, m]: mean 0, variance 1."""
        mixed = advantage if self._settings.mixed_critic else (advantage @ self._weights().cpu()).unsqueeze(1)
        return _unit_variance(mixed - mixed.double().mean(0).to(mixed.dtype))[:, 0]

    def _sampled_advantages(self) -> Tensor:
        """A of every sample and behaviour, [n, m], scaled to unit variance over the samples."""
        assert self._windows is not None
        parts = []
        for _, window in self._windows:
            for chunk in _chunks(window):
                value = self.fusion.critics(chunk["state"])
                next_value = self._next_values(chunk["next_state"], like=value)
                part = losses.advantage(value, next_value, self._rewards(chunk["feedback"]), chunk["done"],
                                        self._discount)
                parts.append(part.cpu())
        return _unit_variance(torch.cat(parts))

    def _regress(self, sampled: Tensor) -> RegressedAdvantage:
        return regress_advantage(
            (first, *terms, sampled[first : first + len(terms[0])].to(self._device))
            for first, terms in self._standardised_chunks())

    def _regressed_advantages(self, model: RegressedAdvantage) -> Tensor:
        """The regressed A of every sample and behaviour, [n, m], scaled to unit variance over the samples."""
        return _unit_variance(torch.cat([model(*terms).cpu() for _, terms in self._standardised_chunks()]))

    def _standardised_chunks(self) -> Iterator[tuple[int, tuple[Tensor, Tensor]]]:
        """Position, standardised states and actions of all samples."""
        assert self._windows is not None
        policy = self.fusion.policy
        for position, window in self._windows:
            for number, chunk in enumerate(_chunks(window)):
                yield position + number * _CHUNK, policy.standardise(chunk["state"], chunk["action"])

    def _target_weights(self, advantage: Tensor) -> losses.TargetWeights:
        """Weights of every sample: the floor and the normalisation hold over all of them, not within a minibatch."""
        assert self._windows is not None
        assert self.fusion.auxiliaries is not None
        long_term = _unit_variance((advantage[:, self._long] @ self._alpha.cpu()).unsqueeze(1))[:, 0]
        parts = []
        for position, window in self._windows:
            for number, chunk in enumerate(_chunks(window)):
                first = position + number * _CHUNK
                share = long_term[first : first + len(chunk["done"])].to(self._device)
                auxiliary = self.fusion.auxiliaries.log_prob(chunk["state"], chunk["action"])
                parts.append(losses.target_exponent(chunk["action_logp"], auxiliary, share, self._lambdas).cpu())
        return losses.target_weights(torch.cat(parts), self._settings.ess_floor, True, self._settings.weight_cap)

    # Metrics

    def _log(self, phase: Phase, seen: list[Metrics], held: _Held, workers: int) -> None:
        means = {name: torch.stack([step[name] for step in seen]).mean(0) for name in seen[0]}
        if workers > 1:
            for value in means.values():
                torch.distributed.all_reduce(value)
                value /= workers
            torch.distributed.all_reduce(held.sums)
        if held.sums[1] > 0:
            means["holdout_loss"] = held.sums[0] / held.sums[1]
        if phase == "critics":
            variance = means.pop("target²/") - means.pop("target/").square()
            means["explained_variance/"] = 1.0 - means["loss/"] / variance.clamp(min=1e-12)
        if phase == "stage_two" and self._frozen.weights is not None:
            weights = self._frozen.weights
            means |= {"tau": weights.tau, "ess_share": weights.ess_share, "capped_share": weights.capped_share}
        if phase == "policy":
            means |= self._rewards_over_logged(means.pop("reward/") / means.pop("ratio"), means.pop("logged/"))
        if phase in ("stage_one", "stage_two", "policy") and self._frozen.regressed is not None:
            means["advantage_explained/"] = self._frozen.regressed.explained_variance
        means |= self._diagnostics(phase)
        names = {name: self._names(name, phase) for name in means}
        for name, value in means.items():
            for label, number in zip(names[name], value.reshape(-1).tolist(), strict=True):
                self.metrics.log_value((DEFAULT_MODULE_ID, f"{name}{label}"), number, reduce="mean", window=1)

    def _names(self, metric: str, phase: Phase) -> tuple[str, ...]:
        """Behaviours that the entries of a metric belong to; a metric of them ends with a slash."""
        if not metric.endswith("/"):
            return ("",)
        names = self._vocabulary.behaviour_names
        if phase == "critics" or metric == "advantage_explained/":
            return self.fusion.critics.names
        if metric == "change/":
            return names
        return tuple(names[index] for index in self._short)

    def _rewards_over_logged(self, rewards: Tensor, logged: Tensor) -> Metrics:
        """Relative change of every behaviour's mean reward per request, estimated by weighting the log with the clipped
        ratios; with RCPO, each multiplier moves by its behaviour's shortfall, the same on every worker."""
        scale = logged.abs()
        change = (rewards - logged) / torch.where(scale > 1e-6, scale, torch.ones_like(scale))
        if self._settings.algorithm != "rcpo":
            return {"change/": change}
        multipliers = self.fusion.multipliers
        used = multipliers.clone()
        multipliers += self._settings.dual_step * (self._floors - change[self._short])
        multipliers.clamp_(0.0, self._settings.multiplier_max)
        return {"change/": change, "multiplier/": used}

    @torch.no_grad()
    def _diagnostics(self, phase: Phase) -> Metrics:
        """Entropy of the policies in training, and KL of the long-term policy to each auxiliary."""
        assert self._windows is not None
        if phase == "critics":
            return {}
        state = next(iter(self._windows))[1]["state"][:_DIAGNOSTIC_ROWS]
        auxiliaries = self.fusion.auxiliaries
        if phase == "stage_one" and auxiliaries is not None:
            return {"entropy/": gaussian_entropy(auxiliaries(state)[1]).mean(0)}
        mu, log_sigma = self.fusion.policy(state)
        metrics = {"entropy": gaussian_entropy(log_sigma).mean()}
        if phase == "stage_two" and auxiliaries is not None:
            metrics["kl/"] = gaussian_kl(mu, log_sigma, *auxiliaries(state)).mean(0)
        return metrics

    def _constant(self, values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=self._device)


def _average_gradients(parameters: list[torch.nn.Parameter], workers: int) -> None:
    """Averages the gradients over the workers in one collective."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    torch.distributed.all_reduce(flat)
    flat /= workers
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    """Runs with so many threads, and puts the process back to what it had."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _chunks(window: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    starts = range(0, len(window["done"]), _CHUNK)
    return [{name: column[start : start + _CHUNK] for name, column in window.items()} for start in starts]


def _unit_variance(values: Tensor) -> Tensor:
    """Columns [n, k] divided by their standard deviation; a constant column stays as it is."""
    std = values.double().std(0, correction=0)
    return values / torch.where(std > 1e-12, std, torch.ones_like(std)).to(values.dtype)
