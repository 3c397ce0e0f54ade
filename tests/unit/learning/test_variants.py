"""`item_value` and `monotone` on logs of rankings whose effects are known, and their bundles as serving ranks them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ranked_samples
import torch
from learners import build, fit_all

from recfuse.bundle import read_bundle
from recfuse.config import InvalidFieldError
from recfuse.evaluation.answers import EstimateOptions
from recfuse.fusion.inference import FusionActor, export_policy
from recfuse.fusion.replay import Candidates, scores_of
from recfuse.learning import registry
from recfuse.learning.fits.item_value import ascended, worth_of
from recfuse.learning.page_effects import Objective
from recfuse.learning.phases import names_of
from recfuse.learning.replay_settings import ReplaySettings
from recfuse.learning.settings import StoppingRule
from recfuse.serving.fusion import fuse_columns
from recfuse.tune.judges import OffPolicyJudge


def served(directory: Path, output: Path, algorithm: str, **changes: Any) -> tuple[Any, FusionActor]:
    """The learner that was trained, and its bundle."""
    settings = registry.settings(algorithm, minibatch_size=512, window_rows=4096, critics=StoppingRule(iterations=4),
                                 replay=ReplaySettings(requests=1500, floor=-1.0), **changes).resolved(True, True)
    learner = build(directory, settings)
    assert fit_all(learner, directory, settings).keys() == set(names_of(settings.phases))
    module = learner.fusion
    bundle = export_policy(output, module.served(), module.served_vocabulary(), training={}, data_fingerprint="",
                           metrics={})
    return learner, FusionActor.from_bundle(read_bundle(bundle, "fusion"))


@pytest.fixture(scope="module")
def different(tmp_path_factory):
    """A user's watch time gains 1 + 1.5 z by the first column and 1 − 1.5 z by the second."""
    return ranked_samples.write(tmp_path_factory.mktemp("different"), users=400, spread=1.5)


@pytest.fixture(scope="module")
def values(different, tmp_path_factory):
    return served(different, tmp_path_factory.mktemp("values"), "item_value")


@pytest.fixture(scope="module")
def curves(different, tmp_path_factory):
    return served(different, tmp_path_factory.mktemp("curves"), "monotone", knots=5)


def test_item_values_are_what_a_column_is_worth(values):
    learner, actor = values
    mu = actor.act(np.array([[1.0, 0.0], [-1.0, 0.0]], np.float32), explore=False).mu
    worth = np.array([[2.5, -0.5], [-0.5, 2.5]])
    np.testing.assert_allclose(mu / np.linalg.norm(mu, axis=1)[:, None],
                               worth / np.linalg.norm(worth, axis=1)[:, None], atol=0.15)
    rows = torch.randn(20, 2)
    vectors = learner.fusion.modifiers_of(rows, torch.zeros(20, dtype=torch.int64))
    worth = worth_of(learner.fusion.multipliers).double()
    expected = torch.einsum("nu,ucj,j->nc", vectors.double(), learner.fusion.page_effects, worth)
    np.testing.assert_allclose(actor.act(rows.numpy(), explore=False).mu, expected.numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("variant", ["values", "curves"])
def test_serving_ranks_as_the_trainer_does(variant, request):
    _, actor = request.getfixturevalue(variant)
    vocabulary = actor.vocabulary
    assert vocabulary.formula == "linear"
    assert (vocabulary.curves is None) == (variant == "values")
    generator = torch.Generator().manual_seed(5)
    predictions = (torch.rand(30, 2, 16, generator=generator) * 1.5).half()
    state = torch.randn(30, 2, generator=generator).numpy()
    action = actor.act(state, explore=True, seed=1).action
    candidates = Candidates.of(predictions, torch.ones(30, 16, dtype=torch.bool), vocabulary)
    trained = scores_of(candidates, torch.from_numpy(action).unsqueeze(1))[:, 0].numpy()
    for row in range(30):
        _, scores = fuse_columns(predictions[row].double().numpy(), action[row], vocabulary)
        np.testing.assert_allclose(scores, trained[row], rtol=1e-6, atol=1e-6 * np.abs(trained[row]).max())


def test_monotone_orders_as_its_curves_do(curves):
    _, actor = curves
    lines, mu = actor.vocabulary.curves, actor.act(np.zeros((1, 2), np.float32), explore=False).mu[0]
    assert [len(curve.x) for curve in lines] == [5, 5]
    assert all(curve.y[-1] > curve.y[0] for curve in lines)
    columns = np.random.default_rng(0).uniform(0.2, 1.2, (2, 40))
    by_hand = sum(weight * np.interp(column, curve.x, curve.y)
                  for weight, column, curve in zip(mu, columns, lines, strict=True))
    inside = np.logical_and.reduce([(column >= curve.x[0]) & (column <= curve.x[-1])
                                    for column, curve in zip(columns, lines, strict=True)])
    scores = fuse_columns(columns, mu, actor.vocabulary)[0]
    np.testing.assert_allclose(scores[inside], by_hand[inside], rtol=1e-9)
    assert inside.sum() > 20


def test_no_sweep_judges_a_policy_by_a_log_of_another_formula(values):
    """Densities of vectors that weigh something else mean nothing: there is no estimate."""
    _, actor = values
    worths = OffPolicyJudge(None, actor.vocabulary.replace(formula="log_sum"), None, EstimateOptions())(actor)
    assert np.isnan(np.array(list(worths.values()))).all()
    assert list(worths) == ["watch_time", "like"]


def test_multipliers_end_where_the_floor_holds():
    """Effect −1 + λ of a behaviour under the floor 0 needs λ = 1; another, that nothing moves, needs none."""
    def judged(worth: torch.Tensor) -> torch.Tensor:
        return torch.stack([1.0 - worth[1], -1.0 + worth[1], torch.tensor(0.1, dtype=torch.float64)])

    objective = Objective(torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64),
                          torch.tensor([float("-inf"), 0.0, 0.0], dtype=torch.float64))
    multipliers = ascended(judged, objective, ReplaySettings(dual_step=0.2), 200)
    assert multipliers.tolist() == pytest.approx([1.0, 0.0], abs=1e-3)


@pytest.mark.parametrize("algorithm", ["item_value", "monotone"])
def test_samples_without_candidates_are_refused(algorithm):
    with pytest.raises(InvalidFieldError, match=f"algorithm: got '{algorithm}'; allowed: another one"):
        registry.settings(algorithm).resolved(True, False)
