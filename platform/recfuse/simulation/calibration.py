"""Calibrates a world to the exposures, and compares the two.

It answers one question: with the logged policy, does the world look like the log? Ranking picks the better of 50
candidates, so the response model alone would answer too well; per scene and behaviour a shift of the log-odds sets the
mean right, per scene and outcome a monotone map sets the distribution of watch time, and per scene a log-odds of
leaving sets the mean length of sessions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recfuse.behaviours import StateFeature
from recfuse.fusion.policies import FixedGaussian
from recfuse.logs.exposures import Exposures
from recfuse.simulation.response import marginals, shrunk_rates, sigmoid, solve_shift
from recfuse.simulation.response_network import amounts_of, interactions_of, item_positions, outcomes_of
from recfuse.simulation.responses import FEED, Responses
from recfuse.simulation.sessions import SessionEngine
from recfuse.simulation.world import World, WorldConfig

TOLERANCE = 0.1  # relative; of watch time also this many seconds, since small deciles are fractions of one
DECILES = tuple(range(10, 100, 10))


@dataclass(frozen=True)
class Calibration:
    """How the world under the logged policy compares with the log; rows of (scene, measure, simulated, real).

    Rates and watch time are per exposure looked at. Simulated rates are means of the probabilities that the responses
    were drawn with, because a simulation of any size has too few draws of a behaviour of 0.1% in a small scene.
    """

    rows: tuple[tuple[str, str, float, float], ...]
    seconds: str = FEED.seconds

    @property
    def off(self) -> tuple[tuple[str, str, float, float], ...]:
        """The rows that are further from the log than TOLERANCE; what the log never has is left out."""
        return tuple(row for row in self.rows if not within_tolerance(*row[1:], seconds=self.seconds))


def within_tolerance(measure: str, simulated: float, real: float, seconds: str = FEED.seconds) -> bool:
    """Whether a measure of the world is close enough to the log's; an amount of this name, which is a time, may also be
    off by TOLERANCE seconds."""
    slack = TOLERANCE if seconds and (measure == seconds or measure.startswith(f"{seconds} p")) else 0.0
    return abs(simulated - real) <= max(TOLERANCE * abs(real), slack) or (real == 0 and not slack)


@dataclass(frozen=True)
class Targets:
    """What the log says per scene.

    Attributes:
        rates: float64[S, heads], what the world is set to: drawn a little to the pooled rate; observed: as they are.
        watch_time: per scene and outcome, the amounts, or the multiples that they are, of every exposure, ascending.
        length: float64[S], requests per session.
    """

    rates: np.ndarray
    observed: np.ndarray
    watch_time: tuple[tuple[np.ndarray, ...], ...]
    length: np.ndarray


def measure(exposures: Exposures, scenes: tuple[str, ...], responses: Responses = FEED,
            shrinkage: float = 100.0) -> Targets:
    """What the log says; rates of interactions are drawn to the pooled rate by so many rows, so that none is 0."""
    scene = pc.index_in(exposures.rows["scene"], pa.array(scenes)).fill_null(-1).to_numpy()
    outcome, ladder = outcomes_of(exposures, responses), len(responses.ladder)
    labels = np.concatenate([outcome[:, None] > np.arange(ladder), interactions_of(exposures, responses)],
                            1).astype(np.float64)
    user = exposures.column("user_id")
    watch = amounts_of(exposures, responses, item_positions(exposures))
    observed, watch_time, length = [], [], []
    for index in range(len(scenes)):
        inside = scene == index
        observed.append(labels[inside].mean(0))
        watch_time.append(tuple(np.sort(watch[inside & (outcome == place)]) for place in range(ladder + 1)))
        length.append(max(inside.sum() / max(len(np.unique(user[inside])), 1), 1.05))
    return Targets(shrunk_rates(labels, scene, len(scenes), shrinkage, ladder), np.stack(observed), tuple(watch_time),
                   np.array(length))


def calibrate(world: World, logged: FixedGaussian, targets: Targets, rounds: int = 6) -> World:
    """Sets page statistics, leaving, response shifts and watch times by simulating the logged policy."""
    for number in range(rounds):
        # The last rounds decide, so that they look at more.
        sample = _simulate(world, logged, 1_000 + number, 1_500 if number < rounds - 2 else 4_500)
        world = _moved(world, sample, targets, whole_step=number == 0)
        world = world.replace(page_mean=_expected_pages(world, logged, seed=3_000 + number))
    return world


def _moved(world: World, sample: _Sample, targets: Targets, whole_step: bool) -> World:
    """The world after one round of calibration: each scene is moved by what a sample of it misses the targets by."""
    columns = sample.columns
    logits, watch_time = world.logits.copy(), world.watch_time.copy()
    page_std, leave = world.page_std.copy(), world.leave.copy()
    for scene in range(len(world.scenes)):
        inside = columns["scene"] == scene
        if inside.sum() < 2:
            continue
        shift = solve_shift(sample.logits[scene], world.outcome, targets.rates[scene])
        logits[world.entry_scene == scene] += shift.astype(np.float32)
        page_std[scene] = (columns["satisfaction"] - world.page_mean[columns["entry"]])[inside].std() + 1e-3
        solved = _leaving(columns["mood"][inside], world.config, 1 / targets.length[scene])
        # Half a step after the first: whom a lower chance of leaving keeps is in a better mood; whole ones swing.
        leave[scene] = solved if whole_step else (leave[scene] + solved) / 2
        for outcome, real in enumerate(targets.watch_time[scene]):
            simulated = sample.watch_time[scene][sample.outcome[scene] == outcome]
            watch_time[scene, outcome] = _as_distributed(watch_time[scene, outcome], simulated, real)
    return world.replace(logits=logits, page_std=page_std, leave=leave, watch_time=watch_time)


def _as_distributed(values: np.ndarray, simulated: np.ndarray, real: np.ndarray, least: int = 30) -> np.ndarray:
    """Values mapped from their place in the simulated distribution to the same place in the real one.

    The policy ranks other durations than the log shows, and with them other watch times.
    """
    if len(simulated) < least or len(real) < least:
        return values
    simulated = np.sort(simulated)
    # Mid-ranks, so that ties (no watch time at all) stay together.
    rank = (np.searchsorted(simulated, values, "left") + np.searchsorted(simulated, values, "right")) / 2
    return np.quantile(real, rank / len(simulated)).astype(np.float32)


def _expected_pages(world: World, logged: FixedGaussian, seed: int, pages: int = 12) -> np.ndarray:
    """float64[E]: the satisfaction that the logged policy's pages give every entry, on average."""
    engine, rng = SessionEngine(world, seed), np.random.default_rng([seed, 0xCB])
    entries = np.arange(len(world.entry_user))
    total = np.zeros(len(entries))
    for page in range(pages):
        zeros = np.zeros(len(entries))
        sessions = engine.start(world.entry_user, entries, np.full(len(entries), page), zeros, zeros)
        sessions.entry[:] = entries
        action = logged.act(np.zeros((len(entries), 0), np.float32), True, rng).action
        total += engine.expected_satisfaction(sessions, action)
    return total / pages


