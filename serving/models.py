"""The model that serves now, and its replacement between two requests."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from recfuse.bundle import Bundle, BundleError, read_bundle
from recfuse.bundle.bundle import BundleKind
from recfuse.bundle.pointer import read_pointer
from recfuse.errors import InvalidFieldError
from serving.catalogue import Catalogue

logger = logging.getLogger("recfuse.serving")
M = TypeVar("M")


class ServedCatalogue:
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
        self._models = Path(models)
        self.error: str | None = None
        self._path = read_pointer(self._models).path(self._models, "catalogue")
        self.current = None if self._path is None else Catalogue.load(self._path)
        self._stop = threading.Event()
        if poll_seconds > 0:
            threading.Thread(target=self._watch, args=(poll_seconds,), name="watch-catalogue", daemon=True).start()

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

    def close(self) -> None:
        """Stops following the pointer."""
        self._stop.set()

    def _watch(self, seconds: float) -> None:
        while not self._stop.wait(seconds):
            self.refresh()


class ServedModel(Generic[M]):
    """Holds one model of a models directory and follows the directory's pointer.

    A new bundle is read, verified and built beside the old model, in a thread of its own; then one reference changes. A
    request takes `current` once, so no answer mixes two models. A bundle that fails leaves the old one serving, and
    `error` says why.

    Args:
        models: the directory with the pointer.
        kind: which of the pointer's bundles.
        build: makes the model of a verified bundle.
        poll_seconds: how often the pointer is looked at; 0 never.

    Raises:
        BundleError: there is no such bundle, or it must not be served.
    """

    def __init__(self, models: str | Path, kind: BundleKind, build: Callable[[Bundle], M], poll_seconds: float) -> None:
        self._models, self._kind, self._build = Path(models), kind, build
        self.error: str | None = None
        self._pinned: Path | None = None
        self._lock = threading.Lock()
        self._path = self._wanted()
        self._failed: Path | None = None
        self.current = self._load(self._path)
        self.loaded_at = time.time()
        self._stop = threading.Event()
        if poll_seconds > 0:
            threading.Thread(target=self._watch, args=(poll_seconds,), name=f"watch-{kind}", daemon=True).start()

    def pin(self, bundle: str | None) -> None:
        """Serves this bundle instead of the pointer's; None follows the pointer again."""
        self._pinned = None if bundle is None else Path(bundle)
        self.refresh()

    def refresh(self) -> bool:
        """Swaps to the wanted bundle where it is another one; False where it was refused (see `error`)."""
        with self._lock:
            wanted: Path | None = None
            try:
                wanted = self._wanted()
                if wanted == self._path:
                    self.error = self._failed = None
                    return True
                if wanted == self._failed:
                    return False  # It has been refused before; a bundle's content cannot change under its name.
                model = self._load(wanted)
            except Exception as error:  # Whatever is wrong with a new bundle, the old one goes on.
                self.error, self._failed = f"{type(error).__name__}: {error}", wanted
                logger.error("%s bundle refused, %s goes on: %s", self._kind, self._path.name, error)
                return False
            self.current, self._path, self.loaded_at = model, wanted, time.time()
            self.error = self._failed = None
            logger.info("%s bundle is now %s", self._kind, wanted.name)
            return True

    def close(self) -> None:
        """Stops following the pointer."""
        self._stop.set()

    def _wanted(self) -> Path:
        if self._pinned is not None:
            return self._pinned
        path = read_pointer(self._models).path(self._models, self._kind)
        if path is None:
            raise BundleError(f"{self._models}/current.json: {self._kind} is null; expected the name of a bundle")
        return path

    def _load(self, path: Path) -> M:
        return self._build(read_bundle(path, kind=self._kind))

    def _watch(self, seconds: float) -> None:
        while not self._stop.wait(seconds):
            self.refresh()
