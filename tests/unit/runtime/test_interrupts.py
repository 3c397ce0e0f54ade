"""Ctrl-C where Python would ignore it, in a process of its own."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap

import pytest

HEAD = """
    import gc, os, signal, sys, time
    from recfuse.config import Config
    from recfuse.runtime.console import start

    def interrupted(*_):
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(3):
            pass
        print("hook ends", flush=True)

    def fork():
        child = os.fork()
        if child == 0:
            os._exit(0)
        os.waitpid(child, 0)

    class Finalized:
        __del__ = interrupted

    keep = lambda: start(Config, [])
"""
TAIL = """
    for _ in range(100):
        time.sleep(.05)
    print("lost", flush=True)
"""
# The hooks of modules that are imported before a job starts, and later.
FORKS = {
    "before": "os.register_at_fork(before=interrupted)\nkeep()\nfork()",
    "after in the parent": "os.register_at_fork(after_in_parent=interrupted)\nkeep()\nfork()",
    "before, of a later module": "keep()\nos.register_at_fork(before=interrupted)\nfork()",
    "after, of a later module": "keep()\nos.register_at_fork(after_in_parent=interrupted)\nfork()",
    "finalizer": "keep()\nx = Finalized()\ndel x",
    "nothing special": "keep()\ninterrupted()",
}


def run(script: str) -> subprocess.CompletedProcess[str]:
    code = textwrap.dedent(HEAD) + script + "\n" + textwrap.dedent(TAIL)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False,
                          preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))


@pytest.mark.parametrize("script", FORKS.values(), ids=FORKS.keys())
def test_an_interrupt_ends_the_process_wherever_it_arrives(script):
    ended = run(script)
    # A shell calls it 130.
    assert ended.returncode == -signal.SIGINT, ended.stdout + ended.stderr
    assert "lost" not in ended.stdout
    assert "Exception ignored" not in ended.stderr


@pytest.mark.parametrize("name", ["before", "after in the parent"])
def test_a_hook_that_holds_a_lock_comes_to_its_end(name):
    assert "hook ends" in run(FORKS[name]).stdout


def test_python_by_itself_loses_it():
    ended = run(FORKS["before"].replace("keep()\n", ""))
    assert (ended.returncode, "lost" in ended.stdout) == (0, True), "no longer needed"


def test_what_else_is_ignored_is_still_shown():
    ended = run("keep()\nos.register_at_fork(before=lambda: 1 / 0)\nfork()\nsys.exit(7)")
    assert ended.returncode == 7
    assert "ZeroDivisionError" in ended.stderr


def test_a_process_that_ignores_the_signal_goes_on_ignoring_it():
    ended = run("signal.signal(signal.SIGINT, signal.SIG_IGN)\nkeep()\ninterrupted()\nsys.exit(7)")
    assert ended.returncode == 7, ended.stderr
