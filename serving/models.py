"""The model that serves now, and its replacement between two requests."""

from __future__ import annotations

import logging
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Generic, Literal, Protocol, TypeVar

from recfuse.bundle import Bundle, BundleError, read_bundle
from recfuse.bundle.arms import Arms, Canary
from recfuse.bundle.bundle import BundleKind
from recfuse.bundle.pointer import Pointer, read_pointer
from recfuse.serving.attempts import Attempts, fingerprint
from recfuse.serving.catalogue import Catalogue
from recfuse.serving.contract import MAIN, Choice, Contract, Paths, paths_of
from recfuse.serving.meters import Meters, NoMeters

logger = logging.getLogger("recfuse.serving")
_EVENTS = 200  # are kept of a model
M = TypeVar("M")
M_co = TypeVar("M_co", covariant=True)
What = Literal["served", "refused", "canary", "canary refused", "no canary"]


@dataclass(frozen=True)
class Event:
    """What happened to a part that serves.

    Attributes:
        at: seconds since 1970; part: as the pointer names it; version: of it, "" where the pointer cannot be read.
        what: happened; why: it was refused, or the share of a canary.
    """

    at: float
    part: str
    what: What
    version: str
    why: str = ""


class Models(Protocol[M_co]):
    """What serves now (ServedModel)."""

    @property
    def arms(self) -> Arms[M_co]: ...


class FixedModel(Generic[M]):
    """The same model for everybody and for good."""

    def __init__(self, model: M) -> None:
        self.arms = Arms(model)


class Follower(ABC):
    """Serves what a pointer names, as far as it has looked (`Watcher` looks again and again).

    What the pointer names goes through the contract first. What was refused is looked at again when a file of what the
    pointer names has changed, and else ever later (`Attempts`): it may not have arrived yet, or a disk or the memory
    failed for a moment.

    Args:
        models: the directory with the pointer.
        name: what is followed.
        retry_seconds: from a refusal to the next attempt, at first; 0 makes no pauses.
        contract: between the parts; None compares nothing.
        meters: are told whether what serves is what the pointer names.
    """

    def __init__(self, models: str | Path, name: str, retry_seconds: float, contract: Contract | None,
                 meters: Meters | None) -> None:
        self._models, self._name, self._contract = Path(models), name, contract
        self._attempts = Attempts(retry_seconds)
        self._pinned: Path | None = None
        self._chosen: tuple[object, Choice] | None = None
        self._served: Paths | None = None
        self._meters: Meters = meters or NoMeters()
        self._lock = threading.Lock()
        self._changes: list[Callable[[], None]] = []
        self.error: str | None = None
        self.wanted: str | None = None
        self.events: deque[Event] = deque(maxlen=_EVENTS)

    def refresh(self) -> bool:
        """Takes what the pointer names where it is something else; False where something of it was refused."""
        taken = self.prepare()
        self.swap()
        return taken

    def prepare(self) -> bool:
        """Loads what the pointer names, beside what serves; False where something of it was refused."""
        # One after the other, so that a pin and the thread do not load at once.
        with self._lock:
            taken = self._prepare()
        self._meters.record("recfuse_outdated", float(not taken), {"status": self._name})
        return taken

    def swap(self) -> None:
        """Serves what was loaded."""
        with self._lock:
            for change in self._changes:
                change()
            self._changes.clear()

    @abstractmethod
    def _take(self, choice: Choice, pointer: Pointer) -> bool:
        """Loads what was chosen, and adds to the changes; False where something was refused."""

    def _prepare(self) -> bool:
        try:
            pointer = read_pointer(self._models)
        except Exception as error:
            self._refuse(error)
            self._attempts.forget()
            return False
        key = self._pinned, pointer, fingerprint(paths_of(pointer, self._models)[name] for name in MAIN)
        if not self._attempts.due(key):
            return self._attempts.succeeded
        try:
            taken = self._take(self._choose(pointer), pointer)
        except Exception as error:
            self._refuse(error)
            taken = False
        self._attempts.ended(key, taken)
        return taken

    def _choose(self, pointer: Pointer) -> Choice:
        """What is to serve; the contract is asked again where the pointer has changed, or something was refused."""
        key, wanted = (self._pinned, pointer), dict(paths_of(pointer, self._models))
        if self._pinned is not None:
            wanted = {**wanted, self._name: self._pinned, f"{self._name}_canary": None}
        self.wanted = _name(wanted[self._name])
        if self._chosen is None or self._chosen[0] != key or self._chosen[1].errors:
            choice = Choice(wanted, {}) if self._contract is None else self._contract.choose(wanted, self._served)
            self._chosen = key, choice
        return self._chosen[1]

    def _refuse(self, error: Exception | str) -> None:
        words = error if isinstance(error, str) else f"{type(error).__name__}: {error}"
        if words != self.error:
            logger.error("%s refused, what served before goes on: %s", self._name, words)
            self._note("refused", self.wanted, words)
        self.error = words

    def _note(self, what: What, version: str | None, why: str = "") -> None:
        self.events.append(Event(time.time(), self._name, what, version or "", why))


