"""The console in the server: pages and files that anybody may open, and values and decisions for who has a token."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from functools import cache
from typing import Any

import orjson
from fastapi import APIRouter, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import HTMLResponse, Response
from jinja2 import Environment, PackageLoader, StrictUndefined

import recfuse
from recfuse.bundle import BundleError
from recfuse.config import InvalidFieldError
from recfuse.serving.config import ServingConfig
from recfuse.serving.console import assets, inspector, paths
from recfuse.serving.console.actions import Decision, act, require_own_page
from recfuse.serving.console.board import read_board
from recfuse.serving.console.runs import find_runs, read_page
from recfuse.serving.endpoints import DOCS, MODELS, Endpoint
from recfuse.serving.formats import JSON, Body, RefusedError, decode
from recfuse.serving.gateway import Backends

PREVIEW = Endpoint(name="preview", method="POST", path=paths.DECIDE, steps=("scenes.preview", "fusion.preview"),
                   summary="Decides as a recommendation does, and writes nothing.")
# Nothing comes from elsewhere and nothing goes there. Charts set styles of elements, so these are allowed.
_POLICY = ("default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; frame-src 'self' blob:; "
           "object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
HEADERS = {"Content-Security-Policy": _POLICY, "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer",
           "Cache-Control": "no-store"}
_LINKS = {"Inspector": paths.INSPECTOR, "Board": paths.BOARD, "Runs": paths.RUNS}


def create_console(backends: Backends, config: ServingConfig) -> APIRouter:
    """The routes of the console."""
    router = APIRouter(include_in_schema=False)
    _add_pages(router, config)
    _add_inspector(router, backends, config)
    _add_runs(router, config)
    _add_board(router, backends, config)
    return router


def _add_pages(router: APIRouter, config: ServingConfig) -> None:
    @router.get(paths.STATIC + "/{name}")
    async def static(name: str, request: Request) -> Response:
        asset = await run_in_threadpool(assets.asset, name)
        if asset is None:
            raise RefusedError(404, "path", request.url.path, "a file of the console")
        packed = "gzip" in request.headers.get("accept-encoding", "")
        headers = {"Cache-Control": assets.CACHE, "Vary": "Accept-Encoding", "X-Content-Type-Options": "nosniff"}
        return Response(asset.packed if packed else asset.content, media_type=asset.kind,
                        headers={**headers, "Content-Encoding": "gzip"} if packed else headers)

    def page(path: str, name: str) -> Any:
        async def show() -> HTMLResponse:
            return HTMLResponse(render(f"{name}.html", here=path, asks_for_token=bool(config.tokens)), headers=HEADERS)
        return show

    for path, name in paths.PAGES.items():
        router.add_api_route(path, page(path, name), methods=["GET"], name=path)


def _add_inspector(router: APIRouter, backends: Backends, config: ServingConfig) -> None:
    @router.get(paths.OPTIONS)
    async def options() -> Response:
        described = await backends.describe()
        return answer(await on_disk(inspector.options, config.models, described))

    @router.get(paths.CANDIDATES)
    async def candidates(count: int = Query(20, ge=1, le=config.max_candidates),
                         seed: int = Query(0, ge=0)) -> Response:
        return answer({"item_id": await on_disk(inspector.draw_candidates, config.models, count, seed)})

    @router.get(paths.FEATURES)
    async def features(user: str = Query(max_length=256)) -> Response:
        return answer({"features": await backends.ask("fusion", "features", user)})

    @router.post(paths.DECIDE)
    async def decide(request: Request, draws: int = Query(1, ge=0, le=inspector.MOST_DRAWS),
                     seed: int = Query(0, ge=0, le=2**53)) -> Response:
        reply = await backends.answer(PREVIEW, (), Body(await request.body()))
        if reply.status != 200:
            return Response(reply.body, reply.status, media_type=JSON)
        return answer(await on_disk(inspector.shown, config.models, orjson.loads(reply.body), draws, seed))


def _add_runs(router: APIRouter, config: ServingConfig) -> None:
    @router.get(paths.RUNS_DATA)
    async def runs() -> HTMLResponse:
        found = await on_disk(find_runs, config.runs, config.models)
        return part("runs_list.html", runs=found, root=config.runs)

    @router.get(paths.RUN_DATA)
    async def run(report: str = Query(max_length=1_000)) -> HTMLResponse:
        return HTMLResponse(await on_disk(read_page, config.runs, report), headers={"Cache-Control": "no-store"})


def _add_board(router: APIRouter, backends: Backends, config: ServingConfig) -> None:
    @router.get(paths.BOARD_DATA)
    async def board() -> HTMLResponse:
        policy, scorer = [await backends.ask(name, "status") for name in ("fusion", "scenes")]
        found = await on_disk(read_board, config.models, policy, scorer)
        return part("board_parts.html", board=found, rows=[asdict(each) for each in found.measures])

    @router.post(paths.ACTION)
    async def action(action: str, request: Request) -> Response:
        require_own_page(request, bool(config.tokens))
        decision = decode(Decision, Body(await request.body()))
        return answer({"words": await on_disk(act, action, decision, config)})


async def on_disk(function: Any, *arguments: Any) -> Any:
    """A function that reads files, beside the event loop.

    Raises:
        RefusedError: what it reads cannot be read.
    """
    try:
        return await run_in_threadpool(function, *arguments)
    except InvalidFieldError as error:
        raise RefusedError(422, error.field, error.value, error.allowed) from None
    except BundleError as error:
        raise RefusedError(503, "models", str(error), "a models directory that can be read") from None


def answer(values: Mapping[str, Any]) -> Response:
    """Values of a page, which nobody keeps; numbers that are none become null."""
    return Response(orjson.dumps(values, option=orjson.OPT_SERIALIZE_NUMPY), media_type=JSON,
                    headers={"Cache-Control": "no-store"})


def part(template: str, **values: Any) -> HTMLResponse:
    """A part of a page, with what is served in it."""
    return HTMLResponse(render(template, **values), headers={"Cache-Control": "no-store"})


def render(template: str, **values: Any) -> str:
    """A page, or a part of one."""
    return _templates().get_template(template).render(paths=paths, **values)


@cache
def _templates() -> Environment:
    environment = Environment(loader=PackageLoader("recfuse.serving.console"), autoescape=True,
                              undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["time"] = lambda seconds: f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M} UTC"
    environment.globals.update(file=assets.file_address, links=_LINKS, docs=DOCS.path, models_path=MODELS.path,
                               release=recfuse.__version__)
    return environment
