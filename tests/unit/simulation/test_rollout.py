"""Roll-outs and the session logs they become."""

import numpy as np
import pyarrow.parquet as pq
import pytest

from recfuse.behaviours import Vocabulary
from recfuse.config import InvalidFieldError
from recfuse.logs.schema import session_log_schema
from recfuse.simulation.responses import FEED
from recfuse.simulation.rollout import rollout
from recfuse.simulation.session_logs import session_log, write_logs
from recfuse.stats.gaussian import gaussian_log_density
from tests.unit.simulation import worlds


@pytest.fixture(scope="module")
def requests():
    return rollout(worlds.world(), worlds.LOGGED, seed=1)


def test_rows_are_valid_session_logs(requests):
    world = worlds.world()
    log = session_log(world, requests, "declared")
    log.validate(full=True)
    assert log.schema == session_log_schema(world.vocabulary)
    rows = log.to_pandas()
    assert rows.request_id.is_unique
    assert (rows.groupby("session_id")["last"].sum() == 1).all()
    assert (rows.groupby("session_id")["last"].last()).all(), "the last request of a session is its last row"
    assert (rows.groupby("session_id").ts.diff().dropna().dt.total_seconds() > 0).all()
    sessions = rows.groupby("user_id").ts.agg(["min", "max"])
    assert ((sessions["max"] - sessions["min"]).dt.total_seconds() < 13 * 86_400).all()


def test_the_logged_density_is_that_of_the_logged_action(requests):
    np.testing.assert_allclose(requests.action_logp,
                               gaussian_log_density(requests.action, requests.mu, requests.sigma), atol=1e-9)
    z = (requests.action - requests.mu) / requests.sigma
    assert abs(z.mean()) < 4 / z.size**.5
    assert abs(z.std() - 1) < .03


def test_states_are_normalised(requests):
    """Numeric features are near mean 0 and deviation 1 under the logged policy; one-hot blocks sum to 1."""
    world, start = worlds.world(), 0
    for feature in world.vocabulary.state_features:
        block = requests.state[:, start:start + feature.width]
        start += feature.width
        if feature.categories:
            np.testing.assert_array_equal(block.sum(1), 1)
        elif feature.name.endswith("so_far"):
            assert abs(block.mean()) < .6, feature.name
            assert .5 < block.std() < 1.7, feature.name
    assert start == world.vocabulary.context_size


def test_the_same_seed_gives_the_same_log(requests):
    again, other = (rollout(worlds.world(), worlds.LOGGED, seed=seed) for seed in (1, 2))
    assert session_log(worlds.world(), requests, "v").equals(session_log(worlds.world(), again, "v"))
    assert len(other.user) != len(requests.user) or not np.array_equal(other.feedback, requests.feedback)


def test_a_persons_luck_depends_on_nobody_else():
    """Without exploration a person lives the same life alone as among others."""
    world = worlds.world()
    crowd = rollout(world, worlds.LOGGED, seed=1, persons=np.arange(40), explore=False)
    alone = rollout(world, worlds.LOGGED, seed=1, persons=np.array([7]), explore=False)
    np.testing.assert_array_equal(crowd.feedback[crowd.person == 7], alone.feedback)


def test_hate_stays_rare(requests):
    hate = requests.feedback[:, FEED.feedback.index("hate")]
    assert hate.mean() < .05


def test_an_interrupted_write_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr("recfuse.simulation.session_logs.PERSONS_PER_PART", 50)
    world = worlds.world()
    rows = write_logs(world, worlds.LOGGED, tmp_path, persons=160, seed=1, model_version="v")
    files = sorted(tmp_path.glob("*.parquet"))
    assert len(files) == 4
    assert Vocabulary.load(tmp_path / "vocabulary.yaml") == world.vocabulary
    whole = pq.read_table(files[1])
    files[1].unlink()
    kept = files[0].stat().st_mtime_ns
    assert write_logs(world, worlds.LOGGED, tmp_path, persons=160, seed=1, model_version="v") == rows
    assert pq.read_table(files[1]).equals(whole)
    assert files[0].stat().st_mtime_ns == kept
    users = set(pq.read_table(files)["user_id"].to_pylist())
    assert len(users) == 160
    assert sum(user.endswith(".1") for user in users) == 10, "persons beyond the world's users have ids of their own"


def test_nobody_to_simulate_is_refused():
    with pytest.raises(InvalidFieldError, match=r"persons: got \[\]; allowed: at least one person"):
        rollout(worlds.world(), worlds.LOGGED, seed=1, persons=np.array([], np.int64))
