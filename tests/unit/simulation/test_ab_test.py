"""The config of the job `ab_test`, and the config files beside the defaults."""

import pytest

from recfuse.config import InvalidFieldError, load
from recfuse.report.config import ReportConfig
from recfuse.simulation.config import AbTestConfig, SimulateConfig


def test_bad_configs_are_refused():
    with pytest.raises(InvalidFieldError, match=r"policies: got \('logged',\); allowed: at least two"):
        AbTestConfig(policies=("logged",))
    with pytest.raises(InvalidFieldError, match=r"shares: got .*; allowed: 2 numbers, one a policy"):
        AbTestConfig(policies=("logged", "cem"), shares=(1.0,))


def test_looks_are_refused_with_intervals_for_one():
    with pytest.raises(InvalidFieldError, match=r"looks: got 5; allowed: 1 with interval: fixed, .*always_valid"):
        AbTestConfig(policies=("logged", "cem"), looks=5)
    assert AbTestConfig(policies=("logged", "cem"), looks=5, interval="always_valid").looks == 5


@pytest.mark.parametrize(("name", "kind"), [
    ("simulate", SimulateConfig), ("ab_test", AbTestConfig), ("evaluate", ReportConfig)])
def test_config_files_hold_the_defaults(name, kind):
    assert load(kind, f"jobs/config/{name}.yaml") == kind()
