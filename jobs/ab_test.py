"""Policies → an A/B test between buckets of simulated users: relative differences per user, with intervals."""

from __future__ import annotations

from typing import TYPE_CHECKING

from recfuse.runtime.console import start, table
from recfuse.simulation.config import AbTestConfig

if TYPE_CHECKING:
    from recfuse.simulation.ab_test import AbTestResult


def main(config: AbTestConfig) -> AbTestResult:
    """Runs the job. It needs no Ray; CEM's search is taken up from an earlier run."""
    from recfuse.simulation.ab_test import run_ab_test

    test = run_ab_test(config)
    if test.aa:
        table(f"A/A: {config.policies[0]} against itself, {test.aa.runs} tests of {config.aa_persons:,} persons",
              ["measure", f"outside the {config.level:.0%} interval"], test.aa.rows())
        print(test.aa.verdict(config.level))
    base, *others = test.result.arms
    names = [arm.name for arm in others]
    table(f"Relative difference to {base.name} per user, {config.level:.0%} intervals; * remains after correction "
          f"({config.correction}) ({test.metrics})", ["measure", f"{base.name} (mean)", *names], test.result.rows())
    sizes = ", ".join(f"{arm.name} {arm.users:,}" for arm in test.result.arms)
    table(f"Smallest difference found with 80% power ({sizes} persons)", ["measure", *names],
          test.result.detectable_rows())
    if looks := test.result.look_rows():
        table(f"Looks at {test.primary}; the intervals hold at all of them at once", [
            "policy", "persons", "difference", ""], looks)
    return test


def command() -> None:
    """Runs the job as the command line says."""
    main(start(AbTestConfig, description=__doc__))


if __name__ == "__main__":
    command()
