"""What a training run is told: algorithm, networks, learning rates, stopping rules."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Annotated, Literal, get_args

import torch
import tyro

from recfuse.behaviours import Vocabulary
from recfuse.config import require
from recfuse.fusion.networks import NetworkConfig

AlgorithmName = Literal["two_stage", "behaviour_cloning", "cem", "actor_critic", "interaction_only", "rcpo",
                        "rcpo_mixed", "pareto", "td3_bc", "iql"]
AdvantageKind = Literal["regressed", "sampled"]
AuxiliaryKind = Literal["per_behaviour", "sequential"]
DensityKind = Literal["auto", "logged", "estimated"]
TargetKind = Literal["one_step", "v_trace"]
Phase = Literal["critics", "cloning", "stage_one", "stage_two", "policy", "action_values", "extraction", "actor",
                "search"]

# What each algorithm fits, one after the other.
PHASES: dict[str, tuple[Phase, ...]] = {
    "two_stage": ("critics", "cloning", "stage_one", "stage_two"),
    "behaviour_cloning": ("cloning",),
    "cem": ("critics", "search"),
    "actor_critic": ("critics", "cloning", "policy"),
    "interaction_only": ("critics", "cloning", "policy"),
    "rcpo": ("critics", "cloning", "policy"),
    "rcpo_mixed": ("critics", "cloning", "policy"),
    "pareto": ("critics", "cloning", "policy"),
    "td3_bc": ("cloning", "actor"),
    "iql": ("action_values", "cloning", "extraction"),
}
# These read the short-term behaviours' advantages or rewards.
_NEED_SHORT_TERM = ("two_stage", "interaction_only", "rcpo", "rcpo_mixed")
# Algorithms whose policy is compared with the density of the logged actions.
_NEED_DENSITY = ("two_stage", "cem", "actor_critic", "interaction_only", "rcpo", "rcpo_mixed", "pareto")
# With one critic, of the mixed reward.
_ONE_CRITIC = ("rcpo_mixed", "iql", "td3_bc")


@dataclass(frozen=True, kw_only=True)
class StoppingRule:
    """A fit ends on the first of these (maths 1.7). An iteration is one pass over the samples, and its loss is that
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
class IqlSettings:
    """Of `iql`.

    Attributes:
        expectile: of the action values that the state value is, in (0, 1); ½ is their mean, towards 1 their maximum.
        temperature: inverse: the policy weighs a sample by exp(temperature · A), A in its standard deviations.
    """

    expectile: float = 0.7
    temperature: float = 3.0

    def __post_init__(self) -> None:
        require(0 < self.expectile < 1, "expectile", self.expectile, "a number in (0, 1)")
        require(0 < self.temperature < math.inf, "temperature", self.temperature, "a finite number > 0")


@dataclass(frozen=True, kw_only=True)
class Td3BcSettings:
    """Of `td3_bc`. Actions are measured in standard deviations of the logged ones.

    Attributes:
        alpha: weight of the value against the distance to the logged action; 0.5 to 2.5 as a rule.
        noise, noise_clip: of the target policy's action (target policy smoothing).
        delay: the policy and the target networks take a step every so many steps of the values.
    """

    alpha: float = 2.5
    noise: float = 0.2
    noise_clip: float = 0.5
    delay: int = 2

    def __post_init__(self) -> None:
        require(0 < self.alpha < math.inf, "alpha", self.alpha, "a finite number > 0")
        require(0 <= self.noise < math.inf, "noise", self.noise, "a finite number ≥ 0")
        require(0 <= self.noise_clip < math.inf, "noise_clip", self.noise_clip, "a finite number ≥ 0")
        require(self.delay >= 1, "delay", self.delay, "an integer ≥ 1")


@dataclass(frozen=True, kw_only=True)
class CemSettings:
    """Of `cem`, see recfuse.learning.cem.

    Attributes:
        population: vectors of an iteration; elite_share: of them, that the next distribution is fitted to.
        spread: first standard deviation, in standard deviations of the logged actions.
        std_floor, smoothing: of the search's standard deviation.
        pessimism: a vector's score is its estimate less so many of its standard errors.
        cap: of the importance weights; a low one pulls the estimate of a distant vector to the logged policy's, which
            the search overcomes by going too far.
    """

    population: int = 64
    elite_share: float = 0.25
    spread: float = 0.5
    std_floor: float = 0.05
    smoothing: float = 0.5
    pessimism: float = 1.0
    cap: float = 100.0

    def __post_init__(self) -> None:
        require(self.population >= 2, "population", self.population, "an integer ≥ 2")
        require(0 < self.elite_share < 1, "elite_share", self.elite_share, "a share in (0, 1)")
        require(0 < self.spread < math.inf, "spread", self.spread, "a finite number > 0")
        require(0 <= self.std_floor < 1, "std_floor", self.std_floor, "a share in [0, 1)")
        require(0 <= self.smoothing < 1, "smoothing", self.smoothing, "a share in [0, 1)")
        require(0 < self.cap < math.inf, "cap", self.cap, "a finite number > 0")
        require(0 <= self.pessimism < math.inf, "pessimism", self.pessimism, "a finite number ≥ 0")