@dataclass(frozen=True)
class _Sample:
    """Sessions under the logged policy, as many in every scene.

    Attributes:
        columns: of their requests, `[N]` each.
        logits, outcome, watch_time: per scene, the response logits `[places, heads]`, the outcome and the amount (or
            the multiple that it is) of the places looked at.
    """

    columns: dict[str, np.ndarray]
    logits: list[np.ndarray]
    outcome: list[np.ndarray]
    watch_time: list[np.ndarray]


def _simulate(world: World, logged: FixedGaussian, seed: int, sessions_per_scene: int) -> _Sample:
    engine, rng = SessionEngine(world, seed), np.random.default_rng([seed, 0xCA])
    entry = _sample_entries(world, sessions_per_scene, rng)
    count = len(entry)
    sessions = engine.start(world.entry_user[entry], np.arange(count), np.zeros(count, np.int64),
                            rng.random(count) * world.config.horizon_days, np.zeros(count))
    sessions.entry[:] = entry
    parts: list[dict[str, np.ndarray]] = []
    places: list[list[tuple[np.ndarray, ...]]] = [[] for _ in world.scenes]
    while len(sessions.user):
        context = engine.context(sessions)
        features = {name: context[name].copy() for name in world.responses.session_features}
        # The logged policy reads no state, whose features are not normalised yet.
        page = engine.step(sessions, logged.act(np.zeros((len(sessions.user), 0), np.float32), True, rng).action)
        scene, last = world.entry_scene[sessions.entry], page.left | page.cut
        parts.append({"scene": scene, "entry": sessions.entry, "satisfaction": page.satisfaction, "mood": page.mood,
                      "feedback": page.feedback, "looked": page.looked.sum(1), "last": last, **features})
        answered = world.logits[sessions.entry[:, None], page.shown]
        factor = world.factor[world.item[sessions.entry[:, None], page.shown]]
        for index, of_scene in enumerate(places):
            looked = (scene == index)[:, None] & page.looked
            of_scene.append((answered[looked], page.outcome[looked], page.watch_time[looked] / factor[looked]))
        sessions = sessions.take(np.flatnonzero(~last))
    of_places = [[np.concatenate(column) for column in zip(*of_scene, strict=True)] for of_scene in places]
    return _Sample({name: np.concatenate([part[name] for part in parts]) for name in parts[0]},
                   *(list(column) for column in zip(*of_places, strict=True)))


