"""Networks of fusion: critics and Gaussian policies, all behaviours of a kind in one batched pass."""

from __future__ import annotations

import itertools
import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from recfuse.behaviours import Vocabulary
from recfuse.config import require
from recfuse.fusion.config import NetworkConfig
from recfuse.fusion.squash import log_slope, unsquash
from recfuse.stats.gaussian import LOG_2PI

# So many numbers that a layer of one network gives make a CPU compute them network by network.
_LARGE = 1 << 17
_ACTIVATIONS = {"relu": torch.relu, "tanh": torch.tanh, "silu": nn.functional.silu}


@dataclass(frozen=True)
class Normalisation:
    """Moments of the logged states and actions: networks see standardised states and give standardised actions.

    Attributes:
        state_mean, state_std: S numbers each; std > 0.
        action_mean, action_std: M numbers each; std > 0.
    """

    state_mean: tuple[float, ...]
    state_std: tuple[float, ...]
    action_mean: tuple[float, ...]
    action_std: tuple[float, ...]

    def __post_init__(self) -> None:
        for kind in ("state", "action"):
            mean, std = getattr(self, f"{kind}_mean"), getattr(self, f"{kind}_std")
            require(len(mean) == len(std) > 0, f"{kind}_std", len(std), f"{len(mean)} numbers")
            require(all(map(math.isfinite, mean)), f"{kind}_mean", mean, "finite numbers")
            require(all(math.isfinite(x) and x > 0 for x in std), f"{kind}_std", std, "finite numbers > 0")

    @classmethod
    def identity(cls, state_size: int, action_size: int) -> Normalisation:
        """Leaves states and actions as they are."""
        return cls((0.0,) * state_size, (1.0,) * state_size, (0.0,) * action_size, (1.0,) * action_size)

    @property
    def state_size(self) -> int:
        return len(self.state_mean)

    @property
    def action_size(self) -> int:
        return len(self.action_mean)


