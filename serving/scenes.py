"""Scoring of one request within a scene: features, probabilities, and the operator's order (maths 3.5)."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np

from recfuse.config import InvalidFieldError
from recfuse.logs.ids import keys_of
from recfuse.serving.catalogue import Catalogue, CatalogueScorer, Scores, entries_of
from recfuse.serving.checks import CheckedFeedback
from recfuse.serving.config import ServingConfig
from recfuse.serving.formats import Body, RefusedError, Reply, decode, encode
from recfuse.serving.fusion import Ranking, check_columns, check_count
from recfuse.serving.meters import Meters, NoMeters, Stopwatch
from recfuse.serving.models import Models
from recfuse.serving.schemas import Candidates, FeedbackRequest, RecommendRequest, ScenesRequest, TaskFusion, User
from recfuse.state.clock import clock_features
from recfuse.state.remembered import RememberedUsers
from recfuse.state.store import UserStates

_SCENES, _RECOMMEND = {"endpoint": "scenes"}, {"endpoint": "recommend"}
_NO_SCORER = "no scorer is served here; `export --scenes` publishes one"
RANK_OFFSET = 60.0  # the constant of reciprocal rank fusion (Cormack et al., SIGIR 2009)


def fuse_tasks(probabilities: Mapping[str, np.ndarray], weights: Mapping[str, float], how: TaskFusion) -> np.ndarray:
    """Scores within a scene, float64[N] (maths 3.5).

    Args:
        probabilities: task → [N].
        weights: task → α ≥ 0 with a sum > 0; tasks without one count nothing.
        how: `mean` Σ α O / Σ α, `power` Π O^α, `rank` Σ α / (60 + place of the item by that task).
    """
    used = [(np.asarray(probabilities[task], np.float64), weight) for task, weight in weights.items() if weight > 0]
    if how == "mean":
        return sum((weight * column for column, weight in used), np.zeros(())) / sum(weight for _, weight in used)
    if how == "power":
        return np.exp(sum((weight * np.log(np.maximum(column, 1e-30)) for column, weight in used), np.zeros(())))
    return sum((weight / (RANK_OFFSET + _places(column)) for column, weight in used), np.zeros(()))


def _places(column: np.ndarray) -> np.ndarray:
    """1 for the largest; equal values share a place."""
    _, inverse, counts = np.unique(-column, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - counts + 1)[inverse]


class NoScorer:
    """What there is where the pointer names no scorer: requests bring their own predictions."""

    version: str | None = None
    tasks: Mapping[str, tuple[str, ...]] = MappingProxyType({})
    history_length = 0

    def check_user(self, features: Mapping[str, Any]) -> None:
        """It reads none."""

    def score(self, scene: str, user: Mapping[str, Any], items: Mapping[str, np.ndarray]) -> Scores:
        """Raises RefusedError."""
        raise RefusedError(404, "scene", scene, _NO_SCORER)


@dataclass(frozen=True)
class _KnownUser:
    """Who asks, and what is known of them.

    Attributes:
        sent: features of the request, which go before stored ones.
        history: the request's, else the stored one.
        source: of the features, for the answer.
    """

    user: User
    sent: Mapping[str, Any]
    stored: Mapping[str, Any]
    history: Sequence[int | str]
    source: str

    def without(self, field: str) -> _KnownUser | None:
        """The same without a stored value that cannot be read; None where the request itself says it."""
        place, _, name = field.partition(".")
        if field == "history" and self.user.history is None and self.history:
            return replace(self, history=(), source="degraded")
        if place in ("user", "context") and name in self.stored and name not in self.sent:
            stored = {other: value for other, value in self.stored.items() if other != name}
            return replace(self, stored=stored, source="degraded")
        return None


class ScenesService:
    """Answers scene requests, and predicts for recommendations; one in each replica of the scorer's deployment.

    Args:
        config: weights and limits.
        models: what serves now, with the catalogue of the items' features and entries.
        users: None where nobody is remembered.
        meters: what is measured goes there.
    """

    def __init__(self, config: ServingConfig, models: Models[CatalogueScorer], users: UserStates | None = None,
                 meters: Meters | None = None) -> None:
        self._config, self._models, self._users = config, models, RememberedUsers(users)
        self.meters = meters or NoMeters()

    async def rank(self, scene: str, body: Body) -> Reply:
        """Ranks candidates within a scene.

        Raises:
            RefusedError: the request is bad, or names something that the model does not have.
        """
        watch, arms = Stopwatch(self.meters, _SCENES), self._models.arms
        _require_scene(arms.current, scene)
        request = decode(ScenesRequest, body)
        scorer = arms.of(str(request.user.user_id))
        _require_scene(scorer, scene)
        watch.lap("recfuse_decode_ms")
        weights = self._weights(scene, scorer.tasks[scene], request.weights)
        check_count(request.candidates.item_id, self._config.max_candidates)
        known = await self._known(request.user)
        scores, _ = self._score(scorer, scene, known, request.candidates)
        watch.lap("recfuse_scorer_ms")
        total = fuse_tasks(scores.probabilities, weights, request.fusion)
        best = np.argsort(-total, kind="stable")[:request.top_n]
        self.meters.record("recfuse_candidates", len(request.candidates.item_id), _SCENES)
        items = _items(request.candidates.item_id, scores, total, best, scorer.catalogue, body.answer_packed)
        answer = {"request_id": os.urandom(16).hex(), "model_version": scorer.version, "weights": weights,
                  "unknown": dict(scores.unknown), "items": items}
        reply = Reply(200, encode(answer, body.answer_packed), packed=body.answer_packed)
        watch.lap("recfuse_encode_ms")
        watch.whole("recfuse_request_ms")
        return reply

    async def predict(self, body: Body) -> Ranking:
        """The first half of a recommendation: what the fusion deployment is to rank.

        Raises:
            RefusedError: the request is bad, or names something that the model does not have.
        """
        watch = Stopwatch(self.meters, _RECOMMEND)
        request = decode(RecommendRequest, body)
        scorer = self._models.arms.of(str(request.user.user_id))
        watch.lap("recfuse_decode_ms")
        candidates, own = request.candidates, request.candidates.predictions or {}
        check_columns(candidates.item_id, own, candidates.seen, self._config.max_candidates)
        if not own:
            _require_scorable(scorer, request.scene)
        known = await self._known(request.user)
        probabilities: Mapping[str, Any] = {}
        unknown: Mapping[str, int] = {}
        if request.scene in scorer.tasks:
            scores, known = self._score(scorer, request.scene, known, candidates)
            probabilities, unknown = scores.probabilities, scores.unknown
        watch.lap("recfuse_scorer_ms")
        if request.context is not None:
            known = _KnownUser(request.user, request.context, {}, (), "context")
        return Ranking(
            user_id=str(request.user.user_id), stage=request.stage, scene=request.scene, session_id=request.session_id,
            state=request.state, context=known.sent, stored=known.stored, context_source=known.source,
            item_ids=request.candidates.item_id,
            predictions={**probabilities, **own}, explore=request.explore, top_n=request.top_n, order=request.order,
            seed=request.seed, seen=candidates.seen, explain=request.explain, catalogue=True,
            elsewhere=frozenset(task for tasks in scorer.tasks.values() for task in tasks) if probabilities else None,
            packed=body.answer_packed, scorer_version=scorer.version if probabilities else None,
            extra={"scenes_version": scorer.version, "unknown": dict(unknown)})

    async def check(self, body: Body) -> CheckedFeedback:
        """The first half of feedback: refuses what a scorer could not read of the user later.

        Raises:
            RefusedError: the request is bad.
        """
        request, arms = decode(FeedbackRequest, body), self._models.arms
        scorers = [each.scorer for each in ([arms.current] if arms.canary is None
                                            else [arms.current, arms.canary.model])]
        checked = CheckedFeedback.of(request, body, max(scorer.history_length for scorer in scorers))
        for scorer in scorers if request.features else ():
            try:
                scorer.check_user(request.features or {})
            except InvalidFieldError as error:
                name = error.field.partition(".")[2] or error.field
                raise RefusedError(422, f"features.{name}", error.value, error.allowed) from None
        return checked

    async def _known(self, user: User) -> _KnownUser:
        """What was sent of the user, what is stored, and where the features came from."""
        known = await self._users.get(str(user.user_id))
        sent = user.model_extra or {}
        history = known.state.history if user.history is None else user.history
        return _KnownUser(user, sent, known.state.features, history, "context" if sent else known.source)

    def _score(self, scorer: CatalogueScorer, scene: str, known: _KnownUser,
               candidates: Candidates) -> tuple[Scores, _KnownUser]:
        """The scores, and what was known of the user without stored values that the scorer cannot read."""
        keys, sent = keys_of(candidates.item_id), _sent(candidates)
        while True:
            features = {**known.stored, **clock_features(self._config.time_zone), **known.sent,
                        "user_id": known.user.user_id, "history": list(known.history)}
            try:
                scores = scorer.score(scene, features, keys, sent)
                break
            except InvalidFieldError as error:
                readable = known.without(error.field)
                if readable is None:
                    raise RefusedError(422, error.field, error.value, error.allowed) from None
                known = readable
        unknown = scores.unknown.get("item_id", 0) / len(candidates.item_id)
        self.meters.record("recfuse_unknown_share", unknown, {"scene": scene})
        return scores, known

    def _weights(self, scene: str, tasks: Sequence[str], sent: Mapping[str, float] | None) -> dict[str, float]:
        weights = self._config.scene_weights.get(scene, dict.fromkeys(tasks, 1.0)) if sent is None else sent
        for task, weight in weights.items():
            if task not in tasks:
                raise RefusedError(422, f"weights.{task}", weight, f"tasks of the scene: {', '.join(tasks)}")
            if not 0 <= weight <= 1e6:
                raise RefusedError(422, f"weights.{task}", weight, "a number from 0 to 1e6")
        if sum(weights.values()) <= 0:
            raise RefusedError(422, "weights", dict(weights), "weights with a sum > 0")
        return dict(weights)


def _items(item_ids: Sequence[int | str], scores: Scores, total: np.ndarray, best: np.ndarray,
           catalogue: Catalogue | None, packed: bool) -> list[dict[str, Any]]:
    chosen = [item_ids[i] for i in best.tolist()]
    columns = {task: np.asarray(column)[best].tolist() for task, column in scores.probabilities.items()}
    entries = entries_of(catalogue, chosen, packed)
    return [{"item_id": item_id, "score": score, "probabilities": {t: column[n] for t, column in columns.items()},
             "catalogue": entry}
            for n, (item_id, score, entry) in enumerate(zip(chosen, total[best].tolist(), entries, strict=True))]


def _require_scene(scorer: CatalogueScorer, scene: str) -> None:
    if scene not in scorer.tasks:
        raise RefusedError(404, "scene", scene, ", ".join(scorer.tasks) or f"nothing: {_NO_SCORER}")


def _require_scorable(scorer: CatalogueScorer, scene: str) -> None:
    """Refuses a request without predictions that the scorer cannot make any for."""
    if not scorer.tasks:
        raise RefusedError(422, "candidates.predictions", None, f"a column for each fusion parameter: {_NO_SCORER}")
    if scene not in scorer.tasks:
        raise RefusedError(422, "scene", scene, ", ".join(scorer.tasks))


def _sent(candidates: Candidates) -> dict[str, np.ndarray]:
    """The items' features that the request brings."""
    columns = {}
    for name, values in (candidates.model_extra or {}).items():
        if len(values) != len(candidates.item_id):
            raise RefusedError(422, f"candidates.{name}", f"{len(values)} values",
                               f"{len(candidates.item_id)} values, one for each item_id")
        columns[name] = _array(values)
    return columns


def _array(values: Sequence[Any]) -> np.ndarray:
    """int64 or float64 where all values are such numbers, else objects."""
    kinds = set(map(type, values))
    if kinds == {int}:
        return np.array(values, np.int64)
    if kinds <= {int, float}:
        return np.array(values, np.float64)
    column = np.empty(len(values), object)
    column[:] = values
    return column
