"""The way in: tokens, limits, and a short way for the requests that rank, past routing and middleware."""

from __future__ import annotations

import hmac
import logging
from collections.abc import Awaitable, Callable, Mapping

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.errors import Reply, refusal
from serving.formats import JSON, MESSAGE_PACK, Body
from serving.gateway import Gateway, UnavailableError, overloaded
from serving.logs import REQUEST_ID

logger = logging.getLogger("recfuse.serving")
Handler = Callable[[Body], Awaitable[Reply]]
_JSON, _PACKED = ((b"content-type", name.encode()) for name in (JSON, MESSAGE_PACK))


class Door:
    """The ASGI application: what it knows by its path it answers itself, everything else goes to FastAPI.

    FastAPI has the same endpoints, for /docs and for requests that are written in an unusual way (escaped paths, bodies
    without a length); both ways lead to the same `Gateway`.

    Args:
        api: the FastAPI application.
        gateway: answers.
        tokens: any of them opens; none of them, and everything is open.
        max_body_bytes: also counted while a body without a length comes in.
        max_concurrent: refused at once is better than answered after the client has given up. /healthz is not counted.
    """

    def __init__(self, api: ASGIApp, gateway: Gateway, *, tokens: tuple[str, ...] = (), max_body_bytes: int,
                 max_concurrent: int) -> None:
        self._api, self._gateway = api, gateway
        self._max_body_bytes, self._max_concurrent, self._ongoing = max_body_bytes, max_concurrent, 0
        self._tokens = [token.encode() for token in tokens]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._api(scope, receive, send)
            return
        headers = dict(scope["headers"])
        path = str(scope["path"]).removeprefix(scope.get("root_path", ""))
        refused = self._refuse(path, headers)
        if refused is not None:
            await respond(send, refused)
            return
        token = REQUEST_ID.set(headers.get(b"x-request-id", b"").decode("latin-1"))
        self._ongoing += 1
        try:
            length = headers.get(b"content-length")
            handler = self._handler(path) if length and scope["method"] == "POST" else None
            if handler is not None:
                await self._answer(handler, headers, receive, send)
            else:
                counted = receive if length is not None else self._counted(receive)
                await self._api(scope, counted, send)
        finally:
            self._ongoing -= 1
            REQUEST_ID.reset(token)

    def _handler(self, path: str) -> Handler | None:
        gateway = self._gateway
        if path == "/v1/recommend":
            return gateway.recommend
        if path == "/v1/feedback":
            return gateway.feedback
        parts = path.split("/")
        if len(parts) == 5 and parts[1] == "v1" and parts[4] == "rank" and parts[3]:
            if parts[2] == "fusion":
                return lambda body: gateway.rank_fusion(parts[3], body)
            if parts[2] == "scenes":
                return lambda body: gateway.rank_scene(parts[3], body)
        return None

    async def _answer(self, handler: Handler, headers: Mapping[bytes, bytes], receive: Receive, send: Send) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] != "http.request":  # the client has gone
                return
            part = message.get("body", b"")
            body = body + part if body else part
            more = message.get("more_body", False)
        try:
            reply = await handler(Body.of(body, headers))
        except Exception:
            logger.exception("request failed")
            reply = refusal(500, None, None, "nothing: the fault is the server's, see its log")
        await respond(send, reply)

    def _refuse(self, path: str, headers: Mapping[bytes, bytes]) -> Reply | None:
        if self._tokens and path != "/healthz" and not self._admits(headers.get(b"authorization", b"")):
            return refusal(401, "authorization", "(not shown)", "Bearer and a valid token")
        length = headers.get(b"content-length", b"0")
        if not length.isdigit():
            return refusal(400, "content-length", length.decode("latin-1"), "a number of bytes")
        if int(length) > self._max_body_bytes:
            return refusal(413, "body", f"{int(length)} bytes", f"at most {self._max_body_bytes} bytes")
        if self._ongoing >= self._max_concurrent and path != "/healthz":
            return overloaded(UnavailableError(f"{self._ongoing} requests at a time"))
        return None

    def _admits(self, authorization: bytes) -> bool:
        scheme, _, given = authorization.partition(b" ")
        # Every token is compared, each in constant time, so that the time tells nothing about any of them.
        matches = [hmac.compare_digest(given.strip(), token) for token in self._tokens]
        return scheme.lower() == b"bearer" and any(matches)

    def _counted(self, receive: Receive) -> Receive:
        read = 0

        async def counted() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > self._max_body_bytes:
                raise HTTPException(413, f"at most {self._max_body_bytes} bytes")  # answered by FastAPI's handler
            return message
        return counted


async def respond(send: Send, reply: Reply) -> None:
    """Sends a reply that is ready for the socket."""
    headers = [_PACKED if reply.packed else _JSON, (b"content-length", b"%d" % len(reply.body))]
    if reply.retry_after is not None:
        headers.append((b"retry-after", b"%d" % reply.retry_after))
    if reply.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": reply.status, "headers": headers})
    await send({"type": "http.response.body", "body": reply.body})