@dataclass(frozen=True, kw_only=True)
class LearningSettings:
    """Everything about a training run but its samples.

    Attributes:
        algorithm: `two_stage` (maths 1); or a rival, which shares networks, data and export with it.
            `behaviour_cloning` imitates the logged policy. `cem` searches one fusion vector for all requests by the
            cross-entropy method; a vector is judged on the log, by the self-normalised, clipped importance-weighted
            mean of the long-term advantage. These climb one advantage by the off-policy gradient with clipped ratios
            (Degris et al., "Off-Policy Actor-Critic", ICML 2012): `actor_critic` that of the long-term behaviours
            alone; `interaction_only` the weighted sum of the short-term ones; `pareto` the weighted sum of all (linear
            scalarisation: Lin et al., "A Pareto-Efficient Algorithm for Multiple Objective Optimization in E-Commerce
            Recommendation", RecSys 2019, with the weights fixed); `rcpo` the Lagrangian of the long-term ones under a
            floor for each short-term one, its multipliers found by dual ascent (Tessler et al., "Reward Constrained
            Policy Optimization", ICLR 2019), with a critic per behaviour, whose advantages are learned once and mixed
            by the multipliers; `rcpo_mixed` the same with the paper's one critic of the mixed reward, which follows the
            multipliers. Two learn the value of actions from the long-term reward, with its largest discount: `td3_bc`
            (Fujimoto and Gu, NeurIPS 2021; its σ, one for all states, is that of the cloned log) and `iql` (Kostrikov
            et al., ICLR 2022).
        network: sizes and bounds of critics and policies.
        critics, stage_one, stage_two: stopping rules of the three fits. Rewards are divided by their standard
            deviation, so that a critic that knows nothing has a loss of about 1.
        holdout: share of the samples, in runs of consecutive ones, that is not learned from; the stopping rules look at
            the loss on it, so that a fit ends where it begins to overfit. In stage one that is −mean(ρ A), the
            estimate of what the policy is for; the value of its surrogate J does not compare policies. 0 for none:
            the rules then look at the training loss.
        auxiliary: `per_behaviour` (a policy per short-term behaviour) or `sequential` (one policy that every short-term
            critic updates in turn, on each minibatch, in the vocabulary's order: maths 1.4's other reading).
        density: of the logged actions: `logged`; `estimated` by the Gaussian that cloning fits to them; or `auto`,
            which is `estimated` where a sample lacks its density.
        targets: of the critics: `one_step` (maths 1.2) or `v_trace` (Espeholt et al., ICML 2018): sums over the rest
            of the session, corrected towards the policy as it stands. Cloning then comes before the critics, so that
            this is the logged policy, and where a rival's policy climbs, its critics follow it.
        trace_max: ρ̄ = c̄ of V-trace.
        target_rate: Polyak rate in (0, 1] of target networks that the critics bootstrap from; None for no target
            networks, except in `td3_bc` and `iql`, which have them and take 0.005.
        advantage: `regressed` (the policies learn from the conditional expectation of the advantage given state and
            action, see recfuse.fusion.advantages) or `sampled` (from the samples of maths 1.3 themselves).
        cloning: stopping rule of the fit to the logged policy, from which all others start.
        policy: stopping rule of the rivals' policy; `rcpo`, whose objective moves with its multipliers, and `td3_bc`,
            where it moves with the values, take all of its iterations. The values of `iql` stop by `critics`.
        search: stopping rule of CEM, whose iterations are populations.
        critic_learning_rate, auxiliary_learning_rate, policy_learning_rate: of Adam.
        max_gradient_norm: gradients are scaled down to it.
        minibatch_size: samples of one step, over all learners together.
        shards: a power of two. Gradients of so many equal parts of a minibatch are summed in a fixed order; so any
            number of learners that divides it ends with the same bits. Where it does not divide the minibatch, or the
            learners do not divide it, each learner's share is one part, and their number changes the rounding.
        rho_max: ρ̄ of the clipped ratio in stage one (maths 1.4) and in the rivals' gradient.
        ess_floor: least effective sample size in stage two, as a share of the samples (maths 1.6).
        weight_cap: largest weight of a sample in stage two, where the mean is 1; None for no cap.
        multipliers: behaviour → λ, over those of the vocabulary; for `two_stage`.
        weights: behaviour → weight ≥ 0 of its advantage, which has unit variance, in `interaction_only` (short-term
            ones) and `pareto` (any); 1 where none is given.
        floors: short-term behaviour → least relative change of its mean reward per request from the logged one, for
            `rcpo`; 0, where none is given, allows no loss.
        dual_step: of `rcpo`: after each pass a multiplier rises by so much times the relative shortfall.
        multiplier_max: of `rcpo`; multipliers stay in [0, multiplier_max] and start at 0.
        iql, td3_bc, cem: what these alone have.
        window_rows: samples are shuffled within windows of so many consecutive rows.
        memory_mib: samples up to this size stay in each learner's memory; larger ones are streamed in every pass.
        threads: of each learner's arithmetic. One is fastest where the cores are shared: threads that wait for each
            other spin.
        num_learners: 0 learns in the calling process, n ≥ 1 in n workers.
        gpus_per_learner: None takes one where there is one.
        seed: of the initial parameters and the order of samples.
    """

    algorithm: Annotated[AlgorithmName, tyro.conf.arg(aliases=("--algorithm",))] = "two_stage"
    auxiliary: AuxiliaryKind = "per_behaviour"
    density: DensityKind = "auto"
    targets: TargetKind = "one_step"
    trace_max: float = 1.0
    target_rate: float | None = None
    advantage: AdvantageKind = "regressed"
    network: NetworkConfig = field(default_factory=NetworkConfig)
    critics: StoppingRule = StoppingRule(iterations=20, change_below=1e-3, patience=3)
    cloning: StoppingRule = StoppingRule(iterations=5, change_below=1e-3)
    stage_one: StoppingRule = StoppingRule(iterations=10, change_below=0.0)
    stage_two: StoppingRule = StoppingRule(iterations=15, change_below=0.0)
    policy: StoppingRule = StoppingRule(iterations=15, change_below=0.0, patience=2)
    search: StoppingRule = StoppingRule(iterations=30)
    holdout: float = 0.1
    critic_learning_rate: float = 1e-3
    auxiliary_learning_rate: float = 3e-4
    policy_learning_rate: float = 1e-3
    max_gradient_norm: float = 10.0
    minibatch_size: int = 1024
    shards: int = 2
    rho_max: float = 2.0
    ess_floor: float = 0.02
    weight_cap: float | None = None
    multipliers: dict[str, float] = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict)
    floors: dict[str, float] = field(default_factory=dict)
    dual_step: float = 1.0
    multiplier_max: float = 10.0
    iql: IqlSettings = field(default_factory=IqlSettings)
    td3_bc: Td3BcSettings = field(default_factory=Td3BcSettings)
    cem: CemSettings = field(default_factory=CemSettings)
    window_rows: int = 262_144
    memory_mib: int = 512
    threads: int = 1
    num_learners: int = 0
    gpus_per_learner: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        require(self.algorithm in PHASES, "algorithm", self.algorithm, ", ".join(PHASES))
        for name, kind in (("advantage", AdvantageKind), ("auxiliary", AuxiliaryKind), ("density", DensityKind),
                           ("targets", TargetKind)):
            require(getattr(self, name) in get_args(kind), name, getattr(self, name), ", ".join(get_args(kind)))
        require(self.target_rate is None or 0 < self.target_rate <= 1, "target_rate", self.target_rate,
                "a number in (0, 1], or nothing")
        require(self.algorithm != "cem" or self.network.action_range is None, "network.action_range",
                self.network.action_range, "nothing, for the algorithm cem, whose vector is not squashed")
        for name in ("critic_learning_rate", "auxiliary_learning_rate", "policy_learning_rate", "max_gradient_norm",
                     "rho_max", "trace_max", "dual_step", "multiplier_max"):
            value = getattr(self, name)
            require(0 < value < math.inf, name, value, "a finite number > 0")
        require(self.num_learners >= 0, "num_learners", self.num_learners, "an integer ≥ 0")
        require(self.minibatch_size >= 1 and self.minibatch_size % max(self.num_learners, 1) == 0, "minibatch_size",
                self.minibatch_size, f"a multiple of num_learners ({self.num_learners}), ≥ 1")
        require(self.shards >= 1 and self.shards & (self.shards - 1) == 0, "shards", self.shards, "1, 2, 4, 8, …")
        require(0 <= self.holdout < 1, "holdout", self.holdout, "a share in [0, 1)")
        require(0 <= self.ess_floor <= 1, "ess_floor", self.ess_floor, "a share in [0, 1]")
        require(self.weight_cap is None or self.weight_cap >= 1, "weight_cap", self.weight_cap,
                "a number ≥ 1, or nothing")
        require(all(0 < value < math.inf for value in self.multipliers.values()), "multipliers", self.multipliers,
                "finite numbers > 0")
        require(all(0 <= value < math.inf for value in self.weights.values()), "weights", self.weights,
                "finite numbers ≥ 0")
        require(all(math.isfinite(value) for value in self.floors.values()), "floors", self.floors, "finite numbers")
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
        phases = PHASES[self.algorithm]
        if self.estimates_density and "cloning" not in phases:
            phases = ("cloning", *phases)
        if self.targets == "v_trace" and {"critics", "cloning"} <= set(phases):
            phases = ("cloning", *(phase for phase in phases if phase != "cloning"))
        return phases

    def rule(self, phase: Phase) -> StoppingRule:
        """The stopping rule of a fit."""
        if phase == "actor" or (phase == "policy" and self.is_rcpo):
            return StoppingRule(iterations=self.policy.iterations)
        return {"critics": self.critics, "cloning": self.cloning, "stage_one": self.stage_one,
                "stage_two": self.stage_two, "policy": self.policy, "action_values": self.critics,
                "extraction": self.policy, "search": self.search}[phase]

    def resolved(self, has_density: bool) -> LearningSettings:
        """The settings with `density` decided, for samples of which each has its density, or not.

        Raises:
            InvalidFieldError: `density` is `logged`, and the samples lack it.
        """
        require(has_density or self.density != "logged", "density", self.density,
                "auto or estimated, because samples lack action_logp")
        chosen: DensityKind = "logged" if has_density else "estimated"
        return dataclasses.replace(self, density=chosen if self.density == "auto" else self.density)

    @property
    def estimates_density(self) -> bool:
        """Whether the density of the logged actions is that of the cloned policy."""
        return self.density == "estimated" and (self.algorithm in _NEED_DENSITY)

    @property
    def is_rcpo(self) -> bool:
        """Whether multipliers are found by dual ascent."""
        return self.algorithm in ("rcpo", "rcpo_mixed")

    @property
    def one_critic(self) -> bool:
        """Whether there is one critic, of the mixed reward, in place of one per behaviour."""
        return self.algorithm in _ONE_CRITIC

    @property
    def critics_follow(self) -> bool:
        """Whether the critics go on learning while the policy climbs."""
        return self.algorithm == "rcpo_mixed" or self.targets == "v_trace"

    @property
    def polyak_rate(self) -> float | None:
        """Rate of the target networks; None where there are none."""
        if self.target_rate is None and self.algorithm in ("td3_bc", "iql"):
            return 0.005
        return self.target_rate

    def scalarisation(self, vocabulary: Vocabulary) -> tuple[float, ...]:
        """Weight of each behaviour's advantage in what the rivals' policy climbs, before multipliers.

        The weights of the long-term ones sum to 1, except in `pareto`, where the config gives them all.
        """
        total = sum(behaviour.weight for behaviour in vocabulary.long_term)
        weights = []
        for behaviour in vocabulary.behaviours:
            long_term = behaviour.kind == "long_term"
            if self.algorithm == "pareto" or (self.algorithm == "interaction_only" and not long_term):
                weights.append(self.weights.get(behaviour.name, 1.0))
            else:
                weights.append(behaviour.weight / total if long_term and self.algorithm != "interaction_only" else 0.0)
        return tuple(weights)

    @property
    def parts(self) -> int:
        """Parts of a global minibatch whose gradients are computed apart; see `shards`."""
        workers = max(self.num_learners, 1)
        return self.shards if self.minibatch_size % self.shards == self.shards % workers == 0 else workers

    @property
    def gpus(self) -> float:
        """GPUs of each learner, resolved."""
        if self.gpus_per_learner is not None:
            return self.gpus_per_learner
        return 1.0 if torch.cuda.is_available() else 0.0

    def with_multipliers(self, vocabulary: Vocabulary) -> Vocabulary:
        """The vocabulary with this run's λ.

        Raises:
            InvalidFieldError: a behaviour is unknown or of the wrong kind, all weights are zero, or the algorithm needs
                a short-term behaviour and there is none.
        """
        short_term = tuple(behaviour.name for behaviour in vocabulary.short_term)
        require(self.algorithm not in _NEED_SHORT_TERM or bool(short_term), "behaviours", vocabulary.behaviour_names,
                f"at least one short_term behaviour for the algorithm {self.algorithm}")
        allowed = f"short-term behaviours ({', '.join(short_term)})"
        for option, given in (("multipliers", self.multipliers), ("floors", self.floors)):
            for name, value in given.items():
                require(name in short_term, f"{option}.{name}", value, allowed)
        for name, value in self.weights.items():
            require(name in vocabulary.behaviour_names, f"weights.{name}", value,
                    f"behaviours ({', '.join(vocabulary.behaviour_names)})")
        require(sum(self.scalarisation(vocabulary)) > 0, "weights", self.weights, "at least one number > 0")
        behaviours = tuple(
            behaviour.replace(multiplier=self.multipliers.get(behaviour.name, behaviour.multiplier))
            for behaviour in vocabulary.behaviours
        )
        return vocabulary.replace(behaviours=behaviours)
