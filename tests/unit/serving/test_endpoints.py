"""The table of endpoints: everything that is served stands in it, and everything in it works."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from fastapi.routing import APIRoute

from recfuse import serving
from recfuse.bundle.arms import Arms, Canary
from recfuse.serving import endpoints
from recfuse.serving.api import create_api
from recfuse.serving.config import ServingConfig
from recfuse.serving.endpoints import ENDPOINTS, FEEDBACK, MODELS, RANK_FUSION, RANK_SCENE, RECOMMEND, Endpoint, Offer
from recfuse.serving.gateway import Backends
from recfuse.serving.replicas import FusionReplica, ScenesReplica

from .test_api import FEEDBACK_BODY, FUSION_BODY, RECOMMEND_BODY, SCENES_BODY

MOST_FILES = 7
FOLDER = str(Path(serving.__file__).parent)
BODIES = {RANK_FUSION: FUSION_BODY, RANK_SCENE: SCENES_BODY, RECOMMEND: RECOMMEND_BODY, FEEDBACK: FEEDBACK_BODY}
NAMES = {RANK_FUSION: "fusion rank", RANK_SCENE: "scenes rank", RECOMMEND: "recommend", FEEDBACK: "feedback"}


def test_every_route_of_the_application_comes_from_the_table() -> None:
    api = create_api(Backends(None, None), ServingConfig())
    routes = {(route.path, *(route.methods or ())) for route in api.routes if isinstance(route, APIRoute)}
    assert len(routes) == len(api.routes)
    assert routes == {(endpoint.path, endpoint.method) for endpoint in ENDPOINTS}


def test_no_other_module_names_a_path_of_the_table() -> None:
    paths = [re.escape(endpoint.path) for endpoint in ENDPOINTS if endpoint.request is not None]
    prefixes = [re.sub(r"\\{.*", "", path) for path in paths]
    for file in Path(FOLDER).glob("*.py"):
        quoted = re.findall(rf'["\'](?:{"|".join(prefixes)})', file.read_text())
        assert not quoted or file.name == "endpoints.py", (file.name, quoted)


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=lambda endpoint: endpoint.name)
def test_every_example_is_answered(application: Any, endpoint: Endpoint) -> None:
    offer = Offer.of(application.get(MODELS.path).json())
    response = application.request(endpoint.method, endpoint.example_path(offer), json=endpoint.example(offer))
    assert response.status_code == endpoint.status, response.text
    if endpoint.answer is not None:
        endpoint.answer.model_validate_json(response.content)
    assert (endpoint.request is None) == (endpoint.example(offer) is None)


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=lambda endpoint: endpoint.name)
def test_only_open_endpoints_answer_without_a_token(start: Callable[..., Any], endpoint: Endpoint) -> None:
    closed = start(tokens=("first-token",))
    offer = Offer.of(closed.request("GET", MODELS.path, headers={"Authorization": "Bearer first-token"}).json())
    answer = closed.request(endpoint.method, endpoint.example_path(offer), json=endpoint.example(offer))
    assert answer.status_code == (endpoint.status if endpoint.admission == "open" else 401)


def test_every_step_is_a_method_of_the_replicas() -> None:
    replicas = {"fusion": FusionReplica, "scenes": ScenesReplica}
    for endpoint in ENDPOINTS:
        for step in endpoint.steps:
            backend, method = step.split(".")
            assert inspect.iscoroutinefunction(getattr(replicas[backend], method)), step


@pytest.mark.parametrize("endpoint", BODIES, ids=lambda endpoint: endpoint.name)
def test_a_request_passes_seven_files_at_most(
    start: Callable[..., Any], endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of serving/, from the ASGI entry to the answer, with tokens and a canary; those that the table's module names."""
    application = start(tokens=("first-token",))
    headers = {"Authorization": "Bearer first-token"}
    _add_canaries(application, monkeypatch)
    path = endpoint.example_path(Offer.of(application.request("GET", MODELS.path, headers=headers).json()))
    body = {**BODIES[endpoint], **({"user_id": 7, "items": [1]} if endpoint is FEEDBACK else {})}
    files: set[str] = set()

    def note(frame: FrameType, *_: Any) -> None:
        if frame.f_code.co_filename.startswith(FOLDER):
            files.add(Path(frame.f_code.co_filename).stem)

    def send(count: int) -> list[int]:
        return [application.request(endpoint.method, path, json=body, headers=headers).status_code
                for _ in range(count)]

    assert send(1) == [endpoint.status]
    before = sys.getprofile()
    sys.setprofile(note)
    try:
        statuses = send(3)
    finally:
        sys.setprofile(before)
    assert statuses == [endpoint.status] * 3
    assert len(files) <= MOST_FILES, sorted(files)
    assert files == _named(NAMES[endpoint])


def _add_canaries(application: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for service in application.services:
        model = service._models.arms.current
        monkeypatch.setattr(service._models, "arms", Arms(model, Canary(model, "canary", 0.5)))


def _named(request: str) -> set[str]:
    """The files that the docstring of the table gives for a kind of request."""
    line = next(line for line in str(endpoints.__doc__).splitlines() if line.strip().startswith(request))
    return set(re.sub(r"\(.*?\)", "", line.replace(request, "")).replace(" ", "").split(","))
