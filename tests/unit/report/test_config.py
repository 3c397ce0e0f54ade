"""The config of the job `evaluate`: its file is its reference, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from recfuse.config import InvalidFieldError, load, reference
from recfuse.report.config import ReportConfig

FILE = Path(__file__).parents[3] / "jobs" / "config" / "evaluate.yaml"


def test_the_config_file_is_the_reference():
    assert FILE.read_text() == "# Every key is optional; these are the defaults.\n" + reference(ReportConfig)
    assert load(ReportConfig, FILE) == ReportConfig()


@pytest.mark.parametrize("name", ReportConfig.model_fields)
def test_every_field_has_a_sentence(name):
    sentence = ReportConfig.model_fields[name].description
    assert sentence.endswith(".")
    assert len(sentence.split()) < 30


@pytest.mark.parametrize(("values", "message"), [
    ({"cap": 0}, "cap: got 0; allowed: a number > 0"),
    ({"level": 1.0}, r"level: got 1\.0; allowed: a number in \(0, 1\)"),
    ({"session_discount": 1.1}, r"session_discount: got 1\.1; allowed: a number in \[0, 1\]"),
    ({"critic_rows": 0}, "critic_rows: got 0; allowed: an integer ≥ 1"),
    ({"truth_persons": 1}, "truth_persons: got 1; allowed: 0, or an integer ≥ 2"),
    ({"min_ess": -1}, "min_ess: got -1; allowed: a number ≥ 0"),
    ({"after": "tomorrow"}, "after: got 'tomorrow'; allowed: an ISO time, as 2022-05-04T00:00"),
])
def test_bad_values_are_refused(values, message):
    with pytest.raises(InvalidFieldError, match=message):
        ReportConfig(**values)


def test_no_cap_is_a_cap():
    assert ReportConfig(cap=float("inf")).cap == float("inf")
