"""A log whose state hides what matters: a request brings less of what the one before it brought much of.

Requests of a session draw their action from N(μ, σ²) and bring `2 + a_t − δ a_t a_{t−1} + ε`; every one is the last
with probability LEAVE. The state is a number that says nothing of it, so that two ratios tell what one ratio, and
critics of any kind, cannot. All three truths are known in closed form."""

from __future__ import annotations

import numpy as np

from recfuse.behaviours import Behaviour, Vocabulary
from recfuse.evaluation.answers import EstimateOptions
from recfuse.evaluation.case import Case
from recfuse.evaluation.fitted_q import Transitions
from recfuse.evaluation.held_out import HeldOut
from recfuse.fusion.inference import FusionActor
from recfuse.fusion.policies import FixedGaussian
from recfuse.stats.gaussian import gaussian_log_density

LEAVE, DEPLETION = .25, 1.5
LOGGED, POLICY = FixedGaussian([.3], .5), FixedGaussian([.6], .45)
VOCABULARY = Vocabulary(behaviours=(Behaviour(name="watch_time", kind="long_term"),), fusion_parameters=("click",),
                        state_size=1)


def per_request(before: float, mean: float) -> float:
    """What a request brings in the mean, where the one before it, if there was one, had this mean action."""
    return 2 + mean - (1 - LEAVE) * DEPLETION * before * mean


def truths(logged: float = .3, policy: float = .6) -> dict[str, float]:
    """Relative changes from the log, by question."""
    own = per_request(logged, logged)
    return {"one changed request": per_request(logged, policy) / own - 1,
            "a request when the policy is followed": per_request(policy, policy) / own - 1,
            "a whole session": per_request(policy, policy) / own - 1}  # as long as the log's, whatever is done


def requests(sessions: int, seed: int) -> tuple[np.ndarray, ...]:
    """State, action, feedback, session of the logged policy."""
    rng = np.random.default_rng(seed)
    length = rng.geometric(LEAVE, sessions)
    session = np.repeat(np.arange(sessions), length)
    state = rng.standard_normal((len(session), 1)).astype(np.float32)
    action = LOGGED.act(state, True, rng).action
    before = np.append([0], action[:-1, 0])
    before[np.append([True], session[1:] != session[:-1])] = 0
    feedback = 2 + action[:, 0] * (1 - DEPLETION * before) + rng.normal(0, .5, len(session))
    return state, action, feedback[:, None], session


def case(sessions: int = 4_000, seed: int = 0, policy: FixedGaussian = POLICY, **changes: object) -> Case:
    """The policy, a log of so many users with a session each, and samples of others."""
    state, action, feedback, session = requests(sessions, seed)
    log = HeldOut(user_id=session, state=state, action=action, feedback=feedback, session=session,
                  log_prob=gaussian_log_density(action, LOGGED.mu, LOGGED.sigma))
    state, action, feedback, session = requests(sessions, seed + 10_000)
    last = np.append(session[1:] != session[:-1], True)
    samples = Transitions(state, action, feedback.astype(np.float32), np.roll(state, -1, 0), last.astype(np.float32),
                          session + sessions)
    actor = FusionActor("test", VOCABULARY, {"type": "fixed"}, {"mu": policy.mu, "sigma": policy.sigma})
    return Case(**{**dict(actor=actor, log=log, samples=samples, cap=None, session_discount=1.0,
                          options=EstimateOptions(draws=200)), **changes})
