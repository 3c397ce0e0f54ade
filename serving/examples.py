"""The examples of the table in the OpenAPI document, as bodies and as curl commands, and the document as HTML."""

from __future__ import annotations

import copy
import html
import json
import shlex
from collections.abc import Mapping
from typing import Any

from recfuse.serving.endpoints import ENDPOINTS, RANK_SCENE, Endpoint, Offer


def with_examples(document: Mapping[str, Any], models: Mapping[str, Any], url: str, asks_for_token: bool
                  ) -> dict[str, Any]:
    """A copy of an OpenAPI document with the stages and scenes there are, a body and a curl command at each operation.

    Args:
        models: the answer of `GET /v1/models`.
        url: of the server, without a slash at its end.
        asks_for_token: whether commands must name one; they take it from the shell's variable TOKEN.
    """
    whole, offer = copy.deepcopy(dict(document)), Offer.of(models)
    for endpoint in ENDPOINTS:
        if endpoint is RANK_SCENE and not offer.scorer:
            del whole["paths"][endpoint.path]
            continue
        if not endpoint.documented:
            continue
        operation = whole["paths"][endpoint.path][endpoint.method.lower()]
        for parameter in operation.get("parameters", ()):
            parameter["example"] = {"stage": offer.stage, "scene": offer.scene}[parameter["name"]]
            parameter["schema"] = {**parameter["schema"], "enum": list(offer.values(parameter["name"]))}
        body = endpoint.example(offer)
        if body is not None:
            operation["requestBody"]["content"]["application/json"]["example"] = body
        command = curl(endpoint, offer, url, asks_for_token)
        operation["x-codeSamples"] = [{"lang": "sh", "source": command}]
        operation["description"] = f"{operation.get('description', '')}\n\n```sh\n{command}\n```"
    return whole


def curl(endpoint: Endpoint, offer: Offer, url: str, asks_for_token: bool) -> str:
    """The command that sends the endpoint's example."""
    command = f"curl -s {shlex.quote(url + endpoint.example_path(offer))}"
    if asks_for_token and endpoint.admission == "guarded":
        command += ' -H "Authorization: Bearer $TOKEN"'
    body = endpoint.example(offer)
    if body is not None:
        command += f" -H 'Content-Type: application/json' -d {shlex.quote(json.dumps(body))}"
    return command


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