class Swapped(Protocol):
    """What a watcher looks after (`Follower`, and what joins several)."""

    def prepare(self) -> bool: ...

    def swap(self) -> None: ...


class Watcher:
    """Looks at the pointer for several parts in one thread, until it is closed: they swap when all have loaded.

    All replicas look at the same times, so that they swap together too, as far as loading takes them as long.

    Args:
        followers: of the same directory.
        seconds: how often the pointer is looked at; 0 never.
    """

    def __init__(self, followers: Sequence[Swapped], seconds: float) -> None:
        self._followers, self._seconds, self._stop = tuple(followers), seconds, threading.Event()
        if seconds > 0:
            threading.Thread(target=self._watch, name="watch-models", daemon=True).start()

    def close(self) -> None:
        """Stops looking."""
        self._stop.set()

    def _watch(self) -> None:
        while not self._stop.wait(self._seconds - time.time() % self._seconds):
            for follower in self._followers:
                follower.prepare()
            for follower in self._followers:
                follower.swap()


class ServedCatalogue(Follower):
    """Holds the catalogue of a models directory, as `ServedModel` holds a model.

    A request takes `current` once, so that positions and rows are of one catalogue. One that cannot be read, or does
    not fit the scorer, leaves the old one serving, and `error` says why.

    Args:
        models: the directory with the pointer.
        retry_seconds: from a refusal to the next attempt, at first; 0 makes no pauses.
        contract: between the parts; None compares nothing.
        meters: are told whether what serves is what the pointer names.

    Raises:
        InvalidFieldError, BundleError: the catalogue or the pointer cannot be read at the start.
    """

    def __init__(self, models: str | Path, retry_seconds: float = 0.0, contract: Contract | None = None,
                 meters: Meters | None = None) -> None:
        super().__init__(models, "catalogue", retry_seconds, contract, meters)
        choice = self._choose(read_pointer(self._models))
        self._path = choice.paths["catalogue"]
        self.current = self.upcoming = None if self._path is None else Catalogue.load(self._path)
        self._served = choice.paths

    @property
    def name(self) -> str | None:
        """Of the catalogue that serves."""
        return _name(self._path)

    def _serve(self, catalogue: Catalogue | None) -> None:
        self.current = catalogue
        logger.info("catalogue is now %s", _name(self._path))
        self._note("served", _name(self._path))

    def _take(self, choice: Choice, pointer: Pointer) -> bool:
        path = choice.paths["catalogue"]
        if path != self._path:
            catalogue = None if path is None else Catalogue.load(path)
            self._path, self.upcoming = path, catalogue
            self._changes.append(lambda: self._serve(catalogue))
        self._served = choice.paths
        if "catalogue" in choice.errors:
            self._refuse(choice.errors["catalogue"])
            return False
        self.error = None
        return True


