"""What online learning needs of an environment, without Ray."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import samples as toy
import torch

from recfuse.config import InvalidFieldError
from recfuse.fusion.config import NetworkConfig
from recfuse.fusion.networks import GaussianPolicies, Normalisation
from recfuse.fusion.policies import FixedGaussian
from recfuse.learning.config import OnlineSettings
from recfuse.learning.online import TorchPolicy, first_samples, roll, summary
from recfuse.learning.run import describe
from recfuse.learning.samples import InMemory, SampleSet, arrays


class Counter:
    """Two sessions side by side; the first ends after two requests, the second is cut after three."""

    num_envs = 2

    def reset(self, *, seed=None):
        self._request = np.zeros(2, int)
        return self._state(), {}

    def step(self, actions):
        self._request += 1
        left, cut = np.array([self._request[0] == 2, False]), np.array([False, self._request[1] == 3])
        info = {"feedback": actions.copy(), "final_obs": self._state()}
        self._request[left | cut] = 0
        return self._state(), np.zeros(2), left, cut, info

    def _state(self):
        return np.stack([self._request, [0, 1]], 1).astype(np.float32)


def test_a_roll_out_by_hand():
    """States count requests; a cut session goes on for the critics (not done), with its own last state behind it."""
    columns = roll(Counter(), FixedGaussian([0.0, 0.0], 1.0), 4, seed=3)
    np.testing.assert_array_equal(columns["state"][:, 0], [0, 1, 0, 1, 0, 1, 2, 0])
    np.testing.assert_array_equal(columns["next_state"][:, 0], [1, 2, 1, 2, 1, 2, 3, 1])
    np.testing.assert_array_equal(columns["state"][:, 1], [0, 0, 0, 0, 1, 1, 1, 1])
    np.testing.assert_array_equal(columns["done"], [0, 1, 0, 1, 0, 0, 0, 0])
    np.testing.assert_array_equal(columns["feedback"], columns["action"])
    density = -0.5 * (columns["action"] ** 2 + np.log(2 * np.pi)).sum(1)
    np.testing.assert_allclose(columns["action_logp"], density, rtol=1e-5)


def test_the_learner_reads_what_was_rolled_as_it_reads_files():
    columns = toy.bandit(100)
    tables = list(InMemory(columns).iter_batches(batch_size=40, batch_format="pyarrow", prefetch_batches=1))
    assert [len(part) for part in tables] == [40, 40, 20]
    for name, values in arrays(pa.concat_tables(tables)).items():
        np.testing.assert_array_equal(values, columns[name])


def test_moments_of_a_first_roll_out(tmp_path):
    columns = toy.bandit(500)
    found, written = SampleSet.of(columns, toy.vocabulary(), "a"), SampleSet.open(toy.write(tmp_path, columns, files=1))
    assert found.normalisation == written.normalisation
    assert found.reward_std == written.reward_std
    assert found.mean_values == written.mean_values
    first = first_samples(Counter(), FixedGaussian([0.0, 1.0], 0.1), toy.vocabulary(), OnlineSettings(requests=50), 0)
    np.testing.assert_allclose(first.normalisation.action_mean, [0, 1], atol=0.05)


def test_the_rolled_policy_is_the_learners():
    policy = GaussianPolicies(("policy",), NetworkConfig(action_range=(0.0, 2.0)), Normalisation.identity(3, 2))
    state = np.random.default_rng(0).standard_normal((6, 3)).astype(np.float32)
    decision = TorchPolicy(policy).act(state, True, np.random.default_rng(1))
    with torch.no_grad():
        density = policy.log_prob(torch.from_numpy(state), torch.from_numpy(decision.action))[:, 0].numpy()
    np.testing.assert_allclose(decision.action_logp, density, atol=1e-3)


def test_summary_and_progress_line():
    history = [{"feedback/like": 1.0}, {"feedback/like": 3.0}]
    assert summary(history, ("like",)) == [("like", 1.0, 3.0)]
    entry = {"loss": 0.5, "kl/like": 0.25, "kl/follow": 1.0, "tau": 1.0, "ess_share": 0.125, "phase": "stage_two"}
    assert describe(entry) == "loss 0.5000, kl 0.25..1, ess share 0.125, tau 1"


def test_bad_settings_are_named():
    with pytest.raises(InvalidFieldError, match="runners: got -1; allowed: an integer ≥ 0"):
        OnlineSettings(runners=-1)
    with pytest.raises(InvalidFieldError, match="requests: got 0; allowed: an integer ≥ 1"):
        OnlineSettings(requests=0)
