"""What a training run is told: algorithm, networks, learning rates, stopping rules."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch

from recfuse.behaviours import Vocabulary
from recfuse.errors import require
from recfuse.fusion.networks import NetworkConfig

AlgorithmName = Literal["two_stage", "behaviour_cloning"]
AdvantageKind = Literal["regressed", "sampled"]
Phase = Literal["critics", "cloning", "stage_one", "stage_two"]

# What each algorithm fits, one after the other.
PHASES: dict[str, tuple[Phase, ...]] = {
    "two_stage": ("critics", "cloning", "stage_one", "stage_two"),
    "behaviour_cloning": ("cloning",),
}


@dataclass(frozen=True, kw_only=True)
class StoppingRule:
    """A fit ends on the first of these (FORMULAS 1.7). An iteration is one pass over the samples, and its loss is that
    on the samples held out, where some are.

    Attributes:
        iterations: the limit.
        loss_below: the mean loss of an iteration is below it; None leaves the rule out.
        change_below: the loss fell by less between two iterations (0: it rose); None leaves the rule out.
        patience: so many iterations in a row must have failed to lower the best loss before them by `change_below`; a
            bootstrapped loss, whose target moves, is not monotone.
    """

    iterations: int
    loss_below: float | None = None
    change_below: float | None = None
    patience: int = 1

    def __post_init__(self) -> None:
        require(self.iterations >= 1, "iterations", self.iterations, "an integer ≥ 1")
        require(self.patience >= 1, "patience", self.patience, "an integer ≥ 1")
        require(self.loss_below is None or math.isfinite(self.loss_below), "loss_below", self.loss_below,
                "a finite number, or nothing")
        require(self.change_below is None or 0 <= self.change_below < math.inf, "change_below", self.change_below,
                "a finite number ≥ 0, or nothing")

    def reason_to_stop(self, losses: list[float]) -> str | None:
        """Why a fit with these losses, one per iteration so far, ends; None while it goes on."""
        if self.loss_below is not None and losses[-1] < self.loss_below:
            return f"loss below {self.loss_below:g}"
        if self.change_below is not None and len(losses) > self.patience:
            before, since = min(losses[: -self.patience]), min(losses[-self.patience :])
            if before - since < self.change_below:
                return f"change below {self.change_below:g}"
        return "iteration limit" if len(losses) >= self.iterations else None


@dataclass(frozen=True, kw_only=True)
class LearningSettings:
    """Everything about a training run but its samples.

    Attributes:
        algorithm: `two_stage` (FORMULAS 1), or `behaviour_cloning` (the logged policy, imitated).
        network: sizes and bounds of critics and policies.
        critics, stage_one, stage_two: stopping rules of the three fits. Rewards are divided by their standard
            deviation, so that a critic that knows nothing has a loss of about 1.
        holdout: share of the samples, in runs of consecutive ones, that is not learned from; the stopping rules look at
            the loss on it, so that a fit ends where it begins to overfit. In stage one that is −mean(ρ A), the
            estimate of what the policy is for; the value of its surrogate J does not compare policies. 0 for none:
            the rules then look at the training loss.
        advantage: `regressed` (the policies learn from the conditional expectation of the advantage given state and
            action, see recfuse.fusion.advantages) or `sampled` (from the samples of FORMULAS 1.3 themselves).
        cloning: stopping rule of the fit to the logged policy, from which both stages start.
        critic_learning_rate, auxiliary_learning_rate, policy_learning_rate: of Adam.
        max_gradient_norm: gradients are scaled down to it.
        minibatch_size: samples of one step, over all learners together.
        rho_max: ρ̄ of the clipped ratio in stage one (FORMULAS 1.4).
        ess_floor: least effective sample size in stage two, as a share of the samples (FORMULAS 1.6).
        weight_cap: largest weight of a sample in stage two, where the mean is 1; None for no cap.
        multipliers: behaviour → λ, over those of the vocabulary.
        window_rows: samples are shuffled within windows of so many consecutive rows.
        memory_mib: samples up to this size stay in each learner's memory; larger ones are streamed in every pass.
        threads: of each learner's arithmetic. One is fastest where the cores are shared: threads that wait for each
            other spin.
        num_learners: 0 learns in the calling process, n ≥ 1 in n workers.
        gpus_per_learner: None takes one where there is one.
        seed: of the initial parameters and the order of samples.
    """

    algorithm: AlgorithmName = "two_stage"
    advantage: AdvantageKind = "regressed"
    network: NetworkConfig = field(default_factory=NetworkConfig)
    critics: StoppingRule = StoppingRule(iterations=20, change_below=1e-3, patience=3)
    cloning: StoppingRule = StoppingRule(iterations=5, change_below=1e-3)
    stage_one: StoppingRule = StoppingRule(iterations=10, change_below=0.0)
    stage_two: StoppingRule = StoppingRule(iterations=15, change_below=0.0)
    holdout: float = 0.1
    critic_learning_rate: float = 1e-3
    auxiliary_learning_rate: float = 3e-4
    policy_learning_rate: float = 1e-3
    max_gradient_norm: float = 10.0
    minibatch_size: int = 1024
    rho_max: float = 2.0
    ess_floor: float = 0.02
    weight_cap: float | None = None
    multipliers: dict[str, float] = field(default_factory=dict)
    window_rows: int = 262_144
    memory_mib: int = 512
    threads: int = 1
    num_learners: int = 0
    gpus_per_learner: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        require(self.algorithm in PHASES, "algorithm", self.algorithm, ", ".join(PHASES))
        require(self.advantage in get_args(AdvantageKind), "advantage", self.advantage,
                ", ".join(get_args(AdvantageKind)))
        for name in ("critic_learning_rate", "auxiliary_learning_rate", "policy_learning_rate", "max_gradient_norm",
                     "rho_max"):
            value = getattr(self, name)
            require(0 < value < math.inf, name, value, "a finite number > 0")
        require(self.num_learners >= 0, "num_learners", self.num_learners, "an integer ≥ 0")
        require(self.minibatch_size >= 1 and self.minibatch_size % max(self.num_learners, 1) == 0, "minibatch_size",
                self.minibatch_size, f"a multiple of num_learners ({self.num_learners}), ≥ 1")
        require(0 <= self.holdout < 1, "holdout", self.holdout, "a share in [0, 1)")
        require(0 <= self.ess_floor <= 1, "ess_floor", self.ess_floor, "a share in [0, 1]")
        require(self.weight_cap is None or self.weight_cap >= 1, "weight_cap", self.weight_cap,
                "a number ≥ 1, or nothing")
        require(all(0 < value < math.inf for value in self.multipliers.values()), "multipliers", self.multipliers,
                "finite numbers > 0")
        require(self.window_rows >= self.minibatch_size, "window_rows", self.window_rows,
                f"at least minibatch_size ({self.minibatch_size})")
        require(self.memory_mib >= 0, "memory_mib", self.memory_mib, "an integer ≥ 0")
        require(self.threads >= 1, "threads", self.threads, "an integer ≥ 1")
        require(self.gpus_per_learner is None or self.gpus_per_learner >= 0, "gpus_per_learner", self.gpus_per_learner,
                "a number ≥ 0, or nothing")
        require(0 <= self.seed < 2**31, "seed", self.seed, "an integer in [0, 2^31)")

    @property
    def phases(self) -> tuple[Phase, ...]:
        """The fits of the algorithm, in order."""
        return PHASES[self.algorithm]

    def rule(self, phase: Phase) -> StoppingRule:
        """The stopping rule of a fit."""
        return {"critics": self.critics, "cloning": self.cloning, "stage_one": self.stage_one,
                "stage_two": self.stage_two}[phase]

    @property
    def gpus(self) -> float:
        """GPUs of each learner, resolved."""
        if self.gpus_per_learner is not None:
            return self.gpus_per_learner
        return 1.0 if torch.cuda.is_available() else 0.0

    def with_multipliers(self, vocabulary: Vocabulary) -> Vocabulary:
        """The vocabulary with this run's λ.

        Raises:
            InvalidFieldError: a behaviour is unknown or not short-term, or two_stage has no short-term behaviour.
        """
        short_term = tuple(behaviour.name for behaviour in vocabulary.short_term)
        require(self.algorithm != "two_stage" or bool(short_term), "behaviours", vocabulary.behaviour_names,
                "at least one short_term behaviour for the algorithm two_stage")
        for name in self.multipliers:
            require(name in short_term, f"multipliers.{name}", self.multipliers[name],
                    f"short-term behaviours ({', '.join(short_term)})")
        behaviours = tuple(
            dataclasses.replace(behaviour, multiplier=self.multipliers.get(behaviour.name, behaviour.multiplier))
            for behaviour in vocabulary.behaviours
        )
        return dataclasses.replace(vocabulary, behaviours=behaviours)
