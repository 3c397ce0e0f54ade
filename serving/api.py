"""The HTTP interface (design 3.4): the endpoints of the table in FastAPI, one error shape, and the OpenAPI document."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import orjson
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse, Response
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.authentication import AuthenticationError
from starlette.exceptions import HTTPException
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.middleware.body_limit import RequestBodyLimitMiddleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp

import recfuse
from recfuse.serving.config import ServingConfig
from recfuse.serving.console.assets import file_address
from recfuse.serving.console.pages import create_console
from recfuse.serving.endpoints import DOCUMENT, ENDPOINTS, Endpoint
from recfuse.serving.examples import listing, with_examples
from recfuse.serving.formats import JSON, MESSAGE_PACK, Body, RefusedError, Reply, refusal, refusal_of
from recfuse.serving.gateway import Backends, Gateway, TokenBackend, reply_headers
from recfuse.serving.schemas import ErrorAnswer
from recfuse.serving.starting import starting

Handler = Callable[[Request], Awaitable[Any]]
_FORMATS = ("JSON, or MessagePack where Content-Type says application/msgpack; Accept chooses the format of the answer "
            "likewise. In MessagePack a list of numbers may be a bin of little-endian float64, one of ids of int64.")
_REFUSALS = {400: "the body is no JSON object or MessagePack map", 401: "no valid bearer token",
             404: "unknown path, stage or scene", 408: "the body came too slowly",
             413: "body or candidates too large", 415: "a body packed otherwise than by gzip", 422: "a bad field",
             503: "overloaded; try again"}


def create_app(backends: Backends, config: ServingConfig) -> ASGIApp:
    """The application of one ingress replica: FastAPI behind the gateway, both behind the tokens, all behind CORS."""
    api = create_api(backends, config)
    api.include_router(create_console(backends, config))
    app: ASGIApp = Gateway(api, backends, max_body_bytes=config.max_body_bytes,
                           max_concurrent=config.max_concurrent, body_seconds=config.body_seconds)
    if config.tokens:
        app = AuthenticationMiddleware(app, TokenBackend(config.tokens), on_error=_refuse_token)
    if config.cors_origins:
        # Outermost: a browser asks whether it may before it has a token to show.
        app = CORSMiddleware(app, allow_origins=config.cors_origins, allow_methods=["GET", "POST"],
                             allow_headers=["Authorization", "Content-Type", "Content-Encoding", "X-Request-ID"],
                             expose_headers=["Retry-After", "X-Request-ID"])
    return app


def create_api(backends: Backends, config: ServingConfig) -> FastAPI:
    """Every endpoint of the table, with its place in the OpenAPI document.

    Bodies go to the backends undecoded, so the endpoints take the bare request; their types are in the OpenAPI document
    all the same.
    """
    api = FastAPI(title="Recfuse", version=recfuse.__version__, openapi_url=None, docs_url=None, redoc_url=None)
    handlers = _handlers(api, backends, asks_for_token=bool(config.tokens))
    for endpoint in ENDPOINTS:
        api.add_api_route(
            endpoint.path, handlers.get(endpoint.name) or _by_backends(endpoint, backends), name=endpoint.name,
            methods=[endpoint.method], status_code=endpoint.status, description=endpoint.summary,
            responses=_answers(endpoint), openapi_extra=_request(endpoint), include_in_schema=endpoint.documented)
    api.add_middleware(RequestBodyLimitMiddleware, max_body_size=config.max_body_bytes)
    _refuse_in_one_shape(api, config.max_body_bytes)
    api.openapi = _documented(api.openapi)  # type: ignore[method-assign]
    return api


def _by_backends(endpoint: Endpoint, backends: Backends) -> Handler:
    async def answer(request: Request) -> Response:
        values = [request.path_params[name] for name in endpoint.parameters]
        body = Body.of(await request.body(), dict(request.headers.raw))
        return _response(await backends.answer(endpoint, values, body))
    return answer


def _handlers(api: FastAPI, backends: Backends, asks_for_token: bool) -> dict[str, Handler]:
    """Name of an endpoint → what answers it here."""
    async def models(_: Request) -> Response:
        return Response(orjson.dumps(await backends.describe()), media_type=JSON)

    async def healthz(_: Request) -> Response:
        if not await backends.ready():
            return _response(starting())
        return Response(orjson.dumps({"status": "ok"}), media_type=JSON)

    async def readyz(_: Request) -> Response:
        if not await backends.ready():
            return _response(starting())
        return Response(orjson.dumps(readiness(await backends.describe())), media_type=JSON)

    async def document(request: Request) -> dict[str, Any]:
        return with_examples(api.openapi(), await backends.describe(), str(request.base_url).rstrip("/"),
                             asks_for_token)

    async def openapi(request: Request) -> Response:
        return Response(orjson.dumps(await document(request)), media_type=JSON)

    async def docs(request: Request) -> Response:
        # Swagger's script replaces what stands in its place; without scripts this stays.
        address, script, style = DOCUMENT.path.removeprefix("/"), "swagger-ui-bundle.js", "swagger-ui.css"
        page = bytes(get_swagger_ui_html(
            openapi_url=address, title="Recfuse", swagger_js_url=file_address(script),
            swagger_css_url=file_address(style), swagger_favicon_url=file_address("icon.svg")).body).decode()
        place = '<div id="swagger-ui">'
        return HTMLResponse(page.replace(place, place + listing(await document(request))))

    return {handler.__name__: handler for handler in (models, healthz, readyz, openapi, docs)}


def readiness(described: Mapping[str, Any]) -> dict[str, Any]:
    """What serves, and what is wrong beside it: none of that keeps a replica from answering.

    Args:
        described: the answer of `GET /v1/models`.
    """
    parts = {f"{part}.{name}": value for part, said in described.items() for name, value in said.items()}
    errors = {name: value for name, value in parts.items() if name.rpartition(".")[2].endswith("error") and value}
    return {"status": "degraded" if errors else "ready", "errors": errors,
            "versions": {part: said.get("model_version") for part, said in described.items()},
            "session_table": parts.get("fusion.session_table")}


def _refuse_token(_: HTTPConnection, __: AuthenticationError) -> Response:
    return _response(refusal(401, "authorization", "(not shown)", "Bearer and a valid token"))


def _refuse_in_one_shape(api: FastAPI, max_body_bytes: int) -> None:
    @api.exception_handler(HTTPException)
    async def of_starlette(request: Request, error: HTTPException) -> Response:
        path, method = request.url.path, request.method
        if error.status_code == 404:
            return _response(refusal(404, "path", path, "a path of /docs"))
        if error.status_code == 405:
            allowed = (error.headers or {}).get("Allow", "the methods of /docs")
            return _response(refusal(405, "method", method, allowed), error.headers)
        if error.status_code == 413:
            return _response(refusal(413, "body", "more than allowed", f"at most {max_body_bytes} bytes"))
        return _response(refusal(error.status_code, None, None, str(error.detail)))

    @api.exception_handler(RequestValidationError)
    async def of_fastapi(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        return _response(refusal(422, field, first.get("input"), first["msg"]))

    @api.exception_handler(RefusedError)
    async def of_ours(_: Request, error: RefusedError) -> Response:
        return _response(refusal_of(error))


def _response(reply: Reply, headers: Mapping[str, str] | None = None) -> Response:
    response = Response(reply.body, reply.status, headers)
    response.raw_headers = [*((name, value) for name, value in response.raw_headers if name != b"content-length"),
                            *reply_headers(reply)]
    return response


def _reference(model: type[BaseModel], *formats: str) -> dict[str, Any]:
    return {name: {"schema": {"$ref": f"#/components/schemas/{model.__name__}"}} for name in (JSON, *formats)}


def _request(endpoint: Endpoint) -> dict[str, Any]:
    """What the document says of the path and the body."""
    extra: dict[str, Any] = {}
    if endpoint.parameters:
        extra["parameters"] = [{"name": name, "in": "path", "required": True,
                                "schema": {"type": "string", "title": name.title()}} for name in endpoint.parameters]
    if endpoint.request is not None:
        extra["requestBody"] = {"required": True, "content": _reference(endpoint.request, MESSAGE_PACK),
                                "description": _FORMATS}
    return extra


def _answers(endpoint: Endpoint) -> dict[int | str, dict[str, Any]]:
    if endpoint.answer is None:
        return {}
    answers: dict[int | str, dict[str, Any]] = {
        endpoint.status: {"description": "answered", "content": _reference(endpoint.answer, MESSAGE_PACK)}}
    for code, why in _REFUSALS.items():
        answers[code] = {"description": why, "content": _reference(ErrorAnswer)}
    return answers


def _documented(openapi: Callable[[], dict[str, Any]]) -> Callable[[], dict[str, Any]]:
    """The document with the schemas of bodies that the endpoints do not declare to FastAPI."""
    models: list[type[BaseModel]] = [ErrorAnswer]
    for endpoint in ENDPOINTS:
        models += [model for model in (endpoint.request, endpoint.answer) if model is not None]

    def document() -> dict[str, Any]:
        whole = openapi()
        _, schemas = models_json_schema([(model, "validation") for model in models],
                                        ref_template="#/components/schemas/{model}")
        plain = {name: _nullable(schema) for name, schema in schemas["$defs"].items()}
        whole.setdefault("components", {})["schemas"] = plain
        # More tools read it than 3.1, the script of /docs among them.
        return {**whole, "openapi": "3.0.3"}
    return document


def _nullable(schema: Any) -> Any:
    """A schema in OpenAPI 3.0, which has no type `null`: an alternative to it is `nullable`."""
    if isinstance(schema, list):
        return [_nullable(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    plain = {name: _nullable(value) for name, value in schema.items()}
    alternatives = plain.get("anyOf", [])
    if {"type": "null"} not in alternatives:
        return plain
    left = [each for each in alternatives if each != {"type": "null"}]
    rest = {name: value for name, value in plain.items() if name != "anyOf"}
    return {**(left[0] if len(left) == 1 and "$ref" not in left[0] else {"anyOf": left}), **rest, "nullable": True}
