"""The command `recfuse`: a job by its name, in the order in which a user needs them.

A name brings the module of its job alone, so that help is there at once: `recfuse JOB --help` starts neither Ray nor,
where the job's options do not need it, torch.
"""

from __future__ import annotations

import difflib
import importlib
import sys
from dataclasses import dataclass

import recfuse


@dataclass(frozen=True)
class Command:
    """A name, the module whose `command` it calls, and what that does in a line."""

    name: str
    module: str
    words: str


GROUPS: dict[str, tuple[Command, ...]] = {
    "The first day, to start exploring": (
        Command("init", "jobs.init", "a vocabulary from a sample of the log, or from names"),
        Command("explore", "jobs.explore", "today's weights plus exploration → a fusion bundle that serving loads"),
        Command("serve", "jobs.serve", "the models of a directory over HTTP"),
    ),
    "While it runs": (
        Command("collect", "jobs.collect", "decisions and feedback of serving → session logs"),
        Command("ab", "jobs.ab", "session logs of a canary → its A/B test and a verdict, at any time"),
        Command("check", "jobs.check", "session logs: rows, exploration, and how many more days an effect needs"),
    ),
    "Learn, judge, publish": (
        Command("ingest", "jobs.ingest", "session logs → samples, with an account of every row"),
        Command("train", "jobs.train_fusion", "samples → fusion policy"),
        Command("evaluate", "jobs.evaluate", "policy and held-out session logs → estimates and a report"),
        Command("export", "jobs.export", "bundles → the models directory that serving watches"),
        Command("rollout", "jobs.rollout", "a candidate → gate, canary share by share, promoted or rolled back"),
        Command("loop", "jobs.loop", "all of that by itself, every hour: collect, learn, gate, canary, verdict"),
        Command("train-scenes", "jobs.train_scenes", "exposures → multi-scene scorer"),
        Command("sweep", "tune.sweep", "one trial per choice of a search space, and the frontier"),
    ),
    "Try it in a simulator": (
        Command("demo", "jobs.demo", "the whole flow on generated exposures, or on those of a directory"),
        Command("simulate", "jobs.simulate", "exposures and scorer → a world and its session logs"),
        Command("ab-test", "jobs.ab_test", "policies → an A/B test between simulated users"),
        Command("train-online", "jobs.train_online", "a world → a policy that learns while it acts there"),
    ),
}
COMMANDS = {command.name: command for group in GROUPS.values() for command in group}
CONFIG = "config"


def main() -> None:
    """Calls the job that the first argument names."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return
    name, *rest = arguments
    if name == "--version":
        print(f"recfuse {recfuse.__version__}")
        return
    if name == CONFIG:
        name, rest = (rest[0] if rest else ""), [*rest[1:], "--print-config"]
    if name not in COMMANDS:
        sys.exit(_unknown(name))
    sys.argv = [f"recfuse {name}", *rest]
    importlib.import_module(f"recfuse.{COMMANDS[name].module}").command()


def usage() -> str:
    """What there is, a line each."""
    lines = ["usage: recfuse JOB [--config FILE] [OPTIONS]", "",
             "Learns, per request, the weights that fuse several predictions into one ranking.", ""]
    for title, group in GROUPS.items():
        lines += [f"{title}:", *(f"  {command.name:13} {command.words}" for command in group), ""]
    return "\n".join([*lines, "recfuse JOB --help tells a job's options, recfuse config JOB prints them as YAML with a "
                      "sentence each,", "recfuse --version the version."])


def _unknown(name: str) -> int:
    near = difflib.get_close_matches(name, COMMANDS, n=3, cutoff=.5) or list(COMMANDS)
    print(f"error: job: got {name!r}; allowed: {', '.join(near)}; recfuse --help tells all", file=sys.stderr)
    return 2


if __name__ == "__main__":
    main()
