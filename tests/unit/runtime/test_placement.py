"""Where workers find room, node by node. No Ray is started here."""

from __future__ import annotations

import socket

import pytest

from recfuse.config import InvalidFieldError
from recfuse.runtime import placement
from recfuse.runtime.placement import Node, Share, described, most_workers, required_share, room_for, share_of, shares


def cluster(*cpus: float, free: tuple[float, ...] | None = None, gpus: float = 0.0) -> tuple[Node, ...]:
    """Nodes of so many CPUs."""
    return tuple(Node(f"10.0.0.{number}", str(number), {"CPU": total, "GPU": gpus}, {"CPU": left, "GPU": gpus})
                 for number, (total, left) in enumerate(zip(cpus, free or cpus, strict=True), 1))


@pytest.mark.parametrize(("nodes", "learners", "bundle"), [
    (cluster(8), 4, 1.5), (cluster(2), 1, 1.5), (cluster(2), 2, 1.0), (cluster(1, 1), 2, 1.0), (cluster(1), 1, 1.0),
    (cluster(1), 2, 0.5), (cluster(2, 1), 3, 1.0), (cluster(0, 3), 2, 1.5), (cluster(1), 4, None), (cluster(), 1, None),
])
def test_learners_and_their_reading_find_room_on_one_node_each(nodes, learners, bundle):
    share = share_of(learners, nodes, shares())
    assert (share and share.bundle) == (bundle and {"CPU": bundle})


def test_no_bundle_holds_two_learners():
    for share in shares():
        assert share.reading > 0
        assert 2 * share.cpus > share.bundle["CPU"] >= share.cpus + share.reading - 1e-9


def test_two_halves_on_two_nodes_are_no_whole_cpu():
    halves = [{"CPU": 0.5}, {"CPU": 0.5}]
    assert room_for({"CPU": 1.0}, halves) == 0
    assert room_for({"CPU": 0.5}, halves) == 2
    assert room_for({"CPU": 0.1}, [{"CPU": 0.3}]) == 3, "not 2.9999"


def test_what_others_hold_makes_the_share_smaller_or_is_waited_for():
    assert share_of(2, cluster(4, free=(1.0,)), shares()).bundle == {"CPU": 0.5}
    assert share_of(2, cluster(4, free=(0.0,)), shares()).bundle == {"CPU": 1.5}, "of what the node has in all"


def test_a_gpu_is_of_the_same_node():
    with_gpu, without = cluster(1, gpus=1), cluster(8)
    allowed = shares(reads=False, gpus=1.0)
    assert share_of(1, with_gpu + without, allowed) == Share(1.0, gpus=1.0)
    assert share_of(2, with_gpu + without, allowed) is None


def test_cpus_are_left_for_what_runs_beside():
    assert share_of(2, cluster(2), shares(reads=False)) == Share(1.0)
    assert share_of(2, cluster(2), shares(reads=False, beside=0.2)).bundle == {"CPU": 0.8}


def test_what_cannot_be_placed_is_refused_in_a_line_that_names_nodes_and_cpus(monkeypatch):
    monkeypatch.setattr(placement, "nodes", lambda: cluster(1, 1, free=(1.0, 0.5)))
    monkeypatch.setattr(placement.ray_compat, "may_grow", lambda: False)
    with pytest.raises(InvalidFieldError) as refused:
        required_share("num_learners", 7, shares())
    assert str(refused.value) == ("num_learners: got 7; allowed: at most 6, each with 0.3 CPUs of one node; "
                                  "nodes: 10.0.0.1 1 CPU (1 free), 10.0.0.2 1 CPU (0.5 free)")
    assert required_share("num_learners", 6, shares()).bundle == {"CPU": 0.3}
    monkeypatch.setattr(placement.ray_compat, "may_grow", lambda: True)
    assert required_share("num_learners", 7, shares()) == shares()[0], "nodes may come"


def test_fewer_are_counted_on_what_is_left():
    assert most_workers(4, cluster(1), shares()) == 3
    assert most_workers(2, cluster(1), shares()) == 2
    assert most_workers(2, (), shares()) == 0
    assert described(()) == "no node is there"


def test_the_interface_of_an_address():
    assert placement.interface_of("127.0.0.1") == "lo" in [name for _, name in socket.if_nameindex()]
    assert placement.interface_of("203.0.113.7") == "", "nobody has it"
