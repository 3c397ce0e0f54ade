"""Schemathesis against the OpenAPI document; RECFUSE_TEST_CASES sets how many cases an endpoint gets.

In process, 10,000 cases an endpoint, and 2,000 through Ray and real HTTP: minutes each.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest
from hypothesis import HealthCheck, Phase, given, reject, settings
from hypothesis import strategies as st

from recfuse.serving.formats import MESSAGE_PACK

if importlib.util.find_spec("schemathesis") is None:
    pytest.skip("schemathesis is not installed", allow_module_level=True)

pytestmark = pytest.mark.security
CASES = os.environ.get("RECFUSE_TEST_CASES", "")
CHECKS = ("not_a_server_error", "status_code_conformance", "content_type_conformance", "response_schema_conformance")
OPERATIONS = (
    ("POST", "/v1/fusion/{stage}/rank"), ("POST", "/v1/scenes/{scene}/rank"), ("POST", "/v1/recommend"),
    ("POST", "/v1/feedback"), ("GET", "/v1/models"), ("GET", "/healthz"),
)


@pytest.fixture(scope="module")
def schema(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The document of the whole application in this process, without Ray."""
    import schemathesis

    @schemathesis.serializer(MESSAGE_PACK)
    def packed(_: Any, value: Any) -> bytes:
        try:
            content: bytes = msgpack.packb(value)
        except (OverflowError, UnicodeEncodeError, TypeError, ValueError):  # what MessagePack does not have
            reject()
        return content

    @schemathesis.deserializer(MESSAGE_PACK)
    def unpacked(_: Any, response: Any) -> Any:
        return msgpack.unpackb(response.content)

    from recfuse.serving.api import create_app
    from recfuse.serving.config import ServingConfig
    from recfuse.serving.gateway import Backends
    from recfuse.serving.replicas import FusionReplica, ScenesReplica

    log = tmp_path_factory.mktemp("log")
    config = ServingConfig(models=str(models), decision_log=str(log), fsync=False, poll_seconds=0)
    fusion, scenes = FusionReplica(config), ScenesReplica(config)
    yield schemathesis.openapi.from_asgi("/openapi.json", create_app(Backends(fusion, scenes), config))
    fusion.close()
    scenes.close()


@pytest.mark.timeout(3_600)
@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_in_process(schema: Any, method: str, path: str, say: Callable[[str], None]) -> None:
    """Cases that keep to the document and cases that break it, of every second one some fields alone: the others are
    those of the document's example, so that it comes further than to the first refusal."""
    from schemathesis import GenerationMode
    from schemathesis.checks import CHECKS as REGISTERED

    operation = schema[path][method]
    declared = schema.raw_schema["paths"][path][method.lower()].get("requestBody", {}).get("content", {})
    checks = REGISTERED.get_by_names(list(CHECKS))
    strictly = REGISTERED.get_by_names([*CHECKS, "negative_data_rejection"])
    statuses: Counter[int] = Counter()
    formats: Counter[str] = Counter()

    @settings(max_examples=int(CASES or 10_000), deadline=None, suppress_health_check=list(HealthCheck),
              database=None, phases=[Phase.generate, Phase.shrink])
    @given(case=operation.as_strategy(generation_mode=GenerationMode.POSITIVE) |
           operation.as_strategy(generation_mode=GenerationMode.NEGATIVE), data=st.data())
    def check(case: Any, data: st.DataObject) -> None:
        mixed = isinstance(case.body, dict) and len(case.body) > 0 and data.draw(st.booleans())
        if mixed:
            taken = data.draw(st.sets(st.sampled_from(sorted(case.body)), max_size=2))
            case.body = {**declared["application/json"]["example"], **{name: case.body[name] for name in taken}}
        if case.media_type == MESSAGE_PACK:
            case.headers = {**(case.headers or {}), "Accept": MESSAGE_PACK}
        response = case.call()
        statuses[response.status_code] += 1
        formats[case.media_type or "no body"] += 1
        case.validate_response(response, checks=checks if mixed else strictly)

    check()
    say(f"{method} {path}: {statuses.total()} cases, {dict(sorted(statuses.items()))}, {dict(formats)}, "
        "0 violations")
    assert not any(status >= 500 for status in statuses)


@pytest.mark.timeout(7_200)
@pytest.mark.usefixtures("local_ray")
def test_over_http(models: Path, tmp_path: Path, say: Callable[[str], None]) -> None:
    from recfuse.serving.config import ServingConfig
    from recfuse.serving.local import running

    config = ServingConfig(models=str(models), decision_log=str(tmp_path / "log"), fsync=False)
    with running(config) as url:
        done = subprocess.run(
            [sys.executable, "-c", "from schemathesis.cli import schemathesis; schemathesis()", "run",
             f"{url}/openapi.json", "--checks", ",".join(CHECKS), "--max-examples", CASES or "2000",
             "--phases", "examples,coverage,fuzzing", "--mode", "all", "--request-timeout", "30", "--no-color"],
            capture_output=True, text=True, cwd=tmp_path)
    say(done.stdout[-6_000:])
    assert done.returncode == 0, done.stdout[-6_000:] + done.stderr[-2_000:]
