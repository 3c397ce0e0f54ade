"""Builds a world from exposures, a scorer and a fitted response model, and calibrates it to the exposures.

Calibration answers one question: with the logged policy, does the world look like the log? Ranking picks the better of
50 candidates, so the response model alone would answer too well; per scene and behaviour a shift of the log-odds sets
the mean right, per scene and outcome a monotone map sets the distribution of watch time, and per scene a log-odds of
leaving sets the mean length of sessions.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recfuse.behaviours import Behaviour, StateFeature, Vocabulary
from recfuse.config import require
from recfuse.fusion.policies import FixedGaussian
from recfuse.logs.exposures import RESPONSE_SHARE, Exposures, row_share
from recfuse.simulation.environment import SessionEngine
from recfuse.simulation.response import HEADS, INTERACTIONS, OUTCOMES, ResponseModel, marginals, sigmoid, solve_shift
from recfuse.simulation.world import FEEDBACK, SESSION_FEATURES, World, WorldConfig

logger = logging.getLogger("recfuse")

# (user_id[N], item_id[N], scene index[N]) → predictions float32[N, M], in the order of the fusion parameters.
Predict = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]

# Λ = 0.5: with an advantage of unit variance the tilt exp(A/Λ) moves a Gaussian by at most two of its deviations, about
# as far as an effective sample size of 2% supports.
BEHAVIOURS = (
    # In seconds, as A/B tests count them: log(1 + seconds) hardly sees how long what is shown lasts.
    Behaviour(name="watch_time", kind="long_term"),
    *(Behaviour(name=name, kind="short_term", multiplier=0.125) for name in ("like", "comment", "forward", "follow")),
)
_USER_CATEGORIES, _USER_NUMBERS = 5, 4
_MOST_VALUES = 8
TOLERANCE = 0.1  # relative; of watch time also this many seconds, since small deciles are fractions of one
DECILES = tuple(range(10, 100, 10))


@dataclass(frozen=True)
class Calibration:
    """How the world under the logged policy compares with the log; rows of (scene, measure, simulated, real).

    Rates and watch time are per exposure looked at. Simulated rates are means of the probabilities that the responses
    were drawn with, because a simulation of any size has too few draws of a behaviour of 0.1% in a small scene.
    """

    rows: tuple[tuple[str, str, float, float], ...]

    @property
    def off(self) -> tuple[tuple[str, str, float, float], ...]:
        """The rows that are further from the log than TOLERANCE; what the log never has is left out."""
        return tuple(row for row in self.rows if not within_tolerance(*row[1:]))


def within_tolerance(measure: str, simulated: float, real: float) -> bool:
    """Whether a measure of the world is close enough to the log's."""
    slack = TOLERANCE if measure.startswith("watch_time") else 0.0
    return abs(simulated - real) <= max(TOLERANCE * abs(real), slack) or (real == 0 and not slack)


@dataclass(frozen=True)
class Targets:
    """What the log says per scene.

    Attributes:
        rates: float64[S, heads], what the world is set to: drawn a little to the pooled rate; observed: as they are.
        watch_time: per scene and outcome, seconds of every exposure, ascending.
        length: float64[S], requests per session.
    """

    rates: np.ndarray
    observed: np.ndarray
    watch_time: tuple[tuple[np.ndarray, ...], ...]
    length: np.ndarray


