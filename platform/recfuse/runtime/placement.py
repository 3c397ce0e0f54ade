"""Which nodes a Ray has, what workers of a job find room on, and the room that is reserved for them.

CPUs are counted node by node: two nodes with half a CPU left each have no room for a task that takes a whole one.
"""

from __future__ import annotations

import fcntl
import math
import socket
import struct
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import ray

from recfuse.config import InputError, InvalidFieldError
from recfuse.runtime import ray_compat
from recfuse.runtime.limits import WAIT_LIMIT_SECONDS

# CPUs that one worker and its reading take together, the most first; each holds a tenth more for the worker than half.
_BUNDLES = tuple(tenths / 10 for tenths in range(15, 2, -1))
_SHARES = tuple(tenths / 10 for tenths in range(10, 1, -1))
_READING_PART = 1 / 3
_CPU, _GPU = "CPU", "GPU"
_SIOCGIFADDR = 0x8915
_ROUNDING = 1e-6


@dataclass(frozen=True)
class Node:
    """One machine of a Ray.

    Attributes:
        name: its address, as Ray knows it; key: Ray's id of it.
        total, free: CPUs and GPUs by Ray's name of them; free is what nobody holds.
    """

    name: str
    key: str
    total: Mapping[str, float]
    free: Mapping[str, float]

    def __str__(self) -> str:
        names = [_CPU, _GPU] if self.total.get(_GPU) else [_CPU]
        words = [f"{needs({name: self.total.get(name, 0.0)})} ({self.free.get(name, 0.0):g} free)" for name in names]
        return f"{self.name} {' and '.join(words)}"


@dataclass(frozen=True)
class Share:
    """What each of several workers takes.

    Attributes:
        cpus: of the worker; reading: of the tasks that read for it; gpus: of the worker.
        beside: CPUs that must be left for what else the job runs, which are not reserved.
    """

    cpus: float
    reading: float = 0.0
    gpus: float = 0.0
    beside: float = 0.0

    @property
    def bundle(self) -> dict[str, float]:
        """What is reserved for a worker and its reading on one node."""
        return self._of(self.cpus + self.reading)

    @property
    def need(self) -> dict[str, float]:
        """The same with what must be left."""
        return self._of(self.cpus + self.reading + self.beside)

    def _of(self, cpus: float) -> dict[str, float]:
        return {_CPU: round(cpus, 1)} | ({_GPU: self.gpus} if self.gpus else {})


def nodes() -> tuple[Node, ...]:
    """The nodes that are alive, by address."""
    free = ray_compat.free_resources()
    found = [Node(node["NodeManagerAddress"], node["NodeID"], node["Resources"], free.get(node["NodeID"], {}))
             for node in ray.nodes() if node["Alive"]]
    return tuple(sorted(found, key=lambda node: (node.name, node.key)))


def described(places: Sequence[Node]) -> str:
    """The nodes in words."""
    return f"nodes: {', '.join(map(str, places))}" if places else "no node is there"


def room_for(bundle: Mapping[str, float], places: Sequence[Mapping[str, float]]) -> int:
    """How many bundles the places hold, each of them on one."""
    return sum(min(math.floor(place.get(name, 0.0) / need + _ROUNDING) for name, need in bundle.items() if need)
               for place in places)


def shares(reads: bool = True, gpus: float = 0.0, beside: float = 0.0) -> tuple[Share, ...]:
    """The shares that a worker may take, the largest first.

    A worker takes more than half of what it and its reading take together, so that no bundle holds two workers.
    """
    if not reads:
        return tuple(Share(cpus, gpus=gpus, beside=beside) for cpus in _SHARES)
    reading = [max(0.1, math.floor(10 * bundle * _READING_PART + _ROUNDING) / 10) for bundle in _BUNDLES]
    return tuple(Share(round(bundle - part, 1), part, gpus, beside)
                 for bundle, part in zip(_BUNDLES, reading, strict=True))


def share_of(workers: int, places: Sequence[Node], allowed: Sequence[Share]) -> Share | None:
    """The first of the allowed shares with which the workers find room: in what is free, or else in what nodes have in
    all; None where they find none."""
    for part in ([node.free for node in places], [node.total for node in places]):
        for share in allowed:
            if room_for(share.need, part) >= workers:
                return share
    return None


def most_workers(wanted: int, places: Sequence[Node], allowed: Sequence[Share]) -> int:
    """How many of the wanted workers find room on the nodes, whoever holds their CPUs now."""
    return min(wanted, room_for(allowed[-1].need, [node.total for node in places]))


def required_share(field: str, workers: int, allowed: Sequence[Share]) -> Share:
    """The share of each worker on the current Ray; where an autoscaler may bring nodes, the first.

    Args:
        field: of the config, that asks for the workers.
        allowed: shares, the largest first (`shares`).

    Raises:
        InvalidFieldError: the nodes have no room for them.
    """
    places = nodes()
    share = share_of(workers, places, allowed)
    if share is None and ray_compat.may_grow():
        share = allowed[0]
    if share is None:
        raise InvalidFieldError(field, workers, f"at most {most_workers(workers, places, allowed)}, each with "
                                f"{needs(allowed[-1].need)} of one node; {described(places)}")
    return share


def needs(bundle: Mapping[str, float]) -> str:
    """A bundle in words."""
    return " and ".join(f"{amount:g} {name}{'' if amount == 1 else 's'}" for name, amount in bundle.items())


class NoRoomError(InputError):
    """The nodes that are left have no room for workers that had it before."""


class Seats:
    """Room for workers, reserved by a placement group; `release` gives it back.

    Args:
        share: of each worker.
        workers: how many.
    """

    def __init__(self, share: Share, workers: int) -> None:
        self.share, self.workers = share, workers
        self.group = ray.util.placement_group([share.bundle] * workers, strategy="PACK")

    def wait(self, limit: float = WAIT_LIMIT_SECONDS) -> None:
        """Returns when the room is reserved; others may hold it.

        Raises:
            NoRoomError: nodes have gone meanwhile, or the room was not there within so many seconds.
        """
        ready, end = self.group.ready(), time.monotonic() + limit
        while not ray.wait([ready], timeout=1.0)[0]:
            places = nodes()
            is_lost = room_for(self.share.bundle, [node.total for node in places]) < self.workers
            if time.monotonic() > end or (is_lost and not ray_compat.may_grow()):
                self.release()
                raise NoRoomError(f"no room for {self.workers} × {needs(self.share.bundle)}; {described(places)}")

    def release(self) -> None:
        """What runs in it ends."""
        ray.util.remove_placement_group(self.group)


def interface_of(address: str) -> str:
    """The network interface that has an IPv4 address; "" where none has."""
    for _, name in socket.if_nameindex():
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
            try:
                answer = fcntl.ioctl(asking.fileno(), _SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
            except OSError:  # it has none
                continue
        if socket.inet_ntoa(answer[20:24]) == address:
            return name
    return ""

