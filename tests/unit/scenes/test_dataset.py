"""Exposures → encoded rows, and the split by time."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from recfuse.config import InvalidFieldError
from recfuse.logs.exposures import RESPONSE_SHARE, Exposures, row_share
from recfuse.scenes.dataset import count_pairs, fingerprint, label_matrix, scene_rows, split_by_time
from recfuse.scenes.registry import Pair, Registry, Scene
from recfuse.scenes.training.blocks import from_table, to_table
from recfuse.scenes.training.problem import Problem


def test_rows_survive_the_way_through_arrow(problem: Problem) -> None:
    back = from_table(to_table(problem.rows), problem.rows.users, problem.rows.items)
    for name in ("user", "item", "history", "scene", "labels"):
        np.testing.assert_array_equal(getattr(back, name), getattr(problem.rows, name))
    np.testing.assert_array_equal(back.ids(), problem.rows.ids())
    np.testing.assert_array_equal(back.numbers(), problem.rows.numbers())


def test_split_trains_before_the_last_day_on_the_scorers_share(exposures: Exposures) -> None:
    split = split_by_time(exposures)
    day = exposures.column("day")
    assert split.test_day == day.max()
    assert (day[split.training] < split.test_day).all()
    assert (row_share(exposures)[split.training] >= RESPONSE_SHARE).all()
    assert (day[split.test] == split.test_day).all()


def test_split_needs_two_days(exposures: Exposures) -> None:
    one_day = exposures.filter(exposures.column("day") == exposures.column("day").max())
    with pytest.raises(InvalidFieldError, match=r"day: got .*allowed: at least two days"):
        split_by_time(one_day)


def test_split_on_an_earlier_day_leaves_the_later_ones_out(exposures: Exposures) -> None:
    days = np.unique(exposures.column("day"))
    split = split_by_time(exposures, test_day=int(days[-2]))
    used = exposures.column("day")[split.training | split.test]
    assert split.test_day == used.max() == days[-2]
    with pytest.raises(InvalidFieldError, match=r"test_day: got 19000101; allowed: a day of the rows"):
        split_by_time(exposures, test_day=19000101)


def test_counts_by_pair(exposures: Exposures) -> None:
    registry = Registry(scenes=(Scene(name="4", tasks=("click",)),))
    positives, negatives = count_pairs(exposures.rows, registry)
    own = exposures.rows.to_pandas().query("scene == '4'").click
    assert (positives[Pair("4", "click")], negatives[Pair("4", "click")]) == (own.sum(), (own == 0).sum())


def test_bad_labels_are_named(exposures: Exposures) -> None:
    registry = Registry(scenes=(Scene(name="0", tasks=("click",)), Scene(name="1", tasks=("click",))))
    rows = scene_rows(exposures, registry).rows
    where = rows["scene"].to_pylist().index("1")
    click = rows["click"].to_numpy().copy()
    click[where] = 3
    index = rows.column_names.index("click")
    with pytest.raises(InvalidFieldError, match=rf"label of \(1, click\), row {where}: got 3.0; allowed: 0 or 1"):
        label_matrix(rows.set_column(index, "click", pa.array(click)), registry)
    with pytest.raises(InvalidFieldError, match=r"rows.click: got .*allowed: a label column click"):
        label_matrix(rows.drop_columns(["click"]), registry)
    with pytest.raises(InvalidFieldError, match=r"scenes: got .*allowed: scenes that the rows hold"):
        scene_rows(exposures, Registry(scenes=(Scene(name="z", tasks=("click",)),)))


def test_fingerprint_tells_data_apart(exposures: Exposures) -> None:
    assert fingerprint(exposures) == fingerprint(exposures)
    mask = np.ones(exposures.rows.num_rows, bool)
    mask[0] = False
    assert fingerprint(exposures) != fingerprint(exposures.filter(mask))
