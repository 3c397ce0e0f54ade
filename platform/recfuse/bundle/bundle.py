"""Write and read bundles (design 3.3): safetensors and a manifest, hash-named, verified on load, nothing unpickled."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from recfuse.config import InputError, require

if TYPE_CHECKING:
    import torch

BundleKind = Literal["fusion", "scenes"]
KINDS: tuple[str, ...] = ("fusion", "scenes")
FORMAT = 1
MANIFEST = "manifest.json"
# In a directory of bundles, names the one that was written last, also where its content was there before.
NEWEST = ".newest-{kind}.json"


class BundleError(InputError):
    """A bundle that must not be served: a file is missing, changed or unreadable, or of the wrong kind."""


@dataclass(frozen=True)
class Bundle:
    """A verified bundle.

    Attributes:
        path: its directory; the name of the directory is its version.
        manifest: kind, vocabulary, shapes, normalisation, training config, data fingerprint, metrics, file hashes.
        tensors: file stem → tensor name → tensor.
    """

    path: Path
    manifest: dict[str, Any]
    tensors: dict[str, dict[str, torch.Tensor]]

    @property
    def version(self) -> str:
        return self.path.name

    @property
    def kind(self) -> str:
        return str(self.manifest["kind"])


def write_bundle(
    root: str | Path,
    *,
    kind: BundleKind,
    tensors: Mapping[str, Mapping[str, torch.Tensor]],
    manifest: Mapping[str, Any],
) -> Path:
    """Writes a bundle and returns its directory `root/<kind>-<hash>`.

    Args:
        tensors: file stem → tensors; each stem becomes `<stem>.safetensors`.
        manifest: JSON values; `kind`, `format` and `files` are added.

    The directory is complete before it has its name (temporary name, fsync, rename). The same content has the same
    name, so writing it twice is harmless; `newest_bundle` then gives this one again.
    """
    require(kind in KINDS, "kind", kind, ", ".join(KINDS))
    require(bool(tensors), "tensors", sorted(tensors), "at least one file of tensors")
    clash = {"kind", "format", "files"} & set(manifest)
    require(not clash, "manifest", sorted(clash), "keys other than kind, format, files")
    root = Path(root)
    root.mkdir(parents=True, exist_ok=True)
    temporary = root / f".writing-{uuid.uuid4().hex}"
    temporary.mkdir()
    try:
        files = {f"{stem}.safetensors": _write_tensors(temporary / f"{stem}.safetensors", named)
                 for stem, named in sorted(tensors.items())}
        whole = {"kind": kind, "format": FORMAT, **manifest, "files": files}
        text = json.dumps(whole, indent=1, sort_keys=True, allow_nan=False).encode()
        _write_synced(temporary / MANIFEST, text)
        _sync_directory(temporary)
        target = root / _name(kind, text)
        _rename(temporary, target)
        _record(root, kind, target)
        _sync_directory(root)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def _write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> str:
    """Writes one safetensors file; returns its SHA-256."""
    import safetensors.torch

    # `save` sorts by name, so that equal tensors give equal bytes.
    payload = safetensors.torch.save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    _write_synced(path, payload)
    return _sha256(payload)


def _rename(temporary: Path, target: Path) -> None:
    """Gives a complete bundle its name, unless somebody wrote the same content before us."""
    try:
        os.rename(temporary, target)
    except OSError:
        if not target.is_dir():
            raise
        read_bundle(target)  # It is trusted only when it verifies.


def read_bundle(path: str | Path, kind: BundleKind | None = None, only: Collection[str] | None = None) -> Bundle:
    """Reads a bundle, verifying its name and the SHA-256 of every file.

    Args:
        only: stems of the files whose tensors are kept; None keeps all.

    Raises:
        BundleError: names the file, what was found and what was expected.
    """
    # Commands that only name bundles in their help need no torch.
    import safetensors.torch

    path = Path(path)
    manifest, files = _read_manifest(path, kind)
    tensors = {}
    for file, digest in sorted(files.items()):
        if Path(file).name != file or not file.endswith(".safetensors"):
            raise BundleError(f"{path.name}/{MANIFEST}: file name {file!r}; expected NAME.safetensors")
        kept = only is None or Path(file).stem in only
        payload = _read(path / file) if kept else b""
        if (actual := _sha256(payload) if kept else _sha256_of(path / file)) != digest:
            raise BundleError(f"{path.name}/{file}: SHA-256 is {actual}; expected {digest}")
        if not kept:
            continue
        try:
            tensors[Path(file).stem] = safetensors.torch.load(payload)
        except safetensors.SafetensorError as error:
            raise BundleError(f"{path.name}/{file}: {error}; expected a safetensors file") from None
    return Bundle(path=path, manifest=manifest, tensors=tensors)


def _read_manifest(path: Path, kind: BundleKind | None) -> tuple[dict[str, Any], dict[str, str]]:
    """The verified manifest, and the SHA-256 of each file."""
    text = _read(path / MANIFEST)
    try:
        manifest = json.loads(text)
        content, files = manifest["kind"], dict(manifest["files"])
    except (ValueError, KeyError, TypeError) as error:
        why = f"not a manifest ({error}); expected JSON with kind and files"
        raise BundleError(f"{path.name}/{MANIFEST}: {why}") from None
    if content not in KINDS or manifest.get("format") != FORMAT:
        raise BundleError(f"{path.name}/{MANIFEST}: kind {content!r}, format {manifest.get('format')!r}; "
                          f"expected kind {' or '.join(KINDS)}, format {FORMAT}")
    if kind is not None and content != kind:
        raise BundleError(f"{path.name}: kind is {content!r}; expected {kind!r}")
    expected = _name(content, text)
    if path.name != expected:
        raise BundleError(f"{path.name}/{MANIFEST}: content hash gives the name {expected!r}; expected {path.name!r}")
    return manifest, files


def copy_bundle(bundle: str | Path, root: str | Path, kind: BundleKind) -> Path:
    """Copies a verified bundle into a directory of bundles and returns its place there; one that is there stays.

    Raises:
        BundleError: it does not verify, there or here.
    """
    source, root = read_bundle(bundle, kind=kind), Path(root)
    target = root / source.version
    if not target.exists():
        temporary = root / f".copying-{uuid.uuid4().hex}"
        shutil.copytree(source.path, temporary)
        try:
            temporary.rename(target)
        except OSError:  # Somebody else has just copied the same bundle.
            shutil.rmtree(temporary)
    read_bundle(target, kind=kind)
    return target


def newest_bundle(path: str | Path, kind: BundleKind) -> Path:
    """The bundle at the path; or, of those of this kind in it, the one that was written there last, by the record that
    `write_bundle` leaves, and without a record by time. A bundle is told by its manifest, never by its name.

    Raises:
        InvalidFieldError: there is none.
    """
    path = Path(path)
    allowed = f"a bundle of kind {kind}, or a directory that holds one"
    own = _kind_of(path)
    if own is not None:
        require(own == kind, f"{kind} bundle", str(path), f"{allowed}; this is a bundle of kind {own}")
        return path
    recorded = _recorded(path, kind)
    if recorded is not None:
        return recorded
    found = [entry for entry in path.iterdir() if _is_bundle(entry, kind)] if path.is_dir() else []
    require(bool(found), f"{kind} bundle", str(path), allowed)
    return max(found, key=lambda bundle: (bundle.stat().st_mtime_ns, bundle.name))


def _kind_of(path: Path) -> str | None:
    """The kind that a manifest in the directory declares; None without such a manifest."""
    try:
        kind = json.loads((path / MANIFEST).read_bytes())["kind"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return kind if kind in KINDS else None


def _is_bundle(path: Path, kind: BundleKind) -> bool:
    """Whether a directory is a whole bundle of the kind: neither one that is being written nor a renamed copy."""
    return _kind_of(path) == kind and path.name == _name(kind, (path / MANIFEST).read_bytes())


def _recorded(root: Path, kind: BundleKind) -> Path | None:
    try:
        name = json.loads((root / NEWEST.format(kind=kind)).read_bytes())["bundle"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    bundle = root / name if isinstance(name, str) and Path(name).name == name else None
    return bundle if bundle is not None and _is_bundle(bundle, kind) else None


def _record(root: Path, kind: BundleKind, bundle: Path) -> None:
    """Says that this is the bundle that was written last, in a file that appears whole."""
    temporary = root / f".writing-{uuid.uuid4().hex}"
    try:
        _write_synced(temporary, json.dumps({"bundle": bundle.name}).encode())
        os.replace(temporary, root / NEWEST.format(kind=kind))
    finally:
        temporary.unlink(missing_ok=True)


def _name(kind: str, manifest_text: bytes) -> str:
    # The manifest holds the hash of every file, so its own hash covers the whole bundle.
    return f"{kind}-{_sha256(manifest_text)[:20]}"


def _sha256(payload: bytes) -> str:
    return hashlib.sha256(payload).hexdigest()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BundleError(f"{path.parent.name}/{path.name}: {error.strerror}; expected a readable file") from None


def _sha256_of(path: Path) -> str:
    """Of a file that may be larger than there is memory for."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise BundleError(f"{path.parent.name}/{path.name}: {error.strerror}; expected a readable file") from None


def _write_synced(path: Path, payload: bytes) -> None:
    with open(path, "wb") as file:
        file.write(payload)
        file.flush()
        os.fsync(file.fileno())


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
