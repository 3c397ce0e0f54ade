"""The judges of stage one: what they say of better and worse policies, and when they say nothing yet."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import session_logs
from served_logs import BASE, Traffic, write

from recfuse.bundle.pointer import Pointer, write_pointer
from recfuse.config import InvalidFieldError
from recfuse.fusion.inference import export_policy
from recfuse.fusion.policies import FixedGaussian
from recfuse.jobs._stage_one import judge_of
from recfuse.learning.config import StageOneTest
from tests.unit.simulation import worlds


@pytest.fixture(scope="module")
def simulation(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("simulation")
    worlds.world().save(root / "world")
    return root


def exported(root: Path, mu: list[float], sigma: float, of: object) -> Path:
    return export_policy(root, FixedGaussian(mu, sigma), of, training={}, data_fingerprint="", metrics={})


def test_simulated_persons_judge(simulation, tmp_path):
    """The base is a vector; a policy with the same is as good, one with the opposite is worse in everything."""
    of = worlds.world().vocabulary
    good = [2.0, 2.0, *[0.0] * (of.action_size - 2)]
    base = exported(tmp_path / "base", good, .5, of)
    test = StageOneTest(judge="simulated", simulation=str(simulation), base=f"base:mean={base}", persons=200)
    judge = judge_of(test)
    assert judge is not None
    worse = judge(exported(tmp_path, [-value for value in good], 1e-6, of), {"like": -.01, "watch_time": -.9})
    assert worse.decided
    assert worse.below == ("like",), worse.words
    assert worse.changes["like"][0] < -.01
    assert "200 simulated persons: like -" in worse.words
    kept = judge(exported(tmp_path, good, 1e-6, of), {"like": -.01})
    assert (kept.decided, kept.below) == (True, ())
    with pytest.raises(InvalidFieldError, match=r"floors: got 'love'; allowed: what the world measures"):
        judge(exported(tmp_path, good, 1e-6, of), {"love": 0.0})


@pytest.mark.parametrize(("like", "below", "decided"), [(1.0, (), True), (.5, ("like",), True)])
def test_users_of_a_served_log_judge(tmp_path, like, below, decided):
    bundle = exported(tmp_path / "made", [1.0, 1.0], .5, session_logs.vocabulary())
    log = write(tmp_path / "log", Traffic(users=4_000, canary=bundle.name, like=like, seed=1).table())
    write_pointer(tmp_path / "models", Pointer(fusion=BASE, fusion_canary=bundle.name, canary_share=.5))
    judge = judge_of(StageOneTest(judge="served", logs=log, models=str(tmp_path / "models")))
    assert judge is not None
    said = judge(bundle, {"like": -.25})
    assert (said.below, said.decided) == (below, decided), said.words
    estimate, low, high = said.changes["like"]
    assert low < estimate < high
    assert np.sign(estimate + .25) == (1 if not below else -1)


def test_a_policy_that_nobody_serves_waits(tmp_path):
    bundle = exported(tmp_path / "made", [1.0, 1.0], .5, session_logs.vocabulary())
    log = write(tmp_path / "log", Traffic(users=50).table())
    write_pointer(tmp_path / "models", Pointer(fusion=BASE))
    judge = judge_of(StageOneTest(judge="served", logs=log, models=str(tmp_path / "models")))
    assert judge is not None
    said = judge(bundle, {"like": 0.0})
    assert (said.decided, said.below) == (False, ())
    assert f"a log of {bundle.name} as the canary" in said.words
    write_pointer(tmp_path / "models", Pointer(fusion=BASE, fusion_canary=bundle.name, canary_share=.5))
    assert "decisions of" in judge(bundle, {"like": 0.0}).words, "it is the canary, and has decided nothing yet"


def test_few_users_decide_nothing(tmp_path):
    bundle = exported(tmp_path / "made", [1.0, 1.0], .5, session_logs.vocabulary())
    log = write(tmp_path / "log", Traffic(users=300, canary=bundle.name).table())
    write_pointer(tmp_path / "models", Pointer(fusion=BASE, fusion_canary=bundle.name, canary_share=.5))
    judge = judge_of(StageOneTest(judge="served", logs=log, models=str(tmp_path / "models")))
    assert judge is not None
    said = judge(bundle, {"like": -.01})
    assert (said.decided, said.below) == (False, ())
    assert said.words.startswith("go on")


def test_nobody_judges_by_default():
    assert judge_of(StageOneTest()) is None
