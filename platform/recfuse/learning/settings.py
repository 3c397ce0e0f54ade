"""What every training run is told, whatever its algorithm; an algorithm's own file adds its own fields."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Self

import tyro
from pydantic import Field, model_validator

from recfuse.behaviours import Vocabulary
from recfuse.config import Config, from_mapping, require
from recfuse.fusion.config import NetworkConfig
from recfuse.learning import registry
from recfuse.learning.phases import Phase, names_of
from recfuse.learning.stopping import StoppingRule
from recfuse.runtime.devices import Device, device

AlgorithmName = Annotated[str, tyro.conf.arg(aliases=("--algorithm",))]
# A window of wide states is cut to about so many bytes.
_WINDOW_BYTES = 1 << 30
Serves = Literal["policy", "vector", "item_value", "monotone"]
DensityKind = Literal["auto", "logged", "estimated"]


@dataclass(frozen=True, kw_only=True)
class Networks:
    """Which networks an algorithm has beside the policy that serves; all of them are built from plain values.

    Attributes:
        critics: names of the state values, and values: about what each of them is at first.
        auxiliaries: names of the auxiliary policies.
        action_values: how many networks of the value of actions, and value: about what it is at first.
        targets: names of the networks that have a target network.
        trace_policy: the policy that V-trace corrects to is kept as it was when the critics were last fitted.
        serves: the policy, or what takes its place: one vector that is searched for all requests, a value per
            candidate, or one vector over monotone curves of the predictions.
        knots: of every curve.
    """

    critics: tuple[str, ...] = ()
    values: tuple[float, ...] = ()
    auxiliaries: tuple[str, ...] = ()
    action_values: int = 0
    value: float = 0.0
    targets: tuple[str, ...] = ()
    trace_policy: bool = False
    serves: Serves = "policy"
    knots: int = 2


def named(name: str) -> Any:
    """The field `algorithm` of an algorithm's config."""
    return Field(name, description="The name of the algorithm, or package.module:Name of a config class of your own.")


