"""What a world says of its candidates: the states that it logs are those that its log gives, and so are the pages."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest
import torch

from recfuse.config import InvalidFieldError
from recfuse.fusion.policies import FixedGaussian
from recfuse.fusion.replay import Candidates, pages
from recfuse.logs.sessions import SessionRule, to_samples
from recfuse.logs.validation import check
from recfuse.simulation.candidates import BEST, OTHERS
from recfuse.simulation.environment import FusionVectorEnv
from recfuse.simulation.rollout import policy_act, rollout, steps
from recfuse.simulation.session_logs import session_log
from recfuse.simulation.sessions import SessionEngine
from recfuse.simulation.world import WORLD_FILE, World
from recfuse.state.candidates import CandidateEncoder
from tests.unit.simulation import worlds


@pytest.fixture(scope="module")
def log() -> pa.Table:
    return session_log(worlds.world(), rollout(worlds.world(), worlds.LOGGED, seed=1), "declared")


def logged(log: pa.Table, parameters: int) -> tuple[np.ndarray, np.ndarray]:
    """Predictions float16[n, M, N] and seen bool[n, N] of a log whose requests have equally many candidates."""
    columns = log["candidates"].combine_chunks()
    predictions, seen = (columns.field(name).flatten().to_numpy(zero_copy_only=False)
                         for name in ("predictions", "seen"))
    return predictions.reshape(len(log), parameters, -1), seen.reshape(len(log), -1)


def test_a_logged_state_ends_in_what_the_logged_candidates_say(log):
    vocabulary = worlds.world().vocabulary
    predictions, seen = logged(log, vocabulary.action_size)
    assert predictions.dtype == np.float16
    assert seen.any()
    states = np.stack(log["state"].to_numpy())
    assert states.shape[1] == vocabulary.state_size == vocabulary.context_size + vocabulary.candidate_size
    expected = CandidateEncoder(vocabulary).encode(predictions, seen)
    np.testing.assert_allclose(states[:, vocabulary.context_size:], expected, rtol=0, atol=1e-6)


def test_the_logged_action_replays_the_page_that_was_shown(log):
    vocabulary = worlds.world().vocabulary
    predictions, seen = logged(log, vocabulary.action_size)
    candidates = Candidates.of(torch.tensor(predictions), torch.tensor(~seen), vocabulary)
    actions = torch.from_numpy(np.stack(log["action"].to_numpy()))
    shown = np.stack(log["shown"].to_numpy())
    replayed = pages(candidates, actions.unsqueeze(1), shown.shape[1])[:, 0].numpy()
    assert (replayed == shown).all(1).mean() > .995
    # Where another place is replayed the two scores are equal, up to rounding.
    scores = (candidates.terms @ actions.unsqueeze(2))[:, :, 0].numpy()
    of_page, of_replay = (np.take_along_axis(scores, places.astype(int), 1) for places in (shown, replayed))
    np.testing.assert_allclose(of_replay, of_page, atol=1e-5)


def test_every_row_passes_the_checks_and_becomes_a_sample(log):
    vocabulary = worlds.world().vocabulary
    result = check(log, vocabulary, "log")
    assert result.quarantine.num_rows == 0
    assert result.rows.equals(log.cast(result.rows.schema))
    samples = to_samples(result.rows, vocabulary, SessionRule()).table
    assert all(samples[name].null_count == 0 for name in ("mu", "sigma", "predictions", "open", "shown"))


def test_item_ids_are_those_of_what_was_shown():
    """The items of the page, by the world's own pools."""
    world = worlds.world()
    engine = SessionEngine(world, 1)
    act = policy_act(worlds.LOGGED, True, np.random.default_rng([1, 0xAC, 0]))
    user = np.arange(world.users)
    step = next(iter(steps(engine, user, act, persons=user)))
    first = session_log(world, rollout(world, worlds.LOGGED, seed=1), "v").to_pylist()
    first = {row["user_id"]: row for row in reversed(first)}
    for slot in range(20):
        row = first[str(world.user_ids[slot])]
        expected = world.item_ids[world.item[step.before.entry[slot], step.page.shown[slot]]]
        assert [row["candidates"]["item_ids"][place] for place in row["shown"]] == [str(item) for item in expected]


def test_candidate_features_are_normalised_and_stay_on_in_the_environment(log):
    world = worlds.world()
    part = np.stack(log["state"].to_numpy())[:, world.vocabulary.context_size:]
    assert np.abs(part.mean(0)).max() < .5
    assert np.abs(np.log(part.std(0)[part.std(0) > 0])).max() < .7
    env = FusionVectorEnv(world, 8)
    states, _ = env.reset(seed=0)
    assert states.shape == env.observation_space.shape == (8, world.vocabulary.state_size)
    assert env.step(np.ones((8, 6), np.float32))[0].shape == states.shape


