"""A candidate's way to all users, beside the served model: start, status, judge (one look), promote, rollback."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from recfuse.rollout.config import RolloutConfig
from recfuse.runtime.console import start, table

if TYPE_CHECKING:
    from recfuse.rollout.store import Rollout, Store


def main(config: RolloutConfig) -> Rollout | None:
    """Runs the job and says where the rollout stands; None where there was none yet."""
    from recfuse.rollout import rollout as steps
    from recfuse.rollout.store import Store

    if config.action == "start":
        steps.start(config)
    elif config.action == "judge":
        look = steps.judge(config.models)
        if look.test is not None and look.verdict is not None:
            from recfuse.jobs.ab import show

            show(look.test, look.verdict)
    elif config.action == "promote":
        steps.promote(config)
    elif config.action == "rollback":
        steps.roll_back(config)
    store = Store(config.models)
    with store.locked():
        rollout = store.read()
    show_status(store, rollout)
    return rollout


def show_status(store: Store, rollout: Rollout | None) -> None:
    """The state, the last look and the audit."""
    if rollout is None:
        print("no rollout yet; `recfuse rollout start --candidate BUNDLE` begins one")
        return
    table(f"Rollout in {store.models}", ["what", ""], [
        ("candidate", rollout.candidate), ("base", rollout.base), ("state", rollout.words),
        ("since", _time(rollout.row.at)),
        *([("last look", f"{_time(rollout.verdict['at'])}: {rollout.verdict['words']}")] if rollout.verdict else [])])
    table("Audit", ["when", "who", "candidate", "step", "why"],
          [(_time(row.at), row.who, row.candidate, row.step, row.why) for row in store.audit()[-20:]])
    print(f"rollout: {rollout.candidate} is {rollout.words}")


def _time(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S}"


def with_action(arguments: Sequence[str]) -> list[str]:
    """The arguments, where an action that comes first without an option is that of `--action`."""
    return ["--action", *arguments] if arguments and not arguments[0].startswith("-") else list(arguments)


def command() -> None:
    """The job's command line."""
    main(start(RolloutConfig, with_action(sys.argv[1:]), description=__doc__))


if __name__ == "__main__":
    command()
