"""The ASGI entry: who comes in (tokens, limits), who answers by the table of endpoints, and the answer's way out.

Tokens are Starlette's AuthenticationMiddleware around the gateway, and other sites' pages its CORSMiddleware around
both (serving.api). Against a comparison by hand, requests per second of CPU time
in one run without network (`python -m benchmarks.serving_admission`): fusion of 20 candidates .97 (3,091 to 3,253),
recommend 1.00 (199 to 198), feedback .97 (22,962 to 23,504). Lengths are compared here, because
Starlette's middleware answers in plain text and only once the body is read.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar

from starlette.authentication import AuthCredentials, AuthenticationBackend, AuthenticationError, SimpleUser
from starlette.requests import HTTPConnection
from starlette.routing import compile_path
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from recfuse.serving.console.paths import PAGES, STATIC
from recfuse.serving.endpoints import ENDPOINTS, OPEN_PATHS, Endpoint
from recfuse.serving.formats import (
    JSON,
    MESSAGE_PACK,
    Body,
    RefusedError,
    Reply,
    fault,
    overloaded,
    refusal_of,
    unzipped,
)
from recfuse.serving.logs import REQUEST_ID
from recfuse.serving.starting import starting

logger = logging.getLogger("recfuse.serving")
T = TypeVar("T")
# Replicas that are there answer sooner.
_ASK_SECONDS = 0.3
_JSON, _PACKED = ((b"content-type", name.encode()) for name in (JSON, MESSAGE_PACK))


class Backends:
    """Whoever computes, in this process or behind handles: bodies go there as they came and are decoded there, once.

    Args:
        fusion, scenes: have the methods that the table's steps name, and `describe`.
        unavailable: what these raise where they have no room or no replica for a request.
    """

    def __init__(self, fusion: Any, scenes: Any, unavailable: tuple[type[Exception], ...] = ()) -> None:
        self._backends, self._unavailable = {"fusion": fusion, "scenes": scenes}, unavailable
        # In this process they have their models before they are handed over.
        self.are_ready = not unavailable
        self._asking: asyncio.Task[None] | None = None
        self._methods: dict[str, tuple[Callable[..., Awaitable[Any]], ...]] = {}

    async def answer(self, endpoint: Endpoint, values: Sequence[str], body: Body) -> Reply:
        """Runs the endpoint's steps.

        Args:
            values: of the path's parameters.
        """
        # A handle finds its method within the event loop alone, so methods are looked up by the first request.
        methods = self._methods.get(endpoint.name)
        if methods is None:
            methods = self._methods[endpoint.name] = tuple(map(self._method, endpoint.steps))
        try:
            result = await methods[0](*values, body)
            for method in methods[1:]:
                if isinstance(result, tuple):
                    break
                result = await method(result)
            return Reply(*result)  # A Reply is a plain tuple after a journey between processes.
        except self._unavailable as error:
            return refusal_of(overloaded(str(error)))
        except Exception:
            logger.exception("request failed")
            return fault()

    async def ask(self, backend: str, method: str, *arguments: Any) -> Any:
        """What a method of a backend returns.

        Raises:
            RefusedError: the backend is not there.
        """
        try:
            return await getattr(self._backends[backend], method)(*arguments)
        except self._unavailable as error:
            raise overloaded(str(error)) from None

    async def ready(self) -> bool:
        """Whether every backend has its models; once they have, nobody is asked any more."""
        if not self.are_ready:
            if self._asking is None or self._asking.done():
                self._asking = asyncio.create_task(self._ask())
            await asyncio.wait({self._asking}, timeout=_ASK_SECONDS)
        return self.are_ready

    async def _ask(self) -> None:
        with contextlib.suppress(RefusedError):
            await self.describe()
            self.are_ready = True

    async def describe(self) -> dict[str, Any]:
        """The answer of `GET /v1/models`.

        Raises:
            RefusedError: a backend is not there.
        """
        try:
            described = await asyncio.gather(*[backend.describe() for backend in self._backends.values()])
        except self._unavailable as error:
            raise overloaded(str(error)) from None
        return dict(zip(self._backends, described, strict=True))

    def _method(self, step: str) -> Callable[..., Awaitable[Any]]:
        backend, _, name = step.partition(".")
        method: Callable[..., Awaitable[Any]] = getattr(self._backends[backend], name)
        return method


class TokenBackend(AuthenticationBackend):
    """Bearer tokens, any of which opens everything; open endpoints ask for none, nor do the console's pages and files,
    which say nothing of what is served."""

    def __init__(self, tokens: Sequence[str]) -> None:
        self._tokens = [token.encode() for token in tokens]

    async def authenticate(self, conn: HTTPConnection) -> tuple[AuthCredentials, SimpleUser] | None:
        """Raises AuthenticationError."""
        path = _path_of(conn.scope)
        if path not in OPEN_PATHS and path not in PAGES and not path.startswith(f"{STATIC}/"):
            authorization = dict(conn.scope["headers"]).get(b"authorization", b"")
            scheme, _, given = authorization.partition(b" ")
            # Every token is compared, each in constant time, so that the time tells nothing about any of them.
            matches = [hmac.compare_digest(given.strip(), token) for token in self._tokens]
            if scheme.lower() != b"bearer" or not any(matches):
                raise AuthenticationError("no valid bearer token")
        return None


class Gateway:
    """Answers by the table what it knows by its path; everything else goes to FastAPI.

    FastAPI has the same endpoints, for /docs and for what has no steps; both ways lead to the same `Backends`.

    Args:
        api: the FastAPI application.
        backends: answer.
        max_body_bytes: of a body, also after it is unpacked.
        max_concurrent: refused at once is better than answered after the client has given up. A request counts from
            its whole body on, so that slow uploads hold no place; open endpoints are not counted.
        body_seconds: a body has so long to come.
    """

    def __init__(self, api: ASGIApp, backends: Backends, *, max_body_bytes: int, max_concurrent: int,
                 body_seconds: float) -> None:
        self._api, self._backends, self._body_seconds = api, backends, body_seconds
        self._max_body_bytes, self._max_concurrent, self._ongoing = max_body_bytes, max_concurrent, 0
        self._routes = [(endpoint, compile_path(endpoint.path)[0].match) for endpoint in ENDPOINTS]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._api(scope, receive, send)
            return
        headers, path = dict(scope["headers"]), _path_of(scope)
        if scope["method"] == "HEAD":
            scope, send = {**scope, "method": "GET"}, _without_body(send)
        token = REQUEST_ID.set(headers.get(b"x-request-id", b"").decode("latin-1"))
        try:
            await self._pass(scope, path, headers, receive, send)
        except RefusedError as error:
            await send_reply(send, refusal_of(error))
        finally:
            REQUEST_ID.reset(token)

    async def _pass(self, scope: Scope, path: str, headers: Mapping[bytes, bytes], receive: Receive,
                    send: Send) -> None:
        """Raises RefusedError."""
        self._admit(path, headers)
        if not self._backends.are_ready and path not in OPEN_PATHS and not await self._backends.ready():
            await send_reply(send, starting())
            return
        route = self._route(scope["method"], path)
        if scope["method"] == "OPTIONS" and (methods := self._methods(path)):
            await send({"type": "http.response.start", "status": 204, "headers": [(b"allow", methods.encode())]})
            await send({"type": "http.response.body", "body": b""})
        elif route is None or not route[0].steps:
            await self._counted(path, self._api(scope, receive, send))
        elif (content := await self._read(headers, receive)) is not None:
            self._admit(path, {})
            answer = self._backends.answer(*route, Body.of(content, headers))
            await send_reply(send, await self._counted(path, answer))

    async def _counted(self, path: str, answer: Awaitable[T]) -> T:
        counts = path not in OPEN_PATHS
        self._ongoing += counts
        try:
            return await answer
        finally:
            self._ongoing -= counts

    def _admit(self, path: str, headers: Mapping[bytes, bytes]) -> None:
        """Refuses a body that is too large, and everything while there is no room."""
        length = headers.get(b"content-length", b"0")
        if not length.isdigit():
            raise RefusedError(400, "content-length", length.decode("latin-1"), "a number of bytes")
        if int(length) > self._max_body_bytes:
            raise RefusedError(413, "body", f"{int(length)} bytes", f"at most {self._max_body_bytes} bytes")
        if self._ongoing >= self._max_concurrent and path not in OPEN_PATHS:
            raise overloaded(f"{self._ongoing} requests at a time")

    def _route(self, method: str, path: str) -> tuple[Endpoint, Sequence[str]] | None:
        """The endpoint of a path, and the values of the path's parameters."""
        for endpoint, match in self._routes:
            if endpoint.method == method and (matched := match(path)) is not None:
                return endpoint, matched.groups()
        return None

    def _methods(self, path: str) -> str:
        """What a path allows; nothing where there is no such path."""
        own = [endpoint.method for endpoint, match in self._routes if match(path) is not None]
        return ", ".join([*own, *(["HEAD"] if "GET" in own else []), *(["OPTIONS"] if own else [])])

    async def _read(self, headers: Mapping[bytes, bytes], receive: Receive) -> bytes | None:
        """The whole body, unpacked; None where the client has gone.

        Raises:
            RefusedError: it is too large, too slow, or packed in a way that nobody can unpack here.
        """
        encoding = headers.get(b"content-encoding", b"identity").strip().lower()
        if encoding not in (b"identity", b"gzip", b"x-gzip", b""):
            raise RefusedError(415, "content-encoding", encoding.decode("latin-1"), "gzip, or none")
        parts, size, more = list[bytes](), 0, True
        try:
            async with asyncio.timeout(self._body_seconds):
                while more:
                    message = await receive()
                    if message["type"] != "http.request":
                        return None
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    if size > self._max_body_bytes:
                        raise RefusedError(413, "body", "more than allowed", f"at most {self._max_body_bytes} bytes")
                    more = message.get("more_body", False)
        except TimeoutError:
            raise RefusedError(408, "body", f"{size} bytes after {self._body_seconds:g} s",
                               "the whole body within that time") from None
        content = parts[0] if len(parts) == 1 else b"".join(parts)
        if encoding not in (b"gzip", b"x-gzip"):
            return content
        return await asyncio.to_thread(unzipped, content, self._max_body_bytes)


def _without_body(send: Send) -> Send:
    """Sends what HEAD gets of an answer to GET."""
    async def send_head(message: Message) -> None:
        await send({**message, "body": b""} if message["type"] == "http.response.body" else message)
    return send_head


def _path_of(scope: Scope) -> str:
    """The path below the prefix under which the application stands."""
    return str(scope["path"]).removeprefix(scope.get("root_path", ""))


def reply_headers(reply: Reply) -> list[tuple[bytes, bytes]]:
    """What the answer says beside its body."""
    headers = [_PACKED if reply.packed else _JSON, (b"content-length", b"%d" % len(reply.body))]
    if reply.retry_after is not None:
        headers.append((b"retry-after", b"%d" % reply.retry_after))
    if reply.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if reply.status == 415:
        headers.append((b"accept-encoding", b"gzip"))
    return headers


async def send_reply(send: Send, reply: Reply) -> None:
    """Sends a reply that is ready for the socket."""
    await send({"type": "http.response.start", "status": reply.status, "headers": reply_headers(reply)})
    await send({"type": "http.response.body", "body": reply.body})
