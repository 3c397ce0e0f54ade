"""The benchmark of intervals: its figures by hand, and a rerun that goes on where the last one stopped."""

import math

import numpy as np
import pytest

from benchmarks.ope_coverage import Setting, Subject, coverages, fresh_log, measured, said_of, table_of
from recfuse.bundle import read_bundle
from recfuse.evaluation.case import action_moments
from recfuse.evaluation.critics import fit_folds
from recfuse.evaluation.estimator import QUESTIONS
from recfuse.evaluation.fitted_q import Transitions
from recfuse.fusion.inference import FusionActor, export_policy
from recfuse.fusion.policies import FixedGaussian
from tests.unit.simulation import worlds

TRUTH = {question.name: np.array([value]) for question, value in zip(QUESTIONS, (.1, .2, .3, .14), strict=True)}


def transitions_of(log):
    """Samples of a log's requests, for critics."""
    done = np.append(log.session[1:] != log.session[:-1], True)
    following = np.where(done[:, None], log.state, np.roll(log.state, -1, 0))
    return Transitions(log.state, log.action, log.feedback, following, done.astype(np.float32), log.user_id - 10**6)


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    """A policy near the logged one, judged by logs of 80 persons who live two days."""
    world = worlds.world()
    world = world.replace(config=world.config.replace(horizon_days=2.0))
    bundle = export_policy(tmp_path_factory.mktemp("fusion"), FixedGaussian(worlds.LOGGED.mu + .1, .5),
                           world.vocabulary, training={}, data_fingerprint="none", metrics={})
    actor = FusionActor.from_bundle(read_bundle(bundle, "fusion"))
    log = fresh_log(world, worlds.LOGGED, np.arange(150), 99)
    samples = transitions_of(log)
    critics, = fit_folds(samples, log, action_moments(actor), 1.0)
    return Setting(world, worlds.LOGGED, samples, np.arange(80), (Subject("near", actor, TRUTH, TRUTH, critics),))


def test_figures_by_hand():
    """Of a truth of 10%, where an A/B test says 14%: 8 ± 3 and 12 ± 3 hold it, 16 ± 3 does not; the refused ones would
    have said 11 ± 2 and 20 ± 1."""
    said = [{"NCIS": {"refused": refused, "change": [middle], "change_low": [middle - half],
                      "change_high": [middle + half]}}
            for middle, half, refused in ((.08, .03, False), (.12, .03, False), (.16, .03, False), (.11, .02, True),
                                          (.2, .01, True))]
    of = coverages(Subject("", None, TRUTH, TRUTH, None), said, 0)["NCIS"]
    assert (of.question, of.logs, of.refused) == ("one changed request", 5, .4)
    assert of.wrongly == .5
    assert of.bias == pytest.approx(.02)
    assert of.spread == pytest.approx(.04)
    assert of.half == pytest.approx(.03)
    assert of.own == pytest.approx(2 / 3)
    assert of.ab == pytest.approx(2 / 3)
    assert table_of({"NCIS": of}) == [("NCIS", "one changed request", "5", "40%", "50%", "+2.0", "4.0", "3.0", "67%",
                                       "67%")]


def test_what_has_no_interval_covers_nothing():
    said = [{"FQE": {"refused": False, "change": [.3], "change_low": [None], "change_high": [None]}}]
    of = coverages(Subject("", None, TRUTH, TRUTH, None), said, 0)["FQE"]
    assert of.bias == pytest.approx(0)
    assert math.isnan(of.own)
    assert math.isnan(of.wrongly)


def test_who_is_refused_says_what_it_would_have_said(setting):
    """Eighty persons are too few for products of ratios; requests are plenty."""
    log = fresh_log(setting.world, setting.logged, setting.persons, 0)
    said = said_of(setting, setting.subjects[0], log)
    assert not said["NCIS"]["refused"]
    refused = [line for line in said.values() if line["refused"]]
    assert refused
    assert all(line["change"][0] is not None for line in refused)
    assert abs(said["NCIS"]["change"][0]) < .2


def test_an_interrupted_measurement_goes_on(setting, tmp_path):
    measured(setting, 1, tmp_path)
    file, = tmp_path.iterdir()
    begun = file.read_text()
    file.write_text(begun + '{"half a li')
    resumed = measured(setting, 2, tmp_path)
    assert file.read_text().startswith(begun)
    assert len(file.read_text().splitlines()) == 2
    assert resumed["near"][0] != resumed["near"][1], "every log has luck of its own"
    assert measured(setting, 2, tmp_path) == resumed
