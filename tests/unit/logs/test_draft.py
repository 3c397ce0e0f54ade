"""A first vocabulary, read off a log or declared."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from own_shop import Shop
from session_logs import random_rows, ranked_row, table, vocabulary, write

from recfuse.behaviours import Vocabulary
from recfuse.config import InvalidFieldError
from recfuse.logs.draft import declare, parse_behaviours, read_draft, to_yaml
from recfuse.logs.reading import ReadingConfig, read_log


def written(of: Vocabulary, path: Path) -> Vocabulary:
    path.write_text(to_yaml(of, "a test"))
    return Vocabulary.load(path)


def test_the_shop_is_read_off_its_log_and_the_reader_takes_it(tmp_path: Path) -> None:
    Shop().write_log(tmp_path / "log")
    draft = read_draft(str(tmp_path / "log"), 20_000, (), ("add_to_cart", "margin"), (), None)
    of = written(draft.vocabulary, tmp_path / "v.yaml")
    assert of == draft.vocabulary
    assert {behaviour.name: behaviour.kind for behaviour in of.behaviours} == {
        "revenue": "long_term", "click": "short_term", "order": "short_term"}
    assert (of.scenes, of.stages, of.state_size, of.formula) == (("cart", "home"), ("fine",), 2, "log_sum")
    said = "\n".join(draft.guesses)
    for words in ("session_id is not there", "computed from mu and sigma", "kept, so that replay", "behaviour revenue"):
        assert words in said
    log = read_log(str(tmp_path / "log"), ReadingConfig(vocabulary=str(tmp_path / "v.yaml")))
    assert log.account.quarantined_share == 0


def test_a_linear_log_is_told_and_names_are_numbered(tmp_path: Path) -> None:
    of, rng = vocabulary(), np.random.default_rng(0)
    log = write(tmp_path / "log", table([ranked_row(k, rng, of, 12) for k in range(60)], of), of=of)
    with pytest.raises(InvalidFieldError, match="a log without a vocabulary"):
        read_draft(str(log), 100, (), (), (), None)
    (log / "vocabulary.yaml").unlink()
    draft = read_draft(str(log), 100, (), (), (), None)
    assert draft.vocabulary.formula == "linear"
    assert draft.vocabulary.fusion_parameters == ("prediction_1", "prediction_2")
    assert any("rename them" in guess for guess in draft.guesses)


def test_of_counts_alone_the_densest_is_long_term(tmp_path: Path) -> None:
    rows = random_rows(200)
    for number, row in enumerate(rows):
        row["feedback"] = {"watch_time": float(number % 2), "like": float(number % 10 == 0)}
    log = write(tmp_path / "log", table(rows))
    (log / "vocabulary.yaml").unlink()
    kinds = {each.name: each.kind for each in read_draft(str(log), 100, (), (), (), None).vocabulary.behaviours}
    assert kinds == {"watch_time": "long_term", "like": "short_term"}


def test_feedback_may_be_a_map(tmp_path: Path) -> None:
    plain = table(random_rows(50))
    feedback = [[(name, value) for name, value in row.items()] for row in plain["feedback"].to_pylist()]
    column = pa.array(feedback, pa.map_(pa.string(), pa.float32()))
    (tmp_path / "log").mkdir()
    place = plain.column_names.index("feedback")
    pq.write_table(plain.set_column(place, "feedback", column), tmp_path / "log" / "a.pq")
    draft = read_draft(str(tmp_path / "log"), 50, (), (), (), None)
    assert sorted(draft.vocabulary.behaviour_names) == ["like", "watch_time"]


@pytest.mark.parametrize("column", ["action", "feedback", "state", "scene"])
def test_a_missing_column_is_named(tmp_path: Path, column: str) -> None:
    log = write(tmp_path / "log", table(random_rows(5)).drop_columns(column))
    (log / "vocabulary.yaml").unlink()
    with pytest.raises(InvalidFieldError, match=f"{column}: got 'missing column'"):
        read_draft(str(log), 10, (), (), (), None)


def test_names_of_another_number_are_refused(tmp_path: Path) -> None:
    log = write(tmp_path / "log", table(random_rows(5)))
    (log / "vocabulary.yaml").unlink()
    with pytest.raises(InvalidFieldError, match="2 names"):
        read_draft(str(log), 10, (), ("a", "b", "c"), (), None)


def test_declared_with_odd_names(tmp_path: Path) -> None:
    behaviours = parse_behaviours("revenue:long_term, click,yes")
    draft = declare(behaviours, ("p: 1", 'a"b'), ("start, page", "no"), "power", 7)
    of = written(draft.vocabulary, tmp_path / "v.yaml")
    assert of == draft.vocabulary
    assert of.scenes == ("start, page", "no")
    assert of.context_size == 3  # two scenes, and any other


@pytest.mark.parametrize(("text", "field"), [("a:dense", r"behaviours\.a"), ("click,order", "behaviours")])
def test_bad_behaviours_are_named(text: str, field: str) -> None:
    with pytest.raises(InvalidFieldError, match=field):
        declare(parse_behaviours(text), ("p",), (), "linear", 5)
