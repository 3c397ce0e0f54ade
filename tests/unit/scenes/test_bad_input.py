"""Every kind of bad input of the scorer is an error that names it, or a row that is counted."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pytest

from recfuse.config import InvalidFieldError
from recfuse.logs.exposures import Exposures
from recfuse.scenes.config import ModelConfig
from recfuse.scenes.dataset import scene_rows, split_by_time
from recfuse.scenes.features import Feature
from recfuse.scenes.registry import Registry, Scene
from recfuse.scenes.training.config import TrainingConfig
from recfuse.scenes.training.problem import prepare

MODEL = ModelConfig(history_length=0, experts=2, expert_layers=(4,))
CLICKS = Registry(scenes=(Scene(name="1", tasks=("click",)),))


def with_rows(exposures: Exposures, name: str, values: object) -> Exposures:
    index = exposures.rows.column_names.index(name)
    return dataclasses.replace(exposures, rows=exposures.rows.set_column(index, name, pa.array(values)))


def recast(table: pa.Table, name: str, kind: pa.DataType) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, table[name].cast(kind))


def fit(exposures: Exposures, registry: Registry = CLICKS, features: tuple[Feature, ...] = ()) -> object:
    rows = scene_rows(exposures, registry)
    return prepare(rows, split_by_time(rows).training, registry, MODEL, TrainingConfig(workers=0), features)


@pytest.mark.parametrize(("break_it", "message"), [
    (lambda e: fit(e, Registry(scenes=(Scene(name="checkout", tasks=("click",)),))),
     r"scenes: got \('checkout',\); allowed: scenes that the rows hold"),
    (lambda e: fit(e, Registry(scenes=(Scene(name="1", tasks=("purchase",)),))),
     r"rows.purchase: got .*allowed: a label column purchase"),
    (lambda e: fit(with_rows(e, "click", np.zeros(e.rows.num_rows, np.int8))), r"pair \(1, click\): got '0 positives'"),
    (lambda e: fit(with_rows(e, "click", np.ones(e.rows.num_rows, np.int8))), r"pair \(1, click\): got '0 negatives'"),
    (lambda e: fit(with_rows(e, "click", np.full(e.rows.num_rows, 7))),
     r"label of \(1, click\), row 0: got 7.0; allowed: 0 or 1"),
    (lambda e: fit(with_rows(e, "click", np.full(e.rows.num_rows, np.nan))),
     r"label of \(1, click\), row 0: got nan; allowed: 0 or 1"),
    (lambda e: fit(with_rows(e, "watch_time", np.full(e.rows.num_rows, -1.0)),
                   Registry(scenes=(Scene(name="1", tasks=("watch_time",)),), numbers={"watch_time": 60.0})),
     r"label of \(1, watch_time\), row 0: got -1.0; allowed: a number ≥ 0"),
    (lambda e: fit(e, features=(Feature(name="height", source="item"),)), r"items.height: got .*a column height"),
    (lambda e: fit(dataclasses.replace(e, items=e.items.drop_columns(["item_id"]))), "item_id: got .*a column item_id"),
    (lambda e: fit(dataclasses.replace(e, users=recast(e.users, "user_id", pa.float64()))),
     "users.user_id: got 'double'; allowed: 64-bit integers"),
    (lambda e: fit(dataclasses.replace(e, items=recast(e.items, "item_id", pa.string()))),
     "items.item_id: got 'string'; allowed: 64-bit integers"),
    (lambda e: fit(e.filter(e.column("day") == e.column("day").max())), r"day: got .*allowed: at least two days"),
    (lambda e: split_by_time(e, test_day=20220601), r"test_day: got 20220601; allowed: a day of the rows"),
    (lambda e: split_by_time(e.filter(e.column("day") != 20220503), test_day=20220503),
     r"test_day: got 20220503; allowed: a day of the rows"),
])
def test_bad_input_is_named(exposures: Exposures, break_it: Callable[[Exposures], object], message: str) -> None:
    with pytest.raises(InvalidFieldError, match=message):
        break_it(exposures)
