"""The RLModule of fusion: the long-term policy that serves, the auxiliary policies and the critics."""

from __future__ import annotations

from typing import Any

import torch
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.torch.torch_rl_module import TorchRLModule
from torch import Tensor

from recfuse.behaviours import Vocabulary
from recfuse.fusion.networks import Critics, GaussianPolicies, NetworkConfig, Normalisation, long_term_policy


class FusionPolicyModule(TorchRLModule):
    """Networks of the two-stage learner (FORMULAS 1.1, 1.2, 1.4).

    `model_config`: `vocabulary`, `network` and `normalisation` as plain values, `seed`, `critics` (their names) and
    `values` where they start.

    Attributes:
        policy: the long-term policy, one network.
        auxiliaries: one policy per short-term behaviour, in the vocabulary's order; None where there is none.
        critics: one per behaviour, in the vocabulary's order; or one of their mixture.
        multipliers: [|S|], those that RCPO has found so far; they travel with the parameters.
    """

    policy: GaussianPolicies
    auxiliaries: GaussianPolicies | None
    critics: Critics
    multipliers: Tensor

    def setup(self) -> None:
        """Builds the networks; the same seed gives the same parameters in every worker."""
        config: dict[str, Any] = self.model_config
        vocabulary = Vocabulary.from_dict(config["vocabulary"])
        network = NetworkConfig.from_dict(config["network"])
        normalisation = Normalisation(**config["normalisation"])
        seed = config["seed"]
        self.policy = long_term_policy(vocabulary, network, normalisation, seed)
        self.critics = Critics(config["critics"], network, normalisation, seed, config["values"])
        names = tuple(behaviour.name for behaviour in vocabulary.short_term)
        self.auxiliaries = GaussianPolicies(names, network, normalisation, seed) if names else None
        self.register_buffer("multipliers", torch.zeros(len(names)))

    def _forward(self, batch: dict[str, Tensor], **kwargs: Any) -> dict[str, Tensor]:
        """RLlib's interface to the policy that serves: parameters of its Gaussian, mean and log σ side by side."""
        mu, log_sigma = self.policy(batch[Columns.OBS])
        return {Columns.ACTION_DIST_INPUTS: torch.cat([mu[:, 0], log_sigma[:, 0]], dim=-1)}

    def start_auxiliaries_at_policy(self) -> None:
        """Copies the policy, which by then imitates the logged one, into every auxiliary policy."""
        if self.auxiliaries is not None:
            with torch.no_grad():
                for target, source in zip(self.auxiliaries.parameters(), self.policy.parameters(), strict=True):
                    target.copy_(source.expand_as(target))
