"""What a decision had to rank: in the state, in the decision log, in the session table, and back as the page shown."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import orjson
import pytest
import torch
from deltalake import DeltaTable
from hypothesis import given, settings
from hypothesis import strategies as st

from recfuse.behaviours import CandidateFeatures, Formula, Vocabulary
from recfuse.bundle import read_bundle
from recfuse.fusion.inference import FusionActor, export_policy
from recfuse.fusion.item_values import linear_vocabulary
from recfuse.fusion.policies import FixedGaussian, LinearGaussian
from recfuse.fusion.replay import Candidates, pages
from recfuse.logs.sessions import SessionRule, to_samples
from recfuse.logs.validation import check
from recfuse.serving.config import ServingConfig
from recfuse.serving.decision_log import DECISION, DecisionLog, Keeping, packed_size, unpacked
from recfuse.serving.formats import Body
from recfuse.serving.fusion import FusionModel, FusionService
from recfuse.serving.models import FixedModel
from recfuse.serving.mover import Mover
from recfuse.state.candidates import CandidateEncoder, as_logged

from .conftest import CANDIDATE_WIDTH as WIDTH
from .conftest import TASKS, serve_policy, write_policy
from .test_decision_log import decision, write
from .test_meters import Recorded

FUSION, RECOMMEND = "/v1/fusion/fine/rank", "/v1/recommend"


def body(count: int, seed: int, **changes: Any) -> dict[str, Any]:
    """`changes` are fields of the request; `seen` one of its candidates."""
    rng = np.random.default_rng(seed)
    candidates: dict[str, Any] = {"item_id": [f"i{k}" if seed % 2 else 10**15 + k for k in range(count)],
                                  "predictions": {name: rng.random(count).tolist() for name in TASKS}}
    if "seen" in changes:
        candidates["seen"] = changes.pop("seen")
    return {"user_id": 7, "seed": seed, "explore": True, "candidates": candidates, **changes}


def logged(application: Any) -> list[dict[str, Any]]:
    rows = b"".join(path.read_bytes().split(b"\0", 1)[0] for path in sorted(application.log_directory.glob("*.jsonl")))
    return [row for row in map(orjson.loads, rows.splitlines()) if row["kind"] == DECISION]


def moved(application: Any, output: Path, vocabulary: Vocabulary) -> dict[str, dict[str, Any]]:
    """Request id → row of the session table."""
    Mover(application.log_directory, output, vocabulary).move(now=4e9)
    table = DeltaTable((output / "sessions").as_uri()).to_pyarrow_table()
    return {row["request_id"]: row for row in table.to_pylist()}


def predictions_of(row: dict[str, Any]) -> np.ndarray:
    """float16[M, N] of a row of the session table."""
    return np.array(row["candidates"]["predictions"], np.float16).reshape(len(TASKS), -1)


def replayed(row: dict[str, Any], vocabulary: Vocabulary) -> list[int]:
    """The page that the logged action gives to the logged candidates."""
    predictions = predictions_of(row)
    seen = row["candidates"]["seen"] or [False] * predictions.shape[1]
    candidates = Candidates.of(torch.from_numpy(predictions)[None], ~torch.tensor(seen)[None], vocabulary)
    best: list[int] = pages(candidates, torch.tensor([[row["action"]]]), len(row["shown"]))[0, 0].tolist()
    return best


def test_replay_of_the_session_table_gives_the_pages_that_were_answered(
    start: Callable[..., Any], wide: Vocabulary, tmp_path: Path
) -> None:
    """And the logged states' last columns are those of the logged candidates."""
    application = start()
    requests = [body(40, seed, top_n=8, scene="shop", **({"seen": [k % 5 == 0 for k in range(40)]} if seed % 3 else {}))
                for seed in range(12)]
    requests.append(body(3, 20, top_n=8))
    answers = [application.post(FUSION, request).json() for request in requests]
    ranked = {"user": {"user_id": 7}, "scene": "feed", "candidates": {"item_id": list(range(1, 30))}, "top_n": 5}
    answers.append(application.post(RECOMMEND, ranked).json())
    rows = moved(application, tmp_path / "out", wide)
    encoder = CandidateEncoder(wide)
    for answer in answers:
        row = rows[answer["request_id"]]
        ids = row["candidates"]["item_ids"]
        assert row["candidates_total"] == len(ids)
        assert [ids[place] for place in row["shown"]] == [str(item["item_id"]) for item in answer["items"]]
        assert replayed(row, wide) == row["shown"]
        seen = row["candidates"]["seen"]
        expected = encoder.encode(predictions_of(row)[None], None if seen is None else np.array([seen]))[0]
        np.testing.assert_allclose(row["state"][wide.context_size:], expected, rtol=0, atol=1e-6)


