"""The RLlib Learner of two-stage constrained actor-critic and its rivals: passes over windows of samples, by phase."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
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
from recfuse.config import require
from recfuse.fusion import losses, rivals
from recfuse.fusion.networks import gaussian_entropy, gaussian_kl
from recfuse.learning.allocation import keep_freed_memory
from recfuse.learning.cem import importance_sums, logged_scores, propose, refit
from recfuse.learning.frozen import CHUNK, Frozen, Objective
from recfuse.learning.module import FusionPolicyModule
from recfuse.learning.samples import InMemory, Windows, is_held_out, minibatches
from recfuse.learning.settings import LearningSettings, Phase
from recfuse.runtime import ray_compat

Metrics = dict[str, Tensor]
Batch = dict[str, Tensor]
# The phase's name goes into the seed of the order of its samples.
_PHASE_SEEDS: dict[Phase, int] = {"critics": 1, "cloning": 2, "stage_one": 3, "stage_two": 4, "policy": 5,
                                  "action_values": 6, "extraction": 7, "actor": 8, "search": 9}
_OPTIMIZERS: dict[Phase, tuple[str, ...]] = {
    "critics": ("critics",), "cloning": ("policy",), "stage_one": ("auxiliaries",), "stage_two": ("policy",),
    "policy": ("policy",), "action_values": ("action_values", "critics"), "extraction": ("policy",),
    "actor": ("action_values", "policy"),
}
_COLUMNS: dict[Phase, tuple[str, ...]] = {
    "critics": ("state", "next_state", "feedback", "done"), "cloning": ("state", "action"),
    "stage_one": ("state", "action"), "stage_two": ("state", "action"), "policy": ("state", "action", "feedback"),
    "action_values": ("state", "action", "next_state", "feedback", "done"), "extraction": ("state", "action"),
    "actor": ("state", "action", "next_state", "feedback", "done"),
}
# Rows on which the networks are looked at after a pass.
_DIAGNOSTIC_ROWS = 4096


@dataclass
class _Check:
    """Sums over samples that are not learned from.

    Attributes:
        loss: [2], the losses and their number.
        values: [4, c], of critics: squared errors, targets, their squares, and their number.
    """

    loss: Tensor
    values: Tensor


class TwoStageLearner(TorchLearner):
    """Fits critics, then auxiliary policies, then the long-term policy (maths 1.2 to 1.6); or what a rival fits, by
    `LearningSettings.algorithm`.

    One `update` is one pass over the samples. A global minibatch has `LearningSettings.parts` parts, of which every
    worker takes its share; their gradients are summed pairwise in the order of the parts, after one collective a step.
    So a number of workers that divides them changes not a bit, and another nothing but rounding.
    """

    def build(self) -> None:
        """Builds module and optimizers; see `TorchLearner.build`."""
        with ray_compat.devices_without_ray():
            super().build()
        self._settings: LearningSettings = self.config.settings
        self._vocabulary: Vocabulary = self._settings.with_multipliers(self.config.samples.vocabulary)
        self._objective = Objective(self._settings, self._vocabulary, self._device)
        self._workers = max(self.config.num_learners, 1)
        keep_freed_memory()
        self._windows: Windows | None = None
        self._frozen: Frozen | None = None
        self._looked_at: Tensor | None = None
        self._losses: dict[Phase, Callable[[Batch], tuple[Tensor, Metrics]]] = {
            "critics": self._critics_loss, "cloning": self._cloning_loss, "stage_one": self._stage_one_loss,
            "stage_two": self._weighted_loss, "extraction": self._weighted_loss, "policy": self._policy_loss,
            "action_values": self._action_values_loss, "actor": self._actor_loss,
        }

    def configure_optimizers_for_module(self, module_id: str, config: Any = None) -> None:
        """One Adam per kind of network, by name."""
        settings: LearningSettings = self.config.settings
        module = self._module[module_id]
        rates = {
            "critics": (module.critics, settings.critic_learning_rate),
            "action_values": (module.action_values, settings.critic_learning_rate),
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

    def update(
        self, training_data: TrainingData, *, phase: Phase, iteration: int, fresh: bool = False, **_: Any
    ) -> dict[str, Any]:
        """One pass over the samples.

        Args:
            training_data: one iterator, over all samples in the same order for every worker.
            phase: which fit.
            iteration: of this fit, from 0; with the seed it determines the order of the samples.
            fresh: these are other samples than in the pass before.
        """
        self._check_is_built()
        with _threads(self._settings.threads):
            if fresh or self._windows is None:
                self._windows, self._frozen = self._open(training_data), None
            if self._frozen is None:
                self._frozen = Frozen(self._settings, self._objective, self.fusion, self._windows)
            self._begin(phase, iteration)
            self._frozen.prepare(phase)
            self._weights_seq_no += 1
            if phase == "search":
                self._search(iteration)
            else:
                self._run_pass(phase, iteration)
        return self.metrics.reduce()

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
        self._frozen = None

    # A pass

    def _open(self, training_data: TrainingData) -> Windows:
        settings, samples = self._settings, self.config.samples
        iterator = training_data.data_iterators[0]
        rows = iterator.rows if isinstance(iterator, InMemory) else samples.rows
        return Windows(iterator, self._vocabulary.behaviours, samples.reward_std, rows, settings.window_rows,
                       settings.memory_mib << 20, self._device)

    def _begin(self, phase: Phase, iteration: int) -> None:
        """Where the fit starts from what another one has found."""
        if iteration > 0:
            return
        phases = self._settings.phases
        before = phases[: phases.index(phase)]
        if before and before[-1] == "cloning":
            self.fusion.keep_behaviour()
        if phase == "stage_one" and "cloning" in before:
            self.fusion.start_auxiliaries_at_policy()
        if phase in ("critics", "action_values", "actor"):
            self.fusion.start_targets()

    def _run_pass(self, phase: Phase, iteration: int) -> None:
        assert self._windows is not None
        settings, workers = self._settings, self._workers
        parts = settings.parts
        seen: list[Metrics] = []  # of every part of every step
        steps = 0
        check = self._check(phase)
        seed = (settings.seed, _PHASE_SEEDS[phase], iteration)
        for position, window in self._windows:
            count = len(window["done"])
            out = is_held_out(position, count, settings.holdout, settings.seed)
            learned = np.flatnonzero(~out)
            noise = self._noise((*seed, position), count) if phase == "actor" else None
            for places in minibatches(len(learned), settings.minibatch_size, (*seed, position), self._learner_index,
                                      workers, parts):
                batch = self._gather(phase, window, position, learned[places])
                if noise is not None:
                    batch["noise"] = noise[torch.from_numpy(learned[places])].to(self._device)
                seen += self._learn(batch, phase, steps, parts // workers)
                steps += 1
            rows = np.flatnonzero(out)
            if position == 0:
                self._looked_at = window["state"][:_DIAGNOSTIC_ROWS].clone()  # not the window
                if not settings.holdout:  # a look at what was learned from is better than none
                    rows = np.arange(min(count, _DIAGNOSTIC_ROWS))
            self._judge(check, phase, window, position, rows[self._learner_index :: workers])
        require(bool(seen), "holdout", settings.holdout, "a share that leaves a sample for each shard")
        self._log(phase, seen, parts // workers, check)

    def _learn(self, batch: Batch, phase: Phase, number: int, parts: int) -> list[Metrics]:
        """One minibatch: a step, or with `sequential` auxiliaries a step for every short-term critic in turn. The
        metrics of each of this worker's parts."""
        names = _OPTIMIZERS[phase]
        if phase == "policy" and self._settings.critics_follow:
            names = (*names, "critics")
        if phase == "actor" and (number + 1) % self._settings.td3_bc.delay:
            names = ("action_values",)
            batch["values_only"] = torch.ones(())
        elif phase == "actor":
            batch["scale"] = self._value_scale(batch, parts)
        if phase != "stage_one" or self._settings.auxiliary == "per_behaviour":
            return self._step(batch, phase, names, parts)
        turns = [self._step({**batch, "advantage": column}, phase, names, parts)
                 for column in batch["advantage"].split(1, 1)]
        return [{name: torch.cat([turn[name] for turn in of_part]) if name.endswith("/") else
                 torch.stack([turn[name] for turn in of_part]).sum() for name in of_part[0]}
                for of_part in zip(*turns, strict=True)]

    def _step(self, batch: Batch, phase: Phase, names: tuple[str, ...], parts: int) -> list[Metrics]:
        optimizers = [self.get_optimizer(DEFAULT_MODULE_ID, name) for name in names]
        groups = [[p for group in optimizer.param_groups for p in group["params"]] for optimizer in optimizers]
        parameters = [p for group in groups for p in group]
        total, seen = PairwiseSum(), []
        for part in _split(batch, parts):
            fwd_out: dict[str, Any] = {"phase": phase}
            loss = self.compute_loss_for_module(module_id=DEFAULT_MODULE_ID, batch=part, fwd_out=fwd_out)
            found = torch.autograd.grad(loss, parameters, allow_unused=True)
            # Contiguous, as `backward` leaves them and the fused optimizer takes for granted.
            total.add([gradient.contiguous() for gradient in found if gradient is not None])
            seen.append({**fwd_out["metrics"], "loss": loss.detach()})
        gradients = _over_workers(total.sum(), self._workers)
        torch._foreach_div_(gradients, parts * self._workers)
        used = [parameter for parameter, gradient in zip(parameters, found, strict=True) if gradient is not None]
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        for parameter, gradient in zip(used, gradients, strict=True):
            parameter.grad = gradient
        norms = [torch.nn.utils.clip_grad_norm_(group, self._settings.max_gradient_norm, foreach=True)
                 for group in groups]
        for optimizer in optimizers:
            optimizer.step()
        rate = self._settings.polyak_rate
        if rate is not None and "values_only" not in batch and phase in ("critics", "policy", "action_values", "actor"):
            self.fusion.move_targets(rate)
        return [{**metrics, "gradient_norm": norms[0]} for metrics in seen]

    @torch.no_grad()
    def _judge(
        self, check: _Check, phase: Phase, window: Batch, position: int, rows: NDArray[np.int64]
    ) -> None:
        """Adds what the networks say about rows that are not learned from."""
        for start in range(0, len(rows), CHUNK):
            batch = self._gather(phase, window, position, rows[start : start + CHUNK], held_out=True)
            count = len(batch["state"])
            if check.values.numel():  # of critics
                value, target = self._value_and_target(phase, batch)
                sums = [(value - target).square().sum(0), target.sum(0), target.square().sum(0)]
                check.values += torch.stack([*sums, torch.full_like(sums[0], count)]).double()
            if not self._settings.holdout:
                continue
            loss, metrics = self._losses[phase](batch)
            # What a policy is for; the value of its surrogate does not compare policies.
            loss = metrics.get("gain/", metrics.get("gain", -loss)).sum().neg()
            check.loss += torch.stack([loss * count, loss.new_tensor(count)]).double()

    def _gather(
        self, phase: Phase, window: Batch, position: int, rows: NDArray[Any], held_out: bool = False
    ) -> Batch:
        assert self._frozen is not None
        index = torch.from_numpy(rows).to(self._device)
        names = _COLUMNS[phase]
        if phase == "policy" and self._settings.critics_follow:
            names = (*names, "next_state", "done")
        batch = {name: window[name].index_select(0, index) for name in names}
        places = torch.from_numpy(rows + position)
        extra: dict[str, Tensor | None] = {}
        if phase in ("stage_one", "policy"):
            batch["action_logp"] = self._frozen.behaviour_log_prob(window, position).index_select(0, index)
            source = self._frozen.per_behaviour if phase == "stage_one" else self._frozen.mixed
            extra["advantage"] = source(places, held_out)
        if phase in ("critics", "policy"):
            extra["target"] = self._frozen.target(places)
        if phase in ("stage_two", "extraction"):
            assert self._frozen.weights is not None
            extra["weight"] = self._frozen.weights.weight.index_select(0, places)
        return batch | {name: tensor.to(self._device) for name, tensor in extra.items() if tensor is not None}

    # Losses

    def _critics_loss(self, batch: Batch) -> tuple[Tensor, Metrics]:
        value = self.fusion.critics(batch["state"])
        reward = self._objective.rewards(batch["feedback"], self.fusion)
        if "target" in batch:
            nothing = torch.zeros_like(value)
            result = losses.critic_loss(value, nothing, batch["target"], batch["done"], torch.zeros(()))
        else:
            with torch.no_grad():
                following = self._objective.next_values(batch["next_state"], value, self.fusion)
            result = losses.critic_loss(value, following, reward, batch["done"], self._objective.discount)
        return result.loss, {"loss/": result.per_behaviour}

    def _cloning_loss(self, batch: Batch) -> tuple[Tensor, Metrics]:
        log_prob = self.fusion.policy.log_prob(batch["state"], batch["action"]).squeeze(1)
        return losses.weighted_likelihood_loss(log_prob, torch.ones_like(log_prob)), {}

    def _stage_one_loss(self, batch: Batch) -> tuple[Tensor, Metrics]:
        auxiliaries = self.fusion.auxiliaries
        assert auxiliaries is not None
        log_prob = auxiliaries.log_prob(batch["state"], batch["action"]).expand_as(batch["advantage"])
        result = losses.auxiliary_policy_loss(log_prob, batch["action_logp"], batch["advantage"],
                                              self._settings.rho_max)
        return result.loss, {"loss/": result.per_behaviour, "clipped_share/": result.clipped_share,
                             "ess_share/": result.ess_share, "gain/": result.gain}

    def _weighted_loss(self, batch: Batch) -> tuple[Tensor, Metrics]:
        """Stage two, and IQL's extraction, whose weights are known by now."""
        log_prob = self.fusion.policy.log_prob(batch["state"], batch["action"]).squeeze(1)
        return losses.weighted_likelihood_loss(log_prob, batch["weight"]), {}

    def _policy_loss(self, batch: Batch) -> tuple[Tensor, Metrics]:
        """The off-policy gradient with clipped ratios on the mixed advantage, which is the form of stage one; where the
        critics follow the policy, their loss too, on parameters of its own."""
        log_prob = self.fusion.policy.log_prob(batch["state"], batch["action"]).squeeze(1)
        rho_max = self._settings.rho_max
        result = losses.auxiliary_policy_loss(log_prob, batch["action_logp"], batch["advantage"], rho_max)
        ratio = (log_prob.detach() - batch["action_logp"]).exp().clamp(max=rho_max)
        metrics = {"clipped_share": result.clipped_share, "ess_share": result.ess_share, "gain": result.gain,
                   "ratio": ratio.mean(), "reward/": (ratio.unsqueeze(1) * batch["feedback"]).mean(0),
                   "logged/": batch["feedback"].mean(0)}
        if not self._settings.critics_follow:
            return result.loss, metrics
        critics, of_critics = self._critics_loss(batch)
        return result.loss + critics, {**metrics, "critic_loss": of_critics["loss/"].sum()}

    def _action_values_loss(self, batch: Batch) -> tuple[Tensor, Metrics]:
        """IQL's."""
        terms = self.fusion.policy.standardise(batch["state"], batch["action"])
        values, target = self._value_and_target("action_values", batch, mean=False, terms=terms)
        with torch.no_grad():
            best = self.fusion.target("action_values")(*terms).amin(1)
        state_value = self.fusion.critics(batch["state"])[:, 0]
        result = rivals.implicit_loss(values, target[:, 0], best, state_value, self._settings.iql.expectile)
        return result.loss, {"action_value_loss": result.action_value, "state_value_loss": result.state_value}

    def _actor_loss(self, batch: Batch) -> tuple[Tensor, Metrics]:
        """TD3+BC's: of the values, and every few steps of the policy."""
        values, target = self._value_and_target("actor", batch, mean=False)
        of_values = rivals.action_value_loss(values, target[:, 0])
        nothing = torch.zeros_like(of_values)
        if "values_only" in batch:
            return of_values, {"action_value_loss": of_values.detach(), "policy_loss": nothing, "distance": nothing}
        mean, value = self._value_of_mean(batch)
        action = self.fusion.policy.standardise(batch["state"], batch["action"])[1]
        scale = batch["scale"] if "scale" in batch else value.abs().mean()
        of_policy = rivals.td3_bc_loss(value, scale, mean, action, self._settings.td3_bc.alpha)
        distance = (mean.detach() - action).square().mean()
        return of_values + of_policy, {"action_value_loss": of_values.detach(), "policy_loss": of_policy.detach(),
                                       "distance": distance}

    def _value_of_mean(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The policy's standardised mean [n, M], and what the first of the action values says of it [n]."""
        policy, action_values = self.fusion.policy, self.fusion.action_values
        assert action_values is not None
        mean = policy.standardised(batch["state"])[0][:, 0]
        state = policy.standardise(batch["state"], batch["action"])[0]
        return mean, action_values(state, mean, slice(0, 1), frozen=True)[:, 0]

    @torch.no_grad()
    def _value_scale(self, batch: Batch, parts: int) -> Tensor:
        """Mean size of the values of the policy's means in the global minibatch (TD3+BC), summed as gradients are."""
        total = PairwiseSum()
        for part in _split(batch, parts):
            total.add([self._value_of_mean(part)[1].abs().mean()])
        return _over_workers(total.sum(), self._workers)[0] / (parts * self._workers)

    def _value_and_target(
        self, phase: Phase, batch: Batch, mean: bool = True, terms: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """What is fitted and to what, [n, c] both; of several action values their mean, or all [n, k]. `terms` are
        states and actions, where they have been standardised already."""
        module, objective = self.fusion, self._objective
        reward = objective.rewards(batch["feedback"], module)
        if phase == "critics":
            value = module.critics(batch["state"])
            if "target" in batch:
                return value, batch["target"]
            following = objective.next_values(batch["next_state"], value, module)
            return value, losses.td_target(following, reward, batch["done"], objective.discount, like=value)
        assert module.action_values is not None
        value = module.action_values(*(terms or module.policy.standardise(batch["state"], batch["action"])))
        with torch.no_grad():
            if phase == "action_values":
                following = module.critics(batch["next_state"])
            else:
                following = self._smoothed(batch).unsqueeze(1)
        target = losses.td_target(following, reward, batch["done"], objective.discount, like=reward)
        return (value.mean(1, keepdim=True) if mean else value), target

    def _smoothed(self, batch: Batch) -> Tensor:
        """min_k Q̄_k(s', ā) [n] at the target policy's action, with clipped noise where the batch holds some (TD3)."""
        policy, settings = self.fusion.target("policy"), self._settings.td3_bc
        mean = policy.standardised(batch["next_state"])[0][:, 0]
        if "noise" in batch:
            noise = (settings.noise * batch["noise"]).clamp(-settings.noise_clip, settings.noise_clip)
            reach = self._settings.network.mean_range
            mean = (mean + noise).clamp(-reach, reach)
        state = policy.standardise(batch["next_state"], batch["action"])[0]
        return self.fusion.target("action_values")(state, mean).amin(1)

    def _noise(self, seed: tuple[int, ...], rows: int) -> Tensor:
        """Standard normal noise [rows, M], by the rows' place, so that any number of workers draws the same."""
        rng = np.random.default_rng([*seed, 1])
        return torch.from_numpy(rng.standard_normal((rows, self.fusion.policy.actions), np.float32))

    # CEM

    @torch.no_grad()
    def _search(self, iteration: int) -> None:
        """One population of CEM, judged on the log; each worker weighs its share of the samples."""
        assert self._windows is not None
        assert self._frozen is not None
        settings, module = self._settings.cem, self.fusion
        rng = np.random.default_rng((self._settings.seed, _PHASE_SEEDS["search"], iteration))
        sigma = module.policy.action_std
        first = settings.spread * sigma.double().cpu().numpy()
        spread = first if iteration == 0 else module.vector_std.double().cpu().numpy()
        vectors = propose(module.vector_mean.double().cpu().numpy(), spread, settings.population, rng)
        candidates = torch.from_numpy(vectors).to(sigma)
        sums = torch.zeros(5, settings.population, dtype=torch.float64, device=self._device)
        for position, window in self._windows:
            logged = self._frozen.behaviour_log_prob(window, position)
            for start in range(self._learner_index * CHUNK, len(logged), CHUNK * self._workers):
                rows = slice(start, start + CHUNK)
                places = torch.arange(position + start, position + start + len(logged[rows]))
                gain = self._frozen.mixed(places, held_out=True).to(self._device)
                sums += importance_sums(candidates, sigma, window["action"][rows], logged[rows], gain, settings.cap)
        if self._workers > 1:
            torch.distributed.all_reduce(sums)
        found = logged_scores(sums.cpu().numpy(), self._windows.rows, settings.pessimism, self._settings.ess_floor)
        mean, std, elite = refit(vectors, found.score, spread, settings.std_floor * first, settings.elite_share,
                                 settings.smoothing)
        module.vector_mean.copy_(torch.from_numpy(mean))
        module.vector_std.copy_(torch.from_numpy(std))
        best = int(found.score.argmax())
        self._log_values({
            "loss": -elite, "gain": float(found.estimate[0]), "best_gain": float(found.estimate[best]),
            "ess_share": float(found.ess_share[0]),
            "below_floor_share": float((found.ess_share < self._settings.ess_floor).mean()),
            "entropy": float(gaussian_entropy(module.vector_std.log()))})

    # Metrics

    def _check(self, phase: Phase) -> _Check:
        columns = {"critics": len(self._objective.discount), "action_values": 1, "actor": 1}.get(phase, 0)
        return _Check(torch.zeros(2, dtype=torch.float64, device=self._device),
                      torch.zeros(4 if columns else 0, columns, dtype=torch.float64, device=self._device))

    def _log(self, phase: Phase, seen: list[Metrics], parts: int, check: _Check) -> None:
        # [steps, parts, …] of all workers, so that the mean, which RCPO's multipliers follow, has the same bits.
        values = {name: torch.stack([each[name] for each in seen]).unflatten(0, (-1, parts)) for name in seen[0]}
        if self._workers > 1:
            values = {name: torch.cat(_gathered(value, self._workers), 1) for name, value in values.items()}
        means = {name: value.flatten(0, 1).mean(0) for name, value in values.items()}
        if self._workers > 1:
            torch.distributed.all_reduce(check.loss)
            torch.distributed.all_reduce(check.values)
        if self._settings.holdout and check.loss[1] > 0:
            means["holdout_loss"] = check.loss[0] / check.loss[1]
        if check.values.numel() and check.values[3, 0] > 0:
            error, target, square, count = check.values
            variance = square / count - (target / count).square()
            means["explained_variance/"] = 1.0 - error / count / variance.clamp(min=1e-12)
        assert self._frozen is not None
        weights = self._frozen.weights
        if phase in ("stage_two", "extraction") and weights is not None:
            means |= {"tau": weights.tau, "ess_share": weights.ess_share, "capped_share": weights.capped_share}
        if phase == "policy":
            means |= self._rewards_over_logged(means.pop("reward/") / means.pop("ratio"), means.pop("logged/"))
        explained = self._frozen.explained_variance
        if phase in ("stage_one", "stage_two", "policy") and explained is not None:
            means["advantage_explained/"] = explained
        means |= self._diagnostics(phase)
        self._log_values({f"{name}{label}": number for name, value in means.items()
                          for label, number in zip(self._names(name, phase), value.reshape(-1).tolist(), strict=True)})

    def _log_values(self, values: dict[str, float]) -> None:
        for name, number in values.items():
            self.metrics.log_value((DEFAULT_MODULE_ID, name), number, reduce="mean", window=1)

    def _names(self, metric: str, phase: Phase) -> tuple[str, ...]:
        """Behaviours that the entries of a metric belong to; a metric of them ends with a slash."""
        if not metric.endswith("/"):
            return ("",)
        names = self._vocabulary.behaviour_names
        if phase in ("action_values", "actor"):
            return ("action_value",)
        if phase == "critics" or metric == "advantage_explained/":
            return self.fusion.critics.names
        if metric == "change/":
            return names
        if metric in ("entropy/", "kl/") and self.fusion.auxiliaries is not None:
            return self.fusion.auxiliaries.names
        return tuple(names[index] for index in self._objective.short)

    def _rewards_over_logged(self, rewards: Tensor, logged: Tensor) -> Metrics:
        """Relative change of every behaviour's mean reward per request, estimated by weighting the log with the clipped
        ratios; with RCPO, each multiplier moves by its behaviour's shortfall, the same on every worker."""
        scale = logged.abs()
        change = (rewards - logged) / torch.where(scale > 1e-6, scale, torch.ones_like(scale))
        if not self._settings.is_rcpo:
            return {"change/": change}
        multipliers = self.fusion.multipliers
        used = multipliers.clone()
        multipliers += self._settings.dual_step * (self._objective.floors - change[self._objective.short])
        multipliers.clamp_(0.0, self._settings.multiplier_max)
        return {"change/": change, "multiplier/": used}

    @torch.no_grad()
    def _diagnostics(self, phase: Phase) -> Metrics:
        """Entropy of the policies in training (before squashing), and KL: in stage one of each auxiliary policy to the
        cloned one that it started from, in stage two of the long-term policy to each auxiliary."""
        state = self._looked_at
        if phase in ("critics", "action_values") or state is None:
            return {}
        auxiliaries = self.fusion.auxiliaries
        mu, log_sigma = self.fusion.policy(state)
        if phase == "stage_one" and auxiliaries is not None:
            of_each, spread = auxiliaries(state)
            return {"entropy/": gaussian_entropy(spread).mean(0),
                    "kl/": gaussian_kl(of_each, spread, mu, log_sigma).mean(0)}
        metrics = {"entropy": gaussian_entropy(log_sigma).mean()}
        if phase == "stage_two" and auxiliaries is not None:
            metrics["kl/"] = gaussian_kl(mu, log_sigma, *auxiliaries(state)).mean(0)
        return metrics


class PairwiseSum:
    """Sums lists of tensors like the branches of a binary tree: of 2^k lists, the sum of the first half and that of the
    second are added last, wherever either was computed."""

    def __init__(self) -> None:
        self._levels: list[list[Tensor] | None] = []

    def add(self, tensors: Sequence[Tensor]) -> None:
        """Adds one list; the tensors are the sum's from now on."""
        branch = list(tensors)
        for level, other in enumerate(self._levels):
            if other is None:
                self._levels[level] = branch
                return
            torch._foreach_add_(other, branch)
            branch, self._levels[level] = other, None
        self._levels.append(branch)

    def sum(self) -> list[Tensor]:
        """The sum of all lists; there is at least one."""
        branches = [branch for branch in self._levels if branch is not None]
        for branch in branches[1:]:
            torch._foreach_add_(branches[0], branch)
        return branches[0]


def _split(batch: Batch, parts: int) -> Iterator[Batch]:
    """Equal parts of a batch; numbers that hold for all of it stay."""
    rows = len(batch["state"]) // parts
    for start in range(0, rows * parts, rows):
        yield {name: column[start : start + rows] if column.ndim else column for name, column in batch.items()}


def _over_workers(gradients: list[Tensor], workers: int) -> list[Tensor]:
    """The sum over the workers, in one collective and in the order of their ranks: an all-reduce adds in another."""
    if workers == 1:
        return gradients
    total = PairwiseSum()
    for flat in _gathered(torch.cat([gradient.reshape(-1) for gradient in gradients]), workers):
        total.add([flat])
    parts = total.sum()[0].split([gradient.numel() for gradient in gradients])
    return [part.view_as(gradient) for gradient, part in zip(gradients, parts, strict=True)]


def _gathered(value: Tensor, workers: int) -> list[Tensor]:
    """The tensor of every worker, by rank."""
    found = [torch.empty_like(value) for _ in range(workers)]
    torch.distributed.all_gather(found, value.contiguous())
    return found


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    """Runs with so many threads, and puts the process back to what it had."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
