"""Schemathesis against the OpenAPI document; RECFUSE_TEST_CASES sets how many cases an endpoint gets."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = [pytest.mark.security, pytest.mark.usefixtures("local_ray")]
CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"


def test_schemathesis(models: Path, tmp_path: Path, say: Callable[[str], None]) -> None:
    from serving.config import ServingConfig
    from serving.local import running

    if importlib.util.find_spec("schemathesis") is None:
        pytest.skip("schemathesis is not installed")
    config = ServingConfig(models=str(models), decision_log=str(tmp_path / "log"), fsync=False)
    with running(config) as url:
        done = subprocess.run(
            [sys.executable, "-c", "from schemathesis.cli import schemathesis; schemathesis()", "run",
             f"{url}/openapi.json", "--checks", CHECKS, "--max-examples", os.environ.get("RECFUSE_TEST_CASES", "200"),
             "--phases", "examples,coverage,fuzzing", "--mode", "all", "--request-timeout", "30", "--no-color"],
            capture_output=True, text=True, cwd=tmp_path)
    say(done.stdout[-6_000:])
    assert done.returncode == 0, done.stdout[-6_000:] + done.stderr[-2_000:]
