"""What a job waits for, and its end. The cluster's answers are given; test_machines.py asks a real one."""

from __future__ import annotations

import logging
import threading
import time

import pytest

from recfuse.config import InputError
from recfuse.runtime import waiting
from recfuse.runtime.console import Progress
from recfuse.runtime.placement import Node
from recfuse.runtime.waiting import WaitedTooLongError, Watch

NODES = (Node("10.0.0.1", "a", {"CPU": 1.0}, {"CPU": 0.0}),)


@pytest.fixture(autouse=True)
def cluster(monkeypatch):
    """A cluster where two tasks find no place."""
    requests = [(2, {"CPU": 1.0})]
    monkeypatch.setattr(waiting, "_LOOK_SECONDS", 0.01)
    monkeypatch.setattr(waiting, "nodes", lambda: NODES)
    monkeypatch.setattr(waiting.ray_compat, "unmet_requests", lambda: requests)
    return requests


def test_a_job_that_waits_says_for_what_and_ends(caplog):
    with caplog.at_level(logging.WARNING, "recfuse"), pytest.raises(WaitedTooLongError) as ended, \
            Watch("train", limit=0.3, say_after=0.05):
        time.sleep(60)
    assert issubclass(WaitedTooLongError, InputError), "a job ends with its line, without a traceback"
    assert "(wait_limit 0.3) for a place for 2 × 1 CPU; nodes: 10.0.0.1 1 CPU (0 free)" in str(ended.value)
    [line] = [record.getMessage() for record in caplog.records]
    assert line.startswith("train: nothing has moved for 0 s; it waits for a place for 2 × 1 CPU; nodes: 10.0.0.1")


def test_progress_of_any_kind_is_a_move():
    with Watch("train", limit=0.3, say_after=0.05):
        progress = Progress("anything", 100)
        for _ in range(10):
            time.sleep(0.05)
            progress.advance(1)


def test_a_job_that_computes_without_a_word_is_left_alone(cluster):
    cluster.clear()
    with Watch("train", limit=0.1, say_after=0.05):
        time.sleep(0.3)


def test_what_the_job_itself_wants_and_who_is_lost(cluster, monkeypatch):
    cluster.clear()
    watch = Watch("train", limit=9, say_after=9)
    watch.wants = "a node with room for a learner"
    assert watch.reason().startswith("a node with room for a learner; nodes: 10.0.0.1 ")
    monkeypatch.setattr(waiting, "nodes", lambda: ())
    assert watch.reason() == "a node with room for a learner; no node is there; lost: 10.0.0.1"


def test_outside_the_main_thread_it_only_says(caplog):
    def wait() -> None:
        with Watch("train", limit=0.1, say_after=0.05):
            time.sleep(0.4)

    with caplog.at_level(logging.ERROR, "recfuse"):
        thread = threading.Thread(target=wait)
        thread.start()
        thread.join()
    assert [record.getMessage()[:20] for record in caplog.records if record.levelno == logging.ERROR] == [
        "train: waited 0 s (w"]


def test_an_interrupt_of_the_user_stays_one():
    with pytest.raises(KeyboardInterrupt), Watch("train", limit=9, say_after=9):
        raise KeyboardInterrupt


def test_another_worker_is_named_by_node_and_silence(monkeypatch, cluster):
    cluster.clear()

    class Board:
        """What a board's actor answers."""

        read = type("Read", (), {"remote": staticmethod(lambda: (7, {0: ("10.0.0.1", 31.0), 1: ("10.0.0.2", 95.4)}))})

    monkeypatch.setattr(waiting.ray, "get", lambda value, timeout: value)
    watch = Watch("train", limit=9, say_after=9)
    watch.workers = waiting.Workers(Board, 3)
    assert watch.reason().startswith("another worker (last heard of: worker 2 never, worker 1 on 10.0.0.2 95 s ago, "
                                     "worker 0 on 10.0.0.1 31 s ago); nodes: ")
    assert watch.workers.have_moved()
    assert not watch.workers.have_moved()
    watch.workers.number = 1
    assert watch.reason() == "", "one alone waits for nobody"