def build_world(
    exposures: Exposures,
    response: ResponseModel,
    predict: Predict,
    fusion_parameters: tuple[str, ...],
    logged: FixedGaussian,
    config: WorldConfig,
    *,
    behaviours: tuple[Behaviour, ...] = BEHAVIOURS,
    offset: float = 1e-3,
) -> tuple[World, Calibration]:
    """A world that, under the logged policy, has the exposures' rates and session lengths.

    Args:
        predict: the scorer's calibrated predictions.
        logged: the declared behaviour policy.
    """
    rng = np.random.default_rng([config.seed, 0xB0])
    users, entry_user, entry_scene, share = _draw_users(exposures, response.scenes, config.users, rng)
    user_ids = response.user_ids[users]
    pools = _retrieve(exposures, response, user_ids, entry_user, entry_scene, config, rng)
    logits = _logits(response, users[entry_user], entry_scene, pools)
    flat = predict(np.repeat(user_ids[entry_user], config.pool), response.item_ids[pools.ravel()],
                   np.repeat(entry_scene, config.pool))
    require(flat.shape == (pools.size, len(fusion_parameters)), "predictions", flat.shape,
            f"{(pools.size, len(fusion_parameters))}")
    require(bool(np.isfinite(flat).all() and (flat >= 0).all()), "predictions", float(np.nanmin(flat)),
            "finite numbers ≥ 0")
    terms = np.log(flat + np.float32(offset)).reshape(*pools.shape, -1).transpose(0, 2, 1)
    features, encoded = _user_features(exposures, user_ids)
    session = tuple(StateFeature(name=name, log=name != "hour", mean=12.0 if name == "hour" else 0.0,
                                 std=6.0 if name == "hour" else 1.0) for name in SESSION_FEATURES)
    scene = StateFeature(name="scene", categories=response.scenes)
    state = (scene, *encoded, *session)
    vocabulary = Vocabulary(
        behaviours=behaviours, fusion_parameters=fusion_parameters, state_features=state, formula="log_sum",
        state_size=sum(feature.width for feature in state), offset=offset, scenes=response.scenes)
    scenes = len(response.scenes)
    world = World(
        config=config, vocabulary=vocabulary, scenes=response.scenes,
        terms=np.concatenate([terms, terms[..., :config.candidates]], 2).astype(np.float32), logits=logits,
        item=pools.astype(np.int32), duration_bin=response.duration_bin[pools].astype(np.int8), entry_user=entry_user,
        entry_scene=entry_scene, entry_share=share, user_ids=user_ids, item_ids=response.item_ids,
        outcome=response.outcome, watch_time=response.watch_time, leave=np.zeros(scenes),
        page_mean=np.ones(len(entry_user)), page_std=np.ones(scenes), features=features, start=_start(exposures))
    targets = measure(exposures, response.scenes)
    world = calibrate(world, logged, targets)
    world, calibration = _finish(world, logged, targets)
    logger.info("world: %s users in %s entries, %s predictions; %d of %d measures within %.0f%% of the log",
                f"{world.users:,}", f"{len(entry_user):,}", f"{pools.size:,}",
                len(calibration.rows) - len(calibration.off), len(calibration.rows), 100 * TOLERANCE)
    return world, calibration


def measure(exposures: Exposures, scenes: tuple[str, ...], shrinkage: float = 100.0) -> Targets:
    """What the log says; rates of interactions are drawn to the pooled rate by so many rows, so that none is 0."""
    scene = pc.index_in(exposures.rows["scene"], pa.array(scenes)).fill_null(-1).to_numpy()
    long_view = exposures.column("long_view") > 0
    labels = np.stack([(exposures.column("click") > 0) | long_view, long_view,
                       *(exposures.column(name) > 0 for name in INTERACTIONS)], 1).astype(np.float64)
    pooled = labels[scene >= 0].mean(0)
    weight = np.where(np.arange(len(HEADS)) < 2, 1e-9, shrinkage)
    user, watch = exposures.column("user_id"), exposures.column("watch_time")
    outcome = labels[:, :2].sum(1).astype(np.int64)
    rates, observed, watch_time, length = [], [], [], []
    for index in range(len(scenes)):
        mine = scene == index
        observed.append(labels[mine].mean(0))
        rates.append((labels[mine].sum(0) + weight * pooled) / (mine.sum() + weight))
        watch_time.append(tuple(np.sort(watch[mine & (outcome == one)]) for one in range(len(OUTCOMES))))
        length.append(max(mine.sum() / max(len(np.unique(user[mine])), 1), 1.05))
    return Targets(np.stack(rates), np.stack(observed), tuple(watch_time), np.array(length))


