"""What the numbers of a decision mean that does not tell: by the model that decided, or by a file beside the log."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recfuse.behaviours import Vocabulary
from recfuse.bundle import BundleError, read_bundle
from recfuse.logs.schema import VOCABULARY_FILE


class Meanings:
    """Vocabularies of decisions of older servers, which logged no `vocabulary_hash`.

    Args:
        log: directory of the decision log; a vocabulary in it is that of all such decisions whose bundle is gone.
        models: directory of bundles, in which `model_version` is looked for; None where there is none.

    Raises:
        InvalidFieldError: the vocabulary beside the log cannot be read.
    """

    def __init__(self, log: str | Path, models: str | Path | None) -> None:
        self._models = None if models is None else Path(models)
        file = Path(log) / VOCABULARY_FILE
        self._of_log = Vocabulary.load(file) if file.exists() else None
        self._of_model: dict[str, Vocabulary | None] = {}

    def source(self, row: Mapping[str, Any]) -> tuple[Vocabulary, str] | None:
        """The vocabulary of a decision and what told it, in words; None where nothing does."""
        version = row.get("model_version")
        if isinstance(version, str) and version:
            if version not in self._of_model:
                self._of_model[version] = self._read(version)
            of_model = self._of_model[version]
            if of_model is not None:
                return of_model, version
        return None if self._of_log is None else (self._of_log, f"{VOCABULARY_FILE} beside the log")

    def _read(self, version: str) -> Vocabulary | None:
        # A version is the name of a bundle's directory; what leads elsewhere is none.
        if self._models is None or Path(version).name != version or not (self._models / version).is_dir():
            return None
        try:
            return Vocabulary.from_dict(read_bundle(self._models / version, "fusion").manifest["vocabulary"])
        except BundleError:
            return None