class BatchedMLP(nn.Module):
    """k multilayer perceptrons of one shape over the same input, computed together.

    Args:
        names: one per network. The initial parameters of a network depend on the seed and its name alone, so that
            reordering the networks reorders the parameters and changes nothing else (maths P6).
        sizes: widths of input, hidden layers, output.
        config: activation, whether the networks share all layers but the last, and arithmetic.
        seed: of the initial parameters.
        last_gain: scales the initial parameters of the last layer.
    """

    def __init__(
        self, names: Sequence[str], sizes: Sequence[int], config: NetworkConfig, seed: int, last_gain: float = 1.0
    ) -> None:
        super().__init__()
        self._activation, self._halved = _ACTIVATIONS[config.activation], config.arithmetic == "bfloat16"
        shared = config.trunk == "shared"
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        members = [torch.Generator().manual_seed(_seed(seed, name)) for name in names]
        trunk = [torch.Generator().manual_seed(_seed(seed, ""))] if shared else members
        for layer, (width_in, width_out) in enumerate(itertools.pairwise(sizes)):
            last = layer == len(sizes) - 2
            generators = members if last else trunk
            bound = (last_gain if last else 1.0) * math.sqrt(3.0 / width_in)
            draws = [torch.rand(width_in, width_out, generator=g, dtype=torch.float64) for g in generators]
            weight = (torch.stack(draws) * 2.0 - 1.0) * bound
            self.weights.append(nn.Parameter(weight.to(torch.get_default_dtype())))
            self.biases.append(nn.Parameter(torch.zeros(len(generators), 1, width_out)))

    def forward(self, x: Tensor, members: slice | None = None, frozen: bool = False) -> Tensor:
        """[n, input] → [k, n, output].

        Args:
            members: computes a run of the networks only.
            frozen: gives gradients to the input alone, none to the parameters.
        """
        layers = self._layers(members, frozen)
        widest = max(w.shape[2] for w, _ in layers)
        if x.device.type == "cpu" and len(x) * widest >= _LARGE:
            return self._one_by_one(x, layers)
        for layer, (w, b) in enumerate(layers):
            if layer > 0:
                x = self._activation(x)
            k, width_in, width_out = w.shape
            if x.ndim == 3:
                x = torch.baddbmm(b, x, w)
            elif k == 1:
                x = torch.addmm(b[0], x, w[0])
            else:
                # One product with the layers of all networks side by side: their input is the same.
                flat = torch.addmm(b.reshape(-1), x, w.transpose(0, 1).reshape(width_in, k * width_out))
                x = flat.view(-1, k, width_out).transpose(0, 1)
        return x if x.ndim == 3 else x.unsqueeze(0)

    def _layers(self, members: slice | None, frozen: bool) -> list[tuple[Tensor, Tensor]]:
        """Weight and bias of every layer."""
        total = len(self.weights[-1])
        layers = []
        for weight, bias in zip(self.weights, self.biases, strict=True):
            # Shared layers are one network, whose members are all of them.
            w, b = (weight, bias) if members is None or len(weight) < total else (weight[members], bias[members])
            layers.append((w.detach(), b.detach()) if frozen else (w, b))
        return layers

    def _one_by_one(self, x: Tensor, layers: list[tuple[Tensor, Tensor]]) -> Tensor:
        """The same, a network after the other: what a layer gives is still in the cache when the next one reads it.

        In the layout of oneDNN where that has our activation, because torch's own float32 products (MKL) leave half of
        the vector unit of AMD's processors unused.
        """
        single, last = x.dtype == torch.float32, len(layers) - 1
        halved = self._halved and single and last > 0
        onednn = single and not halved and self._activation is torch.relu and torch.backends.mkldnn.is_available()
        # In place where the gradient needs nothing else.
        activation = torch.relu_ if self._activation is torch.relu else self._activation

        def run(y: Tensor, first: int, network: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
            for layer, (w, b) in enumerate(network, first):
                if onednn:
                    y = nn.functional.linear(y, w.T, b.squeeze(0))
                elif halved and layer < last:
                    y = torch.addmm(b.bfloat16(), y, w.bfloat16())
                else:
                    y = torch.addmm(b, y.to(w.dtype), w)
                y = activation(y) if layer < last else y
            return y

        x = x.bfloat16() if halved else x.to_mkldnn() if onednn else x
        shared = sum(len(w) < len(layers[-1][0]) for w, _ in layers)
        trunk = run(x, 0, [(w[0], b[0]) for w, b in layers[:shared]])
        networks = zip(*(zip(_apart(w), _apart(b), strict=True) for w, b in layers[shared:]), strict=True)
        outputs = [run(trunk, shared, network) for network in networks]
        outputs = [y.to_dense() for y in outputs] if onednn else outputs
        return torch.stack(outputs) if len(outputs) > 1 else outputs[0].unsqueeze(0)


def _apart(parameter: Tensor) -> tuple[Tensor, ...]:
    """Of each network; of a single one as a view, whose gradient is not copied."""
    return parameter.unbind(0) if len(parameter) > 1 else (parameter.squeeze(0),)


class Critics(nn.Module):
    """V_j(s) of m behaviours (maths 1.2).

    Args:
        names: of the behaviours.
        config, normalisation: see there.
        seed: of the initial parameters.
        start: [m], about what the values are at first; a long horizon takes long to learn a constant.
    """

    state_mean: Tensor
    state_std: Tensor

    def __init__(
        self,
        names: Sequence[str],
        config: NetworkConfig,
        normalisation: Normalisation,
        seed: int = 0,
        start: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.names = tuple(names)
        _buffers(self, normalisation, "state")
        sizes = (normalisation.state_size, *config.hidden, 1)
        self.network = BatchedMLP(names, sizes, config, seed, 0.1)
        if start is not None:
            require(len(start) == len(names), "start", len(start), f"{len(names)} numbers")
            with torch.no_grad():
                self.network.biases[-1].copy_(torch.tensor(start).reshape(-1, 1, 1))

    def forward(self, state: Tensor, members: slice | None = None) -> Tensor:
        """Values [n, m] of states [n, S]; `members` gives a run of the behaviours only."""
        x = (state - self.state_mean) / self.state_std
        return self.network(x, members).squeeze(-1).transpose(0, 1)


class ActionValues(nn.Module):
    """Q_k(s, a) of k networks fitted to the same target (Fujimoto et al., ICML 2018: the least of them counts).

    Args:
        networks: k.
        config, normalisation: see there.
        seed: of the initial parameters.
        start: about what the values are at first.
    """

    def __init__(
        self, networks: int, config: NetworkConfig, normalisation: Normalisation, seed: int = 0, start: float = 0.0
    ) -> None:
        super().__init__()
        sizes = (normalisation.state_size + normalisation.action_size, *config.hidden, 1)
        names = [f"action_value_{k}" for k in range(networks)]
        self.network = BatchedMLP(names, sizes, config.replace(trunk="separate"), seed, 0.1)
        with torch.no_grad():
            self.network.biases[-1].fill_(start)

    def forward(
        self, state: Tensor, action: Tensor, members: slice | None = None, frozen: bool = False
    ) -> Tensor:
        """Values [n, k] of standardised states [n, S] and actions [n, M]; the options are those of `BatchedMLP`."""
        return self.network(torch.cat([state, action], 1), members, frozen).squeeze(-1).transpose(0, 1)


class GaussianPolicies(nn.Module):
    """k diagonal Gaussian policies π_j(a|s) = N(μ_j(s), diag σ_j(s)²) (maths 1.1); with an action range, of what the
    action was before it was squashed (recfuse.fusion.squash).

    A fresh one is close to the Gaussian with the moments of the logged actions.

    Args:
        names: one per policy.
        config, normalisation: see there.
        seed: of the initial parameters.
    """

    state_mean: Tensor
    state_std: Tensor
    action_mean: Tensor
    action_std: Tensor

    def __init__(
        self, names: Sequence[str], config: NetworkConfig, normalisation: Normalisation, seed: int = 0
    ) -> None:
        super().__init__()
        self.names, self.config = tuple(names), config
        self.actions = normalisation.action_size
        _buffers(self, normalisation, "state")
        _buffers(self, normalisation, "action")
        outputs = self.actions * (2 if config.sigma == "state" else 1)
        sizes = (normalisation.state_size, *config.hidden, outputs)
        self.network = BatchedMLP(names, sizes, config, seed, 0.01)
        if config.sigma == "free":
            self.free = nn.Parameter(torch.zeros(len(self.names), self.actions))
        # log σ = low + (high − low) · sigmoid(x + start), where `start` makes σ = 1 at x = 0.
        self._low, self._high = math.log(config.sigma_min), math.log(config.sigma_max)
        self._start = math.log(-self._low / self._high)

    def forward(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """μ and log σ, [n, k, M] each, of states [n, S]."""
        mean, log_std = self.standardised(state)
        return self.action_mean + self.action_std * mean, self.action_std.log() + log_std

    @torch.no_grad()
    def start_at(self, action: Tensor) -> None:
        """In every state μ becomes this action [M], and σ that of the logged actions."""
        self.action_mean.copy_(action)
        for parameter in (self.network.weights[-1], self.network.biases[-1]):
            parameter.zero_()
        if self.config.sigma == "free":
            self.free.zero_()

    def standardised(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """μ and log σ in standard deviations of the logged actions."""
        x = (state - self.state_mean) / self.state_std
        out = self.network(x).transpose(0, 1)
        reach = self.config.mean_range
        mean = reach * torch.tanh(out[..., : self.actions] / reach)
        raw = out[..., self.actions :] if self.config.sigma == "state" else self.free.expand_as(mean)
        return mean, self._low + (self._high - self._low) * torch.sigmoid(raw + self._start)

    def standardise(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """States and actions (before they are squashed) in standard deviations from their logged means."""
        if self.config.action_range is not None:
            action = unsquash(action, self.config.action_range)
        return (state - self.state_mean) / self.state_std, (action - self.action_mean) / self.action_std

    def log_prob(self, state: Tensor, action: Tensor) -> Tensor:
        """log π_j(a|s), [n, k], of actions [n, M]."""
        mean, log_std = self.standardised(state)
        bounds = self.config.action_range
        u = action if bounds is None else unsquash(action, bounds)
        slope = self.action_std.log().sum()
        if bounds is not None:
            slope = slope + log_slope(u, bounds).sum(-1, keepdim=True)
        return log_density(((u - self.action_mean) / self.action_std).unsqueeze(1), mean, log_std) - slope


def log_density(action: Tensor, mu: Tensor, log_sigma: Tensor) -> Tensor:
    """log N(action; mu, diag exp(log_sigma)²), summed over the last dimension."""
    z = (action - mu) * torch.exp(-log_sigma)
    return -torch.addcmul(log_sigma, z, z, value=0.5).sum(-1) - 0.5 * LOG_2PI * z.shape[-1]


def gaussian_kl(mu: Tensor, log_sigma: Tensor, other_mu: Tensor, other_log_sigma: Tensor) -> Tensor:
    """KL(N(mu, σ²) ‖ N(other)), summed over the last dimension."""
    ratio = torch.exp(2.0 * (log_sigma - other_log_sigma))
    shift = ((mu - other_mu) * torch.exp(-other_log_sigma)).square()
    return (0.5 * (ratio + shift - 1.0) - log_sigma + other_log_sigma).sum(-1)


def gaussian_entropy(log_sigma: Tensor) -> Tensor:
    """Differential entropy in nats, summed over the last dimension."""
    return (log_sigma + 0.5 * (1.0 + LOG_2PI)).sum(-1)


def long_term_policy(
    vocabulary: Vocabulary, config: NetworkConfig, normalisation: Normalisation, seed: int = 0
) -> GaussianPolicies:
    """The policy that serves: one network, sizes checked against the vocabulary."""
    require(normalisation.state_size == vocabulary.state_size, "normalisation.state_mean", normalisation.state_size,
            f"{vocabulary.state_size} numbers, the state_size of the vocabulary")
    require(normalisation.action_size == vocabulary.action_size, "normalisation.action_mean", normalisation.action_size,
            f"{vocabulary.action_size} numbers, one per fusion parameter")
    return GaussianPolicies(("policy",), config, normalisation, seed)


def _buffers(module: nn.Module, normalisation: Normalisation, kind: str) -> None:
    for moment in ("mean", "std"):
        values = getattr(normalisation, f"{kind}_{moment}")
        module.register_buffer(f"{kind}_{moment}", torch.tensor(values, dtype=torch.get_default_dtype()))


def _seed(seed: int, name: str) -> int:
    return (seed * 0x9E3779B1 + zlib.crc32(name.encode())) % (1 << 63)