def test_ingest_takes_the_candidates_of_a_served_log(
    start: Callable[..., Any], wide: Vocabulary, tmp_path: Path
) -> None:
    """Rows of the session table are checked, the ranking included, and become samples that can be replayed."""
    application = start()
    for seed in range(8):
        application.post(FUSION, body(400 if seed == 5 else 30, seed, top_n=6, session_id="s", seen=[
            k % 7 == 0 for k in range(400 if seed == 5 else 30)], order="ascending" if seed == 6 else "descending"))
    moved(application, tmp_path / "out", wide)
    table = DeltaTable((tmp_path / "out" / "sessions").as_uri()).to_pyarrow_table()
    checked = check(table, wide, "sessions")
    assert checked.quarantine.to_pylist() == []
    samples = to_samples(checked.rows, wide, SessionRule(gap_seconds=1e6, log_end=None, cut="bootstrap")).table
    rows = samples.sort_by("ts").to_pylist()
    assert [row["shown"] is None for row in rows] == [seed == 6 for seed in range(len(rows))]
    assert len(rows) >= 7
    for row in rows:
        if row["shown"] is not None:
            predictions = torch.tensor(row["predictions"]).reshape(1, len(TASKS), -1)
            candidates = Candidates.of(predictions, torch.tensor([row["open"]]), wide)
            assert pages(candidates, torch.tensor([[row["action"]]]), 6)[0, 0].tolist() == row["shown"]


def test_a_seen_candidate_is_not_shown_again_and_changes_the_state(
    start: Callable[..., Any], wide: Vocabulary
) -> None:
    application = start(explore=False)
    request = body(6, 1, explore=False)
    first = application.post(FUSION, request).json()["items"][0]["item_id"]
    place = request["candidates"]["item_id"].index(first)
    request["candidates"]["seen"] = [k == place for k in range(6)]
    answer = application.post(FUSION, request).json()
    assert len(answer["items"]) == 5
    assert first not in [item["item_id"] for item in answer["items"]]
    before, after = logged(application)
    share = WIDTH - 1  # the last feature is the share of the good ones that was shown
    assert before["state"][wide.context_size + share] == -0.25
    assert after["state"][wide.context_size + share] > -0.25
    assert after["candidates"]["seen"] == [place]
    request["order"] = "ascending"
    assert first not in [item["item_id"] for item in application.post(FUSION, request).json()["items"]]


@pytest.mark.parametrize(("seen", "field", "allowed"), [
    ([True], "candidates.seen", "3 booleans, one for each item_id"),
    ([], "candidates.seen", "3 booleans, one for each item_id"),
    ([1, 0, 0], "candidates.seen[0]", "a valid boolean"),
    ("yes", "candidates.seen", "a valid array"),
])
def test_a_bad_seen_is_named(application: Any, seen: Any, field: str, allowed: str) -> None:
    response = application.post(FUSION, body(3, 0, seen=seen))
    assert response.status_code == 422
    error = response.json()["error"]
    assert (error["field"], error["allowed"]) == (field, allowed)


