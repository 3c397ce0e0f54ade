"""Finding a bundle by its directory."""

from __future__ import annotations

import os

import pytest
import torch

from recfuse.bundle import newest_bundle, write_bundle
from recfuse.config import InvalidFieldError


def test_the_newest_of_its_kind_is_found(tmp_path):
    paths = [write_bundle(tmp_path, kind="fusion", tensors={"a": {"x": torch.tensor([float(k)])}}, manifest={})
             for k in range(3)]
    for age, path in enumerate(paths):
        os.utime(path, (1000 - age, 1000 - age))
    assert newest_bundle(tmp_path, "fusion") == paths[0]
    assert newest_bundle(paths[2], "fusion") == paths[2], "a bundle is itself"
    with pytest.raises(InvalidFieldError, match=r"scenes bundle: got .*a directory that holds one"):
        newest_bundle(tmp_path, "scenes")