def calibrate(world: World, logged: FixedGaussian, targets: Targets, rounds: int = 6) -> World:
    """Sets page statistics, leaving, response shifts and watch times by simulating the logged policy."""
    for number in range(rounds):
        # The last rounds decide, so that they look at more.
        look = _look(world, logged, 1_000 + number, 1_500 if number < rounds - 2 else 4_500)
        stats = look.columns
        shifted, watch_time = world.logits.copy(), world.watch_time.copy()
        page_std, leave = world.page_std.copy(), world.leave.copy()
        for scene in range(len(world.scenes)):
            mine = stats["scene"] == scene
            if mine.sum() < 2:
                continue
            shift = solve_shift(look.logits[scene], world.outcome, targets.rates[scene])
            shifted[world.entry_scene == scene] += shift.astype(np.float32)
            page_std[scene] = (stats["satisfaction"] - world.page_mean[stats["entry"]])[mine].std() + 1e-3
            found = _leaving(stats["mood"][mine], world.config, 1 / targets.length[scene])
            # Half a step after the first: whom a lower chance of leaving keeps is in a better mood; whole ones swing.
            leave[scene] = found if number == 0 else (leave[scene] + found) / 2
            for outcome, real in enumerate(targets.watch_time[scene]):
                simulated = look.watch_time[scene][look.outcome[scene] == outcome]
                watch_time[scene, outcome] = _as_distributed(watch_time[scene, outcome], simulated, real)
        world = world.replace(logits=shifted, page_std=page_std, leave=leave, watch_time=watch_time)
        world = world.replace(page_mean=_expected_pages(world, logged, seed=3_000 + number))
    return world


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
        nothing = np.zeros(len(entries))
        sessions = engine.start(world.entry_user, entries, np.full(len(entries), page), nothing, nothing)
        sessions.entry[:] = entries
        action = logged.act(np.zeros((len(entries), 0), np.float32), True, rng).action
        total += engine.expected_satisfaction(sessions, action)
    return total / pages


@dataclass(frozen=True)
class _Look:
    """Sessions under the logged policy, as many in every scene: columns of their requests `[N]`, and of the places
    looked at, per scene, the response logits, the outcome and the watch time."""

    columns: dict[str, np.ndarray]
    logits: list[np.ndarray]
    outcome: list[np.ndarray]
    watch_time: list[np.ndarray]


def _look(world: World, logged: FixedGaussian, seed: int, sessions_per_scene: int) -> _Look:
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
        seen = {name: context[name].copy() for name in SESSION_FEATURES}
        # The logged policy reads no state, whose features are not normalised yet.
        page = engine.step(sessions, logged.act(np.zeros((len(sessions.user), 0), np.float32), True, rng).action)
        scene, last = world.entry_scene[sessions.entry], page.left | page.cut
        parts.append({"scene": scene, "entry": sessions.entry, "satisfaction": page.satisfaction, "mood": page.mood,
                      "feedback": page.feedback, "looked": page.looked.sum(1), "last": last, **seen})
        answered = world.logits[sessions.entry[:, None], page.shown]
        for index, one in enumerate(places):
            seen_there = (scene == index)[:, None] & page.looked
            one.append((answered[seen_there], page.outcome[seen_there], page.watch_time[seen_there]))
        sessions = sessions.take(np.flatnonzero(~last))
    of_places = [[np.concatenate(column) for column in zip(*one, strict=True)] for one in places]
    return _Look({name: np.concatenate([part[name] for part in parts]) for name in parts[0]},
                 *(list(column) for column in zip(*of_places, strict=True)))


def _sample_entries(world: World, per_scene: int, rng: np.random.Generator) -> np.ndarray:
    """Entries of every scene, each as often as its users' sessions are in it."""
    share, chosen = _entry_shares(world), []
    for scene in range(len(world.scenes)):
        mine = np.flatnonzero(world.entry_scene == scene)
        if len(mine):
            chosen.append(rng.choice(mine, size=per_scene, p=share[mine] / share[mine].sum()))
    return np.concatenate(chosen)


