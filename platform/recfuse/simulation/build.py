"""Builds a world from exposures, a scorer's predictions and a fitted response model."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recfuse.behaviours import Behaviour, StateFeature, Vocabulary
from recfuse.config import InvalidFieldError, require
from recfuse.fusion.policies import FixedGaussian
from recfuse.logs.exposures import Exposures
from recfuse.simulation.calibration import TOLERANCE, Calibration, calibrate, finish, measure
from recfuse.simulation.candidates import with_candidate_features
from recfuse.simulation.response import ResponseModel
from recfuse.simulation.response_stack import Stack, empty_stack
from recfuse.simulation.responses import FEED, HOUR, Responses
from recfuse.simulation.slopes import draw_slopes, group_of_output
from recfuse.simulation.user_features import user_features
from recfuse.simulation.world import World, WorldConfig
from recfuse.state.candidates import as_logged

logger = logging.getLogger("recfuse")

# (user_id[N], item_id[N], scene index[N]) → predictions float32[N, M], in the order of the fusion parameters.
Predict = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]

def build_world(
    exposures: Exposures,
    response: ResponseModel,
    predict: Predict,
    fusion_parameters: tuple[str, ...],
    logged: FixedGaussian,
    config: WorldConfig,
    *,
    stack: Stack | None = None,
    behaviours: tuple[Behaviour, ...] = (),
    offset: float = 1e-3,
    responses: Responses = FEED,
) -> tuple[World, Calibration]:
    """A world that, under the logged policy, has the exposures' rates and session lengths.

    Args:
        predict: the scorer's calibrated predictions.
        logged: the declared behaviour policy.
        stack: what the predictions are worth; where None, nothing.
        behaviours: of the session logs; those that the responses declare where there are none.
        responses: that the response model was fitted by.
    """
    stack = stack or empty_stack(np.zeros((1, 0), np.float32), np.zeros(1), len(response.scenes),
                                 response.outcome.shape)
    world = _uncalibrated(exposures, response, stack, predict, fusion_parameters, config,
                          behaviours or responses.behaviours, offset, responses)
    targets = measure(exposures, response.scenes, responses)
    world, calibration = finish(calibrate(world, logged, targets), logged, targets)
    if config.candidate_features:
        world = with_candidate_features(world, logged)
    logger.info("world: %s users in %s entries, %s predictions; %d of %d measures within %.0f%% of the log",
                f"{world.users:,}", f"{len(world.entry_user):,}", f"{world.item.size:,}",
                len(calibration.rows) - len(calibration.off), len(calibration.rows), 100 * TOLERANCE)
    return world, calibration


def _uncalibrated(exposures: Exposures, response: ResponseModel, stack: Stack, predict: Predict,
                  fusion_parameters: tuple[str, ...], config: WorldConfig, behaviours: tuple[Behaviour, ...],
                  offset: float, responses: Responses) -> World:
    """The world before its logits, watch times, hazards of leaving and normalisation are fitted to the exposures."""
    rng = np.random.default_rng([config.seed, 0xB0])
    entries = _draw_entries(exposures, response.scenes, config.users, rng)
    user_ids = response.user_ids[entries.users]
    pools = _retrieve(exposures, response, user_ids, entries, config, rng)
    predictions = _predictions(predict, response, user_ids, entries, pools, fusion_parameters)
    columns, encoded = user_features(exposures, user_ids, responses)
    slopes = draw_slopes(config.meaning_spread, columns, encoded, np.random.default_rng([config.seed, 0xB1]), responses)
    outputs = _outputs(response, stack, entries, pools, predictions, slopes.slope, group_of_output(responses))
    predictions = predictions.reshape(*pools.shape, -1).transpose(0, 2, 1)
    predictions = np.concatenate([predictions, predictions[..., :config.candidates]], 2)
    features = {**columns, **slopes.columns}
    state = (StateFeature(name="scene", categories=response.scenes), *encoded, *slopes.features,
             *(_session_feature(name) for name in responses.session_features))
    vocabulary = Vocabulary(
        behaviours=behaviours, fusion_parameters=fusion_parameters, state_features=state, formula="log_sum",
        state_size=sum(feature.width for feature in state), offset=offset, scenes=response.scenes)
    scenes, heads = len(response.scenes), len(responses.heads)
    return World(
        config=config, vocabulary=vocabulary, scenes=response.scenes,
        terms=np.log(predictions + np.float32(offset)), predictions=predictions.astype(np.float16),
        logits=outputs[..., :heads].copy(), watch_level=outputs[..., heads:].copy(),
        item=pools.astype(np.int32), duration_bin=response.duration_bin[pools].astype(np.int8),
        entry_user=entries.user, entry_scene=entries.scene, entry_share=entries.share, user_ids=user_ids,
        item_ids=response.item_ids, outcome=response.outcome, watch_time=response.watch_time,
        watch_spread=stack.spread, leave=np.zeros(scenes),
        page_mean=np.ones(len(entries.user)), page_std=np.ones(scenes), features=features,
        start=_next_midnight(exposures), factor=response.factor, responses=responses)


def _session_feature(name: str) -> StateFeature:
    """Of a session as it goes; calibration sets the moments of all but the hour."""
    hour = name == HOUR
    return StateFeature(name=name, log=not hour, mean=12.0 if hour else 0.0, std=6.0 if hour else 1.0)


def _predictions(predict: Predict, response: ResponseModel, user_ids: np.ndarray, entries: _Entries,
                 pools: np.ndarray, fusion_parameters: tuple[str, ...]) -> np.ndarray:
    """float32[E · P, M], checked: the scorer's predictions for every item of every pool."""
    size = pools.shape[1]
    predictions = predict(np.repeat(user_ids[entries.user], size), response.item_ids[pools.ravel()],
                          np.repeat(entries.scene, size))
    require(predictions.shape == (pools.size, len(fusion_parameters)), "predictions", predictions.shape,
            f"{(pools.size, len(fusion_parameters))}")
    require(bool(np.isfinite(predictions).all() and (predictions >= 0).all()), "predictions",
            float(np.nanmin(predictions)), "finite numbers ≥ 0")
    rounded = as_logged(predictions)
    if rounded is None:
        raise InvalidFieldError("predictions", float(predictions.max()), "numbers that half precision holds")
    return rounded