class LearningSettings(Config):
    """What all algorithms share. Each one has a subclass with fields of its own, and `LearningSettings` read from plain
    values becomes the one that `algorithm` names.

    A subclass gives its `fits`, and says by the class variables what it needs.

    Attributes:
        needs_density: the policy is compared with the density of the logged actions.
        needs_short_term: it reads the short-term behaviours' advantages or rewards.
        mixes_rewards: it has one critic of the mixed reward in place of one per behaviour.
        online: names of the phases that it repeats while it serves; empty where fresh requests are of no use to it.
    """

    needs_density: ClassVar[bool] = False
    needs_short_term: ClassVar[bool] = False
    mixes_rewards: ClassVar[bool] = False
    online: ClassVar[tuple[str, ...]] = ()

    algorithm: AlgorithmName = named("")
    network: NetworkConfig = Field(NetworkConfig(), description="Sizes and bounds of critics and policies.")
    density: DensityKind = Field(
        "auto", description="The density of logged actions is the logged one, or that of a Gaussian fitted to them; "
        "auto estimates where a sample lacks it.")
    cloning: StoppingRule = Field(
        StoppingRule(iterations=5, change_below=1e-3),
        description="This rule stops the fit to the logged policy, from which other policies start.")
    holdout: float = Field(
        0.1, description="This share of the samples is not learned from; the stopping rules look at the loss on it.",
        ge=0, lt=1)
    policy_learning_rate: float = Field(1e-3, description="Adam changes the policy at this rate.", gt=0)
    max_gradient_norm: float = Field(10.0, description="Gradients of a network are scaled down to this norm.", gt=0)
    minibatch_size: int = Field(1024, description="All learners together take so many samples a step.", ge=1)
    shards: int = Field(
        2, description="Gradients of so many parts of a minibatch, a power of two, are summed in a fixed order. Any "
        "number of learners that divides it gives the same bits.", ge=1)
    window_rows: int = Field(262_144, description="Samples are shuffled within windows of so many consecutive rows; "
                             "of very wide states, within 1 GiB of them.", ge=1)
    memory_mib: int = Field(
        1536, description="Samples up to this size, in MiB, stay in each learner's memory; larger ones are streamed.",
        ge=0)
    threads: int = Field(
        1, description="Each learner computes with so many threads; where cores are shared, one is fastest.", ge=1)
    num_learners: int = Field(0, description="So many workers learn; 0 learns in the calling process.", ge=0)
    device: Device = device()
    gpus_per_learner: float = Field(
        1.0, description="On a GPU each learner takes so much of one; less than a whole one is for a single learner.",
        gt=0, le=1)
    seed: int = Field(0, description="Initial parameters and the order of samples follow from this number.", ge=0,
                      lt=2**31)

    @model_validator(mode="wrap")
    @classmethod
    def _choose(cls, value: Any, validate: Any) -> Any:
        """Plain values become the config of the algorithm that they name."""
        if cls is LearningSettings and isinstance(value, Mapping):
            return from_mapping(registry.of_mapping(value), value)
        return validate(value)

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        name = self.default_name()
        require(self.algorithm == name or (":" in self.algorithm and registry.find(self.algorithm) is type(self)),
                "algorithm", self.algorithm, name)
        require(self.minibatch_size % max(self.num_learners, 1) == 0, "minibatch_size", self.minibatch_size,
                f"a multiple of num_learners ({self.num_learners}), ≥ 1")
        require(self.gpus_per_learner == 1 or self.num_learners < 2 or self.device == "cpu", "gpus_per_learner",
                self.gpus_per_learner, "1 with several learners: two on one GPU wait for each other for ever")
        require(self.shards & (self.shards - 1) == 0, "shards", self.shards, "1, 2, 4, 8, …")
        require(self.window_rows >= self.minibatch_size, "window_rows", self.window_rows,
                f"at least minibatch_size ({self.minibatch_size})")
        return self

    @classmethod
    def default_name(cls) -> str:
        """The name of the algorithm."""
        name: str = cls.model_fields["algorithm"].default
        return name

    @property
    @abstractmethod
    def fits(self) -> tuple[Phase, ...]:
        """The phases of the algorithm where the log has the density of its actions."""

    @property
    def phases(self) -> tuple[Phase, ...]:
        """What is fitted, one after the other."""
        from recfuse.learning.imitation import CLONING

        if self.estimates_density and CLONING.name not in names_of(self.fits):
            return (CLONING, *self.fits)
        return self.fits

    def phase(self, name: str) -> Phase:
        """The phase of this name; there must be one."""
        return next(phase for phase in self.phases if phase.name == name)

    @property
    def reads_replay(self) -> bool:
        """Whether phases read what there was to rank."""
        return False

    def resolved(self, has_density: bool, has_candidates: bool = False) -> Self:
        """The settings with `density` decided, for samples of which each has its density, or not.

        Args:
            has_candidates: every sample says what there was to rank.

        Raises:
            InvalidFieldError: `density` is `logged`, and the samples lack it.
        """
        require(has_density or self.density != "logged", "density", self.density,
                "auto or estimated, because samples lack action_logp")
        chosen: DensityKind = "logged" if has_density else "estimated"
        return self.replace(density=chosen if self.density == "auto" else self.density)

    @property
    def estimates_density(self) -> bool:
        """Whether the density of the logged actions is that of the cloned policy."""
        return self.needs_density and self.density == "estimated"

    @property
    def gpus(self) -> float:
        """What a learner takes of GPUs, once `device` is decided."""
        return self.gpus_per_learner if self.device == "cuda" else 0.0

    @property
    def parts(self) -> int:
        """Parts of a global minibatch whose gradients are computed apart; see `shards`. Where `shards` does not divide
        the minibatch, or the learners do not divide it, each learner's share is one part."""
        workers = max(self.num_learners, 1)
        return self.shards if self.minibatch_size % self.shards == self.shards % workers == 0 else workers

    def window_rows_of(self, vocabulary: Vocabulary) -> int:
        """Rows of a window of these samples; fewer than `window_rows` where states are very wide."""
        width = 2 * vocabulary.state_size + vocabulary.action_size + len(vocabulary.behaviours) + 3
        return min(self.window_rows, max(self.minibatch_size, _WINDOW_BYTES // (4 * width)))

    @property
    def policy_network(self) -> NetworkConfig:
        """Sizes and bounds of the networks as they are built."""
        return self.network

    @property
    def regression_budget(self) -> int | None:
        """The most columns that a regressed advantage has; None where none is regressed."""
        return None

    def networks(self, vocabulary: Vocabulary, values: tuple[float, ...]) -> Networks:
        """The networks beside the policy.

        Args:
            values: [m], what each behaviour's value is on average.
        """
        return Networks()

    def learning_rates(self) -> dict[str, float]:
        """Network → rate of its optimizer."""
        return {"policy": self.policy_learning_rate}

    def scalarisation(self, vocabulary: Vocabulary) -> tuple[float, ...]:
        """Weight of each behaviour in a mixed reward or advantage, before multipliers: of the long-term ones, with the
        sum 1."""
        total = sum(behaviour.weight for behaviour in vocabulary.long_term)
        return tuple(behaviour.weight / total if behaviour.kind == "long_term" else 0.0
                     for behaviour in vocabulary.behaviours)

    def apply_to(self, vocabulary: Vocabulary) -> Vocabulary:
        """The vocabulary as this run learns it.

        Raises:
            InvalidFieldError: the settings name a behaviour that is not there or of the wrong kind, or the algorithm
                needs a short-term behaviour and there is none.
        """
        require(not self.needs_short_term or bool(vocabulary.short_term), "behaviours", vocabulary.behaviour_names,
                f"at least one short_term behaviour for the algorithm {self.algorithm}")
        return vocabulary


def require_short_term(option: str, given: Mapping[str, float], vocabulary: Vocabulary) -> None:
    """Refuses a mapping of an option that names other than short-term behaviours."""
    names = tuple(behaviour.name for behaviour in vocabulary.short_term)
    for name, value in given.items():
        require(name in names, f"{option}.{name}", value, f"short-term behaviours ({', '.join(names)})")
