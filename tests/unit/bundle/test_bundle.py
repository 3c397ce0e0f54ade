"""Bundles: named by content, verified on load, never half written."""

from __future__ import annotations

import json

import pytest
import torch

from recfuse.bundle import BundleError, read_bundle, write_bundle
from recfuse.bundle.bundle import NEWEST
from recfuse.config import InvalidFieldError

TENSORS = {"policy": {"weight": torch.arange(6.0).reshape(2, 3), "bias": torch.zeros(2)},
           "norm": {"mean": torch.ones(3, dtype=torch.float64)}}
MANIFEST = {"vocabulary": {"state_size": 3}, "metrics": {"loss": 0.5}}


@pytest.fixture
def bundle(tmp_path):
    return write_bundle(tmp_path, kind="fusion", tensors=TENSORS, manifest=MANIFEST)


def test_what_is_written_is_read(bundle):
    found = read_bundle(bundle, kind="fusion")
    assert found.version == bundle.name
    assert found.kind == "fusion"
    assert found.manifest["vocabulary"] == {"state_size": 3}
    for stem, named in TENSORS.items():
        for name, tensor in named.items():
            torch.testing.assert_close(found.tensors[stem][name], tensor, rtol=0, atol=0)


def test_the_same_content_has_the_same_name(bundle, tmp_path):
    again = write_bundle(tmp_path, kind="fusion", tensors=dict(reversed(TENSORS.items())), manifest=MANIFEST)
    assert again == bundle
    other = write_bundle(tmp_path, kind="fusion", tensors=TENSORS, manifest={**MANIFEST, "metrics": {"loss": 0.4}})
    assert other != bundle
    left = sorted(path.name for path in tmp_path.iterdir() if path.name != NEWEST.format(kind="fusion"))
    assert left == sorted([bundle.name, other.name]), "nothing else is left"


@pytest.mark.parametrize("file", ["policy.safetensors", "norm.safetensors", "manifest.json"])
@pytest.mark.parametrize("place", [0, 40, -1])
def test_one_flipped_byte_is_refused(bundle, file, place):
    payload = bytearray((bundle / file).read_bytes())
    payload[place] ^= 1
    (bundle / file).write_bytes(payload)
    with pytest.raises(BundleError, match=rf"{bundle.name}/{file}: .*expected") as error:
        read_bundle(bundle)
    if file != "manifest.json":
        assert "SHA-256 is" in str(error.value)


def test_a_missing_file_is_named(bundle):
    (bundle / "norm.safetensors").unlink()
    with pytest.raises(BundleError, match=r"norm.safetensors: No such file"):
        read_bundle(bundle)


def test_a_renamed_bundle_is_refused(bundle, tmp_path):
    renamed = bundle.rename(tmp_path / "fusion-production")
    with pytest.raises(BundleError, match=rf"content hash gives the name '{bundle.name}'"):
        read_bundle(renamed)


def test_the_wrong_kind_is_refused(bundle):
    with pytest.raises(BundleError, match=r"kind is 'fusion'; expected 'scenes'"):
        read_bundle(bundle, kind="scenes")


def test_a_manifest_cannot_reach_outside(bundle):
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["files"] = {"../secret.safetensors": "0" * 64}
    import hashlib

    text = json.dumps(manifest).encode()
    target = bundle.parent / f"fusion-{hashlib.sha256(text).hexdigest()[:20]}"
    bundle.rename(target)
    (target / "manifest.json").write_bytes(text)
    with pytest.raises(BundleError, match=r"expected NAME.safetensors"):
        read_bundle(target)


BAD = [
    (dict(kind="fission"), "kind", "fusion, scenes"),
    (dict(tensors={}), "tensors", "at least one file"),
    (dict(manifest={"files": {}}), "manifest", "keys other than"),
]


@pytest.mark.parametrize(("change", "field", "allowed"), BAD)
def test_bad_arguments(tmp_path, change, field, allowed):
    arguments = {"kind": "fusion", "tensors": TENSORS, "manifest": MANIFEST} | change
    with pytest.raises(InvalidFieldError) as error:
        write_bundle(tmp_path, **arguments)
    assert error.value.field == field
    assert allowed in str(error.value)
    assert list(tmp_path.iterdir()) == []
