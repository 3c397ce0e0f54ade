"""Every run beneath a directory: its data, how its config differs from the served policy's, its verdict, its bundle."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recfuse.bundle import newest_bundle
from recfuse.bundle.bundle import MANIFEST
from recfuse.bundle.pointer import POINTER, read_pointer
from recfuse.config import InvalidFieldError
from recfuse.serving.formats import RefusedError

_DEEPEST = 6
# What `recfuse evaluate` writes; its own names are behind imports that take seconds.
REPORT, METRICS = "report.html", "metrics.json"
_NOBODY: dict[str, Any] = {}


@dataclass(frozen=True)
class Run:
    """A policy that was trained.

    Attributes:
        bundle: its directory beneath the directory of runs; version: its name; written: seconds since 1970.
        algorithm: that trained it; fingerprint: of the samples that it was trained on; data: of them, in words.
        differences: (key, value of the served policy, own value) of the config of training; None where the served
            policy has another algorithm or none.
        report: of it, beneath the directory of runs; "" where there is none. verdict: of the report, plain values.
        state: "served", "canary" or "".
    """

    bundle: str
    version: str
    written: float
    algorithm: str
    fingerprint: str
    data: str
    differences: tuple[tuple[str, str, str], ...] | None
    report: str
    verdict: Mapping[str, Any] | None
    state: str


def find_runs(root: str, models: str) -> list[Run]:
    """The runs, the newest first; the bundles of a models directory are copies and no runs.

    Raises:
        BundleError: the pointer of the models directory cannot be read.
    """
    place, pointer = Path(root), read_pointer(models)
    folders = list(_folders(place))
    reports = dict(_reports(folders))
    served = _training(Path(models) / str(pointer.fusion))
    states = {pointer.fusion_canary: "canary", pointer.fusion: "served"}
    runs = []
    for folder in folders:
        manifest = _json(folder / MANIFEST)
        if manifest.get("kind") != "fusion":
            continue
        report = reports.get(folder.name)
        training = manifest.get("training", {})
        runs.append(Run(
            bundle=str(folder.relative_to(place)), version=folder.name, written=(folder / MANIFEST).stat().st_mtime,
            algorithm=_algorithm(training), fingerprint=str(manifest.get("data_fingerprint", "")),
            data=_data(folder), differences=differences(served, training),
            report="" if report is None else str((report / REPORT).relative_to(place)),
            verdict=None if report is None else _json(report / METRICS).get("verdict"),
            state=states.get(folder.name, "")))
    return sorted(runs, key=lambda run: -run.written)


def differences(served: Mapping[str, Any], own: Mapping[str, Any]) -> tuple[tuple[str, str, str], ...] | None:
    """Keys of two trainings with other values, and these; None where they are not of one algorithm."""
    if not served or _algorithm(served) != _algorithm(own):
        return None
    before, after = dict(_flat(served)), dict(_flat(own))
    return tuple((key, _text(before.get(key)), _text(after.get(key)))
                 for key in sorted({*before, *after}) if before.get(key) != after.get(key))


def read_page(root: str, report: str) -> str:
    """The page of a run.

    Raises:
        RefusedError: there is no such page beneath the directory.
    """
    path = _beneath(root, report)
    if path is None or path.name != REPORT or not path.is_file():
        raise RefusedError(404, "report", report, f"a {REPORT} of /console/runs")
    return path.read_text(encoding="utf-8")


def find_bundle(root: str, bundle: str) -> Path:
    """The bundle of a run.

    Raises:
        RefusedError: there is none beneath the directory.
    """
    path = _beneath(root, bundle)
    try:
        found = None if path is None else newest_bundle(path, "fusion")
    except InvalidFieldError:
        found = None
    if found is None:
        raise RefusedError(422, "bundle", bundle, "the bundle of a run of /console/runs")
    return found


def _beneath(root: str, name: str) -> Path | None:
    """A path of the directory, also through links; None for one that leads out of it."""
    place, path = Path(root).resolve(), (Path(root) / name).resolve()
    return path if path.is_relative_to(place) and path != place else None


def _folders(root: Path) -> Iterator[Path]:
    """Every directory that may hold a run or a report."""
    for name, below, files in os.walk(root):
        depth = len(Path(name).relative_to(root).parts)
        if POINTER in files:
            below[:] = []
            continue
        below[:] = [each for each in below if not each.startswith((".", "checkpoint"))] if depth < _DEEPEST else []
        yield Path(name)


def _reports(folders: list[Path]) -> Iterator[tuple[str, Path]]:
    """Version of a policy → directory of the newest report on it."""
    found = [folder for folder in folders if (folder / REPORT).is_file()]
    for folder in sorted(found, key=lambda folder: (folder / REPORT).stat().st_mtime):
        if version := _json(folder / METRICS).get("policy"):
            yield version, folder


def _data(bundle: Path) -> str:
    """What the samples that lie beside a run say of themselves."""
    for folder in bundle.parents[:2]:
        account = _json(folder / "samples" / "account.json").get("account")
        if account:
            return f"{account['kept']:,} of {account['rows_in']:,} rows"
    return ""


def _training(bundle: Path) -> Mapping[str, Any]:
    training = _json(bundle / MANIFEST).get("training", {})
    return training if isinstance(training, dict) else _NOBODY


def _algorithm(training: Mapping[str, Any]) -> str:
    if "explore" in training:
        return "explore"
    return str(training.get("algorithm") or ("cem" if "simulation" in training else "unknown"))


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _text(value: Any) -> str:
    text = "–" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def _json(path: Path) -> dict[str, Any]:
    """The object of a file; an empty one where there is none."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
