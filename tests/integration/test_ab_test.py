"""The job `ab_test`: logged policy, CEM and a bundle against each other in one world."""

import json

import numpy as np
import pytest

from recfuse.bundle import read_bundle
from recfuse.config import InvalidFieldError
from recfuse.fusion.inference import FusionActor, export_policy
from recfuse.fusion.policies import FixedGaussian
from recfuse.jobs import ab_test as job
from recfuse.simulation.config import AbTestConfig, CemConfig
from tests.unit.simulation import worlds


@pytest.fixture(scope="module")
def simulation(tmp_path_factory):
    directory = tmp_path_factory.mktemp("simulation")
    worlds.world().save(directory / "world")
    declared = {"mu": dict.fromkeys(worlds.TASKS, 1.0), "sigma": .5}
    (directory / "metrics.json").write_text(json.dumps({"run": "r1", "behaviour_policy": declared}))
    return directory


def config(simulation, output, *policies):
    return AbTestConfig(simulation=str(simulation), output=str(output), policies=policies, persons=600,
                        cem=CemConfig(persons=50, population=6, iterations=2))


def test_three_policies(simulation, tmp_path, capsys):
    good = export_policy(tmp_path / "fusion", FixedGaussian([2, 2, 0, 0, 0, 0], .5), worlds.world().vocabulary,
                         training={}, data_fingerprint="none", metrics={})
    found = job.main(config(simulation, tmp_path, "logged", "cem", f"two_stage={good.parent}"))
    assert [arm.name for arm in found.result.arms] == ["logged", "cem", "two_stage"]
    written = json.loads(found.metrics.read_text())
    assert [arm["name"] for arm in written["arms"]] == ["logged", "cem", "two_stage"]
    assert sum(arm["users"] for arm in written["arms"]) == 600
    assert "Relative difference to logged per user" in capsys.readouterr().out


def test_cem_is_searched_once_and_explores_as_far_as_the_logs_did(simulation, tmp_path, monkeypatch):
    first = job.main(config(simulation, tmp_path, "logged", "cem"))
    policy = FusionActor.from_bundle(read_bundle(first.cem_bundle, "fusion"))
    decision = policy.act(np.zeros((1, policy.vocabulary.state_size), np.float32), explore=False)
    assert np.linalg.norm(decision.mu) == pytest.approx(np.sqrt(6)), "the length of six ones"
    assert decision.sigma == pytest.approx(.5)
    monkeypatch.setattr("recfuse.simulation.cem.search", lambda *arguments: pytest.fail("searched again"))
    again = job.main(config(simulation, tmp_path, "logged", "cem", "cem:mean"))
    assert again.cem_bundle == first.cem_bundle
    explored, mean = again.result.arms[1:]
    assert (explored.name, mean.name) == ("cem", "cem:mean")
    # σ .5 in each of six places over six ones; the mean does not explore.
    assert [arm["reach"] for arm in json.loads(again.metrics.read_text())["arms"]] == pytest.approx([.5, .5, 0])


def test_a_policy_of_another_world_is_refused(simulation, tmp_path):
    vocabulary = worlds.world().vocabulary
    other = vocabulary.replace(fusion_parameters=("a", "b", "c", "d", "e", "f"))
    path = export_policy(tmp_path / "fusion", FixedGaussian([1] * 6, .5), other, training={}, data_fingerprint="none",
                         metrics={})
    with pytest.raises(InvalidFieldError, match=r"policies\[two_stage\].*the world's state features"):
        job.main(config(simulation, tmp_path, "logged", f"two_stage={path}"))
    with pytest.raises(InvalidFieldError, match=r"fusion bundle: got .*a directory that holds one"):
        job.main(config(simulation, tmp_path, "logged", str(tmp_path / "nowhere")))


def test_what_the_statistics_allow_is_printed(simulation, tmp_path, capsys):
    """A/A first, fixed weights as a policy, early looks with their own intervals, the size's detectable effect."""
    wanted = config(simulation, tmp_path, "logged", "mine=click:1,long_view:1").replace(aa_runs=4, aa_persons=60,
                                 interval="always_valid", looks=3, correction="benjamini_hochberg")
    found = job.main(wanted)
    assert [arm.name for arm in found.result.arms] == ["logged", "mine"]
    shown = capsys.readouterr().out
    for text in ("A/A: logged against itself, 4 tests", "* remains after correction", "Smallest difference found with",
                 "Looks at watch_time"):
        assert text in shown
    written = json.loads(found.metrics.read_text())
    assert written["correction"] == "benjamini_hochberg"
    assert written["aa"]["runs"] == 4
    assert len(written["arms"][1]["looks"]) == 3
    assert len(written["arms"][1]["detectable"]) == len(written["measures"])


def test_a_test_of_users_held_out_needs_some(simulation, tmp_path):
    with pytest.raises(InvalidFieldError, match="users: got 'held_out'; allowed: a simulation with held_out_users"):
        job.main(config(simulation, tmp_path, "logged", "logged_mean").replace(users="held_out"))
