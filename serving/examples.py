"""Requests that the models which serve now can answer, for the OpenAPI document: as bodies and as curl commands."""

from __future__ import annotations

import copy
import html
import json
import shlex
from collections.abc import Mapping
from typing import Any

USER = 7
ITEMS = (1, 2, 3)  # unknown ids are served too


def examples(models: Mapping[str, Any]) -> dict[tuple[str, str], tuple[str, dict[str, Any] | None]]:
    """(path of the document, method) → (path to call, body), from the answer of `GET /v1/models`."""
    fusion, scenes = models["fusion"], models["scenes"]
    stage, tasks = fusion["stages"][0], scenes["tasks"]
    shared = [scene for scene in tasks if not fusion["scenes"] or scene in fusion["scenes"]]
    scene = next(iter(shared or tasks))
    state = {} if fusion["state_features"] else {"state": [0.0] * fusion["state_size"]}
    predictions = {name: [round(0.1 * (1 + (i + k) % 5), 1) for i in range(len(ITEMS))]
                   for k, name in enumerate(fusion["fusion_parameters"])}
    ranked: dict[str, Any] = {"user": {"user_id": USER}, "candidates": {"item_id": list(ITEMS)}, "top_n": 2}
    return {
        ("/v1/fusion/{stage}/rank", "post"): (f"/v1/fusion/{stage}/rank", {
            "user_id": USER, **state, "candidates": {"item_id": list(ITEMS), "predictions": predictions}, "top_n": 2}),
        ("/v1/scenes/{scene}/rank", "post"): (f"/v1/scenes/{scene}/rank", ranked),
        ("/v1/recommend", "post"): ("/v1/recommend", {**ranked, "scene": scene, "stage": stage, **state,
                                                      "explain": True}),
        ("/v1/feedback", "post"): ("/v1/feedback", {
            "request_id": "0f8fad5bd9cb469fa165708677289502",
            "feedback": dict.fromkeys(fusion["behaviours"], 1.0), "session_end": False}),
        ("/v1/models", "get"): ("/v1/models", None),
        ("/healthz", "get"): ("/healthz", None),
    }


def with_examples(document: Mapping[str, Any], models: Mapping[str, Any], url: str, tokens: bool) -> dict[str, Any]:
    """A copy of an OpenAPI document with the stages and scenes there are, a body and a curl command at each operation.

    Args:
        url: of the server, without a slash at its end.
        tokens: whether the command needs one; it is taken from the shell's variable TOKEN.
    """
    whole = copy.deepcopy(dict(document))
    known = {"stage": list(models["fusion"]["stages"]), "scene": list(models["scenes"]["tasks"])}
    for (path, method), (target, body) in examples(models).items():
        operation = whole["paths"][path][method]
        for parameter in operation.get("parameters", ()):
            parameter["example"] = target.split("/")[path.split("/").index(f"{{{parameter['name']}}}")]
            parameter["schema"] = {**parameter["schema"], "enum": known[parameter["name"]]}
        command = f"curl -s {shlex.quote(url + target)}"
        if tokens and target != "/healthz":
            command += ' -H "Authorization: Bearer $TOKEN"'
        if body is not None:
            operation["requestBody"]["content"]["application/json"]["example"] = body
            command += f" -H 'Content-Type: application/json' -d {shlex.quote(json.dumps(body))}"
        operation["x-codeSamples"] = [{"lang": "sh", "source": command}]
        operation["description"] = f"{operation.get('description', '')}\n\n```sh\n{command}\n```"
    return whole


def listing(document: Mapping[str, Any]) -> str:
    """Every operation of `with_examples` with its curl command, as HTML: what /docs shows where no script loads."""
    parts = [f"<h1>{html.escape(document['info']['title'])}</h1>"]
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            text = operation["description"].partition("\n\n```")[0]
            command = operation["x-codeSamples"][0]["source"]
            parts.append(f"<h2>{method.upper()} {html.escape(path)}</h2><p>{html.escape(text)}</p>"
                         f'<pre style="white-space: pre-wrap">{html.escape(command)}</pre>')
    return "\n".join(parts)
