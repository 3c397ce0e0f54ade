"""An order without its click: quarantined or repaired, by config; every row is counted."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from recfuse.config import InvalidFieldError
from recfuse.logs.exposures import Exposures
from recfuse.logs.orders import order_exposures

# click, order: an impression, a click, an order, an orphan, and two broken rows.
LABELS = [(0, 0), (1, 0), (1, 1), (0, 1), (2, 0), (1, float("nan"))]


def shop(orphan: str = "quarantine", labels: list[tuple[float, float]] = LABELS) -> Exposures:
    n = len(labels)
    return order_exposures(
        {"user_id": np.arange(n), "item_id": np.arange(n), "scene": np.array(["cart"] * n),
         "ts": pa.array(np.arange(n)).cast(pa.timestamp("us", "UTC")), "day": np.full(n, 20240301, np.int32),
         "hour": np.zeros(n, np.int8), "click": np.array([one[0] for one in labels]),
         "order": np.array([one[1] for one in labels]), "extra": np.arange(n)},
        pa.table({"user_id": np.arange(n)}), pa.table({"item_id": np.arange(n)}), orphan=orphan)  # type: ignore[arg-type]


def test_an_orphan_is_quarantined_with_its_reason() -> None:
    exposures = shop()
    assert exposures.column("user_id").tolist() == [0, 1, 2]
    assert exposures.quarantine["user_id"].to_pylist() == [3, 4, 5]
    assert exposures.quarantine["reason"].to_pylist() == [
        "order without its click", "click is not 0 or 1", "order is not 0 or 1"]
    assert exposures.account.quarantined == {
        "order without its click": 1, "click is not 0 or 1": 1, "order is not 0 or 1": 1}
    assert (exposures.account.rows_in, exposures.account.kept) == (6, 3)


def test_an_orphan_is_repaired_where_the_config_says_so() -> None:
    exposures = shop("repair")
    assert exposures.column("user_id").tolist() == [0, 1, 2, 3]
    assert exposures.column("click").tolist() == [0, 1, 1, 1]
    assert exposures.column("order").tolist() == [0, 0, 1, 1]
    assert "order without its click" not in exposures.account.quarantined


def test_what_describes_the_row_stays_with_it() -> None:
    assert shop().column("extra").tolist() == [0, 1, 2]


def test_bad_arguments_are_named() -> None:
    with pytest.raises(InvalidFieldError, match="orphan: got 'drop'; allowed: quarantine, repair"):
        shop("drop")
    with pytest.raises(InvalidFieldError, match=r"rows.order: got .*allowed: a column order"):
        order_exposures({"user_id": np.arange(1), "item_id": np.arange(1), "scene": np.array(["a"]),
                         "ts": np.arange(1), "day": np.arange(1), "hour": np.arange(1), "click": np.arange(1)},
                        pa.table({"user_id": [1]}), pa.table({"item_id": [1]}))