def test_recommend_takes_what_was_seen(start: Callable[..., Any], wide: Vocabulary) -> None:
    application = start(explore=False)
    request = {"user": {"user_id": 7}, "scene": "feed", "candidates": {"item_id": [1, 2, 3, 4]}, "top_n": None}
    first = application.post(RECOMMEND, request).json()["items"][0]["item_id"]
    request["candidates"]["seen"] = [item == first for item in (1, 2, 3, 4)]
    answer = application.post(RECOMMEND, request).json()
    assert sorted([first, *(item["item_id"] for item in answer["items"])]) == [1, 2, 3, 4]
    row = logged(application)[-1]
    assert row["candidates"]["seen"] == [first - 1]
    assert row["state"][wide.context_size + WIDTH - 1] > -0.25  # the last feature is the share that was shown
    request["candidates"]["seen"] = [True]
    error = application.post(RECOMMEND, request).json()["error"]
    assert (error["field"], error["allowed"]) == ("candidates.seen", "4 booleans, one for each item_id")


def test_a_policy_of_another_formula_serves_and_logs_by_its_own_vocabulary(
    start: Callable[..., Any], models: Path, wide: Vocabulary, tmp_path: Path
) -> None:
    """Values of candidates, by hand: click .5 and long view 2 − .5 z for a user whose age is z deviations from 30."""
    own = linear_vocabulary(wide)
    weights = np.zeros((own.state_size, 2))
    weights[0, 1] = -0.5
    values = LinearGaussian(weights, np.array([0.5, 2.0]), np.zeros(own.state_size), np.ones(own.state_size), 3.0,
                            np.array([.1, .2], np.float32))
    serve_policy(models, export_policy(models, values, own, training={}, data_fingerprint="", metrics={}))
    application = start(explore=False)
    request = body(20, 3, context={"age": 40.0}, explore=False)
    answer = application.post(FUSION, request).json()
    columns = np.array([request["candidates"]["predictions"][name] for name in TASKS]).astype(np.float16)
    expected = 0.5 * columns[0].astype(np.float64) + 1.5 * columns[1].astype(np.float64)
    order = [request["candidates"]["item_id"][place] for place in np.argsort(-expected, kind="stable")]
    assert [item["item_id"] for item in answer["items"]] == order
    np.testing.assert_allclose([item["score"] for item in answer["items"]], np.sort(expected)[::-1], rtol=1e-6)
    assert logged(application)[-1]["vocabulary_hash"] == own.meaning != wide.meaning
    row = moved(application, tmp_path / "out", own)[answer["request_id"]]
    assert replayed(row, own) == row["shown"]


def test_a_client_sends_the_context_part_of_its_state(start: Callable[..., Any], wide: Vocabulary) -> None:
    application = start(explore=False)
    answer = application.post(FUSION, body(4, 0, state=[0.5, 1, 0, 0]))
    assert answer.json()["state_source"] == "request"
    [row] = logged(application)
    assert row["state"][:4] == [0.5, 1, 0, 0]
    assert len(row["state"]) == wide.state_size
    error = application.post(FUSION, body(4, 0, state=[0.0] * wide.state_size)).json()["error"]
    assert (error["field"], error["value"]) == ("state", f"{wide.state_size} numbers")
    assert error["allowed"] == (f"4 numbers; the other {WIDTH} of the state say what there is to rank and are encoded "
                                "here")
    fusion = application.get("/v1/models").json()["fusion"]
    assert (fusion["state_size"], fusion["context_size"]) == (4 + WIDTH, 4)
    document = application.get("/openapi.json").json()["components"]["schemas"]
    assert "`context_size`" in document["FusionRequest"]["properties"]["state"]["description"]
    assert "seen" in document["PredictedCandidates"]["properties"]


def test_a_state_of_candidates_alone_needs_no_context(
    start: Callable[..., Any], models: Path, vocabulary: Vocabulary
) -> None:
    alone = vocabulary.replace(state_features=(), state_size=WIDTH, candidate_features=CandidateFeatures(page=3))
    serve_policy(models, write_policy(models, alone, seed=1))
    application = start()
    assert application.post(FUSION, body(4, 0)).json()["state_source"] == "default"
    assert application.post(FUSION, body(4, 0, state=[])).json()["state_source"] == "request"


