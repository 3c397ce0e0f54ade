"""The worked examples of docs/extending.md run as they stand there, as files of somebody who is not of the package."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest
import samples as toy

from recfuse.bundle import read_bundle
from recfuse.evaluation.estimators import ESTIMATORS
from recfuse.fusion.config import NetworkConfig
from recfuse.jobs.train_fusion import main
from recfuse.learning import registry
from recfuse.learning.config import TrainFusionConfig
from recfuse.learning.settings import StoppingRule
from recfuse.report.run import evaluate_and_report
from tests.integration import test_evaluate
from tests.integration.test_evaluate import run  # noqa: F401  (a fixture)
from tests.unit.simulation import worlds

PAGE = (Path(__file__).parents[2] / "docs" / "extending.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def block(word: str) -> str:
    [text] = [text for text in BLOCKS if word in text]
    return text


@pytest.fixture
def page_file(tmp_path, monkeypatch):
    """Writes a block of the page as a module of this name and makes it importable."""
    def write(name: str, word: str) -> None:
        (tmp_path / f"{name}.py").write_text(block(word))
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, name, raising=False)
    return write


@pytest.mark.usefixtures("local_ray")
def test_the_algorithm_of_the_page_is_trained_and_exported(page_file, tmp_path, monkeypatch):
    registry.names()  # Imports the others, which are registered once: not into the copy that this test leaves behind.
    monkeypatch.setattr(registry, "_registered", dict(registry._registered))
    page_file("page_algorithm", "@register")
    settings = registry.settings("page_algorithm:Weighted", network=NetworkConfig(hidden=(16,)), minibatch_size=256,
                                 window_rows=1024, cloning=StoppingRule(iterations=1),
                                 weighted=StoppingRule(iterations=2))
    result = main(TrainFusionConfig(samples=str(toy.write(tmp_path / "samples", toy.bandit(2000), files=1)),
                                    output=str(tmp_path / "fusion"), learning=settings))
    assert list(result.metrics) == ["cloning", "weighted"]
    assert read_bundle(result.bundle).manifest["training"]["inverse_temperature"] == 1.0


def test_the_estimator_of_the_page_stands_beside_the_others(page_file, run, tmp_path):  # noqa: F811
    page_file("page_estimator", "user_ratio")
    from page_estimator import USER_RATIO

    config = test_evaluate.config(run, tmp_path, worlds.LOGGED)
    answer = evaluate_and_report(config, estimators=(*ESTIMATORS, USER_RATIO)).evaluation.estimates[-1]
    assert answer.estimator == "user ratio"
    # The policy is the logged one, whose ratios are 1: the estimate is the mean over users of their own means.
    np.testing.assert_allclose(answer.estimate, answer.logged, rtol=1e-5)
    assert (answer.low <= answer.estimate).all()
