"""How many learners go on where not all of them find room, and the order of losing, counting and going on.

The learners here are a script; tests/opt_in/test_machines.py has real ones on hosts of their own.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from ray.exceptions import RayActorError

from recfuse.learning import run
from recfuse.learning.algorithm import Progress
from recfuse.learning.algorithms.two_stage import TwoStageConfig
from recfuse.learning.run import RESTARTS, Run, fitting
from recfuse.runtime.placement import Node, NoRoomError, Share


@pytest.mark.parametrize(("wanted", "room", "shards", "minibatch", "number"), [
    (2, 2, 2, 1024, 2), (2, 1, 2, 1024, 1), (4, 3, 4, 1024, 2), (8, 5, 8, 1024, 4), (2, 9, 2, 1024, 2),
    (3, 2, 2, 1023, 1), (6, 5, 2, 1020, 5),
])
def test_the_most_that_divide_a_minibatch_into_the_same_parts(wanted, room, shards, minibatch, number):
    settings = TwoStageConfig(num_learners=wanted, shards=shards, minibatch_size=minibatch)
    found = fitting(settings, room)
    assert found.num_learners == number
    assert found == settings.replace(num_learners=number), "nothing else changes"


def test_bits_do_not_change_where_the_shards_are_more_than_the_learners():
    settings = TwoStageConfig(num_learners=8, shards=8)
    assert {fitting(settings, room).parts for room in range(1, 9)} == {8}


class Cluster:
    """Nodes of one CPU that come and go, and learners on them that say a pass by its number.

    Attributes:
        events: before which pass how many nodes there are from then on; learners on lost ones die.
        nodes: now; built: learners of every start; saved: passes in the checkpoint.
    """

    def __init__(self, passes: int, events: dict[int, int]) -> None:
        self.passes, self.events = passes, events
        self.nodes, self.built, self.saved, self.ended = 2, [], [], 0

    def places(self) -> tuple[Node, ...]:
        return tuple(Node(f"10.0.0.{number}", str(number), {"CPU": 1.0}, {"CPU": float(number > self.built[-1])})
                     for number in range(1, self.nodes + 1))


class Learners:
    """As `FusionAlgorithm`, as far as a run knows it."""

    def __init__(self, cluster: Cluster, settings: TwoStageConfig) -> None:
        if settings.num_learners > cluster.nodes:
            raise NoRoomError("no room")
        self.cluster, self.settings, self.progress = cluster, settings, Progress()
        cluster.built.append(settings.num_learners)
        self.config = SimpleNamespace(seats=SimpleNamespace(share=Share(0.7, 0.3), workers=settings.num_learners))
        self.phase = settings.phases[0]

    @property
    def finished(self) -> bool:
        done = len(self.progress.history) >= self.cluster.passes
        self.progress.stopped = {self.phase.name: "iteration limit"} if done else {}
        return done

    def train(self) -> None:
        number = len(self.progress.history)
        if number in self.cluster.events:
            before, self.cluster.nodes = self.cluster.nodes, self.cluster.events.pop(number)
            if self.cluster.nodes < before:
                raise RayActorError
        self.progress.history.append({"phase": self.phase.name, "iteration": number, "loss": 0.0})
        self.progress.losses.append(0.0)

    def save_checkpoint(self, directory: str) -> None:
        self.cluster.saved = list(self.progress.history)

    def has_checkpoint(self, directory: Path) -> bool:
        return bool(self.cluster.saved)

    def load_checkpoint(self, directory: str) -> None:
        self.progress.history = list(self.cluster.saved)

    def follow_limits(self, directory: Path) -> list[str]:
        return []

    def end_learners(self) -> None:
        self.cluster.ended += 1

    def listen(self, watch) -> None:
        """Nobody does."""

    def stop(self) -> None:
        """They end."""


@pytest.fixture
def go(monkeypatch, tmp_path):
    """Runs the passes on a cluster."""
    def going(cluster: Cluster, learners: int = 2) -> Run:
        monkeypatch.setattr(run, "FusionAlgorithmConfig", lambda: SimpleNamespace(
            learn=lambda settings, samples: SimpleNamespace(build_algo=lambda: Learners(cluster, settings))))
        monkeypatch.setattr(run, "nodes", cluster.places)
        monkeypatch.setattr(run.ray_compat, "may_grow", lambda: False)
        watch = SimpleNamespace(workers=None, wants="", look=None, moved=lambda: None)
        identity = SimpleNamespace(take_up=lambda checkpoint: True)
        with Run(TwoStageConfig(num_learners=learners), None, tmp_path, identity, watch) as found:
            found.finish()
        assert [entry["iteration"] for entry in cluster.saved] == list(range(cluster.passes)), "each once, in order"
        return found
    return going


def test_learners_go_on_with_fewer_and_take_a_node_back(go, monkeypatch):
    monkeypatch.setattr(run, "shares", lambda gpus: (Share(0.7, 0.3),))
    cluster = Cluster(8, {3: 1, 5: 2})
    go(cluster)
    assert cluster.built == [2, 1, 2]


def test_without_a_node_the_run_waits_for_one(go, monkeypatch):
    monkeypatch.setattr(run, "shares", lambda gpus: (Share(0.7, 0.3),))
    cluster = Cluster(4, {2: 0})
    monkeypatch.setattr(run.time, "sleep", lambda seconds: setattr(cluster, "nodes", 1))
    go(cluster)
    assert cluster.built == [2, 1]


def test_nodes_that_go_while_room_is_reserved_are_counted_again(go, monkeypatch):
    monkeypatch.setattr(run, "shares", lambda gpus: (Share(0.7, 0.3),))
    cluster = Cluster(4, {2: 1})
    believed = iter([2])  # Ray has not yet given up the node that is gone.
    room = Run._room
    monkeypatch.setattr(Run, "_room", lambda self: next(believed, None) or room(self))
    go(cluster)
    assert cluster.built == [2, 1]


def test_learners_that_are_lost_again_and_again_end_the_run(go, monkeypatch):
    cluster = Cluster(4, {})

    def die(self) -> None:
        raise RayActorError

    monkeypatch.setattr(Learners, "train", die)
    with pytest.raises(RayActorError):
        go(cluster)
    assert len(cluster.built) == 1 + RESTARTS