@pytest.mark.parametrize("formula", ["linear", "log_sum"])
@pytest.mark.parametrize("features", [None, CandidateFeatures(page=3)])
def test_one_vector_serves_with_and_without_candidate_features(
    start: Callable[..., Any], models: Path, vocabulary: Vocabulary, formula: Formula,
    features: CandidateFeatures | None, tmp_path: Path
) -> None:
    size = 4 if features is None else 4 + WIDTH
    changed = vocabulary.replace(formula=formula, state_size=size, candidate_features=features)
    policy = FixedGaussian([1.0, 0.5], 0.1)
    serve_policy(models, export_policy(models, policy, changed, training={}, data_fingerprint="none", metrics={}))
    application = start(explore=False)
    request = body(30, 4, top_n=5, explore=False)
    answer = application.post(FUSION, request).json()
    assert list(answer["action"].values()) == [1.0, 0.5]
    columns = as_logged(np.array(list(request["candidates"]["predictions"].values())))
    assert columns is not None
    terms = np.log(columns.astype(np.float64) + 1e-3) if formula == "log_sum" else columns.astype(np.float64)
    scores = terms[0] + 0.5 * terms[1]
    expected = np.argsort(-scores, kind="stable")[:5]
    assert [item["item_id"] for item in answer["items"]] == [request["candidates"]["item_id"][k] for k in expected]
    [row] = moved(application, tmp_path / "out", changed).values()
    assert replayed(row, changed) == row["shown"] == expected.tolist()


@pytest.mark.parametrize(("formula", "click"), [("log_sum", 7e4), ("linear", -7e4), ("log_sum", -0.00099999999)])
def test_what_half_precision_does_not_hold_is_ranked_in_full_and_logged_alone(
    models: Path, vocabulary: Vocabulary, tmp_path: Path, formula: Formula, click: float
) -> None:
    [row], meters = served(models, vocabulary.replace(formula=formula), tmp_path, click=[click, 1e-9, 2e-9, .5])
    assert "candidates" not in row
    assert meters.values["recfuse_unlogged_candidates"] == [1.0]


def test_what_the_action_alone_does_not_give_is_logged_alone(
    models: Path, vocabulary: Vocabulary, tmp_path: Path
) -> None:
    [row], meters = served(models, vocabulary, tmp_path, order="ascending")
    assert "candidates" not in row
    assert meters.values["recfuse_unlogged_candidates"] == [1.0]
    rows, meters = served(models, vocabulary, tmp_path, seen=[True] * 4)
    assert "candidates" not in rows[-1]
    assert meters.values["recfuse_unlogged_candidates"] == [1.0]
    rows, meters = served(models, vocabulary, tmp_path)
    assert rows[-1]["candidates"]["item_ids"] == [1, 2, 3, 4]
    assert "recfuse_unlogged_candidates" not in meters.values
    rows, meters = served(models, vocabulary, tmp_path, log_candidates=False)
    assert not {"candidates", "candidates_total", "shown"} & set(rows[-1])
    assert "recfuse_unlogged_candidates" not in meters.values, "it was not asked for"


def served(models: Path, vocabulary: Vocabulary, directory: Path, log_candidates: bool = True,
           click: list[float] | None = None, seen: list[bool] | None = None,
           **fields: Any) -> tuple[list[dict[str, Any]], Recorded]:
    bundle = write_policy(models, vocabulary, seed=1)
    model = FusionModel(FusionActor.from_bundle(read_bundle(bundle)))
    meters, log = Recorded(), DecisionLog(directory / "log")
    service = FusionService(ServingConfig(log_candidates=log_candidates), FixedModel(model), log, meters=meters)
    predictions = {"click": click or [.1, .2, .3, .4], "long_view": [.4, .1, .3, .2]}
    candidates = {"item_id": [1, 2, 3, 4], "predictions": predictions, "seen": seen}
    sent = {"user_id": "u", "candidates": candidates, **fields}
    asyncio.run(service.rank("fine", Body(orjson.dumps(sent))))
    log.close()
    return [orjson.loads(line) for path in sorted((directory / "log").glob("*.jsonl"), key=lambda p: p.stat().st_mtime)
            for line in path.read_bytes().splitlines()], meters


