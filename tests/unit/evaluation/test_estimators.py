"""The list of estimators: what each says of itself, what is left out of a case, and one from outside the package."""

import dataclasses
import logging

import numpy as np
import pytest

from recfuse.behaviours import Behaviour, Vocabulary
from recfuse.config import InvalidFieldError
from recfuse.evaluation.answers import EstimateOptions
from recfuse.evaluation.blocks import blocks_of
from recfuse.evaluation.case import Case
from recfuse.evaluation.estimator import QUESTIONS, Requirement, estimate_all
from recfuse.evaluation.estimators import ESTIMATORS
from recfuse.evaluation.fitted_q import Transitions
from recfuse.evaluation.held_out import HeldOut
from recfuse.evaluation.ope import ncis
from recfuse.fusion.inference import FusionActor
from recfuse.fusion.policies import FixedGaussian
from recfuse.stats.gaussian import gaussian_log_density
from tests.unit.evaluation.user_value import USER_VALUE

VOCABULARY = Vocabulary(
    behaviours=(Behaviour(name="watch_time", kind="long_term"), Behaviour(name="like", kind="short_term")),
    fusion_parameters=("click", "like"), state_size=3)
LOGGED, POLICY = FixedGaussian([0.0, 0.0], 1.0), FixedGaussian([.1, -.1], .9)
NAMES = ["NCIS", "IS", "DR", "SN-DR", "DM", "windowed NCIS", "ratio of rates", "PDIS", "SN-PDIS",
         "DR (session)", "SN-DR (session)", "FQE"]


def requests(sessions=400, length=3, seed=0):
    """State, action and feedback of sessions of the same length, under LOGGED."""
    rng = np.random.default_rng(seed)
    state = rng.standard_normal((sessions * length, 3)).astype(np.float32)
    action = LOGGED.act(state, True, rng).action
    feedback = 2 + np.column_stack([action.sum(1), state[:, 0]]) + rng.standard_normal((len(state), 2))
    return state, action, feedback, np.arange(sessions).repeat(length)


def case(policy=POLICY, samples=True):
    """A held-out log of 400 sessions, and as many others as samples."""
    state, action, feedback, session = requests()
    log = HeldOut(user_id=session // 2, state=state, action=action, feedback=feedback, session=session,
                  log_prob=gaussian_log_density(action, LOGGED.mu, LOGGED.sigma))
    other_state, other_action, other_feedback, user = requests(seed=1)
    last = np.append(user[1:] != user[:-1], True)
    others = Transitions(other_state, other_action, other_feedback.astype(np.float32), np.roll(other_state, -1, 0),
                         last.astype(np.float32), user)
    actor = FusionActor("test", VOCABULARY, {"type": "fixed"}, {"mu": policy.mu, "sigma": policy.sigma})
    return Case(actor=actor, log=log, samples=others if samples else None, cap=10.0, session_discount=1.0,
                options=EstimateOptions(draws=50, min_ess=25, ratio_tolerance=.1))


@pytest.mark.parametrize("estimator", [*ESTIMATORS, USER_VALUE], ids=lambda estimator: estimator.name)
def test_an_estimator_says_what_it_answers_how_and_what_it_needs(estimator):
    assert estimator.question in QUESTIONS
    assert "?" in estimator.question.words
    assert any(symbol in estimator.formula for symbol in ("Σ", "as DR"))
    assert estimator.requirements
    assert estimator.missing(case()) == []
    answer = estimator.estimate(case())
    assert answer.estimate.shape == (2,)
    if estimator in ESTIMATORS:
        assert (answer.estimator, answer.per) == (estimator.name, estimator.question.unit)


def test_answers_stand_in_the_order_of_the_list():
    assert [answer.estimator for answer in estimate_all(case(), ESTIMATORS)] == NAMES
    assert len({question.name for question in QUESTIONS}) == len(QUESTIONS) == 4


def test_what_a_case_lacks_leaves_an_estimator_out_and_is_said(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("recfuse"), "propagate", True)
    with caplog.at_level(logging.INFO, "recfuse"):
        answers = estimate_all(case(samples=False), ESTIMATORS)
    assert [answer.estimator for answer in answers] == ["NCIS", "IS", "windowed NCIS", "ratio of rates", "PDIS",
                                                       "SN-PDIS"]
    assert "no DM, which needs samples apart from the log, which critics are fitted to" in caplog.text
    never = dataclasses.replace(USER_VALUE, requirements=(Requirement("a crystal ball", lambda case: False),))
    assert estimate_all(case(), [never]) == []
    with pytest.raises(InvalidFieldError, match="samples: got None; allowed: samples that critics are fitted to"):
        case(samples=False).folds  # noqa: B018


def test_critics_that_do_not_settle_leave_fqe_with_its_reason():
    diverging = dataclasses.replace(case(), samples=dataclasses.replace(
        case().samples, done=np.zeros(1_200, np.float32)))  # sessions that never end have no finite value
    answers = {answer.estimator: answer for answer in estimate_all(diverging, ESTIMATORS)}
    assert "did not stand still" in answers["FQE"].refused
    assert not {"DR (session)", "SN-DR (session)"} & set(answers)
    assert not answers["DR"].refused


def test_no_two_estimators_share_a_name():
    with pytest.raises(InvalidFieldError, match=r"estimators: got \['NCIS', 'NCIS'\]; allowed: distinct names"):
        estimate_all(case(), [ESTIMATORS[0], ESTIMATORS[0]])


def test_an_estimator_from_outside_stands_in_its_block():
    """The value per user of the logged policy itself is the log's: the mean over users of what each brought."""
    same = case(policy=LOGGED)
    answers = estimate_all(same, (*ESTIMATORS, USER_VALUE))
    assert (answers[-1].estimator, answers[-1].per) == ("UserIS", "user")
    np.testing.assert_allclose(answers[-1].estimate, same.log.feedback.sum(0) / 200)
    np.testing.assert_array_equal(answers[0].estimate, ncis(*same.request_arguments, same.options).estimate)
    block = blocks_of(same, (*ESTIMATORS, USER_VALUE), answers, VOCABULARY.behaviour_names)[-1]
    assert (block.question.name, block.nobody) == ("a user over a time", "")
    assert block.rows() == [["UserIS", "", "200", "+0.0% [+0.0%, +0.0%]", "+0.0% [+0.0%, +0.0%]"]]
    np.testing.assert_allclose(block.logged, same.log.feedback.sum(0) / 200)
    assert [answer["estimator"] for answer in block.to_dict()["answers"]] == ["UserIS"]
