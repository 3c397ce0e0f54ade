"""A session log → what it has: rows, exploration, support, and for every behaviour how many more days until an effect
can be seen, by an A/B test or from the log's own exploration."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from recfuse.evaluation.config import CheckConfig
from recfuse.runtime.console import start, table

if TYPE_CHECKING:
    from recfuse.evaluation.check import CheckResult


def main(config: CheckConfig) -> CheckResult:
    """Checks, and prints one table and a verdict."""
    from recfuse.evaluation.check import check_log

    result = check_log(config)
    show(config, result)
    return result


def show(config: CheckConfig, result: CheckResult) -> None:
    """The table and the verdict."""
    account, kept = result.account, result.with_candidates
    sigma = ", ".join(f"{name} {value:.4g}" for name, value in result.sigma.items()) or "none"
    per_session = result.requests / max(result.sessions, 1)
    rows = [
        ("rows in = kept + quarantined + left out", f"{account.rows_in:,} = {account.kept:,} + "
                                                    f"{sum(account.quarantined.values()):,} + {account.left_out:,}"),
        *((f"  quarantined: {reason}", f"{count:,}") for reason, count in sorted(account.quarantined.items())),
        *((f"  unreadable file {file}", why) for file, why in sorted(account.unreadable_files.items())),
        ("from first to last request", _span(result.days)), ("users", f"{result.users:,}"),
        ("requests a session", f"{per_session:.2f} ({result.sessions:,} sessions)"),
        ("drawn, with a known density", f"{result.drawn:.1%}"), ("σ", sigma),
        (f"worth of a policy {config.step:g} σ away", f"{result.support:,.0f} requests"),
        *([] if kept is None else [("with candidates and what was shown", f"{kept:.1%}")]),
        *((f"{each.name}: a request; a day; days to {config.effect:.2%}",
           f"{each.mean:.4g}; {each.daily:,.4g}; A/B test {_days(each.test)}, off-policy {_days(each.estimate)}")
          for each in result.outlook),
    ]
    table(f"Log in {config.logs}", ["what", "value"], rows)
    for note in account.notes:
        print(note)
    print(f"verdict: {result.verdict}")


def _span(days: float) -> str:
    if days >= 2:
        return f"{days:,.1f} days"
    return f"{24 * days:.1f} hours" if days >= 1 / 12 else f"{1440 * days:.1f} minutes"


def _days(more: float) -> str:
    if not math.isfinite(more):
        return "never"
    return "now" if more <= 0 else f"in {math.ceil(more):,}"


def with_logs(arguments: Sequence[str]) -> list[str]:
    """The arguments, where a log that comes first without an option is that of `--logs`."""
    return ["--logs", *arguments] if arguments and not arguments[0].startswith("-") else list(arguments)


def command() -> None:
    """The job's command line."""
    main(start(CheckConfig, with_logs(sys.argv[1:]), description=__doc__))


if __name__ == "__main__":
    command()