def test_predictions_that_round_alike_are_ranked_as_the_log_has_them(
    start: Callable[..., Any], models: Path, vocabulary: Vocabulary
) -> None:
    """.5 and .5001 are one number in half precision, where their order decides; in full precision they are two."""
    policy = FixedGaussian([1.0, 0.5], 0.1)
    serve_policy(models, export_policy(models, policy, vocabulary, training={}, data_fingerprint="none", metrics={}))
    request = body(2, 0, explore=False)
    request["candidates"]["predictions"] = {"click": [.5, .5001], "long_view": [.5, .5]}
    rounded, full = (start(log_candidates=on, explore=False).post(FUSION, request).json() for on in (True, False))
    assert rounded["items"][0]["score"] == rounded["items"][1]["score"]
    assert rounded["items"][0]["item_id"] == request["candidates"]["item_id"][0]
    assert full["items"][0]["item_id"] == request["candidates"]["item_id"][1]
    assert full["items"][0]["score"] > full["items"][1]["score"]


def test_a_power_whose_scores_tie_is_ranked_by_their_logarithms(
    start: Callable[..., Any], models: Path, vocabulary: Vocabulary, tmp_path: Path
) -> None:
    changed = vocabulary.replace(formula="power")
    policy = FixedGaussian([400.0, 0.0], 0.1)
    serve_policy(models, export_policy(models, policy, changed, training={}, data_fingerprint="none", metrics={}))
    application = start(explore=False)
    request = body(3, 2, explore=False)
    request["candidates"]["predictions"] = {"click": [.01, .03, .02], "long_view": [.5, .5, .5]}
    answer = application.post(FUSION, request).json()
    assert [item["score"] for item in answer["items"]] == [0.0, 0.0, 0.0]
    [row] = moved(application, tmp_path / "out", changed).values()
    assert replayed(row, changed) == row["shown"] == [1, 2, 0]


@settings(max_examples=80, deadline=None)
@given(total=st.integers(1, 60), best=st.integers(1, 12), others=st.integers(0, 6),
       top_n=st.none() | st.integers(1, 20),
       seed=st.integers(0, 2**32 - 1), seen_share=st.sampled_from([0.0, 0.3, 0.95]))
def test_of_many_candidates_the_best_are_kept_in_their_order_and_some_at_random(
    total: int, best: int, others: int, top_n: int | None, seed: int, seen_share: float
) -> None:
    rng = np.random.default_rng(seed)
    predictions = as_logged(rng.random((1, total)))
    assert predictions is not None
    seen = rng.random(total) < seen_share
    order = np.argsort(-predictions[0], kind="stable")
    ranked = order[~seen[order]]
    fields = Keeping(best, others).fields(list(range(total)), predictions, seen if seen.any() else None, ranked, top_n,
                                          np.random.default_rng(seed))
    kept, shown = np.array(fields["candidates"]["item_ids"], np.int64), np.asarray(fields["shown"])
    assert fields["candidates_total"] == total
    whole = total <= best + others
    assert kept.tolist() == sorted(set(kept.tolist()))
    assert len(kept) == (total if whole else min(total, min(best, len(ranked)) + others))
    answered = ranked[:top_n] if whole else ranked[:top_n][:best]
    assert kept[shown].tolist() == answered.tolist()
    text = fields["candidates"]["predictions"]
    assert len(text) == packed_size(len(kept))
    np.testing.assert_array_equal(unpacked(text).astype(np.float32), predictions[0, kept])
    # What is kept gives the same page as all there were.
    still_seen = np.zeros(len(kept), bool)
    if fields["candidates"]["seen"] is not None:
        still_seen[fields["candidates"]["seen"]] = True
    np.testing.assert_array_equal(still_seen, seen[kept])
    again = np.argsort(-unpacked(text).astype(np.float32), kind="stable")
    assert again[~still_seen[again]][: len(shown)].tolist() == shown.tolist()


