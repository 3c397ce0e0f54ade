"""Who gains: groups whose answers to a change of the weights are known."""

from __future__ import annotations

import numpy as np
import pytest

from recfuse.behaviours import Behaviour, StateFeature, Vocabulary
from recfuse.bundle import read_bundle
from recfuse.evaluation.answers import EstimateOptions
from recfuse.evaluation.case import Case
from recfuse.evaluation.held_out import HeldOut
from recfuse.evaluation.segments import gains_per_group
from recfuse.fusion.inference import FusionActor, export_policy
from recfuse.fusion.policies import FixedGaussian
from recfuse.stats.gaussian import gaussian_log_density

VOCABULARY = Vocabulary(
    behaviours=(Behaviour(name="watch_time", kind="long_term"),), fusion_parameters=("click",), state_size=4,
    state_features=(StateFeature(name="age"), StateFeature(name="scene", categories=("home", "cart"))))
GROUPS = [{"feature": "all", "value": ""}, {"feature": "scene", "value": "home"}, {"feature": "scene", "value": "cart"}]


@pytest.fixture
def case(tmp_path):
    """Actions of N(0, .5²); the policy adds .2. Feedback is 5 + 2 a at home and 5 − 2 a in the cart, so that the policy
    brings +8% at home and −8% in the cart."""
    rng, rows, sigma = np.random.default_rng(0), 20_000, .5
    home = rng.random(rows) < .7
    state = np.stack([rng.standard_normal(rows), home, ~home, np.zeros(rows)], 1).astype(np.float32)
    action = (sigma * rng.standard_normal((rows, 1))).astype(np.float32)
    mu, spread = np.zeros((rows, 1), np.float32), np.full((rows, 1), sigma, np.float32)
    feedback = (5 + 2 * np.where(home, 1, -1) * action[:, 0] + .1 * rng.standard_normal(rows))[:, None]
    log = HeldOut(user_id=np.arange(rows) // 4, state=state, action=action, feedback=feedback,
                  log_prob=gaussian_log_density(action, mu, spread), session=np.arange(rows) // 4)
    bundle = export_policy(tmp_path, FixedGaussian([.2], [sigma]), VOCABULARY, training={}, data_fingerprint="none",
                           metrics={})

    def of(**changes):
        return Case(actor=FusionActor.from_bundle(read_bundle(bundle)), log=log, samples=None, cap=None,
                    session_discount=1.0, options=EstimateOptions(draws=200), **changes)

    return of


def test_each_group_has_its_own_gain(case):
    everybody, home, cart = gains_per_group(case(), GROUPS)
    assert home["requests"] + cart["requests"] == everybody["requests"] == 20_000
    for group, truth in ((everybody, .08 * .4), (home, .08), (cart, -.08)):
        assert group["refused"] == ""
        assert group["change"][0] == pytest.approx(truth, abs=.01)
        assert group["low"][0] - .002 <= truth <= group["high"][0] + .002
    assert home["low"][0] > 0 > cart["high"][0]


def test_a_group_without_support_gives_its_reason(case):
    small = case(explore=True)
    few = np.flatnonzero(small.log.state[:, 2] > .5)[:30]
    mask = small.log.state[:, 1] > .5
    mask[few] = True
    small = Case(actor=small.actor, log=small.log.take(mask), samples=None, cap=None, session_discount=1.0,
                 options=small.options)
    cart = gains_per_group(small, GROUPS)[2]
    assert cart["requests"] == 30
    assert "effective sample size" in cart["refused"]
    assert cart["change"] == [None]


def test_a_policy_without_density_has_no_groups(case):
    assert gains_per_group(case(explore=False), GROUPS) == []
