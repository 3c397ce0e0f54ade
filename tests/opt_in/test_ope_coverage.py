"""Who prints an interval of a learned policy holds the truth of its own question nine times in ten, and 5% of A/A tests
find something. Shares of 200 have a standard error of 1.5 points, which the bounds leave room for."""

import numpy as np
import pytest

from benchmarks.ope_coverage import coverages, measured, read_setting
from recfuse.jobs import ingest, simulate, train_fusion, train_scenes
from recfuse.learning.registry import settings
from recfuse.simulation.arms import Arm
from recfuse.simulation.experiment import aa_test
from recfuse.simulation.responses import FEED
from tests.unit.simulation import worlds

pytestmark = pytest.mark.bench
ALGORITHMS = ("two_stage", "replay_vector", "interaction_only")
LOGS = 70  # of each policy
FEWEST = 60  # intervals below which their share says little
LEAST = .9


@pytest.fixture(scope="module")
def run(tmp_path_factory, local_ray):
    """The demo's world, samples and scorer, and policies of three algorithms."""
    out = tmp_path_factory.mktemp("run")
    scenes = train_scenes.main(train_scenes.TrainScenesConfig(exposures="embedded", output=f"{out}/scenes"))
    world = simulate.main(simulate.SimulateConfig(exposures="embedded", scorer=str(scenes.bundle),
                                                  output=f"{out}/simulation"))
    samples = ingest.main(ingest.IngestConfig(logs=str(world.logs), output=f"{out}/samples"))
    for algorithm in ALGORITHMS:
        train_fusion.main(train_fusion.TrainFusionConfig(
            samples=samples.samples, scorer=str(scenes.bundle), output=f"{out}/{algorithm}",
            learning=settings(algorithm)))
    return out


def test_who_prints_an_interval_holds_the_truth_of_the_own_question(run, say):
    setting = read_setting(run, {name: str(run / name) for name in ALGORITHMS}, persons=2_000, truth_persons=18_000,
                           critic_rows=100_000)
    said, low = measured(setting, LOGS), []
    for behaviour, name in enumerate(setting.world.vocabulary.behaviour_names[:2]):
        found = [coverages(subject, said[subject.name], behaviour) for subject in setting.subjects]
        for estimator in found[0]:
            of = [one[estimator] for one in found if not np.isnan(one[estimator].own)]
            given = np.array([one.logs * (1 - one.refused) for one in of])
            if given.sum() >= FEWEST:
                share = float(np.average([one.own for one in of], weights=given))
                say(f"{name}: {estimator} holds the truth in {share:.0%} of {given.sum():.0f} intervals")
                low += [f"{name}: {estimator} {share:.0%}"] if share < LEAST else []
    assert not low


def test_a_policy_against_itself_is_different_in_five_of_a_hundred_tests():
    found = aa_test(worlds.world(), Arm("logged", worlds.LOGGED, explore=True), runs=200, persons=1_000, draws=500)
    assert found.false[FEED.measures.index("watch_time")] == pytest.approx(.05, abs=.0301)
    assert found.false.mean() == pytest.approx(.05, abs=.0301)
    assert found.family <= .0801
