"""The HTTP interface (design 3.4): paths, one error shape, and the OpenAPI document."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import orjson
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse, Response
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException

import recfuse
from serving.config import ServingConfig
from serving.door import Door
from serving.errors import Reply, refusal
from serving.examples import listing, with_examples
from serving.formats import JSON, MESSAGE_PACK, Body
from serving.gateway import Gateway, UnavailableError, overloaded
from serving.schemas import (
    ErrorAnswer,
    FeedbackAnswer,
    FeedbackRequest,
    FusionAnswer,
    FusionRequest,
    RecommendAnswer,
    RecommendRequest,
    SceneAnswer,
    ScenesRequest,
)

_SCHEMAS: tuple[type[BaseModel], ...] = (
    ErrorAnswer, FeedbackAnswer, FeedbackRequest, FusionAnswer, FusionRequest, RecommendAnswer, RecommendRequest,
    SceneAnswer, ScenesRequest,
)
_FORMATS = ("JSON, or MessagePack where Content-Type says application/msgpack; Accept chooses the format of the answer "
            "likewise. In MessagePack a list of numbers may be a bin of little-endian float64, one of ids of int64.")
_REFUSALS = {400: "the body is no JSON object or MessagePack map", 401: "no valid bearer token",
             404: "unknown path, stage or scene", 413: "body or candidates too large", 422: "a bad field",
             503: "overloaded; try again"}


def create_app(gateway: Gateway, config: ServingConfig) -> Door:
    """The application of one ingress replica: FastAPI behind the door that knows tokens, limits and a short way."""
    return Door(create_api(gateway, bool(config.tokens)), gateway, tokens=config.tokens,
                max_body_bytes=config.max_body_bytes, max_concurrent=config.max_concurrent)


def create_api(gateway: Gateway, tokens: bool = False) -> FastAPI:
    """Every endpoint, with its place in the OpenAPI document.

    Bodies go to the deployments undecoded, so the endpoints take the bare request; their types are in the OpenAPI
    document all the same.

    Args:
        tokens: whether the examples of the document carry one.
    """
    api = FastAPI(title="Recfuse", version=recfuse.__version__, openapi_url=None, docs_url=None, redoc_url=None)

    @api.post("/v1/fusion/{stage}/rank", openapi_extra=_body(FusionRequest), responses=_answers(FusionAnswer))
    async def rank_fusion(stage: str, request: Request) -> Response:
        """Ranks candidates by a fusion of their predictions that the policy chooses for this state."""
        return _response(await gateway.rank_fusion(stage, await _body_of(request)))

    @api.post("/v1/scenes/{scene}/rank", openapi_extra=_body(ScenesRequest), responses=_answers(SceneAnswer))
    async def rank_scene(scene: str, request: Request) -> Response:
        """Predicts every task of a scene and ranks by the operator's weights, or those of the request."""
        return _response(await gateway.rank_scene(scene, await _body_of(request)))

    @api.post("/v1/recommend", openapi_extra=_body(RecommendRequest), responses=_answers(RecommendAnswer))
    async def recommend(request: Request) -> Response:
        """The scorer predicts, the fusion policy ranks."""
        return _response(await gateway.recommend(await _body_of(request)))

    @api.post("/v1/feedback", status_code=202, openapi_extra=_body(FeedbackRequest),
              responses=_answers(FeedbackAnswer, status=202))
    async def feedback(request: Request) -> Response:
        """Tells what the user did with an answer; from this the next policy learns."""
        return _response(await gateway.feedback(await _body_of(request)))

    @api.get("/v1/models")
    async def models() -> Response:
        """Which bundles serve, what they can do, and why a newer one was refused."""
        try:
            return Response(orjson.dumps(await gateway.models()), media_type="application/json")
        except UnavailableError as error:
            return _response(overloaded(error))

    @api.get("/healthz")
    async def healthz() -> dict[str, str]:
        """Whether this process answers."""
        return {"status": "ok"}

    async def document(request: Request) -> dict[str, Any]:
        return with_examples(api.openapi(), await gateway.models(), str(request.base_url).rstrip("/"), tokens)

    @api.get("/openapi.json", include_in_schema=False)
    async def openapi(request: Request) -> Response:
        try:
            return Response(orjson.dumps(await document(request)), media_type="application/json")
        except UnavailableError as error:
            return _response(overloaded(error))

    @api.get("/docs", include_in_schema=False)
    async def docs(request: Request) -> Response:
        try:
            listed = listing(await document(request))
        except UnavailableError as error:
            return _response(overloaded(error))
        # Swagger's script comes from elsewhere and replaces what stands in its place; without a way there this stays.
        page = bytes(get_swagger_ui_html(openapi_url="openapi.json", title="Recfuse").body).decode()
        place = '<div id="swagger-ui">'
        return HTMLResponse(page.replace(place, place + listed))

    _refuse_in_one_shape(api)
    api.openapi = _documented(api.openapi)  # type: ignore[method-assign]
    return api


def _refuse_in_one_shape(api: FastAPI) -> None:
    @api.exception_handler(HTTPException)
    async def of_starlette(request: Request, error: HTTPException) -> Response:
        path, method = request.url.path, request.method
        if error.status_code == 404:
            return _response(refusal(404, "path", path, "a path of /docs"))
        if error.status_code == 405:
            allowed = (error.headers or {}).get("Allow", "the methods of /docs")
            return _response(refusal(405, "method", method, allowed), error.headers)
        if error.status_code == 413:
            return _response(refusal(413, "body", "more than allowed", str(error.detail)))
        return _response(refusal(error.status_code, None, None, str(error.detail)))

    @api.exception_handler(RequestValidationError)
    async def of_fastapi(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        return _response(refusal(422, field, first.get("input"), first["msg"]))


def _response(reply: Reply, headers: Mapping[str, str] | None = None) -> Response:
    status, body, retry_after, packed = reply
    more = dict(headers or {})
    if retry_after is not None:
        more["Retry-After"] = str(retry_after)
    if status == 401:
        more["WWW-Authenticate"] = "Bearer"
    return Response(body, status, more, media_type=MESSAGE_PACK if packed else JSON)


async def _body_of(request: Request) -> Body:
    return Body.of(await request.body(), dict(request.headers.raw))


def _reference(model: type[BaseModel], *formats: str) -> dict[str, Any]:
    return {name: {"schema": {"$ref": f"#/components/schemas/{model.__name__}"}} for name in (JSON, *formats)}


def _body(model: type[BaseModel]) -> dict[str, Any]:
    return {"requestBody": {"required": True, "content": _reference(model, MESSAGE_PACK), "description": _FORMATS}}


def _answers(model: type[BaseModel], status: int = 200) -> dict[int | str, dict[str, Any]]:
    content = _reference(model, MESSAGE_PACK)
    answers: dict[int | str, dict[str, Any]] = {status: {"description": "answered", "content": content}}
    for code, why in _REFUSALS.items():
        answers[code] = {"description": why, "content": _reference(ErrorAnswer)}
    return answers


def _documented(openapi: Callable[[], dict[str, Any]]) -> Callable[[], dict[str, Any]]:
    """The document with the schemas of bodies that the endpoints do not declare to FastAPI."""
    def document() -> dict[str, Any]:
        whole = openapi()
        _, schemas = models_json_schema([(model, "validation") for model in _SCHEMAS],
                                        ref_template="#/components/schemas/{model}")
        whole.setdefault("components", {})["schemas"] = schemas["$defs"]
        return whole
    return document
