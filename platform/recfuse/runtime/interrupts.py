"""Ctrl-C that cannot be lost: a `KeyboardInterrupt` that Python would ignore comes again.

Python ignores what is raised within its at-fork hooks, finalizers and callbacks, so that a signal which arrives there
ends nothing. Within a fork it waits, because a hook that is cut off keeps its lock; anywhere else it is raised at once,
and again where it was ignored.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType
from typing import Any

# Seconds until an interrupt comes again; whatever ignored it should have returned by then, or ignores it once more.
_AGAIN_SECONDS = .02


class _Interrupts:
    """What this process knows of its interrupts.

    Attributes:
        forking: the main thread is within the hooks of a fork.
        waiting: an interrupt came meanwhile.
    """

    def __init__(self) -> None:
        self.forking, self.waiting = False, False
        self._ignored_before = sys.unraisablehook

    def install(self) -> None:
        """Called once in a process, in its main thread."""
        signal.signal(signal.SIGINT, self.interrupt)
        sys.unraisablehook = self.ignored
        os.register_at_fork(before=self.before_fork, after_in_parent=self.after_fork, after_in_child=self.in_child)

    def interrupt(self, signum: int, frame: FrameType | None) -> None:
        """The signal's handler."""
        if self.forking:
            self.waiting = True
        else:
            signal.default_int_handler(signum, frame)

    def ignored(self, what: Any) -> None:
        """Called with every exception that Python ignores; the others are shown as before."""
        if what.exc_type is not None and issubclass(what.exc_type, KeyboardInterrupt) and not sys.is_finalizing():
            self._again()
        else:
            self._ignored_before(what)

    def before_fork(self) -> None:
        """A fork of another thread runs its hooks there, where no signal is handled."""
        if threading.current_thread() is threading.main_thread():
            self.forking = True

    def after_fork(self) -> None:
        """Raised here, it would be ignored too."""
        if threading.current_thread() is threading.main_thread():
            self.forking = False
            if self.waiting:
                self.waiting = False
                self._again()

    def in_child(self) -> None:
        """What came is the parent's."""
        self.forking, self.waiting = False, False

    def _again(self) -> None:
        main = threading.main_thread().ident
        assert main is not None
        # To the main thread, whose waiting in the kernel it must end.
        timer = threading.Timer(_AGAIN_SECONDS, signal.pthread_kill, (main, signal.SIGINT))
        timer.daemon = True
        timer.start()


_installed: _Interrupts | None = None


def keep_interrupts() -> None:
    """From now on Ctrl-C ends this process wherever it arrives. Nothing changes outside the main thread, or where the
    process ignores the signal or handles it in its own way."""
    global _installed
    is_python_s = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if _installed is None and is_python_s and threading.current_thread() is threading.main_thread():
        _installed = _Interrupts()
        _installed.install()
