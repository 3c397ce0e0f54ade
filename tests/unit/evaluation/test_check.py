"""What a log can tell before anything is learned from it."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from own_shop import Shop
from session_logs import row, table, write

from recfuse.config import InvalidFieldError
from recfuse.evaluation.check import check_log
from recfuse.evaluation.config import CheckConfig
from recfuse.logs.draft import read_draft


def log(directory: Path, rows: int = 400, sigma: float = .5, days: float = 10.0, **changes: object) -> str:
    """Rows of 50 users over some days; `like` comes with probability .2, watch time is exponential."""
    rng, made = np.random.default_rng(0), []
    for number in range(rows):
        action = (sigma * rng.standard_normal(2)).astype(np.float32).astype(float).tolist()
        values = {"sigma": [sigma] * 2, "action": action, "action_logp": None, "last": True,
                  "feedback": {"watch_time": rng.exponential(), "like": float(rng.random() < .2)}, **changes}
        made.append(row(number, user=f"u{number % 50}", session=f"s{number}", seconds=number / rows * days * 86_400,
                        **values))
    return str(write(directory, table(made)))


def test_counts_by_hand(tmp_path: Path) -> None:
    result = check_log(CheckConfig(logs=log(tmp_path / "log")))
    assert (result.requests, result.users, result.sessions) == (400, 50, 400)
    assert result.days == pytest.approx(10 * 399 / 400)
    assert result.sigma == {"p0": pytest.approx(.5), "p1": pytest.approx(.5)}
    assert (result.drawn, result.with_candidates) == (1.0, 0.0)
    # E ρ² of a mean one σ away is exp(1).
    assert result.support == pytest.approx(400 / math.e)
    of_like = result.outlook[1]
    assert of_like.daily == pytest.approx(of_like.mean * 400 / result.days)


def test_days_are_those_of_the_formulas(tmp_path: Path) -> None:
    """Four times the effect asks for a sixteenth of the time; what the log is long enough for needs no day more."""
    path = log(tmp_path / "log")
    small, large = (check_log(CheckConfig(logs=path, effect=effect)) for effect in (.01, .04))
    for before, after in zip(small.outlook, large.outlook, strict=True):
        for name in ("test", "estimate"):
            longer, shorter = getattr(before, name) + small.days, getattr(after, name) + large.days
            assert longer / shorter == pytest.approx(16)
    assert {each.test for each in check_log(CheckConfig(logs=path, effect=1e3)).outlook} == {0.0}
    # Off policy, of like: relative variance (e − 1) / (n p).
    like, wanted = small.outlook[1], 1.959964 + .841621
    error = wanted * math.sqrt((math.e - 1) / (400 * like.mean))
    assert like.estimate + small.days == pytest.approx(small.days * (error / .01)**2, rel=1e-3)


def test_a_farther_policy_has_less_support(tmp_path: Path) -> None:
    path = log(tmp_path / "log")
    near, far = (check_log(CheckConfig(logs=path, step=step)).support for step in (.5, 2.0))
    assert near == pytest.approx(400 / math.exp(.25))
    assert far == pytest.approx(400 / math.exp(4))


def test_a_log_without_exploration_says_so(tmp_path: Path) -> None:
    result = check_log(CheckConfig(logs=log(tmp_path / "log", action=[0.0, 0.0], explored=False)))
    assert (result.support, result.drawn) == (0.0, 0.0)
    assert {each.estimate for each in result.outlook} == {math.inf}
    assert "nothing to learn from" in result.verdict


def test_quarantine_is_told_by_its_reason(tmp_path: Path) -> None:
    made = [row(number, feedback={"watch_time": float("nan") if number % 4 else 1.0, "like": 0.0})
            for number in range(40)]
    result = check_log(CheckConfig(logs=str(write(tmp_path / "log", table(made)))))
    assert (result.account.rows_in, sum(result.account.quarantined.values())) == (40, 30)
    assert "75.0% of the rows are quarantined" in result.verdict


def test_a_behaviour_that_never_came_can_never_be_seen(tmp_path: Path) -> None:
    result = check_log(CheckConfig(logs=log(tmp_path / "log", feedback={"watch_time": 1.0, "like": 0.0}), effect=9.0))
    assert result.outlook[1].test == math.inf
    assert "like never" in result.verdict


def test_the_shops_log_keeps_its_candidates(tmp_path: Path) -> None:
    Shop().write_log(tmp_path / "log", requests=100)
    draft = read_draft(str(tmp_path / "log"), 100, (), (), (), None)
    draft.vocabulary.save(tmp_path / "v.yaml")
    result = check_log(CheckConfig(logs=str(tmp_path / "log"), vocabulary=str(tmp_path / "v.yaml")))
    assert result.with_candidates == 1.0
    assert result.days > 1


def test_nothing_good_is_refused(tmp_path: Path) -> None:
    made = [row(0, seconds=0, user="u", feedback=None)]
    with pytest.raises(InvalidFieldError, match="0 of 1 rows kept"):
        check_log(CheckConfig(logs=str(write(tmp_path / "log", table(made)))))
