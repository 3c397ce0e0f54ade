"""AliExpress in its published layout: small files written here, one directory a country."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from recfuse.config import InvalidFieldError
from recfuse.logs.aliexpress import TEST, TRAINING, VALIDATION, feature_columns, read_exposures
from recfuse.scenes.config import ModelConfig
from recfuse.scenes.sources import read_logs
from recfuse.scenes.training.config import TrainingConfig
from recfuse.scenes.training.fit import train
from recfuse.scenes.training.problem import prepare

HEADER = "search_id,categorical_1,categorical_2,numerical_1,click,conversion"
BIG = 2**53 + 1


def write(root: Path, country: str, train: list[str], test: list[str], header: str = HEADER) -> Path:
    directory = root / f"AliExpress_{country}"
    directory.mkdir(parents=True)
    for name, lines in (("train", train), ("test", test)):
        (directory / f"{name}.csv").write_text("\n".join([header, *lines]) + "\n")
    return root


def many(rows: int, seed: int) -> list[str]:
    rng = np.random.default_rng(seed)
    lines = []
    for search in range(rows):
        kind, x = int(rng.integers(0, 4)), float(rng.normal())
        click = int(rng.random() < 1 / (1 + np.exp(-x - kind + 1.5)))
        lines.append(f"{search},{kind},{search % 3},{x:.3f},{click},{int(click and rng.random() < .4)}")
    return lines


def test_columns_days_and_orphans(tmp_path: Path) -> None:
    """Searches are exact beyond 2⁵³, and one of another file is another search."""
    write(tmp_path, "NL", [f"{BIG},3,4,0.5,1,1", "12,3,4,0.1,0,1", f"{BIG - 1},9,9,0.2,0,0"], ["12,1,1,0.0,1,0"])
    write(tmp_path, "ES", [f"{BIG},3,4,0.5,0,0"], ["12,2,2,0.3,0,0"])
    exposures = read_exposures(tmp_path)
    assert sorted(exposures.rows["scene"].to_pylist()) == ["ES", "ES", "NL", "NL", "NL"]
    assert len(set(exposures.column("user_id").tolist())) == 5
    assert feature_columns(exposures.rows) == (["categorical_1", "categorical_2"], ["numerical_1"])
    assert exposures.account.quarantined == {"order without its click": 1}
    days = sorted(zip(exposures.rows["scene"].to_pylist(), exposures.column("day").tolist(), strict=True))
    assert [(scene, day == TEST) for scene, day in days] == [
        ("ES", False), ("ES", True), ("NL", False), ("NL", False), ("NL", True)]
    assert read_exposures(tmp_path, "repair").account.kept == 6


def test_the_published_header_and_numbers_that_look_like_integers_first(tmp_path: Path) -> None:
    """16 categories and 63 numbers; `numerical_58` is 0 in all of the first block that Arrow guesses types from."""
    names = [*(f"categorical_{i}" for i in range(1, 17)), *(f"numerical_{i}" for i in range(1, 64))]
    header = ",".join(["search_id", *names, "click", "conversion"])
    zeros = ",".join(["3", *["8"] * 16, *["0"] * 63, "0", "0"])
    last = ",".join(["4", *["8"] * 16, *["0.25"] * 63, "1", "0"])
    write(tmp_path, "NL", [zeros] * 8_000 + [last], [last], header)
    rows = read_exposures(tmp_path).rows
    assert tuple(map(len, feature_columns(rows))) == (16, 63)
    assert rows["numerical_58"].to_numpy().sum() == .5


def test_a_search_is_in_one_part_and_a_tenth_validates(tmp_path: Path) -> None:
    write(tmp_path, "NL", many(2_000, 0) + many(2_000, 1), many(10, 2))
    exposures = read_exposures(tmp_path)
    day, user = exposures.column("day"), exposures.column("user_id")
    assert not set(user[day == TRAINING]) & set(user[day == VALIDATION])
    assert (day == VALIDATION).sum() / (day != TEST).sum() == pytest.approx(.1, abs=.03)


def test_the_published_protocol_runs(tmp_path: Path) -> None:
    """Selected on the validation day by patience, which the test day takes no part in."""
    write(tmp_path, "NL", many(400, 0), many(100, 1))
    write(tmp_path, "ES", many(300, 2), many(100, 3))
    source = read_logs(str(tmp_path), "aliexpress")
    assert source.registry.scene_names == ("ES", "NL")
    before_test = source.exposures.column("day") < TEST
    problem = prepare(source.exposures, before_test, source.registry,
                      ModelConfig(history_length=0, experts=2, expert_layers=(8,), embedding_size=4),
                      TrainingConfig(workers=0, patience=1, epochs=2, batch_size=64), source.features)
    assert len(problem.validation) == (source.exposures.column("day") == VALIDATION).sum()
    scores = train(problem, tmp_path / "storage").score_exposures(source.exposures)
    assert np.isfinite(scores["order"]).all()


@pytest.mark.parametrize(("header", "line", "message"), [
    (HEADER.replace("click,", ""), "1,2,3,0.1,0", r"AliExpress_NL/train.csv: column click: got .*a column click"),
    (HEADER.replace("search_id", "search"), "1,2,3,0.1,0,0", r"column search_id: got .*a column search_id"),
    (HEADER, "1,x,3,0.1,0,0", r"AliExpress_NL/train.csv: column categorical_1: got 'string'; allowed: integers"),
    (HEADER, "1.5,2,3,0.1,0,0", r"column search_id: got 'double'; allowed: integers"),
    (HEADER.replace("categorical", "c"), "1,2,3,0.1,0,0", r"AliExpress_NL/train.csv: columns: got .*categorical_1"),
])
def test_bad_files_are_named(tmp_path: Path, header: str, line: str, message: str) -> None:
    write(tmp_path, "NL", [line], [line], header)
    with pytest.raises(InvalidFieldError, match=message):
        read_exposures(tmp_path)


def test_missing_and_empty_parts_are_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidFieldError, match=r"exposures: got .*allowed: a directory with AliExpress_NL"):
        read_exposures(tmp_path)
    write(tmp_path, "NL", ["1,2,3,0.1,0,0"], [])
    with pytest.raises(InvalidFieldError, match=r"AliExpress_NL/test.csv: got 0; allowed: at least one row"):
        read_exposures(tmp_path)
    (tmp_path / "AliExpress_NL" / "test.csv").unlink()
    with pytest.raises(InvalidFieldError, match=r"exposures: got .*test.csv'; allowed: a CSV file"):
        read_exposures(tmp_path)


def test_compressed_parts_and_rows_that_were_cut_off(tmp_path: Path) -> None:
    write(tmp_path, "NL", ["1,3,4,0.5,1,1", "2,3,4,0.1,0,0"], ["1,1,1,0.0,1,0", "2,1,1"])
    train = tmp_path / "AliExpress_NL" / "train.csv"
    (tmp_path / "AliExpress_NL" / "train.csv.gz").write_bytes(gzip.compress(train.read_bytes()))
    train.unlink()
    exposures = read_exposures(tmp_path)
    assert str(exposures.account) == "in 4 = kept 3 + quarantined 1; another number of columns than the header: 1"
    assert exposures.quarantine["row"].to_pylist() == ["2,1,1"]