def test_where_everything_was_seen_the_answer_is_empty(start: Callable[..., Any], wide: Vocabulary) -> None:
    response = start().post(FUSION, body(3, 1, seen=[True] * 3))
    assert (response.status_code, response.json()["items"]) == (200, [])


def test_many_candidates_through_http(start: Callable[..., Any], wide: Vocabulary, tmp_path: Path) -> None:
    application = start()
    for seed in (3, 3, 4):
        application.post(FUSION, body(1_000, seed, top_n=300))
    first, again, other = moved(application, tmp_path / "out", wide).values()
    for row in (first, again, other):
        assert (row["candidates_total"], len(row["candidates"]["item_ids"])) == (1_000, 250)
        assert len(row["shown"]) == 200, "the places behind the best that are kept are not told"
        assert replayed(row, wide) == row["shown"]
    assert sorted([first["candidates"]["item_ids"], again["candidates"]["item_ids"]]).count(
        first["candidates"]["item_ids"]) == 2, "the request's seed draws the rest too"


def test_a_table_from_before_gets_the_columns_of_candidates(
    tmp_path: Path, vocabulary: Vocabulary, start: Callable[..., Any]
) -> None:
    """Rows without candidates, from an older server or by the config, stand beside rows with them."""
    application = start()
    application.post(FUSION, body(3, 1))
    write(application.log_directory, (DECISION, decision("old", 2.0)))
    rows = moved(application, tmp_path / "out", vocabulary)
    old = rows.pop("old")
    assert (old["candidates"], old["candidates_total"], old["shown"]) == (None, None, None)
    [new] = rows.values()
    assert new["candidates"]["item_ids"] == ["i0", "i1", "i2"]
    assert new["candidates"]["seen"] is None


def test_a_row_whose_predictions_are_of_another_number_is_a_misfit(tmp_path: Path, vocabulary: Vocabulary) -> None:
    fields = Keeping(10, 0).fields(["a", "b"], np.zeros((3, 2)), None, np.array([1, 0]), None, np.random.default_rng(0))
    write(tmp_path / "log", (DECISION, decision("a", 1.0, **fields)))
    account = Mover(tmp_path / "log", tmp_path / "out", vocabulary).move(now=1e6)
    assert (account.written, account.misfits) == (0, 1)
    [row] = DeltaTable((tmp_path / "out" / "events").as_uri()).to_pyarrow_table().to_pylist()
    assert row["reason"] == "candidates.predictions: 16 characters, not 12"


def test_predictions_whose_spread_is_no_number_are_refused(
    start: Callable[..., Any], models: Path, wide: Vocabulary
) -> None:
    serve_policy(models, write_policy(models, wide.replace(formula="linear"), seed=1))
    request = body(3, 0)
    request["candidates"]["predictions"]["click"] = [1e308, 1.7e308, 1.0]
    response = start().post(FUSION, request)
    assert response.status_code == 422
    error = response.json()["error"]
    assert (error["field"], error["value"]) == ("candidates.predictions", 1.7e308)
    assert error["allowed"] == "numbers whose mean and spread are finite"


def test_a_prediction_that_the_formula_does_not_take_is_named_before_the_state(
    start: Callable[..., Any], wide: Vocabulary
) -> None:
    request = body(3, 0)
    request["candidates"]["predictions"]["long_view"][2] = -1.0
    error = start().post(FUSION, request).json()["error"]
    assert (error["field"], error["value"]) == ("candidates.predictions.long_view[2]", -1.0)


def test_seen_in_message_pack(start: Callable[..., Any], wide: Vocabulary) -> None:
    request = body(4, 2, explore=False, seen=[True, False, False, True])
    packed = {**request, "candidates": {**request["candidates"], "item_id": np.arange(4, dtype="<i8").tobytes()}}
    response = start().request("POST", FUSION, content=msgpack.packb(packed),
                               headers={"Content-Type": "application/msgpack"})
    assert {item["item_id"] for item in response.json()["items"]} == {1, 2}