def _next_midnight(exposures: Exposures) -> int:
    """The midnight (UTC) after the last exposure, µs since 1970."""
    day = 86_400 * 1_000_000
    return (int(pc.max(exposures.rows["ts"].cast(pa.int64())).as_py()) // day + 1) * day


@dataclass(frozen=True)
class _Entries:
    """The users of a world, and every scene that each of them visits.

    Attributes:
        users: int64[U], positions among all users, ascending.
        user, scene: int64[E], position among `users` and scene of every entry; share: float64[E], cumulated per user.
    """

    users: np.ndarray
    user: np.ndarray
    scene: np.ndarray
    share: np.ndarray


def _draw_entries(exposures: Exposures, scenes: tuple[str, ...], users: int, rng: np.random.Generator) -> _Entries:
    """Draws users among those who occur in the scenes."""
    known = np.sort(exposures.users["user_id"].to_numpy())
    scene = _scene_index(exposures, scenes)
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
    return _Entries(chosen, entry_user, entry_scene, share)


def _scene_index(exposures: Exposures, scenes: tuple[str, ...]) -> np.ndarray:
    """int64[rows]: position of a row's scene; −1 where it is none of them."""
    index: np.ndarray = pc.index_in(exposures.rows["scene"], pa.array(scenes)).fill_null(-1).to_numpy().astype(np.int64)
    return index


def _retrieve(exposures: Exposures, response: ResponseModel, user_ids: np.ndarray, entries: _Entries,
              config: WorldConfig, rng: np.random.Generator) -> np.ndarray:
    """A pool per entry, int64[E, P], positions in the catalogue: drawn by popularity in all scenes and in this one, by
    how often the item's `retrieval` value occurs in the user's history, and by the durations that the user was shown in
    the scene, so that a pool differs within itself as much as what one user was shown does."""
    items = len(response.item_ids)
    require(config.pool <= items, "pool", config.pool, f"at most the catalogue's {items} items")
    item = np.searchsorted(response.item_ids, exposures.column("item_id"))
    scene = _scene_index(exposures, response.scenes)
    counts = np.bincount(item, minlength=items) + .5
    weight = np.stack([np.log(counts + 3.0 * np.bincount(item[scene == index], minlength=items))
                       for index in range(len(response.scenes))])
    liked, value = _history_values(exposures, response, user_ids, config.retrieval)
    durations = _duration_lift(exposures, response, user_ids, entries, item, scene)
    pools = np.empty((len(entries.user), config.pool), np.int64)
    for start in range(0, len(pools), 256):
        part = slice(start, start + 256)
        score = weight[entries.scene[part]] + .5 * np.log1p(liked[entries.user[part]])[:, value]
        score += durations[part][:, response.duration_bin]
        score += rng.gumbel(size=score.shape)
        chosen = np.argpartition(-score, config.pool - 1, axis=1)[:, :config.pool]
        pools[part] = rng.permuted(chosen, axis=1)
    return pools


def _duration_lift(exposures: Exposures, response: ResponseModel, user_ids: np.ndarray, entries: _Entries,
                   item: np.ndarray, scene: np.ndarray) -> np.ndarray:
    """float64[E, durations]: log of how much more often an entry's user was shown a range of durations in its scene
    than all were, drawn to no difference by one exposure."""
    scenes, ranges = len(response.scenes), response.watch_time.shape[2]
    shown = response.duration_bin[item]
    user = exposures.column("user_id")
    place = np.searchsorted(user_ids, user).clip(max=len(user_ids) - 1)
    inside = (user_ids[place] == user) & (scene >= 0)
    counts = np.zeros((len(user_ids), scenes, ranges))
    np.add.at(counts, (place[inside], scene[inside], shown[inside]), 1.0)
    share = np.stack([np.bincount(shown[scene == index], minlength=ranges) for index in range(scenes)]) + 1.0
    share = (share / share.sum(1, keepdims=True))[entries.scene]
    of_entry = counts[entries.user, entries.scene]
    lift: np.ndarray = np.log((of_entry + share) / (of_entry.sum(1, keepdims=True) + 1) / share)
    return lift


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


def _outputs(response: ResponseModel, stack: Stack, entries: _Entries, pools: np.ndarray,
             predictions: np.ndarray, slope: np.ndarray, group: np.ndarray) -> np.ndarray:
    """float32[E, P, heads + outcomes]: the logits and watch levels of every item of every pool.

    Args:
        slope: [U, groups]; group: of every output.
    """
    result = np.empty((*pools.shape, len(group)), np.float32)
    users, size = entries.users[entries.user], pools.shape[1]
    of_pools = predictions.reshape(*pools.shape, -1)
    for start in range(0, len(pools), 512):
        part = slice(start, start + 512)
        item, scene = pools[part].ravel(), np.repeat(entries.scene[part], size)
        of_model = response.outputs(np.repeat(users[part], size), item, scene) * stack.own + stack.base[scene]
        given = stack.inputs(of_pools[part].reshape(len(item), -1)[:, :len(stack.probability)], response.duration[item])
        of_pool = given.reshape(-1, size, given.shape[1]).mean(1)
        means = np.repeat(slope[entries.user[part]][:, group], size, axis=0)
        of_scorer = stack.scorer_term(given, np.repeat(of_pool, size, axis=0), means)
        result[part] = (of_model + of_scorer).reshape(-1, size, result.shape[2])
    return result
