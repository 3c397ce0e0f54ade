"""The model that serves now, and its replacement between two requests."""

from __future__ import annotations

import logging
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Generic, Literal, Protocol, TypeVar

from recfuse.bundle import Bundle, BundleError, read_bundle
from recfuse.bundle.arms import Arms, Canary
from recfuse.bundle.bundle import BundleKind
from recfuse.bundle.pointer import read_pointer
from recfuse.config import InvalidFieldError
from recfuse.serving.catalogue import Catalogue

logger = logging.getLogger("recfuse.serving")
_EVENTS = 200  # are kept of a model
M = TypeVar("M")
M_co = TypeVar("M_co", covariant=True)
What = Literal["served", "refused", "canary", "canary refused", "no canary"]


@dataclass(frozen=True)
class Event:
    """What happened to a model that serves.

    Attributes:
        at: seconds since 1970; kind, version: of the bundle; what: happened; why: it was refused, or the share of a
            canary.
    """

    at: float
    kind: BundleKind
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


class _Follower(ABC):
    """Looks at a pointer again and again, in a thread of its own, until it is closed."""

    def __init__(self) -> None:
        self._stop = threading.Event()

    @abstractmethod
    def refresh(self) -> bool:
        """Takes what the pointer names; False where something was refused."""

    def close(self) -> None:
        """Stops following the pointer."""
        self._stop.set()

    def _follow(self, seconds: float, name: str) -> None:
        if seconds > 0:
            threading.Thread(target=self._watch, args=(seconds,), name=name, daemon=True).start()

    def _watch(self, seconds: float) -> None:
        while not self._stop.wait(seconds):
            self.refresh()


class ServedCatalogue(_Follower):
    """Holds the catalogue of a models directory and follows the directory's pointer, as `ServedModel` does.

    A request takes `current` once, so that positions and rows are of one catalogue. One that cannot be read leaves the
    old one serving, and `error` says why.

    Args:
        models: the directory with the pointer.
        poll_seconds: how often the pointer is looked at; 0 never.

    Raises:
        InvalidFieldError, BundleError: the catalogue or the pointer cannot be read at the start.
    """

    def __init__(self, models: str | Path, poll_seconds: float) -> None:
        super().__init__()
        self._models = Path(models)
        self.error: str | None = None
        self._path = read_pointer(self._models).path(self._models, "catalogue")
        self.current = None if self._path is None else Catalogue.load(self._path)
        self._follow(poll_seconds, "watch-catalogue")

    def refresh(self) -> bool:
        """Takes the wanted catalogue where it is another one; False where it was refused (see `error`)."""
        try:
            wanted = read_pointer(self._models).path(self._models, "catalogue")
            if wanted != self._path:
                self.current = None if wanted is None else Catalogue.load(wanted)
                self._path = wanted
                logger.info("catalogue is now %s", wanted)
        except (BundleError, InvalidFieldError) as error:
            if str(error) != self.error:
                logger.error("catalogue refused, %s goes on: %s", self._path, error)
            self.error = str(error)
            return False
        self.error = None
        return True


