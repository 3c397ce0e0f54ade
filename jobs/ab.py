"""What was served → an A/B test of the canary: every measure against the model of everybody else, with intervals that
hold at any look, and a verdict on goals and floors."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from recfuse.evaluation.config import AbConfig
from recfuse.jobs.check import with_logs
from recfuse.runtime.console import start, table

if TYPE_CHECKING:
    from recfuse.evaluation.ab import ServedTest
    from recfuse.evaluation.verdict import Verdict


def main(config: AbConfig) -> tuple[ServedTest, Verdict]:
    """Runs the job; it needs Ray for a long log alone."""
    from recfuse.evaluation.ab import run_ab
    from recfuse.evaluation.verdict import decide

    test = run_ab(config)
    verdict = decide(test)
    show(test, verdict)
    return test, verdict


def show(test: ServedTest, verdict: Verdict) -> None:
    """The tables and the verdict."""
    split, ratio, targets = test.split, test.ratio, test.targets
    table(f"{split.canary} against {split.base}: users of {test.decisions:,} decisions in {test.days:.1f} days", [
        "check", "found", "expected"], [
        ("users of the canary", f"{ratio.canary / (ratio.base + ratio.canary):.3%} of {ratio.base + ratio.canary:,}",
         f"{ratio.share:.3%} (chi-square {ratio.chi_square:.2f}, p {ratio.p:.2g}; at all looks {ratio.valid_p:.2g})"),
        ("decisions by another model than the arm's", f"{test.strays:.3%}", f"at most {targets.max_strays:.1%}"),
        *([("rows without user, time or finite feedback", f"{test.left_out:,}", "0")] if test.left_out else [])])
    table(f"Relative difference per user, {targets.level:.0%} intervals that hold at all looks",
          ["measure", "base (mean)", "difference", "p (Holm)", "variance taken away", "last days less first"],
          test.rows())
    names = targets.names or tuple(each.name for each in test.effects[:3])
    if days := test.day_rows(names):
        table(f"By the days since a user's first decision, {targets.level:.0%} intervals of one look",
              ["day", "users", *(each.name for each in test.effects if each.name in names)], days)
    print(f"verdict: {verdict.words}")


def command() -> None:
    """The job's command line."""
    main(start(AbConfig, with_logs(sys.argv[1:]), description=__doc__))


if __name__ == "__main__":
    command()
