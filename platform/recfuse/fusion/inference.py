"""The learned policy outside of learning: written into a bundle, read back, and asked for decisions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from recfuse.behaviours import Vocabulary
from recfuse.bundle import Bundle, BundleError, write_bundle
from recfuse.config import require
from recfuse.fusion.config import NetworkConfig
from recfuse.fusion.geometric_mean import GeometricMean, geometric_mean
from recfuse.fusion.networks import GaussianPolicies
from recfuse.fusion.policies import Decision, FixedGaussian, LinearGaussian, decide
from recfuse.stats.gaussian import Range, gaussian_log_density, squashed_log_density

Array = NDArray[np.float64]
AnyPolicy = GaussianPolicies | GeometricMean | FixedGaussian | LinearGaussian
_NOT_OF_NETWORKS = ("type", "shares")
_LINEAR = ("weights", "bias", "state_mean", "state_std", "sigma")


def file_of(stage: str = "") -> str:
    """Stem of the file in a bundle that holds the policy, or that of a stage with one of its own."""
    return f"policy-{stage}" if stage else "policy"


@dataclass(frozen=True)
class StagePolicy:
    """The policy of one stage in a bundle of several.

    Attributes:
        policy, training, data_fingerprint, metrics: as those of `export_policy`.
        vocabulary: which must be that of the bundle.
    """

    policy: AnyPolicy
    vocabulary: Vocabulary
    training: Mapping[str, Any]
    data_fingerprint: str
    metrics: Mapping[str, Any]


def export_policy(
    root: str | Path,
    policy: AnyPolicy,
    vocabulary: Vocabulary,
    *,
    training: Mapping[str, Any],
    data_fingerprint: str,
    metrics: Mapping[str, Any],
    stages: Mapping[str, StagePolicy] = MappingProxyType({}),
) -> Path:
    """Writes a bundle of kind `fusion` below `root` and returns its directory.

    Args:
        policy: the long-term policy (one network), the mean of several, a Gaussian whose mean is linear in the state
            (item values), or one Gaussian for all states (CEM).
        training: the config it was trained with, plain values.
        data_fingerprint: names the samples it was trained on.
        metrics: plain values; numbers that are not finite become null.
        stages: policies that decide in place of this one at their stages.

    Raises:
        InvalidFieldError: a policy does not fit the vocabulary, or one of a stage has another.
    """
    tensors, network, vocabulary = _content(policy, vocabulary)
    manifest = {"vocabulary": vocabulary.to_dict(),
                **_described(tensors, network, training, data_fingerprint, metrics)}
    files = {file_of(): tensors}
    for stage, own in stages.items():
        require(stage in vocabulary.stages, "stages", stage, f"stages of the vocabulary {vocabulary.stages}")
        of_stage, network, words = _content(own.policy, own.vocabulary)
        require(words == vocabulary, f"stages.{stage}", "a policy with a vocabulary of its own",
                "a policy that reads and ranks by the vocabulary of the bundle")
        files[file_of(stage)] = of_stage
        manifest.setdefault("stages", {})[stage] = _described(of_stage, network, own.training, own.data_fingerprint,
                                                              own.metrics)
    return write_bundle(root, kind="fusion", tensors=files, manifest=manifest)


def _content(policy: AnyPolicy, vocabulary: Vocabulary) -> tuple[dict[str, torch.Tensor], dict[str, Any], Vocabulary]:
    """The tensors of a policy, what its network is, and by which vocabulary it is served."""
    network: dict[str, Any]
    if isinstance(policy, FixedGaussian):
        actions, network = policy.mu.size, {"type": "fixed"}
        tensors = {"mu": torch.from_numpy(policy.mu), "sigma": torch.from_numpy(policy.sigma)}
    elif isinstance(policy, LinearGaussian):
        _require_states(len(policy.state_mean), vocabulary)
        actions, network = policy.bias.size, {"type": "linear", "reach": policy.reach}
        tensors = {name: torch.from_numpy(getattr(policy, name)) for name in _LINEAR}
    else:
        network = {"type": "gaussian_mlp"}
        if isinstance(policy, GeometricMean):
            network, policy = {"type": "geometric_mean", "shares": list(policy.shares)}, policy.policies
        else:
            require(len(policy.names) == 1, "policy", policy.names, "one policy, the one that serves")
        _require_states(policy.state_mean.numel(), vocabulary)
        actions, network = policy.actions, {**network, **policy.config.to_dict()}
        tensors = dict(policy.state_dict())
        # What is served squashes its actions, so the numbers of its decisions mean something only with the range.
        vocabulary = vocabulary.replace(action_range=policy.config.action_range)
    require(actions == vocabulary.action_size, "policy", actions, f"{vocabulary.action_size} fusion parameters")
    return tensors, network, vocabulary


def _described(tensors: Mapping[str, torch.Tensor], network: Mapping[str, Any], training: Mapping[str, Any],
               data_fingerprint: str, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """What a manifest says of a policy."""
    return {"shapes": {name: list(tensor.shape) for name, tensor in tensors.items()}, "network": dict(network),
            "training": _plain(training), "data_fingerprint": data_fingerprint, "metrics": _plain(metrics)}


def _require_states(size: int, vocabulary: Vocabulary) -> None:
    require(size == vocabulary.state_size, "policy", size, f"state size {vocabulary.state_size}")


class FusionActor:
    """Decides fusion parameters with the policy of a bundle; a `Policy`. Numpy in double precision, no gradient.

    Double precision costs nothing at this size and leaves the learner's own rounding as the only difference to it.

    Attributes:
        version: of the bundle.
        vocabulary: of the bundle.
        stages: stage → the actor that decides there in place of this one.
    """

    version: str
    vocabulary: Vocabulary
    stages: Mapping[str, FusionActor]

    def __init__(self, version: str, vocabulary: Vocabulary, network: Mapping[str, Any], tensors: Mapping[str, Array],
                 stages: Mapping[str, FusionActor] = MappingProxyType({})):
        self.version, self.vocabulary, self.stages = version, vocabulary, stages
        self._rng = np.random.default_rng()
        self._simple: FixedGaussian | LinearGaussian | None = None
        self._range: Range | None = None
        if network["type"] == "fixed":
            self._simple = FixedGaussian(tensors["mu"], tensors["sigma"])
            return
        if network["type"] == "linear":
            given = {name: tensors[name] for name in _LINEAR if name != "sigma"}
            self._simple = LinearGaussian(**given, reach=float(network["reach"]),
                                          sigma=tensors["sigma"].astype(np.float32))
            return
        self._shares = np.array(network.get("shares", (1.0,)), np.float64)
        config = NetworkConfig.from_dict({key: value for key, value in network.items() if key not in _NOT_OF_NETWORKS})
        self._range = config.action_range
        self._networks = [_Network(config, tensors, member) for member in range(len(self._shares))]

    @classmethod
    def from_bundle(cls, bundle: Bundle) -> FusionActor:
        """Raises BundleError where the bundle holds no fusion policy that fits its own vocabulary."""
        if bundle.kind != "fusion":
            raise BundleError(f"{bundle.version}: kind is {bundle.kind!r}; expected 'fusion'")
        try:
            vocabulary = Vocabulary.from_dict(bundle.manifest["vocabulary"])
            stages = {stage: cls._of_file(bundle, vocabulary, file_of(stage), told)
                      for stage, told in bundle.manifest.get("stages", {}).items()}
            return cls._of_file(bundle, vocabulary, file_of(), bundle.manifest, stages)
        except (KeyError, ValueError, IndexError, TypeError, AttributeError) as error:
            raise BundleError(f"{bundle.version}: {error!r}; expected a policy that fits the vocabulary") from None

    @classmethod
    def _of_file(cls, bundle: Bundle, vocabulary: Vocabulary, file: str, told: Mapping[str, Any],
                 stages: Mapping[str, FusionActor] = MappingProxyType({})) -> FusionActor:
        tensors = {name: tensor.double().cpu().numpy() for name, tensor in bundle.tensors[file].items()}
        actor = cls(bundle.version, vocabulary, told["network"], tensors, stages)
        decision = actor.act(np.zeros((1, vocabulary.state_size), np.float32), explore=False)
        if decision.mu.shape != (1, vocabulary.action_size) or not np.isfinite(decision.action_logp).all():
            raise ValueError(f"μ {decision.mu.tolist()} for a state of zeros")
        return actor

    def of(self, stage: str) -> FusionActor:
        """Who decides at a stage: its own policy, else this one."""
        return self.stages.get(stage, self)

    @property
    def fixed(self) -> FixedGaussian | None:
        """The one vector, which reads no state; None where the policy is personal."""
        return self._simple if isinstance(self._simple, FixedGaussian) else None

    def act(
        self,
        state: NDArray[np.float32],
        explore: bool,
        rng: np.random.Generator | None = None,
        *,
        seed: int | None = None,
    ) -> Decision:
        """A decision for each row of `state` [B, S].

        Where the policy squashes its actions to a range, `mu` and `sigma` are of the Gaussian before that, the action
        without exploration is the squashed `mu`, and `action_logp` is the density of the action in its range.

        Args:
            state: finite numbers.
            explore: samples the action from `rng`, or from a fresh generator with `seed`, or from the actor's own.

        Raises:
            InvalidFieldError: names `state`, its shape or bad value, and what is allowed.
        """
        self._check(state)
        if rng is None:
            rng = self._rng if seed is None else np.random.default_rng(seed)
        mu, sigma = self._moments(state)
        return decide(mu, sigma, explore, rng, self._range)

    def log_prob(self, state: NDArray[np.float32], action: NDArray[np.float32]) -> NDArray[np.float64]:
        """log π(action | state), float64[B], of actions [B, M] that anybody took.

        Raises:
            InvalidFieldError: as `act`; or an action of another width.
        """
        self._check(state)
        expected = (len(state), self.vocabulary.action_size)
        require(action.shape == expected, "action", action.shape, f"an array {expected}")
        mu, sigma = self._moments(state)
        if self._range is None:
            return gaussian_log_density(action, mu, sigma)
        return squashed_log_density(action, mu, sigma, self._range)

    def _check(self, state: NDArray[np.float32]) -> None:
        size = self.vocabulary.state_size
        require(state.ndim == 2 and state.shape[1] == size, "state", state.shape, f"an array [B, {size}]")
        if not np.isfinite(state).all():
            row, column = np.argwhere(~np.isfinite(state))[0]
            require(False, f"state[{row}, {column}]", float(state[row, column]), "finite numbers")

    def _moments(self, state: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        if self._simple is not None:
            return self._simple.moments(state)
        moments = [network.moments(state) for network in self._networks]
        mu, sigma = moments[0]
        if len(moments) > 1:
            mus, sigmas = (np.stack(each) for each in zip(*moments, strict=True))
            mu, sigma = geometric_mean(mus, sigmas, self._shares)
        return mu.astype(np.float32), sigma.astype(np.float32)


class _Network:
    """One of the networks of `GaussianPolicies`, the `member`-th of its tensors."""

    def __init__(self, config: NetworkConfig, tensors: Mapping[str, Array], member: int) -> None:
        self._config = config
        layers = range(len(config.hidden) + 1)
        weights, biases = ([_member(tensors[f"network.{name}.{layer}"], member) for layer in layers]
                           for name in ("weights", "biases"))
        self._weights, self._biases = weights, [bias[0] for bias in biases]
        # Standardising the state is linear, so the first layer does it.
        self._weights[0] = self._weights[0] / tensors["state_std"][:, None]
        self._biases[0] = self._biases[0] - tensors["state_mean"] @ self._weights[0]
        self._action_mean, self._action_std = tensors["action_mean"], tensors["action_std"]
        self._low, self._high = math.log(config.sigma_min), math.log(config.sigma_max)
        self._start = math.log(-self._low / self._high)
        self._free = tensors["free"][member] if config.sigma == "free" else None

    def moments(self, state: NDArray[np.float32]) -> tuple[Array, Array]:
        """μ and σ, [B, M] each, of states [B, S]."""
        x: Array = state.astype(np.float64)
        for weight, bias in zip(self._weights[:-1], self._biases[:-1], strict=True):
            x = _activate(x @ weight + bias, self._config.activation)
        x = x @ self._weights[-1] + self._biases[-1]
        actions, reach = len(self._action_mean), self._config.mean_range
        mean = reach * np.tanh(x[:, :actions] / reach)
        raw = np.broadcast_to(self._free, mean.shape) if self._free is not None else x[:, actions:]
        # The logistic function as a hyperbolic tangent, which does not overflow.
        share = 0.5 * (1.0 + np.tanh(0.5 * (raw + self._start)))
        sigma = self._action_std * np.exp(self._low + (self._high - self._low) * share)
        return self._action_mean + self._action_std * mean, sigma


def _member(stacked: Array, member: int) -> Array:
    """A shared layer is one for all networks."""
    layer: Array = stacked[member if len(stacked) > 1 else 0]
    return layer


def _activate(x: Array, activation: str) -> Array:
    if activation == "relu":
        return np.maximum(x, 0.0, out=x)
    if activation == "tanh":
        return np.tanh(x, out=x)
    return x * (0.5 * (1.0 + np.tanh(0.5 * x)))


def _plain(value: Any) -> Any:
    """JSON values; numbers that are not finite become None, because JSON has none."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
