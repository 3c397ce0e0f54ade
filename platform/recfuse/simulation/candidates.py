"""What a world says of its candidates: to the states that a policy reads, and to the log."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from recfuse.behaviours import CandidateFeatures
from recfuse.fusion.policies import FixedGaussian
from recfuse.logs.candidates import Lists
from recfuse.logs.schema import CANDIDATES
from recfuse.simulation.rollout import Requests, policy_act, steps
from recfuse.simulation.sessions import SessionEngine
from recfuse.simulation.uniform import mix, uniform
from recfuse.simulation.world import World
from recfuse.state.candidates import CandidateEncoder

# Of more candidates than the sum of both, a log keeps the best ones and some of the others by chance.
BEST, OTHERS = 200, 50
_PERSONS = 500


def with_candidate_features(world: World, logged: FixedGaussian, seed: int = 4_000) -> World:
    """The world whose states say what there is to rank, normalised by requests of the logged policy."""
    plain = world.vocabulary
    features = CandidateFeatures(page=world.config.page)
    size = plain.state_size + CandidateFeatures.width_of(plain.action_size)
    vocabulary = plain.replace(candidate_features=features, state_size=size)
    encoder, engine = CandidateEncoder(vocabulary), SessionEngine(world, seed)
    persons = np.arange(min(_PERSONS, 4 * world.users))
    act = policy_act(logged, True, np.random.default_rng([seed, 0xCF]))
    raw = np.concatenate([
        encoder.raw(engine.predictions(step.before.entry, step.page.offset), step.page.seen)
        for step in steps(engine, persons % world.users, act, persons=persons, observe=False)])
    spread = raw.std(0)
    # What never varies is left as it is.
    std = np.where(spread > 1e-6, spread, 1.0).round(6)
    features = features.replace(mean=tuple(raw.mean(0).round(6).tolist()), std=tuple(std.tolist()))
    return world.replace(vocabulary=vocabulary.replace(candidate_features=features))


def logged_candidates(world: World, requests: Requests) -> dict[str, pa.Array]:
    """The columns `candidates`, `candidates_total` and `shown` of these requests."""
    engine, total = SessionEngine(world, 0), world.config.candidates
    predictions = engine.predictions(requests.entry, requests.offset)
    kept, shown = np.broadcast_to(np.arange(total), (len(requests.entry), total)), requests.shown
    if total > BEST + OTHERS:
        kept = _kept(engine, requests)
        predictions = np.take_along_axis(predictions, kept[:, None], 2)
        rows = np.arange(len(kept))[:, None]
        place = np.zeros((len(kept), total), np.int16)
        place[rows, kept] = np.arange(kept.shape[1])
        shown = place[rows, shown]
    pool_places = (requests.offset[:, None] + kept) % world.config.pool
    items = world.item_ids[world.item[requests.entry[:, None], pool_places]]
    seen = np.take_along_axis(requests.seen, kept, 1)
    kinds = {field.name: field.type for field in CANDIDATES}
    candidates = pa.StructArray.from_arrays(
        [_lists(items, kinds["item_ids"]), _lists(predictions, kinds["predictions"]), _lists(seen, kinds["seen"])],
        fields=list(CANDIDATES))
    return {"candidates": candidates, "shown": _lists(shown, pa.list_(pa.int16())),
            "candidates_total": pa.array(np.full(len(items), total, np.int32))}


def _kept(engine: SessionEngine, requests: Requests) -> np.ndarray:
    """int64[n, K], ascending: the best candidates by the logged action's score, and some of the others."""
    scores = engine.scores(requests.entry, requests.offset, requests.seen, requests.action)
    best = max(BEST, requests.shown.shape[1])
    order = np.argsort(-scores, axis=1, kind="stable")
    key = mix(requests.person, requests.number, requests.request)
    # Those on the page come first; of the others, the smallest of a random number each.
    luck = uniform(key[:, None], np.arange(scores.shape[1] - best))
    chosen = np.take_along_axis(order[:, best:], np.argsort(luck, axis=1)[:, :OTHERS], 1)
    return np.sort(np.concatenate([order[:, :best], chosen], 1), axis=1)


def _lists(values: np.ndarray, kind: pa.DataType) -> pa.Array:
    """A list of each row [n, …]."""
    rows = len(values)
    width = values[0].size if rows else 0
    return Lists(values.reshape(-1), np.arange(rows) * width, np.full(rows, width), np.zeros(rows, bool)).to_arrow(kind)
