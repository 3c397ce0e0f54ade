"""What an estimator is: the question that it answers, its formula, what it needs, and how it estimates."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from recfuse.config import require
from recfuse.evaluation.answers import OffPolicyEstimate, Vector, nan_vector
from recfuse.evaluation.case import Case

logger = logging.getLogger("recfuse")


@dataclass(frozen=True)
class Question:
    """What can be asked of a log about a policy that did not write it.

    Attributes:
        name: a few words.
        unit: of the value: it is per `request`, per `session`, per `user`.
        words: the question, and what its answer leaves out.
        logged: the log's own mean of what is asked, float64[m].
        nobody: why no estimator of a log answers it.
    """

    name: str
    unit: str
    words: str
    logged: Callable[[Case], Vector]
    nobody: str = "no estimator of the list asks this, or the log lacks what they need"


def _per_request(case: Case) -> Vector:
    rows = case.weighed if case.weighed.any() else np.ones(len(case.log.state), bool)
    return np.asarray(case.log.feedback[rows], np.float64).mean(0)


def _per_session(case: Case) -> Vector:
    if not case.counted(ratios=False, sessions=True).any():
        return nan_vector(case.log.feedback.shape[1])
    sessions = case.whole_sessions
    return (sessions.discounts() * sessions.feedback).sum(0) / sessions.count


def _per_user(case: Case) -> Vector:
    return np.asarray(case.log.feedback, np.float64).sum(0) / len(case.users.categories)


CHANGED_REQUEST = Question(
    "one changed request", "request",
    "What would a request bring if the policy decided it alone? States come as the logged policy made them.",
    _per_request)
FOLLOWED_REQUEST = Question(
    "a request when the policy is followed", "request",
    "What would a request bring if the policy decided all of them? States come as the policy makes them.",
    _per_request)
WHOLE_SESSION = Question(
    "a whole session", "session",
    "What would a session bring if the policy decided all of its requests? Sessions begin as the logged ones did.",
    _per_session)
USER_OVER_TIME = Question(
    "a user over a time", "user",
    "What would a user bring over the log's time if the policy decided everything? An A/B test answers the same.",
    _per_user,
    "no log answers this: people came back as the policy that logged made them, so only an A/B test or a canary does")
QUESTIONS = (CHANGED_REQUEST, FOLLOWED_REQUEST, WHOLE_SESSION, USER_OVER_TIME)


@dataclass(frozen=True)
class Requirement:
    """What an estimator needs of a case.

    Attributes:
        words: what it is, as a noun.
        holds: whether a case has it.
    """

    words: str
    holds: Callable[[Case], bool]


# Whatever reads a log cuts its sessions. Where no action has a ratio, or no session is whole, these two give the answer
# a reason instead of numbers.
DENSITIES = Requirement("the densities of the logged actions under both policies", lambda case: True)
SESSIONS = Requirement("sessions, their requests in the order of time", lambda case: True)
SAMPLES = Requirement("samples apart from the log, which critics are fitted to", lambda case: case.samples is not None)
SETTLED_CRITICS = Requirement("critics of sessions whose fit stood still",
                              lambda case: case.samples is not None and not case.critics_refused)
WHOLE_SUPPORT = Requirement("ratios whose products have support over the longest session", lambda case: (
    not case.explore or not case.in_sessions.any() or case.horizon >= case.sessions.longest))
FIRST_SUPPORT = Requirement("ratios that have support over the first request of a session",
                            lambda case: not case.explore or not case.in_sessions.any() or case.horizon > 0)


@dataclass(frozen=True, kw_only=True)
class Estimator:
    """One way to answer one question.

    Attributes:
        name: in tables and figures; no two of a list share it.
        question: that it answers.
        formula: of the value, in the notation of docs/maths.md, section 4.1.
        requirements: what it needs; it is left out of a case that lacks any.
        estimate: its answer for a case. An answer without support carries the reason (`OffPolicyEstimate.refused`).
    """

    name: str
    question: Question
    formula: str
    requirements: tuple[Requirement, ...]
    estimate: Callable[[Case], OffPolicyEstimate]

    def refusal(self, case: Case) -> str:
        """Why the log has not a single request for it; "" where it has some."""
        ratios, sessions = DENSITIES in self.requirements, SESSIONS in self.requirements
        if ratios and not case.explore:
            return ("without exploration the policy takes its mean action, which has no density, so that no ratio is "
                    "known")
        if case.counted(ratios=ratios, sessions=sessions).any():
            return ""
        if ratios and not case.weighed.any():
            return (f"none of {len(case.log.state):,} actions " + (
                "was drawn from the policy that logged them" if not case.log.drawn.any() else
                "that were drawn has a density in the log") + ", so that no ratio of densities is known")
        return "no session " + ("whose actions all have a ratio " if ratios and not case.weighed.all() else "") + (
            "is whole: the end of the log cuts each of them")

    def missing(self, case: Case) -> list[str]:
        """What it needs and the case lacks, in words."""
        return [requirement.words for requirement in self.requirements if not requirement.holds(case)]


def estimate_all(case: Case, estimators: Sequence[Estimator]) -> list[OffPolicyEstimate]:
    """The answers of all estimators that have what they need, in their order.

    Raises:
        InvalidFieldError: two estimators share a name.
    """
    names = [estimator.name for estimator in estimators]
    require(len(set(names)) == len(names), "estimators", names, "distinct names")
    answers = []
    for estimator in estimators:
        if missing := estimator.missing(case):
            logger.info("evaluate: no %s, which needs %s", estimator.name, "; ".join(missing))
            continue
        reason = estimator.refusal(case)
        answer = _no_answer(case, reason) if reason else estimator.estimate(case)
        # The list alone says what an answer is called and what it is per.
        answers.append(dataclasses.replace(answer, estimator=estimator.name, per=estimator.question.unit))
    return answers


def _no_answer(case: Case, reason: str) -> OffPolicyEstimate:
    width = case.log.feedback.shape[1]
    return OffPolicyEstimate(nan_vector(width), nan_vector(width), nan_vector(width), logged=nan_vector(width),
                             effective_sample_size=np.zeros(width), requests=len(case.log.state),
                             users=len(pd.unique(case.log.user_id)), capped_share=0.0, mean_ratio=0.0, refused=reason)
