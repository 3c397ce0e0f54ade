"""The board, and decisions on it, on a real rollout."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from recfuse.behaviours import Vocabulary
from recfuse.bundle.pointer import read_pointer
from recfuse.evaluation.config import Targets
from recfuse.fusion.inference import export_policy
from recfuse.fusion.policies import FixedGaussian
from recfuse.rollout.config import Plan, RolloutConfig
from recfuse.rollout.rollout import start
from recfuse.rollout.store import Rollout, Store
from recfuse.serving.console import paths
from recfuse.serving.console.board import measures

from .conftest import TOKEN, Console

FIGURES = {"users": [900, 100], "sample_ratio_p": .4, "days": 2.0, "decisions": 5_000,
           "effects": {"like": [-.01, -.05, .03], "watch_time": [.05, .01, .09], "requests": [.0, -.02, .02],
                       "returns": [None, None, None]},
           "base": {"like": .8, "watch_time": 40.0, "requests": 4.0, "returns": 0.0}}
LOOK = {"at": 10.0, "action": "go on", "words": "go on: like is <open>", "row": "like", "until": None, "smallest": .02,
        "figures": FIGURES}
PLAN = Plan(targets=Targets(goals={"watch_time": 0.0}, floors={"like": -.02}), shares=(.1, .5))


@pytest.fixture
def rollout(models: Path, vocabulary: Vocabulary, tmp_path: Path) -> Rollout:
    """A canary at 10%, at which somebody has looked once."""
    candidate = export_policy(tmp_path / "made", FixedGaussian([1, 1], .1), vocabulary, training={},
                              data_fingerprint="none", metrics={})
    begun = start(RolloutConfig(action="start", models=str(models), candidate=str(candidate), plan=PLAN), now=1.0)
    store = Store(models)
    with store.locked():
        return store.note(begun, LOOK)


def decide(server: Console, action: str, **changes: Any) -> Any:
    """The answer to a decision on the page of this rollout."""
    rollout = Store(server.models).read()
    body = {"reason": "because", "candidate": rollout.candidate if rollout else "", **changes.pop("body", {})}
    return server.ask("POST", paths.ACTION.format(action=action), json=body, **changes)


def test_measures_stand_against_what_is_asked_of_them(rollout: Rollout) -> None:
    rows = {row.name: row for row in measures(rollout, FIGURES)}
    assert list(rows) == ["watch_time", "like", "requests", "returns"]  # what is asked for first
    watch_time = rows["watch_time"]
    assert (watch_time.kind, watch_time.words, watch_time.base) == ("goal", "surely reached", 40)
    assert (rows["like"].kind, rows["like"].bound, rows["like"].words) == ("floor", -.02, "open")
    assert (rows["requests"].kind, rows["requests"].words) == ("", "")


@pytest.mark.parametrize(("effect", "words"), [
    ([.01, -.02, .03], "surely kept"), ([-.05, -.08, -.03], "surely broken"), ([-.01, -.03, .01], "open"),
    ([.1, None, None], "too little is known")])
def test_a_floor_is_kept_broken_or_open(rollout: Rollout, effect: list[float | None], words: str) -> None:
    row, = measures(rollout, {"effects": {"like": effect}})
    assert row.words == words


def test_the_board_shows_verdict_figures_and_audit(console: Callable[..., Console], rollout: Rollout) -> None:
    server = console()
    text = server.ask("GET", paths.BOARD_DATA).text
    for part in ("Go on: like is &lt;open&gt;", "canary at 0.1", rollout.candidate, "900 users of the base",
                 "the gate is passed", "surely reached", "+5.00%", "not moved here", "serves a canary"):
        assert part in text, part
    assert "<open>" not in text


def test_a_board_without_a_rollout_says_how_to_begin_one(console: Callable[..., Console]) -> None:
    server = console()
    assert "recfuse rollout start" in server.ask("GET", paths.BOARD_DATA).text
    answer = decide(server, "promote")
    assert (answer.status_code, answer.json()["error"]["field"]) == (422, "models")


def test_refused_bundles_and_swaps_are_in_the_time_line(
    console: Callable[..., Console], models: Path, vocabulary: Vocabulary
) -> None:
    server = console()
    pointer = models / "current.json"
    before = pointer.read_text()
    pointer.write_text(before.replace(str(read_pointer(models).fusion), "fusion-nowhere"))
    for _ in range(3):
        server.fusion._followed.model.refresh()
    pointer.write_text(before)
    server.fusion._followed.model.refresh()
    text = server.ask("GET", paths.BOARD_DATA).text
    assert text.count("policy fusion-nowhere is refused") == 1


@pytest.mark.parametrize(("action", "body", "state", "served", "share"), [
    ("promote", {}, "promoted", "candidate", 0.0), ("rollback", {}, "rolled back", "base", 0.0),
    ("share", {"share": .5}, "canary", "base", .5)])
def test_a_decision_moves_the_pointer_and_is_in_the_audit(
    console: Callable[..., Console], rollout: Rollout, action: str, body: dict[str, Any], state: str, served: str,
    share: float
) -> None:
    server = console()
    answer = decide(server, action, body={**body, "who": "Ada"})
    assert answer.status_code == 200, answer.text
    pointer, store = read_pointer(server.models), Store(server.models)
    after = store.read()
    assert after is not None
    assert (after.state, pointer.fusion, pointer.canary_share) == (state, getattr(rollout, served), share)
    row = store.audit()[-1]
    assert (row.who, row.why, row.candidate) == ("Ada", "because", rollout.candidate)
    assert "because" in server.ask("GET", paths.BOARD_DATA).text


@pytest.mark.parametrize(("action", "body", "status", "field"), [
    ("promote", {"reason": "  "}, 422, "reason"), ("promote", {"candidate": "fusion-other"}, 409, "candidate"),
    ("destroy", {}, 404, "action"), ("share", {"share": .3}, 422, "share"), ("share", {"share": .1}, 422, "share"),
    ("serve", {"bundle": "../models"}, 422, "bundle"), ("promote", {"colour": "red"}, 422, "colour")])
def test_bad_decisions_change_nothing(
    console: Callable[..., Console], rollout: Rollout, action: str, body: dict[str, Any], status: int, field: str
) -> None:
    server = console()
    before = (server.models / "current.json").read_text(), Store(server.models).audit()
    answer = decide(server, action, body=body)
    assert (answer.status_code, answer.json()["error"]["field"]) == (status, field), answer.text
    assert ((server.models / "current.json").read_text(), Store(server.models).audit()) == before


def test_a_wrong_token_decides_nothing(console: Callable[..., Console], rollout: Rollout) -> None:
    server = console(tokens=(TOKEN,))
    before = (server.models / "current.json").read_text()
    assert decide(server, "promote").status_code == 401
    assert decide(server, "promote", headers={"Authorization": "Bearer another-token"}).status_code == 401
    assert (server.models / "current.json").read_text() == before
    assert decide(server, "promote", headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200


@pytest.mark.parametrize(("headers", "status"), [
    ({"Origin": "http://evil.example"}, 403), ({"Origin": "null"}, 403), ({"Host": "evil.example"}, 403),
    ({"Content-Type": "text/plain"}, 415), ({"Origin": "http://127.0.0.1"}, 200)])
def test_a_page_of_another_site_decides_nothing(
    console: Callable[..., Console], rollout: Rollout, headers: dict[str, str], status: int
) -> None:
    assert decide(console(), "promote", headers=headers).status_code == status


def test_serve_this_can_be_rolled_back(
    console: Callable[..., Console], vocabulary: Vocabulary, tmp_path: Path, models: Path
) -> None:
    server = console(runs=str(tmp_path / "runs"))
    before = read_pointer(models).fusion
    bundle = export_policy(tmp_path / "runs" / "one" / "fusion", FixedGaussian([2, 1], .1), vocabulary, training={},
                           data_fingerprint="none", metrics={})
    assert bundle.name in server.ask("GET", paths.RUNS_DATA).text
    answer = decide(server, "serve", body={"bundle": f"one/fusion/{bundle.name}"})
    assert answer.status_code == 200, answer.text
    assert read_pointer(models).fusion == bundle.name
    assert decide(server, "serve", body={"bundle": f"one/fusion/{bundle.name}"}).status_code == 422  # it serves already
    assert decide(server, "rollback").status_code == 200
    assert read_pointer(models).fusion == before
    assert [row.step for row in Store(models).audit()] == ["by hand → promoted", "promoted → rolled back"]


def test_a_policy_of_another_vocabulary_is_not_served(
    console: Callable[..., Console], vocabulary: Vocabulary, tmp_path: Path, models: Path
) -> None:
    server = console(runs=str(tmp_path / "runs"))
    before = read_pointer(models)
    other = vocabulary.replace(fusion_parameters=("buy", "like"))
    bundle = export_policy(tmp_path / "runs", FixedGaussian([2, 1], .1), other, training={}, data_fingerprint="none",
                           metrics={})
    answer = decide(server, "serve", body={"bundle": bundle.name})
    assert (answer.status_code, answer.json()["error"]["field"]) == (422, "bundle")
    assert "vocabulary" in answer.json()["error"]["allowed"]
    assert read_pointer(models) == before
