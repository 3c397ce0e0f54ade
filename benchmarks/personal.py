"""How much of what personal fusion can gain over one vector the learner finds, by how differently people mean things.

For every `meaning_spread` a world of its own is made. *Headroom* knows the truth: a network and a vector are fitted to
the response model's own expected watch time of every candidate, which no log tells. *Learned* has session logs alone:
the product's two-stage policy over its `replay_vector`, without floors, so that both chase watch time. Where two-stage
publishes the vector, it gains what the vector does. What is shown has no consequences beyond its page in these worlds,
or the truth of a page would not be all that there is to gain. All are tested without exploration on people whom no log
held, everybody living under every policy with the same luck.

    python -m benchmarks.personal                                    # embedded exposures
    python -m benchmarks.personal --exposures DIR --scorer BUNDLE --spreads 0 0.3 1
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from benchmarks.algorithms import scorer_of
from benchmarks.seeds import repeat
from recfuse.bundle import read_bundle
from recfuse.config import Config
from recfuse.fusion.inference import FusionActor
from recfuse.fusion.policies import Decision, FixedGaussian, Policy, decide
from recfuse.fusion.relaxation import relaxed_places
from recfuse.fusion.replay import Candidates, page_features
from recfuse.learning import registry
from recfuse.learning.cem import cem
from recfuse.learning.settings import LearningSettings
from recfuse.learning.training import TrainFusionConfig, train_fusion
from recfuse.logs.ingest import IngestConfig, ingest
from recfuse.runtime.console import start, table
from recfuse.simulation.arms import Arm
from recfuse.simulation.experiment import ab_test
from recfuse.simulation.fidelity import expected_feedback
from recfuse.simulation.output import WORLD, logged_policy
from recfuse.simulation.persons import held_out, persons_of
from recfuse.simulation.rollout import Requests, rollout
from recfuse.simulation.sessions import SessionEngine
from recfuse.simulation.simulate import SimulateConfig, simulate
from recfuse.simulation.world import World, WorldConfig

BATCH = 1_024


class PersonalConfig(Config):
    """What is varied, and how the truth is fitted."""

    exposures: str = Field("embedded", description=(
        "A directory with KuaiRand files is read; `embedded` is a generator."))
    scorer: str = Field(
        "runs/demo/scenes/bundles", description="Predictions of this bundle, or of one in this directory, are fused.")
    output: str = Field("runs/personal", description="Everything that is made lies beneath this directory.")
    spreads: tuple[float, ...] = Field((0.0, 0.3, 0.6, 1.0), min_length=1, description=(
        "Worlds have these values of `meaning_spread`."))
    seeds: int = Field(1, description="There are so many repetitions, each with other seeds for everything.", ge=1)
    first_seed: int = Field(400, description="The first repetition has this seed, and the others follow.", ge=0)
    log_persons: int = Field(18_000, description="The session logs hold so many simulated people.", ge=1)
    truth_persons: int = Field(4_000, description="The truth is fitted to the requests of so many people.", ge=10)
    persons: int = Field(20_000, description="So many people live under every policy.", ge=2)
    steps: int = Field(3_000, description="The network of the truth takes so many steps of Adam.", ge=1)
    learning: LearningSettings = Field(default_factory=registry.settings, description="Two-stage learns with these.")


@dataclass(frozen=True)
class Gains:
    """Relative gains in watch time, (estimate, low, high) each, and whether two-stage published the vector."""

    headroom: tuple[float, ...]
    learned: tuple[float, ...]
    vector: tuple[float, ...]
    publishes_vector: bool


@dataclass(frozen=True)
class Truth:
    """Requests [n], what they had to rank, and the expected watch time of each candidate, [n, N, 1]."""

    state: Tensor
    candidates: Candidates
    attention: Tensor

    def __getitem__(self, rows: Tensor) -> Truth:
        of = self.candidates
        return Truth(self.state[rows], Candidates(of.columns[rows], of.terms[rows], of.open[rows]), self.attention)

    def __len__(self) -> int:
        return len(self.state)


class Network(nn.Module):
    """State → fusion weights; begins at one vector."""

    def __init__(self, states: int, vector: NDArray[np.float64], hidden: int = 64) -> None:
        super().__init__()
        last = nn.Linear(hidden, len(vector))
        nn.init.zeros_(last.weight)
        with torch.no_grad():
            last.bias.copy_(torch.from_numpy(vector))
        self.layers = nn.Sequential(nn.Linear(states, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), last)

    def forward(self, state: Tensor) -> Tensor:
        """[n, S] → [n, M]."""
        weights: Tensor = self.layers(state)
        return weights

    @torch.no_grad()
    def act(self, state: NDArray[np.float32], explore: bool, rng: np.random.Generator) -> Decision:
        """A decision for each row, as every policy makes it."""
        mu = self(torch.from_numpy(state)).numpy()
        return decide(mu, np.ones_like(mu), explore, rng)


def main(config: PersonalConfig) -> list[list[Gains]]:
    """Runs the repetitions and prints the table; returns [seeds][spreads]."""
    return repeat(config, repetition, lambda title, results: show(config, title, results))


def repetition(config: PersonalConfig, seed: int) -> list[Gains]:
    """One seed, all spreads."""
    return [gains(config, seed, spread) for spread in config.spreads]


def gains(config: PersonalConfig, seed: int, spread: float) -> Gains:
    """World, logs, samples, policies, truth and test."""
    out = Path(config.output) / f"seed-{seed}" / f"spread-{spread:g}"
    settings = SimulateConfig(
        exposures=config.exposures, scorer=config.scorer, output=f"{out}/simulation", persons=config.log_persons,
        holdout_persons=0, seed=seed, world=WorldConfig(meaning_spread=spread, responsive=False, seed=seed))
    simulated = simulate(settings)
    world = World.load(out / "simulation" / WORLD)
    logged, strangers = logged_policy(out / "simulation", world), held_out(world, settings.held_out_users)
    samples = ingest(IngestConfig(logs=str(simulated.logs), output=f"{out}/samples")).samples
    vector, published = learn(config, seed, out, samples, "replay_vector")
    policy, published = learn(config, seed, out, samples, "two_stage")
    truth = truth_of(world, rollout(world, logged, seed=seed + 1, persons=persons_of(~strangers, config.truth_persons)))
    true_vector = vector_of(truth, logged, seed)
    network = network_of(truth, true_vector, config.steps, seed)

    def gained(treated: Policy, base: Policy) -> tuple[float, ...]:
        tested = ab_test(world, [Arm("base", base), Arm("treated", treated)], persons=config.persons, seed=seed,
                         paired=True, users=strangers)
        effect, place = tested.arms[1].effect, world.responses.measures.index("watch_time")
        return float(effect.estimate[place]), float(effect.low[place]), float(effect.high[place])

    fixed = FixedGaussian(true_vector, 1.0)
    return Gains(gained(network, fixed), gained(policy, vector), gained(vector, fixed), published)


def learn(config: PersonalConfig, seed: int, out: Path, samples: str, name: str) -> tuple[Policy, bool]:
    """What an algorithm of the product learns from the samples, and whether it published the one vector."""
    settings = registry.adapted(config.learning, name)
    settings = settings.replace(seed=seed, replay=settings.replay.replace(floor=-1.0, floors={}))
    trained = train_fusion(TrainFusionConfig(samples=samples, scorer=scorer_of(config.scorer), output=f"{out}/{name}",
                                             learning=settings))
    gate = trained.metrics.get("gate", {})
    return FusionActor.from_bundle(read_bundle(trained.bundle, "fusion")), bool(gate.get("publishes_vector", True))


def truth_of(world: World, requests: Requests) -> Truth:
    """The candidates of logged requests with their expected watch time, relative to its mean."""
    engine = SessionEngine(world, 0)
    entry, offset = requests.entry, requests.offset
    places = engine.places_in_pool(offset)
    watch = np.concatenate([expected_feedback(world, part[:, None], at)[..., :1] for part, at in zip(
        np.array_split(entry, 64), np.array_split(places, 64), strict=True)])
    terms = np.take_along_axis(world.terms[entry], places[:, None], 2).transpose(0, 2, 1)
    attention = world.config.attention ** np.arange(world.config.page)
    return Truth(
        torch.from_numpy(requests.state),
        Candidates(torch.from_numpy((watch / watch.mean()).astype(np.float32)),
                   torch.from_numpy(np.ascontiguousarray(terms, np.float32)),
                   torch.from_numpy(~requests.seen)),
        torch.from_numpy((attention / attention.sum()).astype(np.float32)))


def vector_of(truth: Truth, logged: FixedGaussian, seed: int) -> NDArray[np.float64]:
    """The vector whose pages have the most expected watch time, by the cross-entropy method."""
    some = truth[torch.from_numpy(np.random.default_rng(seed).permutation(len(truth))[:5_000])]

    def score(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
        of_each = page_features(some.candidates, torch.from_numpy(vectors.astype(np.float32)), some.attention)
        return of_each[..., 0].mean(0).double().numpy()

    std = np.ones(len(logged.mu))
    return cem(score, logged.mu, std, population=48, elite_share=0.2, iterations=30, seed=seed).vector


def network_of(truth: Truth, vector: NDArray[np.float64], steps: int, seed: int) -> Network:
    """The network whose relaxed pages have the most, of the temperature that the learner has."""
    torch.manual_seed(seed)
    rng = np.random.default_rng([seed, 1])
    network = Network(truth.state.shape[1], vector)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        batch = truth[torch.from_numpy(rng.integers(0, len(truth), BATCH))]
        scores = torch.bmm(network(batch.state).unsqueeze(1), batch.candidates.terms.transpose(1, 2))
        taken = relaxed_places(scores, batch.candidates.open, batch.attention, 0.15)
        loss = -torch.bmm(taken, batch.candidates.columns).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
    return network


def show(config: PersonalConfig, title: str, results: list[list[Gains]]) -> None:
    """A row a spread: intervals are those over users of the last seed, estimates are means over the seeds."""
    def cell(of: list[tuple[float, ...]]) -> str:
        return f"{np.mean([each[0] for each in of]):+.1%} [{of[-1][1]:+.1%}, {of[-1][2]:+.1%}]"

    rows = []
    for place, spread in enumerate(config.spreads):
        of = [result[place] for result in results]
        room, learned = (np.mean([getattr(each, name)[0] for each in of]) for name in ("headroom", "learned"))
        rows.append((f"{spread:g}", cell([each.headroom for each in of]), cell([each.learned for each in of]),
                     f"{learned / room:.0%}" if room > 0.002 else "–", cell([each.vector for each in of]),
                     f"{sum(each.publishes_vector for each in of)} of {len(of)}"))
    table(f"Watch time, {title}",
          ["meaning_spread", "network over vector, true response", "two-stage over replay_vector", "share",
           "replay_vector over the true one", "published the vector"], rows)


if __name__ == "__main__":
    main(start(PersonalConfig, description=__doc__))