def _sample_entries(world: World, per_scene: int, rng: np.random.Generator) -> np.ndarray:
    """Entries of every scene, each as often as its users' sessions are in it."""
    share, chosen = _entry_shares(world), []
    for scene in range(len(world.scenes)):
        inside = np.flatnonzero(world.entry_scene == scene)
        if len(inside):
            chosen.append(rng.choice(inside, size=per_scene, p=share[inside] / share[inside].sum()))
    return np.concatenate(chosen)


def _leaving(mood: np.ndarray, config: WorldConfig, hazard: float) -> float:
    """The log-odds c for which the mean of sigmoid(c − effect · mood) is the hazard (bisection)."""
    effect = config.stay_effect if config.responsive else 0.0
    low, high = -20.0, 20.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if sigmoid(middle - effect * mood).mean() < hazard else (low, middle)
    return (low + high) / 2


def finish(world: World, logged: FixedGaussian, targets: Targets) -> tuple[World, Calibration]:
    """Compares a fresh simulation with the log; normalises session features and behaviours by it."""
    sample = _simulate(world, logged, 2_000, 5_000)
    columns, vocabulary, responses = sample.columns, world.vocabulary, world.responses
    weight = _scene_weights(world)[columns["scene"]]
    features = tuple(_fitted(feature, columns[feature.name], weight)
                     if feature.name in responses.session_features else feature
                     for feature in vocabulary.state_features)
    behaviours = []
    for behaviour in vocabulary.behaviours:
        value = columns["feedback"][:, world.feedback.index(behaviour.name)].astype(np.float64)
        value = np.log1p(value) if behaviour.transform == "log1p" else value
        # The spread of a rare behaviour from its rate: a small simulation may have none of it.
        heads = responses.heads
        rate = targets.rates[:, heads.index(behaviour.name)].mean() if behaviour.name in heads else 0.0
        scale = max(_moments(value, weight)[1], float(rate)**.5)
        behaviours.append(behaviour.replace(scale=round(scale, 6)))
    vocabulary = vocabulary.replace(state_features=features, behaviours=tuple(behaviours))
    return world.replace(vocabulary=vocabulary), _compare(world, sample, targets)


def _compare(world: World, sample: _Sample, targets: Targets) -> Calibration:
    rows: list[tuple[str, str, float, float]] = []
    for index, scene in enumerate(world.scenes):
        inside = sample.columns["scene"] == index
        rates = marginals(sample.logits[index].astype(np.float64), world.outcome).mean(0)
        rows += [(scene, name, float(rates[head]), float(targets.observed[index, head]))
                 for head, name in enumerate(world.responses.heads)]
        watch, real = sample.watch_time[index], np.concatenate(targets.watch_time[index])
        amount, of_item = world.responses.amount, world.responses.amount_of
        if amount:
            rows.append((scene, f"{amount} / {of_item}" if of_item else amount, float(watch.mean()),
                         float(real.mean())))
        if amount and not of_item:
            rows += [(scene, f"{amount} p{level}", *_percentiles(level, watch, real)) for level in DECILES]
        sessions = max(int(sample.columns["last"][inside].sum()), 1)
        rows.append((scene, "session_length", float(inside.sum() / sessions), float(targets.length[index])))
    return Calibration(tuple(rows), world.responses.seconds)


def _percentiles(level: int, watch: np.ndarray, real: np.ndarray) -> tuple[float, float]:
    return float(np.percentile(watch, level)), float(np.percentile(real, level))


def _fitted(feature: StateFeature, values: np.ndarray, weight: np.ndarray) -> StateFeature:
    values = np.log1p(values.astype(np.float64)) if feature.log else values.astype(np.float64)
    mean, std = _moments(values, weight)
    return feature.replace(mean=round(mean, 6), std=round(std + 1e-6, 6))


def _moments(values: np.ndarray, weight: np.ndarray) -> tuple[float, float]:
    mean = float(np.average(values, weights=weight))
    return mean, float(np.average((values - mean) ** 2, weights=weight)) ** .5


def _scene_weights(world: World) -> np.ndarray:
    """float64[S]: sessions of each scene in the world, per session that a sample has of it."""
    return np.bincount(world.entry_scene, _entry_shares(world), len(world.scenes))


def _entry_shares(world: World) -> np.ndarray:
    """float64[E]: share of its user's sessions."""
    first = np.isin(np.arange(len(world.entry_user)), world.first_entry)
    shares: np.ndarray = world.entry_share - np.where(first, 0.0, np.concatenate([[0.0], world.entry_share[:-1]]))
    return shares