def _leaving(mood: np.ndarray, config: WorldConfig, hazard: float) -> float:
    """The log-odds c for which the mean of sigmoid(c − effect · mood) is the hazard (bisection)."""
    effect = config.stay_effect if config.responsive else 0.0
    low, high = -20.0, 20.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if sigmoid(middle - effect * mood).mean() < hazard else (low, middle)
    return (low + high) / 2


def _finish(world: World, logged: FixedGaussian, targets: Targets) -> tuple[World, Calibration]:
    """Compares a fresh simulation with the log; normalises session features and behaviours by it."""
    look = _look(world, logged, 2_000, 5_000)
    columns, vocabulary = look.columns, world.vocabulary
    weight = _scene_weights(world)[columns["scene"]]
    features = tuple(_fitted(feature, columns[feature.name], weight) if feature.name in SESSION_FEATURES else feature
                     for feature in vocabulary.state_features)
    behaviours = []
    for behaviour in vocabulary.behaviours:
        value = columns["feedback"][:, FEEDBACK.index(behaviour.name)].astype(np.float64)
        value = np.log1p(value) if behaviour.transform == "log1p" else value
        # The spread of a rare behaviour from its rate: a small simulation may have none of it.
        rate = targets.rates[:, HEADS.index(behaviour.name)].mean() if behaviour.name in HEADS else 0.0
        scale = max(_moments(value, weight)[1], float(rate)**.5)
        behaviours.append(behaviour.replace(scale=round(scale, 6)))
    vocabulary = vocabulary.replace(state_features=features, behaviours=tuple(behaviours))
    return world.replace(vocabulary=vocabulary), _compare(world, look, targets)


def _compare(world: World, look: _Look, targets: Targets) -> Calibration:
    rows: list[tuple[str, str, float, float]] = []
    for index, scene in enumerate(world.scenes):
        mine = look.columns["scene"] == index
        rates = marginals(look.logits[index].astype(np.float64), world.outcome).mean(0)
        rows += [(scene, name, float(rates[head]), float(targets.observed[index, head]))
                 for head, name in enumerate(HEADS)]
        watch, real = look.watch_time[index], np.concatenate(targets.watch_time[index])
        rows.append((scene, "watch_time", float(watch.mean()), float(real.mean())))
        rows += [(scene, f"watch_time p{level}", float(np.percentile(watch, level)), float(np.percentile(real, level)))
                 for level in DECILES]
        sessions = max(int(look.columns["last"][mine].sum()), 1)
        rows.append((scene, "session_length", float(mine.sum() / sessions), float(targets.length[index])))
    return Calibration(tuple(rows))


def _fitted(feature: StateFeature, values: np.ndarray, weight: np.ndarray) -> StateFeature:
    values = np.log1p(values.astype(np.float64)) if feature.log else values.astype(np.float64)
    mean, std = _moments(values, weight)
    return feature.replace(mean=round(mean, 6), std=round(std + 1e-6, 6))


def _moments(values: np.ndarray, weight: np.ndarray) -> tuple[float, float]:
    mean = float(np.average(values, weights=weight))
    return mean, float(np.average((values - mean) ** 2, weights=weight)) ** .5


def _scene_weights(world: World) -> np.ndarray:
    """float64[S]: sessions of each scene in the world, per session that a look has of it."""
    return np.bincount(world.entry_scene, _entry_shares(world), len(world.scenes))


def _entry_shares(world: World) -> np.ndarray:
    """float64[E]: share of its user's sessions."""
    first = np.isin(np.arange(len(world.entry_user)), world.first_entry)
    shares: np.ndarray = world.entry_share - np.where(first, 0.0, np.concatenate([[0.0], world.entry_share[:-1]]))
    return shares


