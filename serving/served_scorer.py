"""Scorer, catalogue and rows follow the pointer together and swap as one."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from recfuse.bundle.arms import Arms, Canary
from recfuse.config import InvalidFieldError
from recfuse.scenes.inference import SceneScorer
from recfuse.scenes.known_items import KnownItems
from recfuse.scenes.row_files import RowFiles
from recfuse.serving.catalogue import Catalogue, CatalogueScorer, Scorer
from recfuse.serving.config import ServingConfig
from recfuse.serving.models import ServedCatalogue, ServedModel

logger = logging.getLogger("recfuse.serving")


class ServedScorer:
    """Follows scorer, canary and catalogue together: one reference changes, when the rows of all are there.

    Args:
        model, catalogue: followers of the same directory, which nobody else swaps.
        config: says how rows are kept.
    """

    def __init__(self, model: ServedModel[Scorer], catalogue: ServedCatalogue, config: ServingConfig) -> None:
        self._model, self._catalogue, self._config = model, catalogue, config
        self._files = RowFiles(config.rows or Path(config.models) / "rows")
        self._lock = threading.Lock()
        self.arms: Arms[CatalogueScorer] = self._joined(model.arms, catalogue.current, ())
        self._next = self.arms

    def prepare(self) -> bool:
        """Loads what the pointer names and makes its rows, beside what serves; False where something was refused."""
        with self._lock:
            taken = all([self._model.prepare(), self._catalogue.prepare()])
            known = [scorer for arms in (self.arms, self._next) for scorer in _scorers(arms)]
            self._next = self._joined(self._model.upcoming, self._catalogue.upcoming, known)
        return taken

    def swap(self) -> None:
        """Serves what was prepared."""
        with self._lock:
            self._model.swap()
            self._catalogue.swap()
            self.arms = self._next

    def pin(self, bundle: str | None) -> None:
        """Serves this scorer instead of the pointer's; None follows the pointer again."""
        self._model.pin(bundle)
        self.prepare()
        self.swap()

    def _joined(self, arms: Arms[Scorer], catalogue: Catalogue | None, known: Iterable[CatalogueScorer]
                ) -> Arms[CatalogueScorer]:
        def join(scorer: Scorer) -> CatalogueScorer:
            same = [each for each in known if each.scorer is scorer]
            whole = (each for each in same if each.catalogue is catalogue)
            return next(whole, None) or self._with_rows(scorer, catalogue, same[0].known if same else None)

        canary = arms.canary
        return Arms(join(arms.current), None if canary is None else Canary(join(canary.model), canary.name,
                                                                           canary.share))

    def _with_rows(self, scorer: Scorer, catalogue: Catalogue | None, before: KnownItems | None) -> CatalogueScorer:
        if catalogue is None or not isinstance(scorer, SceneScorer):
            return CatalogueScorer(scorer, catalogue)
        features = sorted({entry.feature.name for entry, _ in scorer.encoder.item_columns})
        # Not refused: scorer and canary have one config, and one of them may lack a feature.
        for name in set(self._config.rows_apart).difference(features):
            logger.warning("rows_apart: got %r; allowed: features of items of %s: %s", name, scorer.version,
                           ", ".join(features))
        try:
            known = scorer.known_items(catalogue.keys, catalogue.features(np.arange(len(catalogue))),
                                       self._config.item_rows, self._config.rows_apart, self._files, before)
        except (InvalidFieldError, MemoryError) as error:
            # Requests may bring what the catalogue has wrong.
            logger.warning("items are encoded in each request to %s: %s", scorer.version, error)
            known = None
        return CatalogueScorer(scorer, catalogue, known)


def _scorers(arms: Arms[CatalogueScorer]) -> list[CatalogueScorer]:
    return [arms.current] if arms.canary is None else [arms.current, arms.canary.model]
