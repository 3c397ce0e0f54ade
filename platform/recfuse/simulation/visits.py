"""Persons of a simulated world as clients of a server: they ask over HTTP, look at what is answered, and tell what it
brought. Candidates, predictions and responses are the world's; the ranking and its weights are the server's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray

from recfuse.config import require
from recfuse.simulation.sessions import Page, SessionEngine, Sessions
from recfuse.simulation.world import World

_RECOMMEND, _FEEDBACK = "/v1/recommend", "/v1/feedback"


@dataclass(frozen=True)
class Visits:
    """What was played.

    Attributes:
        requests: that were answered; sessions: that ended.
        feedback: float64[behaviours], sums over the requests, in the vocabulary's order.
        request_ids: the server's, in the order of the answers.
    """

    requests: int
    sessions: int
    feedback: NDArray[np.float64]
    request_ids: tuple[str, ...]


def visit(world: World, client: httpx.Client, *, requests: int, persons: int, seed: int, stage: str = "fine",
          explore: bool | None = None, workers: int = 4) -> Visits:
    """Plays so many requests: the persons take turns, each with one request at a time, one session after another.

    Args:
        client: of the server; its policy must read the world's contexts and fuse the world's predictions.
        persons: who visit; equal seeds give the same persons the same luck.
        explore: whether the server draws the weights; None leaves it to the server.
        workers: requests at a time.

    Raises:
        InvalidFieldError: no request or nobody, or an answer that is not the page of its own weights.
        httpx.HTTPStatusError: an answer other than 2xx.
    """
    require(requests > 0, "requests", requests, "an integer ≥ 1")
    require(persons > 0, "persons", persons, "an integer ≥ 1")
    engine = SessionEngine(world, seed)
    everyone = np.arange(persons)
    sessions = engine.first(everyone % world.users, everyone)
    played, ended, ids = 0, 0, []
    sums = np.zeros(len(world.vocabulary.behaviours))
    with ThreadPoolExecutor(workers) as pool:
        while played < requests:
            some = everyone[:requests - played]
            turn = sessions.take(some)
            bodies = list(_bodies(engine, turn, stage, explore))
            answers = list(pool.map(lambda body: _post(client, _RECOMMEND, body), bodies))
            told, over = _respond(engine, turn, answers)
            list(pool.map(lambda body: _post(client, _FEEDBACK, body), told))
            sums += np.array([list(body["feedback"].values()) for body in told]).sum(0)
            sessions.put(some, turn)
            played, ended = played + len(some), ended + over
            ids += [answer["request_id"] for answer in answers]
    return Visits(played, ended, sums, tuple(ids))


def _respond(engine: SessionEngine, turn: Sessions, answers: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]],
                                                                                               int]:
    """What is told of the answers, a body each, and how many sessions ended; moves the sessions on, those that ended to
    the persons' next."""
    page = engine.step(turn, np.array([list(answer["action"].values()) for answer in answers], np.float32))
    _require_same(engine.world, page, turn, answers)
    over = page.left | page.cut
    told = [{"request_id": answer["request_id"], "feedback": _told(engine.world, page, row),
             "session_end": bool(over[row])} for row, answer in enumerate(answers)]
    if over.any():
        ended = np.flatnonzero(over)
        turn.put(ended, engine.next(turn.take(ended)))
    return told, int(over.sum())


def _bodies(engine: SessionEngine, sessions: Sessions, stage: str, explore: bool | None) -> Iterator[dict[str, Any]]:
    """A recommend request of every session."""
    world = engine.world
    offset, seen = engine.offered(sessions)
    predictions = engine.predictions(sessions.entry, offset).astype(np.float64)
    context = {name: column.tolist() for name, column in engine.context(sessions).items()}
    pool = engine.places_in_pool(offset)
    names = world.vocabulary.fusion_parameters
    for row in range(len(sessions.user)):
        item_ids = world.item_ids[world.item[sessions.entry[row], pool[row]]].tolist()
        body = {"user": {"user_id": _user(world, sessions, row)}, "scene": context["scene"][row], "stage": stage,
                "context": {name: column[row] for name, column in context.items()}, "top_n": engine.config.page,
                "candidates": {"item_id": item_ids, "seen": seen[row].tolist(),
                               "predictions": dict(zip(names, predictions[row].tolist(), strict=True))}}
        yield body if explore is None else {**body, "explore": explore}


def _user(world: World, sessions: Sessions, row: int) -> str:
    """The first person with a user's tastes has the user's id, the next ones `ID.1`, `ID.2`, …"""
    twin = int(sessions.person[row]) // world.users
    return f"{world.user_ids[sessions.user[row]]}{f'.{twin}' if twin else ''}"


def _require_same(world: World, page: Page, sessions: Sessions, answers: Sequence[dict[str, Any]]) -> None:
    """The server's page is the one that its weights give in the world."""
    shown = world.item_ids[world.item[sessions.entry[:, None], page.shown]]
    for row, answer in enumerate(answers):
        items = [item["item_id"] for item in answer["items"]]
        require(items == shown[row].tolist(), "items", items, f"{shown[row].tolist()}, by the weights of the answer")


def _told(world: World, page: Page, row: int) -> dict[str, float]:
    return {name: float(page.feedback[row, world.feedback.index(name)]) for name in world.vocabulary.behaviour_names}


def _post(client: httpx.Client, path: str, body: dict[str, Any]) -> dict[str, Any]:
    answer: dict[str, Any] = client.post(path, json=body).raise_for_status().json()
    return answer
