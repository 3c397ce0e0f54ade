"""Samples of one stage: which requests, and what follows each of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from session_logs import random_rows, row, table, vocabulary

from recfuse.logs.reading import open_samples
from recfuse.logs.schema import VOCABULARY_FILE
from recfuse.logs.sessions import SessionRule, to_samples
from recfuse.logs.stages import count_stages, samples_of_stage, write_stage

STAGES = ("coarse", "fine", "mix")


def samples(rows: list[dict], **rule: object) -> pa.Table:
    return to_samples(table(rows), vocabulary(), SessionRule(gap_seconds=1800.0, **rule)).table


def of_stage(whole: pa.Table, stage: str, part: int = 10_000) -> pa.Table:
    """Of tables with so many rows each."""
    tables = [whole.slice(start, part) for start in range(0, whole.num_rows, part)]
    return pa.concat_tables(list(samples_of_stage(tables, stage))).combine_chunks()


def first(column: str, result: pa.Table) -> list[float]:
    """First entry of every list of a column; for states it is the request's number."""
    return [values[0] for values in result[column].to_pylist()]


def test_a_request_is_followed_by_the_next_of_its_stage():
    whole = samples([row(1, stage="coarse"), row(2), row(3, stage="coarse"), row(4)])
    coarse, fine = (of_stage(whole, stage) for stage in ("coarse", "fine"))
    assert (first("state", coarse), first("next_state", coarse)) == ([1, 3], [3, 0])
    assert (first("state", fine), first("next_state", fine)) == ([2, 4], [4, 0])
    # The third request has another stage after it, but none of its own.
    assert coarse["done"].to_pylist() == fine["done"].to_pylist() == [0, 1]
    assert coarse.schema == whole.schema


def test_a_session_that_the_log_cuts_stays_cut():
    """The last of the stage bootstraps from what followed it, and is not done."""
    whole = samples([row(1, stage="coarse"), row(2), row(3)], log_end=1_651_363_200_000_000 + 31_000_000)
    assert whole["truncated"].to_pylist() == [False, True]
    coarse = of_stage(whole, "coarse")
    assert (coarse["done"].to_pylist(), coarse["truncated"].to_pylist()) == ([0], [True])
    assert first("next_state", coarse) == [2]


def staged(count: int, seed: int) -> list[dict]:
    """Rows of named sessions, which have a random stage each."""
    random = np.random.default_rng(seed)
    rows = random_rows(count, seed)
    for number, each in enumerate(rows):
        each["stage"] = STAGES[int(random.integers(len(STAGES)))]
        each["session_id"] = each["session_id"] or f"n{number % 7}"
    return rows


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 60), st.integers(0, 10_000), st.integers(1, 40))
def test_they_are_the_samples_of_a_log_of_that_stage_alone(count: int, seed: int, part: int):
    """However the tables are cut."""
    rows = staged(count, seed)
    whole = samples(rows)
    for stage in STAGES:
        alone = samples([each for each in rows if each["stage"] == stage])
        assert of_stage(whole, stage, part).equals(alone.combine_chunks())


def read(directory: Path) -> pa.Table:
    return pa.concat_tables([pq.read_table(file) for file in sorted(directory.glob("*.parquet"))]).combine_chunks()


def test_files_hold_every_sample_once_and_are_written_once(tmp_path: Path):
    whole = samples(staged(200, 3))
    vocabulary().save(tmp_path / VOCABULARY_FILE)
    for number in range(3):
        pq.write_table(whole.slice(70 * number, 70), tmp_path / f"part-{number}.parquet", row_group_size=25)
    source, out = open_samples(str(tmp_path)), tmp_path / "mix" / "samples"
    counts = count_stages(source)
    assert counts == {stage: whole["stage"].to_pylist().count(stage) for stage in STAGES}
    assert write_stage(source, "a", "mix", out) == counts["mix"]
    assert read(out).equals(of_stage(whole, "mix"))
    [changed, *_] = files = sorted(out.glob("*.parquet"))
    changed.write_bytes(b"as it was left")
    assert write_stage(source, "a", "mix", out) == counts["mix"]
    assert changed.read_bytes() == b"as it was left", "nothing is written anew of the same samples"
    assert write_stage(source, "b", "mix", out) == counts["mix"]
    assert read(out).equals(of_stage(whole, "mix"))
    assert sorted(out.glob("*.parquet")) == files
    assert json.loads((out.parent / "stage.json").read_text())["of"] == {"samples": "b", "stage": "mix"}


def test_candidates_come_along(tmp_path: Path):
    from session_logs import ranked_row

    rng = np.random.default_rng(0)
    rows = [ranked_row(number, rng, vocabulary(), 6, stage=STAGES[number % 2]) for number in range(8)]
    whole = samples(rows)
    assert whole["predictions"].null_count == 0
    coarse = of_stage(whole, "coarse", part=3)
    for name in ("predictions", "open", "shown", "mu"):
        assert coarse[name].to_pylist() == whole.filter(pa.array([n % 2 == 0 for n in range(8)]))[name].to_pylist()


def test_a_stage_without_samples_has_none():
    assert of_stage(samples([row(1)]), "coarse").num_rows == 0


@pytest.mark.parametrize("rows", [[], [row(1)]])
def test_no_stage_is_counted_of_samples_without_the_column(tmp_path: Path, rows: list[dict]):
    vocabulary().save(tmp_path / VOCABULARY_FILE)
    pq.write_table(samples(rows).drop_columns(["stage"]), tmp_path / "part-0.parquet")
    assert count_stages(open_samples(str(tmp_path))) == {}
