"""Candidates of a session log and of tables of one's own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from session_logs import ranked_row, table, vocabulary, write

from recfuse.config import InvalidFieldError
from recfuse.logs.pools import read_pools

OF = vocabulary()


def rows(*counts: int) -> pa.Table:
    rng = np.random.default_rng(0)
    return pa.table({"request_id": [f"r{k}" for k, count in enumerate(counts) for _ in range(count)],
                     "p0": rng.random(sum(counts)), "p1": rng.random(sum(counts))})


def test_one_row_a_candidate_in_any_order(tmp_path: Path) -> None:
    whole = rows(3, 1, 2)
    shuffled = whole.take(pa.array([4, 0, 3, 1, 5, 2]))
    pq.write_table(shuffled, tmp_path / "c.parquet")
    pyarrow.csv.write_csv(shuffled, tmp_path / "c.csv")
    for name in ("c.parquet", "c.csv"):
        pools = read_pools(str(tmp_path / name), OF, 10)
        assert sorted(pools.is_open.sum(1)) == [1, 2, 3]
        assert pools.predictions[pools.is_open.sum(1) == 3][0][0] == pytest.approx(whole["p0"].to_numpy()[:3], rel=1e-6)


def test_one_row_a_request_with_lists(tmp_path: Path) -> None:
    pq.write_table(pa.table({"request_id": ["a", "b"], "p0": [[.1, .2], [.3]], "p1": [[1.0, 2.0], [3.0]]}),
                   tmp_path / "c.parquet")
    pools = read_pools(str(tmp_path / "c.parquet"), OF, 10)
    np.testing.assert_allclose(pools.predictions[0], [[.1, .2], [1.0, 2.0]], rtol=1e-6)
    np.testing.assert_array_equal(pools.is_open, [[True, True], [True, False]])


def test_those_of_a_session_log_without_its_vocabulary_and_densities(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    logged = [ranked_row(number, rng, OF, 6) for number in range(20)]
    log = write(tmp_path / "log", table(logged, OF).drop_columns(["mu", "sigma", "action_logp"]), of=OF)
    (log / "vocabulary.yaml").unlink()
    pools = read_pools(str(log), OF, 20)
    assert len(pools.is_open) == 20
    first = logged[0]["candidates"]
    np.testing.assert_allclose(pools.predictions[0].ravel(), first["predictions"], rtol=1e-3)
    np.testing.assert_array_equal(pools.is_open[0], ~np.array(first["seen"]))


def test_a_sample_is_as_large_as_asked_and_repeats(tmp_path: Path) -> None:
    pq.write_table(rows(*[2] * 50), tmp_path / "c.parquet")
    first, again, other = (read_pools(str(tmp_path / "c.parquet"), OF, 10, seed) for seed in (0, 0, 1))
    assert len(first.is_open) == 10
    np.testing.assert_array_equal(first.predictions, again.predictions)
    assert (first.predictions != other.predictions).any()


def test_requests_with_what_is_no_number_are_left_out(tmp_path: Path) -> None:
    whole = rows(2, 2)
    pq.write_table(whole.set_column(1, "p0", pa.array([float("nan"), .5, .1, .2])), tmp_path / "c.parquet")
    pools = read_pools(str(tmp_path / "c.parquet"), OF, 10)
    assert (len(pools.is_open), pools.left_out) == (1, 1)


@pytest.mark.parametrize(("change", "message"), [
    (lambda t: t.drop_columns("p1"), r"candidates\.p1: got 'missing column'"),
    (lambda t: t.drop_columns("request_id"), r"candidates\.request_id"),
    (lambda t: t.set_column(1, "p0", pa.array(["x"] * 3)), r"candidates\.p0: got 'string'"),
    (lambda t: t.slice(0, 0), "at least one request"),
])
def test_bad_tables_are_named(tmp_path: Path, change: Callable[[pa.Table], pa.Table], message: str) -> None:
    pq.write_table(change(rows(3)), tmp_path / "c.parquet")
    with pytest.raises(InvalidFieldError, match=message):
        read_pools(str(tmp_path / "c.parquet"), OF, 10)
    with pytest.raises(InvalidFieldError, match="a file or a directory that exists"):
        read_pools(str(tmp_path / "nothing"), OF, 10)
