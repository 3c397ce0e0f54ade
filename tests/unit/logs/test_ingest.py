"""The config of ingest: bounds, and what ties its fields together."""

from __future__ import annotations

import pytest

from recfuse.config import InvalidFieldError
from recfuse.logs.config import IngestConfig

BAD = [
    (dict(logs=""), "logs: got ''; allowed: a text that is not empty"),
    (dict(logs="here", output="here"), "output: got 'here'; allowed: a directory other than logs"),
    (dict(gap_minutes=0), "gap_minutes: got 0; allowed: a number > 0"),
    (dict(gap_minutes=float("nan")), "gap_minutes: got nan; allowed: a number > 0"),
    (dict(density="guessed"), "density: got 'guessed'; allowed: required, optional"),
]


@pytest.mark.parametrize(("values", "message"), BAD)
def test_a_bad_field_is_named(values, message):
    with pytest.raises(InvalidFieldError) as error:
        IngestConfig(**values)
    assert str(error.value) == message


def test_defaults():
    assert IngestConfig().to_dict() == {"logs": "runs/session_logs", "output": "runs/samples", "vocabulary": "",
                                        "gap_minutes": 30.0, "density": "required", "order_column": "",
                                        "cut": "leave_out", "quarantine_limit": 0.05, "wait_limit": 1800.0}
