"""A world: built from exposures, calibrated to them, saved and loaded."""

import json

import numpy as np
import pytest

from recfuse.config import InvalidFieldError
from recfuse.simulation.calibration import Calibration, within_tolerance
from recfuse.simulation.world import World, WorldConfig
from tests.unit.simulation import worlds


def test_the_world_looks_like_the_log_under_the_logged_policy():
    """Every rate, the mean and the deciles of watch time and the length of sessions of the largest scene, within 15%:
    the tests' world has 150 users; the full one is printed by the job."""
    _, calibration = worlds.world_and_calibration()
    found = {measure: (simulated, real) for scene, measure, simulated, real in calibration.rows if scene == "1"}
    assert len(found) == 7 + 1 + 9 + 1
    for measure, (simulated, real) in found.items():
        assert simulated == pytest.approx(real, rel=.15, abs=.15 if "watch_time" in measure else 0), measure
    hate = [simulated for _, measure, simulated, _ in calibration.rows if measure == "hate"]
    assert max(hate) < .02


@pytest.mark.parametrize(("measure", "simulated", "real", "close"), [
    ("click", .109, .1, True), ("click", .111, .1, False), ("hate", .001, 0.0, True),
    ("watch_time p10", .09, 0.0, True), ("watch_time p10", .2, 0.0, False), ("watch_time", 22.1, 20.0, False),
    ("session_length", 1.0, 1.09, True)])
def test_tolerance(measure, simulated, real, close):
    assert within_tolerance(measure, simulated, real) is close
    assert (Calibration((("1", measure, simulated, real),)).off == ()) is close


def test_arrays_fit_together():
    world = worlds.world()
    entries = len(world.entry_user)
    assert world.terms.shape == (entries, 6, 40 + 20)
    np.testing.assert_array_equal(world.terms[:, :, :20], world.terms[:, :, 40:])
    assert (np.sort(world.item, 1)[:, 1:] != np.sort(world.item, 1)[:, :-1]).all(), "an item is once in a pool"
    last = world.first_entry[1:] - 1
    np.testing.assert_allclose(world.entry_share[last], 1.0)
    assert len(np.unique(world.user_ids)) == world.users == 150


def test_a_task_that_a_scene_lacks_moves_nothing():
    world = worlds.world()
    lacking = world.terms[world.entry_scene == world.scenes.index("6")]
    assert (lacking[:, 3:] == lacking[:, 3:, :1]).all()


def test_a_saved_world_is_the_same(tmp_path):
    world = worlds.world()
    world.save(tmp_path)
    again = World.load(tmp_path)
    assert again.vocabulary == world.vocabulary
    assert again.config == world.config
    assert again.scenes == world.scenes
    np.testing.assert_array_equal(again.terms, world.terms)
    np.testing.assert_array_equal(again.logits, world.logits)
    assert set(again.features) == set(world.features)


def test_bad_worlds_are_refused(tmp_path):
    with pytest.raises(InvalidFieldError, match=r"world: got .*; allowed: a directory with world.npz"):
        World.load(tmp_path)
    worlds.world().save(tmp_path)
    (tmp_path / "world.npz").write_bytes(b"no archive")
    with pytest.raises(InvalidFieldError, match="a world that `simulate` wrote"):
        World.load(tmp_path)
    worlds.world().save(tmp_path)
    plain = json.loads((tmp_path / "world.json").read_text())
    plain["config"]["attention"] = 2
    (tmp_path / "world.json").write_text(json.dumps(plain))
    with pytest.raises(InvalidFieldError, match=r"attention: got 2.*allowed: a number in \(0, 1\]"):
        World.load(tmp_path)


def test_a_world_of_an_older_version_is_refused(tmp_path):
    worlds.world().save(tmp_path)
    plain = json.loads((tmp_path / "world.json").read_text())
    del plain["format"]
    (tmp_path / "world.json").write_text(json.dumps(plain))
    with pytest.raises(InvalidFieldError, match=r"world: got .*; allowed: a world of format 4.*simulate") as refusal:
        World.load(tmp_path)
    assert "\n" not in str(refusal.value)


def test_watch_times_are_real_ones_of_their_kind_and_follow_the_level():
    """At level 0 and with all left to chance every quantile is as likely; a higher level watches longer; whatever the
    level, it is a watch time of the same scene, outcome and range of durations."""
    world = worlds.world()
    chance = (np.arange(2_560) + .5) / 2_560
    zeros = np.zeros(len(chance), int)
    plain = world.replace(watch_level=np.zeros_like(world.watch_level), watch_spread=np.ones(3, np.float32))
    counts = np.bincount(plain.quantile(zeros, zeros, zeros, chance), minlength=256)
    np.testing.assert_allclose(counts, 10, atol=2)
    table, means = world.watch_time[0, 2, 4], []
    for level in (-5.0, 0.0, 5.0):
        moved = plain.replace(watch_level=np.full_like(world.watch_level, level))
        quantile = moved.quantile(zeros, zeros, np.full(len(chance), 2), chance)
        assert quantile.min() >= 0
        assert quantile.max() < 256
        means.append(table[quantile].mean())
    assert means[0] < means[1] < means[2]
    edge = plain.quantile(zeros[:2], zeros[:2], zeros[:2], np.array([0.0, 1 - 2.0**-53]))
    np.testing.assert_array_equal(edge, [0, 255])


@pytest.mark.parametrize(("values", "message"), [
    ({"candidates": 200}, "candidates: got 200; allowed: at most pool = 100"),
    ({"page": 60}, "page: got 60; allowed: at most candidates = 50"),
    ({"users": 0}, "users: got 0; allowed: an integer ≥ 1"),
    ({"mood_memory": 1.0}, r"mood_memory: got 1.0; allowed: a number in \[0, 1\)"),
    ({"hate_value": float("nan")}, "hate_value: got nan; allowed: a number"),
])
def test_bad_configs_are_refused(values, message):
    with pytest.raises(InvalidFieldError, match=message):
        WorldConfig(**values)