def test_a_log_may_leave_candidates_out():
    world = worlds.world()
    requests = rollout(world, worlds.LOGGED, seed=1)
    bare = session_log(world, requests, "v", candidates=False)
    assert bare["candidates"].null_count == bare["shown"].null_count == bare["candidates_total"].null_count == len(bare)
    rest = [name for name in bare.column_names if name not in ("candidates", "shown", "candidates_total")]
    assert bare.select(rest).equals(session_log(world, requests, "v").select(rest))
    assert check(bare, world.vocabulary, "log").quarantine.num_rows == 0


def large(pool: int, candidates: int) -> World:
    """The small world with every item of a pool so often as fills a larger one, a little apart."""
    world, rng = worlds.world(), np.random.default_rng(0)
    times = -(-pool // world.config.pool)

    def tiled(values: np.ndarray) -> np.ndarray:
        return np.concatenate([values] * times, 1)[:, :pool]

    predictions = np.concatenate([world.predictions[:, :, :world.config.pool]] * times, 2)[:, :, :pool]
    predictions = (predictions * rng.uniform(.5, 1, predictions.shape)).astype(np.float16)
    predictions = np.concatenate([predictions, predictions[:, :, :candidates]], 2)
    terms = np.log(predictions.astype(np.float32) + np.float32(world.vocabulary.offset))
    return world.replace(config=world.config.replace(pool=pool, candidates=candidates), predictions=predictions,
                         terms=terms, logits=tiled(world.logits), watch_level=tiled(world.watch_level),
                         item=tiled(world.item),
                         duration_bin=tiled(world.duration_bin))


def test_of_many_candidates_the_best_and_some_of_the_others_are_kept():
    world = large(400, 300)
    requests = rollout(world, worlds.LOGGED, seed=1, persons=np.arange(30))
    log = session_log(world, requests, "v")
    assert set(log["candidates_total"].to_pylist()) == {300}
    predictions, seen = logged(log, 6)
    assert predictions.shape[2] == BEST + OTHERS
    assert check(log, world.vocabulary, "log").quarantine.num_rows == 0
    order = np.lexsort([requests.request, requests.number, requests.person])
    engine = SessionEngine(world, 0)
    scores = engine.scores(*(column[order] for column in (requests.entry, requests.offset, requests.seen,
                                                          requests.action)))
    terms = np.log(predictions.astype(np.float32) + np.float32(world.vocabulary.offset))
    kept = np.matmul(requests.action[order][:, None], terms)[:, 0]
    kept[seen] = -np.inf
    best = -np.sort(-scores, axis=1)
    np.testing.assert_allclose(-np.sort(-kept, axis=1)[:, :BEST], best[:, :BEST], rtol=1e-5)
    others = -np.sort(-kept, axis=1)[:, BEST:]
    assert (others > best[:, BEST + OTHERS - 1:BEST + OTHERS]).mean() < .9, "the others are no next best"


def test_candidates_that_would_not_fill_a_page_are_offered_anew():
    world = worlds.world()
    engine = SessionEngine(world, 3)
    sessions = engine.first(np.arange(8), np.arange(8))
    sessions.seen[:] = True
    sessions.seen[4:] = False
    page = engine.step(sessions, np.ones((8, 6), np.float32))
    assert not page.seen.any()
    assert all(len(set(row)) == world.config.page for row in page.shown.tolist())


def test_a_world_of_an_earlier_version_is_refused(tmp_path):
    world = worlds.world()
    world.save(tmp_path)
    plain = json.loads((tmp_path / WORLD_FILE).read_text())
    (tmp_path / WORLD_FILE).write_text(json.dumps({**plain, "format": 1}))
    with pytest.raises(InvalidFieldError, match=r"world: .* a world of format \d; older ones are built anew"):
        World.load(tmp_path)


def test_candidate_features_may_be_left_out():
    world = worlds.world()
    vocabulary = world.vocabulary
    plain = world.replace(vocabulary=vocabulary.replace(candidate_features=None, state_size=vocabulary.context_size))
    with_them, without = (rollout(each, FixedGaussian([1.0] * 6, .5), seed=2, persons=np.arange(20))
                          for each in (world, plain))
    np.testing.assert_array_equal(with_them.state[:, :vocabulary.context_size], without.state)
    np.testing.assert_array_equal(with_them.feedback, without.feedback)