def _start(exposures: Exposures) -> int:
    """The midnight (UTC) after the last exposure, µs since 1970."""
    day = 86_400 * 1_000_000
    return (int(pc.max(exposures.rows["ts"].cast(pa.int64())).as_py()) // day + 1) * day


def _draw_users(exposures: Exposures, scenes: tuple[str, ...], users: int,
                rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Users (positions among all, ascending) by their rows, and their entries: user, scene, cumulated share."""
    known = np.sort(exposures.users["user_id"].to_numpy())
    scene = pc.index_in(exposures.rows["scene"], pa.array(scenes)).fill_null(-1).to_numpy().astype(np.int64)
    user = np.searchsorted(known, exposures.column("user_id"))[scene >= 0]
    rows = np.bincount(user, minlength=len(known))
    active = np.flatnonzero(rows)
    # Without replacement, so that a user of the world is one person; A/B buckets rely on it.
    chosen = np.sort(rng.choice(active, size=min(users, len(active)), replace=False))
    place = np.full(len(known), -1)
    place[chosen] = np.arange(len(chosen))
    inside = place[user] >= 0
    pairs, counts = np.unique(place[user][inside] * len(scenes) + scene[scene >= 0][inside], return_counts=True)
    entry_user, entry_scene = pairs // len(scenes), pairs % len(scenes)
    total = np.bincount(entry_user, counts)
    before = np.concatenate([[0], np.cumsum(counts)])
    first = np.searchsorted(entry_user, entry_user)
    share = (before[1:] - before[first]) / total[entry_user]
    return chosen, entry_user, entry_scene, share


def _retrieve(exposures: Exposures, response: ResponseModel, user_ids: np.ndarray, entry_user: np.ndarray,
              entry_scene: np.ndarray, config: WorldConfig, rng: np.random.Generator) -> np.ndarray:
    """A pool per entry, int64[E, P], positions in the catalogue: drawn by popularity in all scenes and in this one,
    and by how often the item's `retrieval` value occurs in the user's history."""
    items = len(response.item_ids)
    require(config.pool <= items, "pool", config.pool, f"at most the catalogue's {items} items")
    item = np.searchsorted(response.item_ids, exposures.column("item_id"))
    scene = pc.index_in(exposures.rows["scene"], pa.array(response.scenes)).fill_null(-1).to_numpy()
    counts = np.bincount(item, minlength=items) + .5
    weight = np.stack([np.log(counts + 3.0 * np.bincount(item[scene == index], minlength=items))
                       for index in range(len(response.scenes))])
    liked, value = _history_values(exposures, response, user_ids, config.retrieval)
    pools = np.empty((len(entry_user), config.pool), np.int64)
    for start in range(0, len(entry_user), 256):
        part = slice(start, start + 256)
        score = weight[entry_scene[part]] * .75 + np.log1p(liked[entry_user[part]])[:, value]
        score += rng.gumbel(size=score.shape)
        chosen = np.argpartition(-score, config.pool - 1, axis=1)[:, :config.pool]
        pools[part] = rng.permuted(chosen, axis=1)
    return pools


def _history_values(exposures: Exposures, response: ResponseModel, user_ids: np.ndarray,
                    column: str) -> tuple[np.ndarray, np.ndarray]:
    """How often each value of an item feature occurs in every user's history, float32[U, values], and each item's."""
    if column not in exposures.items.column_names:
        return np.zeros((len(user_ids), 1), np.float32), np.zeros(len(response.item_ids), np.int64)
    values = exposures.items.sort_by("item_id")[column].cast(pa.string()).fill_null("").combine_chunks()
    encoded = values.dictionary_encode()
    value = encoded.indices.to_numpy().astype(np.int64)
    liked = np.zeros((len(user_ids), len(encoded.dictionary)), np.float32)
    lists = exposures.history["items"].combine_chunks()
    owner = np.repeat(exposures.history["user_id"].to_numpy(),
                      pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False))
    item = lists.flatten().to_numpy(zero_copy_only=False)
    row = np.searchsorted(user_ids, owner).clip(max=len(user_ids) - 1)
    place = np.searchsorted(response.item_ids, item).clip(max=len(response.item_ids) - 1)
    known = (user_ids[row] == owner) & (response.item_ids[place] == item)
    np.add.at(liked, (row[known], value[place[known]]), 1.0)
    return liked, value


def _logits(response: ResponseModel, users: np.ndarray, scenes: np.ndarray, pools: np.ndarray) -> np.ndarray:
    """float32[E, P, heads]"""
    result = np.empty((*pools.shape, len(HEADS)), np.float32)
    size = pools.shape[1]
    for start in range(0, len(pools), 512):
        part = slice(start, start + 512)
        flat = response.logits(np.repeat(users[part], size), pools[part].ravel(), np.repeat(scenes[part], size))
        result[part] = flat.reshape(-1, size, len(HEADS))
    return result


def _user_features(exposures: Exposures,
                   user_ids: np.ndarray) -> tuple[dict[str, np.ndarray], tuple[StateFeature, ...]]:
    """State features of the users: how they answered before (in rows the response model has not seen), and of the
    table's columns those that say most about watch time there."""
    mine = row_share(exposures) >= RESPONSE_SHARE
    user, known = exposures.column("user_id")[mine], user_ids
    place = np.searchsorted(known, user).clip(max=len(known) - 1)
    inside = known[place] == user
    place = place[inside]
    counts = np.bincount(place, minlength=len(known)).astype(np.float64)
    columns: dict[str, np.ndarray] = {"past_exposures": counts}
    watch = np.log1p(np.maximum(exposures.column("watch_time")[mine][inside].astype(np.float64), 0))
    pooled = watch.mean() if len(watch) else 0.0
    # Means are drawn to the pooled one by two exposures' worth, so that one exposure is no verdict.
    columns["past_watch_time"] = (np.bincount(place, watch, len(known)) + 2 * pooled) / (counts + 2)
    for name in ("click", "long_view", "like"):
        label = (exposures.column(name)[mine][inside] > 0).astype(np.float64)
        rate = label.mean() if len(label) else 0.0
        columns[f"past_{name}_rate"] = (np.bincount(place, label, len(known)) + 2 * rate) / (counts + 2)
    features = [_numeric(name, column, log=name == "past_exposures") for name, column in columns.items()]
    table = exposures.users.filter(pc.is_in(exposures.users["user_id"], pa.array(user_ids))).sort_by("user_id")
    target = columns["past_watch_time"] - columns["past_watch_time"].mean()
    numbers, categories = [], []
    for name in table.column_names:
        if name == "user_id":
            continue
        if pa.types.is_floating(table[name].type):
            values = np.nan_to_num(table[name].to_numpy().astype(np.float64))
            values = values.clip(min=0)
            columns[name] = values
            numbers.append((_strength(_ranks(values), target), _numeric(name, values, log=True)))
        else:
            texts = pc.fill_null(table[name].cast(pa.string()), "").to_numpy(zero_copy_only=False).astype(str)
            frequent = [str(text) for text in np.unique(texts)]
            if 1 < len(frequent) <= _MOST_VALUES:
                columns[name] = texts
                categories.append((_strength(np.searchsorted(frequent, texts), target),
                                   StateFeature(name=name, categories=tuple(frequent))))
    for found, most in ((categories, _USER_CATEGORIES), (numbers, _USER_NUMBERS)):
        features += [feature for _, feature in sorted(found, key=lambda pair: -pair[0])[:most]]
    return {feature.name: columns[feature.name] for feature in features}, tuple(features)


def _numeric(name: str, values: np.ndarray, log: bool) -> StateFeature:
    # The default is what an average user has, so that a context without the feature is encoded as 0.
    moved = np.log1p(values) if log else values
    mean = round(float(moved.mean()), 6)
    return StateFeature(name=name, mean=mean, std=round(float(moved.std()) + 1e-6, 6), log=log,
                        default=round(float(np.expm1(mean)) if log else mean, 6))


def _ranks(values: np.ndarray, bins: int = 8) -> np.ndarray:
    return np.searchsorted(np.unique(np.quantile(values, np.linspace(0, 1, bins + 1)[1:-1])), values)


def _strength(group: np.ndarray, target: np.ndarray) -> float:
    """Variance of the target between groups over the whole (correlation ratio)."""
    counts = np.bincount(group).clip(min=1)
    means = np.bincount(group, target) / counts
    return float((counts * means**2).sum() / max((target**2).sum(), 1e-12))
