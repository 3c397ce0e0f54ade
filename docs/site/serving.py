"""The endpoints with answers that the application itself gives, and the bundles that it gave them from.

The application runs in this process, without Ray and without a port, on a policy of fixed weights and on an untrained
scorer: what is shown are shapes and names, not what a good model would say.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import inspect
import json
import tempfile
from pathlib import Path
from typing import Any

import httpx
from pydantic import BaseModel

from docs.site.text import code, docstring, table
from recfuse.behaviours import Behaviour, Vocabulary
from recfuse.bundle import Bundle, read_bundle
from recfuse.bundle.pointer import Pointer
from recfuse.fusion.inference import export_policy
from recfuse.fusion.policies import FixedGaussian
from recfuse.scenes.config import ModelConfig
from recfuse.scenes.inference import SceneScorer
from recfuse.scenes.registry import Registry, Scene
from recfuse.serving.api import create_app
from recfuse.serving.config import ServingConfig
from recfuse.serving.endpoints import ENDPOINTS, FEEDBACK, Endpoint, Offer
from recfuse.serving.examples import curl
from recfuse.serving.gateway import Backends
from recfuse.serving.publish import publish
from recfuse.serving.replicas import FusionReplica, ScenesReplica
from recfuse.serving.schemas import (
    Candidates,
    OpenCandidates,
    PredictedCandidates,
    RecommendedItem,
    SceneItem,
    ScoredItem,
    User,
)
from recfuse.simulation.exposures import generate

URL, FEW = "http://127.0.0.1:8000", 12
SHOWN = tuple(endpoint for endpoint in ENDPOINTS if endpoint.documented)
PARTS: tuple[type[BaseModel], ...] = (
    User, Candidates, OpenCandidates, PredictedCandidates, ScoredItem, SceneItem, RecommendedItem)
TASKS = ("click", "long_view", "like")
VOCABULARY = Vocabulary(
    behaviours=(Behaviour(name="watch_time", kind="long_term"), Behaviour(name="like", kind="short_term")),
    fusion_parameters=TASKS, state_size=1, formula="log_sum", scenes=("0", "1"))


@dataclasses.dataclass(frozen=True)
class Recorded:
    """What the application answered.

    Attributes:
        offer: what the models can answer. answers: name of an endpoint → status and body of its example.
        refusal: of a body with a bad field. bundles: fusion and scenes, as they were read.
    """

    offer: Offer
    answers: dict[str, tuple[int, Any]]
    refusal: tuple[int, Any]
    bundles: tuple[Bundle, ...]


@functools.cache
def recorded() -> Recorded:
    """Starts the application in a temporary directory and asks each endpoint its example."""
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        bundles = _publish(root)
        config = ServingConfig(models=str(root / "models"), decision_log=str(root / "decisions"), poll_seconds=0)
        return asyncio.run(_ask(config, bundles))


def _publish(root: Path) -> tuple[Bundle, ...]:
    exposures = generate(seed=0, users=50, items=40, rows=2_000)
    registry = Registry(scenes=(Scene(name="0", tasks=TASKS), Scene(name="1", tasks=TASKS[:2])))
    model = ModelConfig(embedding_size=4, history_length=5, experts=2, expert_layers=(8,), tower_layers=(4,))
    about: dict[str, Any] = {"training": {}, "data_fingerprint": "none", "metrics": {}}
    scorer = SceneScorer.untrained(exposures, registry, model).export(root / "made", **about)
    policy = export_policy(root / "made", FixedGaussian([1.0, 2.0, 0.5], [0.2, 0.3, 0.1]), VOCABULARY, **about)
    publish(root / "models", fusion=policy, scenes=scorer, catalogue=exposures.items, users={})
    return read_bundle(policy), read_bundle(scorer)


async def _ask(config: ServingConfig, bundles: tuple[Bundle, ...]) -> Recorded:
    fusion, scenes = FusionReplica(config), ScenesReplica(config)
    try:
        transport = httpx.ASGITransport(app=create_app(Backends(fusion, scenes), config))
        async with httpx.AsyncClient(transport=transport, base_url=URL) as client:
            offer = Offer.of((await client.get("/v1/models")).json())
            answers, request_id = {}, ""
            for endpoint in SHOWN:
                body = endpoint.example(offer)
                if endpoint is FEEDBACK and body is not None:
                    body = body | {"request_id": request_id}
                answer = await client.request(endpoint.method, endpoint.example_path(offer), json=body)
                answers[endpoint.name] = answer.status_code, answer.json()
                request_id = answer.json().get("request_id", request_id)
            bad = await client.post("/v1/recommend", json={"user": {"user_id": 7}, "scene": "1",
                                                           "candidates": {"item_id": [1]}, "top_n": 0})
            return Recorded(offer, answers, (bad.status_code, bad.json()), bundles)
    finally:
        fusion.close()
        scenes.close()


def page() -> str:
    """Every documented endpoint: fields of its body, a command, and its answer."""
    parts = ["# HTTP endpoints", "[Serving](../serving.md) says how to start a server and what it logs. Answers here "
             "come from fixed weights and an untrained scorer: their shapes are real, their numbers say nothing."]
    for endpoint in SHOWN:
        parts += _endpoint(endpoint, recorded())
    parts.append("## Parts of bodies and answers")
    for model in PARTS:
        parts += [f"### {model.__name__}", docstring(model) if vars(model).get("__doc__") else "", _fields(model)]
    status, body = recorded().refusal
    return "\n\n".join([*parts, "## Refusals", f"Every refusal has one shape. This one has status {status}:",
                        code(json.dumps(body, indent=2), "json")])


def _endpoint(endpoint: Endpoint, answered: Recorded) -> list[str]:
    status, body = answered.answers[endpoint.name]
    parts = [f"## {endpoint.method} {endpoint.path}", endpoint.summary]
    if endpoint.request is not None:
        parts += ["Body:", _fields(endpoint.request)]
    if endpoint.answer is not None:
        parts += ["Answer:", _fields(endpoint.answer)]
    return [*parts, "Example:", code(curl(endpoint, answered.offer, URL, asks_for_token=False), "sh"),
            f"Status {status}:", code(json.dumps(body, indent=2), "json")]


def _fields(model: type[BaseModel]) -> str:
    schema = model.model_json_schema()
    return table(["field", "type", "", "what it is"], [
        (f"`{name}`", _kind(schema["properties"][name]), "required" if info.is_required() else "",
         info.description or "") for name, info in model.model_fields.items()])


def _kind(schema: dict[str, Any]) -> str:
    """The type of a field in words: "list of number", "integer or string"; null is what leaving it out says."""
    if "anyOf" in schema:
        kinds = dict.fromkeys(_kind(each) for each in schema["anyOf"] if each.get("type") != "null")
        return " or ".join(kinds)
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if "$ref" in schema:
        return schema["$ref"].rpartition("/")[2]
    kind = str(schema.get("type", "any"))
    if kind == "array":
        return f"list of {_kind(schema['items'])}"
    if kind == "object" and isinstance(schema.get("additionalProperties"), dict):
        return f"map to {_kind(schema['additionalProperties'])}"
    return kind


def bundles() -> str:
    """Files and manifests of both kinds, and the pointer that serving watches."""
    parts = ["# Bundles", inspect.getdoc(inspect.getmodule(read_bundle)) or "",
             "[Design 3.3](../design.md#33-bundle) is the contract."]
    for bundle in recorded().bundles:
        tensors = [(f"`{stem}.safetensors`", f"`{name}`", " × ".join(map(str, tensor.shape)) or "one number")
                   for stem, named in bundle.tensors.items() for name, tensor in list(named.items())[:FEW]]
        parts += [f"## Kind `{bundle.kind}`", f"At most {FEW} tensors a file, of a very small model:",
                  table(["file", "tensor", "shape"], tensors), "`manifest.json`, long lists cut:",
                  code(json.dumps(_short(bundle.manifest), indent=2), "json")]
    return "\n\n".join([*parts, "## `current.json`", docstring(Pointer)])


def _short(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _short(each) for key, each in list(value.items())[:FEW]} | (
            {"…": f"{len(value) - FEW} more"} if len(value) > FEW else {})
    if isinstance(value, list) and len(value) > 3:
        return [*map(_short, value[:2]), f"… {len(value) - 2} more"]
    return [_short(each) for each in value] if isinstance(value, list) else value
