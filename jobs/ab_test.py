"""Policies → an A/B test between buckets of simulated users: relative differences per user, with intervals."""

from __future__ import annotations

from recfuse.console import start, table
from recfuse.simulation.ab_test import AbTestConfig, AbTestResult, run_ab_test


def main(config: AbTestConfig) -> AbTestResult:
    """Runs the job. It needs no Ray; CEM's search is taken up from an earlier run."""
    found = run_ab_test(config)
    base, *others = found.result.arms
    table(f"Relative difference to {base.name} per user, {config.level:.0%} intervals ({found.metrics})",
          ["measure", f"{base.name} (mean)", *(arm.name for arm in others)], found.result.rows())
    return found


if __name__ == "__main__":
    main(start(AbTestConfig, description=__doc__))
