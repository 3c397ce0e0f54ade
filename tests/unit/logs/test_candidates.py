"""Candidates of a log: what is wrong in them is told, and the logged action must give the page that was shown."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from deltalake import write_deltalake
from hypothesis import given, settings
from hypothesis import strategies as st
from session_logs import for_delta, ranked_row, row, table, vocabulary, write

from recfuse.fusion.ranking import fuse, rank
from recfuse.fusion.replay import Candidates, pages
from recfuse.logs.candidates import Lists, reproduces, scores_of
from recfuse.logs.reading import ReadingConfig, read_checked, read_log
from recfuse.logs.schema import VOCABULARY_FILE
from recfuse.logs.sessions import SessionRule, to_samples
from recfuse.logs.source import open_log, pieces
from recfuse.logs.validation import check

KINDS = ("linear", "log_sum", "power")


def rows_of(count: int = 20, seed: int = 0, formula: str = "log_sum", **changes):
    rng, of = np.random.default_rng(seed), vocabulary(parameters=3).replace(formula=formula)
    return [ranked_row(k, rng, of, int(rng.integers(1, 12)), **changes) for k in range(count)], of


def checked(rows, of):
    return check(table(rows, of), of, "log")


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(KINDS))
def test_the_logged_action_ranks_the_logged_predictions_as_fuse_and_rank_do(seed, formula):
    rng = np.random.default_rng(seed)
    rows, parameters, count = 5, int(rng.integers(1, 5)), int(rng.integers(2, 30))
    predictions = rng.gamma(1.0, .1, (rows, parameters, count)).astype(np.float16)
    action = rng.normal(size=(rows, parameters)).astype(np.float32)
    columns = torch.from_numpy(predictions.astype(np.float64)).transpose(1, 2)
    order = rank(fuse(columns, torch.from_numpy(action).double(), formula if formula != "power" else "log_sum"))
    scores, _ = scores_of(predictions, action, formula, 1e-3)
    np.testing.assert_allclose(scores, fuse(columns, torch.from_numpy(action).double(), formula.replace(
        "power", "log_sum")).numpy(), rtol=1e-12, atol=1e-12)
    shown, is_open = order.numpy(), np.ones((rows, count), bool)
    assert reproduces(predictions, is_open, action, shown[:, :3], formula, 1e-3).all()
    assert reproduces(predictions, is_open, action, shown, formula, 1e-3).all()
    wrong = shown[:, ::-1]
    distinct = (scores.max(1) - scores.min(1)) > 1e-3
    assert not reproduces(predictions, is_open, action, wrong, formula, 1e-3)[distinct].any()


@pytest.mark.parametrize("formula", KINDS)
def test_candidates_pass_unchanged_and_become_columns_of_samples(formula):
    rows, of = rows_of(formula=formula)
    rows.append(row(99, mu=[0.0] * 3, sigma=[1.0] * 3, action=[.1] * 3, action_logp=None))
    result = checked(rows, of)
    assert result.quarantine.num_rows == 0
    for name in ("candidates", "candidates_total", "shown"):
        assert result.rows[name].equals(table(rows, of)[name])
    samples = {sample["request_id"]: sample
               for sample in to_samples(result.rows, of, SessionRule()).table.to_pylist()}
    for given_row in rows:
        sample, candidates = samples[given_row["request_id"]], given_row["candidates"]
        assert sample["shown"] == given_row["shown"]
        assert sample["predictions"] == (candidates and candidates["predictions"])
        assert sample["open"] == (candidates and [not seen for seen in candidates["seen"]])
        np.testing.assert_allclose(sample["sigma"], given_row["sigma"])


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(KINDS), st.integers(1, 8))
def test_random_logs_replay_to_the_pages_that_were_shown(seed, formula, page):
    rows, of = rows_of(30, seed, formula, page=page)
    result = checked(rows, of)
    assert result.quarantine.num_rows == 0
    for sample in to_samples(result.rows, of, SessionRule()).table.to_pylist():
        predictions = torch.tensor(sample["predictions"]).reshape(1, 3, -1)
        candidates = Candidates.of(predictions, torch.tensor([sample["open"]]), of)
        replayed = pages(candidates, torch.tensor([[sample["action"]]]), len(sample["shown"]))[0, 0]
        scores = (candidates.terms[0] @ torch.tensor(sample["action"]))
        # Equal places, or equal scores within single precision.
        shown = torch.tensor(sample["shown"], dtype=torch.int64)
        torch.testing.assert_close(scores[replayed], scores[shown], rtol=1e-5, atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(KINDS))
def test_a_page_with_another_item_is_quarantined(seed, formula):
    """The last place goes to a candidate whose score is lower by more than rounding."""
    rng = np.random.default_rng(seed)
    rows, of = rows_of(20, seed, formula)
    wrong = 0
    for values in rows:
        predictions = np.array(values["candidates"]["predictions"], np.float16).reshape(1, 3, -1)
        scores = scores_of(predictions, np.float32([values["action"]]), formula, of.offset)[0][0]
        rest = [place for place, seen in enumerate(values["candidates"]["seen"])
                if not seen and place not in values["shown"] and values["shown"]
                and scores[place] < scores[values["shown"][-1]] - 1e-3]
        if rest:
            values["shown"] = [*values["shown"][:-1], int(rng.choice(rest))]
            wrong += 1
    assert checked(rows, of).quarantine.num_rows == wrong


def changed(**changes):
    """A row with three candidates, two parameters; the second may not be shown, the third is better than the first."""
    good = {"item_ids": ["a", "b", "c"], "predictions": [.1, .9, .2, .5, .5, .5], "seen": [False, True, False]}
    candidates = None if changes.get("candidates", "") is None else good | changes.pop("candidates", {})
    return row(4, candidates=candidates, candidates_total=changes.pop("candidates_total", 3),
               shown=changes.pop("shown", [2, 0]), action=[1.0, 1.0], action_logp=None)


BAD = [
    (dict(candidates={"predictions": [.1, .2, .3]}), "candidates.predictions", "2 numbers a candidate"),
    (dict(candidates={"predictions": []}), "candidates.predictions", "2 numbers a candidate"),
    (dict(candidates={"predictions": None}), "candidates.predictions", "2 numbers a candidate"),
    (dict(candidates={"predictions": [.1, .9, np.inf, .5, .5, .5]}), "candidates.predictions", "finite numbers"),
    (dict(candidates={"predictions": [.1, .9, None, .5, .5, .5]}), "candidates.predictions", "finite numbers"),
    (dict(candidates={"item_ids": ["a"]}), "candidates.item_ids", "one id a candidate"),
    (dict(candidates={"seen": [True]}), "candidates.seen", "one flag a candidate"),
    (dict(candidates_total=2), "candidates_total", "at least as many"),
    (dict(shown=None), "shown", "positions of candidates"),
    (dict(shown=[2, 3]), "shown", "from 0"),
    (dict(shown=[-1, 0]), "shown", "from 0"),
    (dict(shown=[2, None]), "shown", "from 0"),
    (dict(shown=[2, 2]), "shown", "every position once"),
    (dict(shown=[1, 2]), "shown", "had not seen"),
    (dict(shown=[0, 2]), "shown", "the page that the action ranks the predictions to, by the formula linear"),
    (dict(shown=[0]), "shown", "the page that the action ranks"),
]


@pytest.mark.parametrize(("change", "field", "allowed"), BAD, ids=[f"{b[1]}:{b[0]}" for b in BAD])
def test_a_row_whose_candidates_do_not_fit_is_quarantined_alone(change, field, allowed):
    content = table([row(1), changed(), changed(**change), row(2)])
    result = check(content, vocabulary(), "log")
    assert result.rows.num_rows == 3
    [reason] = result.quarantine.to_pylist()
    assert reason["field"] == field
    assert allowed in reason["allowed"]


@pytest.mark.parametrize("change", [
    {}, dict(candidates={"item_ids": None}), dict(candidates={"seen": None}, shown=[1, 2, 0]),
    dict(candidates_total=None), dict(candidates_total=4_000), dict(shown=[2]), dict(shown=[]), dict(candidates=None),
    dict(candidates={"predictions": [.2, .9, .2, .5, .5, .5]}, shown=[0, 2]),
], ids=str)
def test_what_the_log_may_leave_out(change):
    result = check(table([changed(**change)]), vocabulary(), "log")
    assert result.quarantine.num_rows == 0, result.quarantine["allowed"].to_pylist()
    if change.get("candidates", "") is None:
        assert result.rows["shown"].to_pylist() == result.rows["candidates_total"].to_pylist() == [None]


def test_a_prediction_outside_the_formula_is_quarantined():
    of = vocabulary().replace(formula="log_sum")
    bad = changed(candidates={"predictions": [-.1, .9, .2, .5, .5, .5]})
    [reason] = check(table([bad], of), of, "log").quarantine.to_pylist()
    assert reason["field"] == "candidates.predictions"
    assert "> −0.001" in reason["allowed"]


def test_lists_of_other_types_are_read():
    """A Delta table has no half precision; other writers have lists of other kinds."""
    rows, of = rows_of()
    content = table(rows, of)
    kind = pa.struct([("seen", pa.large_list(pa.int8())), ("predictions", pa.list_(pa.float32())),
                      ("item_ids", pa.list_(pa.large_string())), ("more", pa.int8())])
    values = [{**known["candidates"], "seen": [int(seen) for seen in known["candidates"]["seen"]]} for known in rows]
    for name, column in (("candidates", pa.array(values, kind)),
                         ("shown", pa.array([known["shown"] for known in rows], pa.large_list(pa.int32())))):
        content = content.set_column(content.schema.get_field_index(name), name, column)
    result = check(content, of, "log")
    assert result.quarantine.num_rows == 0
    assert result.rows["candidates"].equals(table(rows, of)["candidates"])


def test_a_delta_table_keeps_candidates(tmp_path):
    rows, of = rows_of()
    served = tmp_path / "served"
    served.mkdir()
    of.save(served / VOCABULARY_FILE)
    write_deltalake(served / "sessions", for_delta(table(rows, of)))
    source = open_log(str(served))
    [piece] = pieces(source)[0]
    result = read_checked(source, piece, ReadingConfig(), of)
    assert result.quarantine.num_rows == 0
    assert result.rows.sort_by("ts")["candidates"].to_pylist() == [known["candidates"] for known in rows]


def test_columns_of_these_names_mean_nothing_without_candidates():
    content = table([row(1)]).drop_columns(["candidates", "candidates_total", "shown"])
    content = content.append_column("shown", pa.array(["banner"]))
    assert check(content, vocabulary(), "log").rows["shown"].to_pylist() == [None]


def ascending(values, rng):
    scores = np.log(np.array(values["candidates"]["predictions"]).reshape(3, -1) + 1e-3)
    scores = np.array(values["action"]) @ scores
    seen = np.array(values["candidates"]["seen"])
    return values | {"shown": np.argsort(np.where(seen, np.inf, scores))[:len(values["shown"])].tolist()}


def by_candidate(values, rng):
    predictions = np.array(values["candidates"]["predictions"]).reshape(3, -1).T.ravel().tolist()
    return values | {"candidates": values["candidates"] | {"predictions": predictions}}


def of_the_mean(values, rng):
    return values | {"mu": values["action"], "action": rng.normal(size=3).tolist()}


@pytest.mark.parametrize(("change", "words"), [
    (ascending, "order ascending"), (by_candidate, "of one candidate after those of another"),
    (of_the_mean, "by mu instead of the action"), (None, "the formula linear")], ids=lambda value: str(value)[:20])
def test_pages_that_the_action_does_not_give_say_what_they_look_like(tmp_path, change, words):
    rng = np.random.default_rng(3)
    of = vocabulary(parameters=3).replace(formula="log_sum")
    ranked_by = of.replace(formula="linear") if change is None else of
    rows = [ranked_row(k, rng, ranked_by, 40) for k in range(60)]
    rows = [values if change is None else change(values, rng) for values in rows]
    log = read_log(str(write(tmp_path / "log", table(rows, of), of=of)), ReadingConfig(cut="bootstrap"))
    assert log.account.kept < 20
    [reason] = log.account.quarantined
    assert words in reason


def test_numbers_of_full_precision_are_told():
    rng, of, rows = np.random.default_rng(0), vocabulary(), []
    for number in range(100):
        predictions, action = np.float32(rng.uniform(.5, .51, (2, 50))), np.float32(rng.normal(size=2))
        shown = np.argsort(-(action.astype(np.float64) @ predictions.astype(np.float64)))[:6]
        rows.append(ranked_row(number, rng, of, 50, action=action.tolist(), shown=shown.tolist(),
                               candidates={"item_ids": None, "predictions": predictions.ravel().tolist(),
                                           "seen": None}))
    single = pa.array([known["candidates"] for known in rows], pa.struct([
        ("item_ids", pa.list_(pa.string())), ("predictions", pa.list_(pa.float32())), ("seen", pa.list_(pa.bool_()))]))
    content = table(rows, of)
    content = content.set_column(content.schema.get_field_index("candidates"), "candidates", single)
    quarantine = check(content, of, "log").quarantine
    assert quarantine.num_rows > 50
    assert "not rounded to half precision" in quarantine["allowed"][0].as_py()


def test_a_log_read_whole_leaves_its_candidates_behind(tmp_path):
    rows, of = rows_of()
    directory = write(tmp_path / "log", table(rows, of), of=of)
    assert pq.read_table(directory / "log-0.parquet")["candidates"].null_count == 0
    log = read_log(str(directory), ReadingConfig(cut="bootstrap"))
    assert log.sessions.rows.num_rows == 20
    assert log.sessions.rows["candidates"].null_count == log.sessions.rows["shown"].null_count == 20


def test_lists_are_padded():
    lists = Lists.of(pa.array([[1, 2], None, [], [3]]))
    np.testing.assert_array_equal(lists.padded(np.array([3, 0, 1]), 3, -1), [[3, -1, -1], [1, 2, -1], [-1] * 3])
    np.testing.assert_array_equal(lists.every(np.array([True, False, True])), [False, True, True, True])