class ServedModel(Follower, Generic[M]):
    """Holds one model of a models directory: what the directory's pointer names.

    A new bundle is read, verified, compared with the other parts and built beside the old model; then one reference
    changes. A request takes `arms` once, so no answer mixes two models. A bundle that fails
    leaves the old one serving, and `error` says why. The pointer may name a canary beside it, for a share of the users;
    one that cannot be loaded serves nobody, and `canary_error` says why.

    Args:
        models: the directory with the pointer.
        kind: which of the pointer's bundles.
        build: makes the model of a verified bundle.
        retry_seconds: from a refusal to the next attempt, at first; 0 makes no pauses.
        absent: serves where the pointer names no such bundle; without it that is refused.
        contract: between the parts; None compares nothing.
        meters: are told whether what serves is what the pointer names.

    Raises:
        BundleError: there is no such bundle, or it must not be served.
    """

    def __init__(self, models: str | Path, kind: BundleKind, build: Callable[[Bundle], M], retry_seconds: float = 0.0,
                 absent: M | None = None, contract: Contract | None = None, meters: Meters | None = None) -> None:
        super().__init__(models, kind, retry_seconds, contract, meters)
        self._kind, self._build, self._absent = kind, build, absent
        pointer = read_pointer(self._models)
        choice = self._choose(pointer)
        self._path = choice.paths[kind]
        self.arms: Arms[M] = Arms(self._load(self._path))
        self.upcoming = self.arms  # what the next swap serves
        self.loaded_at = time.time()
        self._served = choice.paths
        self.canary_error: str | None = None
        self._note("served", _name(self._path))
        self._take_canary(choice, pointer)
        self.swap()

    @property
    def current(self) -> M:
        """The model of everybody who is not the canary's."""
        return self.arms.current

    @property
    def canary(self) -> Canary[M] | None:
        """The model of a share of the users."""
        return self.arms.canary

    def pin(self, bundle: str | None) -> None:
        """Serves this bundle instead of the pointer's; None follows the pointer again."""
        self._pinned = None if bundle is None else Path(bundle)
        self.refresh()

    def _take(self, choice: Choice, pointer: Pointer) -> bool:
        # One after the other: what is wrong with a canary must not hold up the model that serves everybody else.
        return all([self._take_model(choice), self._take_canary(choice, pointer)])

    def _take_model(self, choice: Choice) -> bool:
        path = choice.paths[self._kind]
        try:
            if path != self._path:
                model = self._load(path)
                self._path, self.upcoming = path, replace(self.upcoming, current=model)
                self._changes.append(lambda: self._serve(model))
        except Exception as error:  # Whatever is wrong with a new bundle, the old one goes on.
            self._refuse(error)
            return False
        self._served = choice.paths
        if self._kind in choice.errors:
            self._refuse(choice.errors[self._kind])
            return False
        self.error = None
        return True

    def _take_canary(self, choice: Choice, pointer: Pointer) -> bool:
        name = f"{self._kind}_canary"
        path, why, known = choice.paths.get(name), choice.errors.get(name), self.canary
        canary = None
        if path is not None:
            try:
                model = known.model if known is not None and known.name == path.name else self._load(path)
                canary = Canary(model, path.name, pointer.canary_share)
            except Exception as error:
                why = f"{type(error).__name__}: {error}"
        if why is not None and why != self.canary_error:
            logger.error("%s canary refused, nobody gets it: %s", self._kind, why)
            self._note("canary refused", _name(path), why)
        if canary is not None and (known is None or (known.name, known.share) != (canary.name, canary.share)):
            logger.info("%s canary is now %s for %.4g of the users", self._kind, canary.name, canary.share)
            self._note("canary", canary.name, f"{canary.share:.4g} of the users")
        if canary is None and known is not None:
            self._note("no canary", known.name)
        self.upcoming = replace(self.upcoming, canary=canary)
        self._changes.append(lambda: self._serve_canary(canary))
        self.canary_error = why
        return why is None

    def _serve(self, model: M) -> None:
        self.arms, self.loaded_at = replace(self.arms, current=model), time.time()
        logger.info("%s bundle is now %s", self._kind, _name(self._path))
        self._note("served", _name(self._path))

    def _serve_canary(self, canary: Canary[M] | None) -> None:
        self.arms = replace(self.arms, canary=canary)

    def _load(self, path: Path | None) -> M:
        if path is not None:
            return self._build(read_bundle(path, kind=self._kind))
        if self._absent is None:
            raise BundleError(f"{self._models}/current.json: {self._kind} is null; expected the name of a bundle")
        return self._absent


def _name(path: Path | None) -> str | None:
    return None if path is None else path.name
