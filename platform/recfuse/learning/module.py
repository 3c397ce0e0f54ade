"""The RLModule of fusion: the long-term policy that serves, and the networks that its algorithm learns it with."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, TypeVar

import torch
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.torch.torch_rl_module import TorchRLModule
from torch import Tensor, nn

from recfuse.behaviours import Vocabulary
from recfuse.fusion.config import NetworkConfig
from recfuse.fusion.effects import Modifiers
from recfuse.fusion.item_values import linear_vocabulary, value_policy
from recfuse.fusion.monotone import MonotoneCurves
from recfuse.fusion.networks import ActionValues, Critics, GaussianPolicies, Normalisation, long_term_policy
from recfuse.fusion.policies import FixedGaussian, LinearGaussian

N = TypeVar("N", bound=nn.Module)
# The first numbers of a state that effects may depend on; the memory of their regression grows with the square.
_MODIFIERS = 64
# A number of the state counts as no further from its mean, in standard deviations: effects are linear in it.
FAR = 3.0


class FusionPolicyModule(TorchRLModule):
    """Networks of an algorithm (maths 1.1, 1.2, 1.4), of which only those exist that it names.

    `model_config`: `vocabulary`, `network` and `normalisation` as plain values; `seed`; `behaviour`: whether the
    density of the logged policy is estimated; and the fields of `Networks`.

    Attributes:
        policy: the long-term policy, one network.
        auxiliaries: one policy per short-term behaviour, in the vocabulary's order, or the one they share.
        critics: one per behaviour, in the vocabulary's order; or one of their mixture.
        action_values: values of state and action.
        behaviour: the estimate of the logged policy; None where the log has its density.
        trace_policy: the policy that V-trace corrects to; None where critics learn from one step.
        multipliers: [|S|], those that dual ascent has found so far; they travel with the parameters, as do shortfalls:
            [|S|], what it has summed up.
        vector_mean, vector_std: [M], the distribution of a searched vector.
        page_effects: [U, M, 1 + |S|], relative effects of a page's columns, by all users; half_effects: [2, U, M,
            1 + |S|] and half_vectors: [2, M], by either half of them.
        curve_x, curve_y: float64[M, Q], knots and values of the curves that predictions pass through.
        trial_gains: [2, 2], what the policy of either half gains over its vector by the other half, and the error.
        attention_decay: of a page's places; lambda_total: temperature Λ of the closed form, as it was chosen.
        publishes_vector: the policy is not better than the vector.
    """

    policy: GaussianPolicies
    auxiliaries: GaussianPolicies
    critics: Critics
    action_values: ActionValues
    behaviour: GaussianPolicies | None
    trace_policy: GaussianPolicies | None
    multipliers: Tensor
    shortfalls: Tensor
    vector_mean: Tensor
    vector_std: Tensor
    page_effects: Tensor
    half_effects: Tensor
    half_vectors: Tensor
    curve_x: Tensor
    curve_y: Tensor
    trial_gains: Tensor
    attention_decay: Tensor
    lambda_total: Tensor
    publishes_vector: Tensor

    def setup(self) -> None:
        """Builds the networks; the same seed gives the same parameters in every worker."""
        config: dict[str, Any] = self.model_config
        self._vocabulary = vocabulary = Vocabulary.from_dict(config["vocabulary"])
        network = NetworkConfig.from_dict(config["network"])
        normalisation = Normalisation(**config["normalisation"])
        seed = config["seed"]
        self.policy = long_term_policy(vocabulary, network, normalisation, seed)
        if config["critics"]:
            self.critics = Critics(config["critics"], network, normalisation, seed, config["values"])
        if config["auxiliaries"]:
            self.auxiliaries = GaussianPolicies(config["auxiliaries"], network, normalisation, seed)
        if config["action_values"]:
            self.action_values = ActionValues(config["action_values"], network, normalisation, seed, config["value"])
        self.behaviour = _constant_copy(self.policy) if config["behaviour"] else None
        self.trace_policy = _constant_copy(self.policy) if config["trace_policy"] else None
        for name in config["targets"]:
            setattr(self, f"target_{name}", _constant_copy(getattr(self, name)))
        self.register_buffer("multipliers", torch.zeros(len(vocabulary.short_term)))
        self.register_buffer("shortfalls", torch.zeros(len(vocabulary.short_term)))
        self.register_buffer("vector_mean", self.policy.action_mean.clone())
        self.register_buffer("vector_std", self.policy.action_std.clone())
        self._register_replay(vocabulary)
        if config["serves"] == "monotone":
            knots = torch.arange(config["knots"], dtype=torch.float64).repeat(vocabulary.action_size, 1)
            self.register_buffer("curve_x", knots)
            self.register_buffer("curve_y", knots.clone())

    def _register_replay(self, vocabulary: Vocabulary) -> None:
        """What replay finds: relative effects of a page's columns, of all users and of either half, and vectors."""
        # What candidates say in the state is in the columns already, and would be counted twice.
        self.modifiers = Modifiers(max(1, len(vocabulary.scenes)), min(vocabulary.context_size, _MODIFIERS))
        shape = (self.modifiers.width, vocabulary.action_size, 1 + len(vocabulary.short_term))
        self.register_buffer("page_effects", torch.zeros(shape, dtype=torch.float64))
        self.register_buffer("half_effects", torch.zeros(2, *shape, dtype=torch.float64))
        self.register_buffer("half_vectors", self.policy.action_mean.repeat(2, 1))
        self.register_buffer("trial_gains", torch.zeros(2, 2, dtype=torch.float64))
        self.register_buffer("attention_decay", torch.ones(()))
        self.register_buffer("lambda_total", torch.ones(()))
        self.register_buffer("publishes_vector", torch.zeros((), dtype=torch.bool))

    def modifiers_of(self, state: Tensor, scene: Tensor) -> Tensor:
        """[n, U], what the effects of requests with these states [n, S] and scenes int64[n] depend on."""
        count = self.modifiers.numbers
        numbers = (state[:, :count] - self.policy.state_mean[:count]) / self.policy.state_std[:count]
        return self.modifiers.of(scene, numbers.clamp(-FAR, FAR))

    def _forward(self, batch: dict[str, Tensor], **kwargs: Any) -> dict[str, Tensor]:
        """RLlib's interface to the policy that serves: parameters of its Gaussian, mean and log σ side by side."""
        mu, log_sigma = self.policy(batch[Columns.OBS])
        return {Columns.ACTION_DIST_INPUTS: torch.cat([mu[:, 0], log_sigma[:, 0]], dim=-1)}

    def served(self) -> GaussianPolicies | FixedGaussian | LinearGaussian:
        """What serves: the long-term policy; or the searched vector, with the spread of the logged actions, also where
        replay does not find the policy better than it; or values of candidates."""
        serves = self.model_config["serves"]
        if serves == "item_value":
            worth = torch.cat([self.multipliers.new_ones(1), self.multipliers])
            return value_policy(self.page_effects, worth, self.modifiers, self._vocabulary, self.policy.state_mean,
                                self.policy.state_std, FAR, self.vector_std)
        if serves == "policy" and not bool(self.publishes_vector):
            return self.policy
        sigma = self.vector_std if serves == "monotone" else self.policy.action_std
        return FixedGaussian(self.vector_mean.cpu().numpy(), sigma.cpu().numpy())

    def served_vocabulary(self) -> Vocabulary:
        """By which what serves reads states and ranks: the samples', but for another formula of values and curves."""
        serves = self.model_config["serves"]
        if serves == "item_value":
            return linear_vocabulary(self._vocabulary)
        if serves == "monotone":
            curves = MonotoneCurves(self.curve_x.cpu(), self.curve_y.cpu()).plain()
            return linear_vocabulary(self._vocabulary).replace(curves=curves)
        return self._vocabulary

    def target(self, name: str) -> Any:
        """The target network of a network, or the network itself where it has none."""
        return getattr(self, f"target_{name}", None) or getattr(self, name)

    @torch.no_grad()
    def move_targets(self, rate: float) -> None:
        """Moves every target network by so much towards its network (Polyak averaging)."""
        for target, source in self._targets():
            torch._foreach_lerp_(list(target.parameters()), [p.detach() for p in source.parameters()], rate)

    def start_multipliers(self) -> None:
        """Dual ascent begins at 0."""
        self.multipliers.zero_()
        self.shortfalls.zero_()

    def start_auxiliaries_at_policy(self) -> None:
        """Copies the policy, which by then imitates the logged one, into every auxiliary policy."""
        _copy_parameters(self.auxiliaries, self.policy)

    def keep_behaviour(self) -> None:
        """Copies the policy, which by then imitates the logged one, into the estimate of the logged policy."""
        if self.behaviour is not None:
            _copy_parameters(self.behaviour, self.policy)

    def keep_trace_policy(self) -> None:
        """Copies the policy as it stands into the one that V-trace corrects to."""
        if self.trace_policy is not None:
            _copy_parameters(self.trace_policy, self.policy)

    def start_targets(self) -> None:
        """Copies every network that has a target network into it."""
        for target, source in self._targets():
            _copy_parameters(target, source)

    def _targets(self) -> Iterator[tuple[nn.Module, nn.Module]]:
        for name in self.model_config["targets"]:
            yield getattr(self, f"target_{name}"), getattr(self, name)


def _constant_copy(network: N) -> N:
    return copy.deepcopy(network).requires_grad_(False)


@torch.no_grad()
def _copy_parameters(target: nn.Module, source: nn.Module) -> None:
    for destination, parameter in zip(target.parameters(), source.parameters(), strict=True):
        destination.copy_(parameter.expand_as(destination))