class ServedModel(_Follower, Generic[M]):
    """Holds one model of a models directory and follows the directory's pointer.

    A new bundle is read, verified and built beside the old model, in a thread of its own; then one reference changes. A
    request takes `arms` once, so no answer mixes two models. A bundle that fails leaves the old one serving, and
    `error` says why. The pointer may name a canary beside it, for a share of the users; one that cannot be loaded
    serves nobody, and `canary_error` says why.

    Args:
        models: the directory with the pointer.
        kind: which of the pointer's bundles.
        build: makes the model of a verified bundle.
        poll_seconds: how often the pointer is looked at; 0 never.
        absent: serves where the pointer names no such bundle; without it that is refused.

    Raises:
        BundleError: there is no such bundle, or it must not be served.
    """

    def __init__(self, models: str | Path, kind: BundleKind, build: Callable[[Bundle], M], poll_seconds: float,
                 absent: M | None = None) -> None:
        super().__init__()
        self._models, self._kind, self._build, self._absent = Path(models), kind, build, absent
        self.error: str | None = None
        self._pinned: Path | None = None
        self._lock = threading.Lock()
        self._path = self._wanted()
        self._failed: Path | None = None
        self.arms: Arms[M] = Arms(self._load(self._path))
        self.loaded_at = time.time()
        self.canary_error: str | None = None
        self._failed_canary: Path | None = None
        self.events: deque[Event] = deque(maxlen=_EVENTS)
        self._note("served", self._path)
        self._refresh_canary()
        self._follow(poll_seconds, f"watch-{kind}")

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

    def refresh(self) -> bool:
        """Swaps to the wanted bundles where they are others; False where one was refused (see `error`)."""
        with self._lock:
            # One after the other: what is wrong with a canary must not hold up the model that serves everybody else.
            return all([self._refresh_model(), self._refresh_canary()])

    def _refresh_model(self) -> bool:
        wanted: Path | None = None
        try:
            wanted = self._wanted()
            if wanted == self._path:
                self.error = self._failed = None
                return True
            if wanted is not None and wanted == self._failed:
                return False  # It has been refused before; a bundle's content cannot change under its name.
            model = self._load(wanted)
        except Exception as error:  # Whatever is wrong with a new bundle, the old one goes on.
            self.error, self._failed = f"{type(error).__name__}: {error}", wanted
            logger.error("%s bundle refused, %s goes on: %s", self._kind, _name(self._path), error)
            self._note("refused", wanted, self.error)
            return False
        self.arms = replace(self.arms, current=model)
        self._path, self.loaded_at = wanted, time.time()
        self.error = self._failed = None
        logger.info("%s bundle is now %s", self._kind, _name(wanted))
        self._note("served", wanted)
        return True

    def _refresh_canary(self) -> bool:
        path: Path | None = None
        try:
            pointer = read_pointer(self._models)
            path = None if self._pinned is not None else pointer.path(self._models, f"{self._kind}_canary")
            if path is None or pointer.canary_share == 0:
                if self.canary is not None:
                    self._note("no canary", Path(self.canary.name))
                self.arms = replace(self.arms, canary=None)
                self.canary_error = self._failed_canary = None
                return True
            if path == self._failed_canary:
                return False
            known = self.canary
            model = known.model if known is not None and known.name == path.name else self._load(path)
        except Exception as error:
            if path is not None:  # A pointer that cannot be read changes nothing.
                self.arms = replace(self.arms, canary=None)
                self._failed_canary = path
            self.canary_error = f"{type(error).__name__}: {error}"
            logger.error("%s canary refused, nobody gets it: %s", self._kind, error)
            self._note("canary refused", path, self.canary_error)
            return False
        if known is None or (known.name, known.share) != (path.name, pointer.canary_share):
            self.arms = replace(self.arms, canary=Canary(model, path.name, pointer.canary_share))
            logger.info("%s canary is now %s for %.4g of the users", self._kind, path.name, pointer.canary_share)
            self._note("canary", path, f"{pointer.canary_share:.4g} of the users")
        self.canary_error = self._failed_canary = None
        return True

    def _note(self, what: What, path: Path | None, why: str = "") -> None:
        event = Event(time.time(), self._kind, what, _name(path), why)
        # A pointer that cannot be read is refused again and again, and is one event.
        if not self.events or replace(self.events[-1], at=event.at) != event:
            self.events.append(event)

    def _wanted(self) -> Path | None:
        if self._pinned is not None:
            return self._pinned
        path = read_pointer(self._models).path(self._models, self._kind)
        if path is None and self._absent is None:
            raise BundleError(f"{self._models}/current.json: {self._kind} is null; expected the name of a bundle")
        return path

    def _load(self, path: Path | None) -> M:
        if path is None:
            assert self._absent is not None
            return self._absent
        return self._build(read_bundle(path, kind=self._kind))


def _name(path: Path | None) -> str:
    return "none" if path is None else path.name
