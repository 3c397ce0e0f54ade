"""Fusion of one request: state, decision, scores, order, and the decision's row of the log (maths 1.1, 2)."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from recfuse.behaviours import Vocabulary
from recfuse.config import InvalidFieldError
from recfuse.fusion.policies import Decision
from recfuse.serving.catalogue import CurrentCatalogue, FixedCatalogue, entries_of
from recfuse.serving.checks import FLOAT32_MAX, CheckedFeedback, check_behaviours, check_features
from recfuse.serving.config import ServingConfig
from recfuse.serving.decision_log import DECISION, FEEDBACK, Keeping, LogWriter
from recfuse.serving.formats import Body, RefusedError, Reply, decode, encode
from recfuse.serving.meters import Meters, NoMeters, Stopwatch
from recfuse.serving.models import Models
from recfuse.serving.schemas import FusionRequest, Order
from recfuse.state.candidates import CandidateEncoder, as_logged
from recfuse.state.clock import clock_features
from recfuse.state.encoder import StateEncoder
from recfuse.state.remembered import RememberedUsers
from recfuse.state.store import UserStates

_FUSION, _RECOMMEND, _FEEDBACK = ({"endpoint": name} for name in ("fusion", "recommend", "feedback"))


class Actor(Protocol):
    """What a fusion bundle gives (recfuse.fusion.inference.FusionActor)."""

    version: str
    vocabulary: Vocabulary

    @property
    def stages(self) -> Mapping[str, Actor]: ...

    def of(self, stage: str) -> Actor: ...

    def act(self, state: np.ndarray, explore: bool, *, seed: int | None = None) -> Decision: ...


class FusionModel:
    """An actor with what its vocabulary fixes."""

    def __init__(self, actor: Actor) -> None:
        self.actor = actor
        self.version, self.vocabulary = actor.version, actor.vocabulary
        self.meaning = actor.vocabulary.meaning
        self.encoder = StateEncoder(actor.vocabulary) if actor.vocabulary.state_features else None
        self.candidates = CandidateEncoder(actor.vocabulary) if actor.vocabulary.candidate_size else None


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """One request for a decision, however its predictions came about.

    Attributes:
        item_ids: N of them.
        predictions: name → float64[N] or a list of N numbers.
        seen: N booleans, of the candidates that are not to be shown again; None for none of them.
        context, context_source: features that the request says, and where all came from, for the answer.
        stored: features that are known beside the context.
        catalogue: answer with each item's catalogue entry.
        explain: answer with each item's predictions.
        elsewhere: fusion parameters that the scorer predicts in some scene: without predictions in this one they are
            0 for every candidate, which moves no candidate past another. All others need predictions. None where no
            scorer predicted.
        packed: answer in MessagePack instead of JSON.
        scorer_version: of the scorer that predicted; None where the predictions came with the request.
        extra: what the answer says besides the decision.
    """

    user_id: str
    stage: str
    scene: str | None
    session_id: str | None
    state: Sequence[float] | None
    context: Mapping[str, Any] | None
    item_ids: Sequence[int | str]
    predictions: Mapping[str, Any]
    explore: bool | None
    top_n: int | None
    order: Order
    seed: int | None
    seen: Sequence[bool] | None = None
    stored: Mapping[str, Any] = field(default_factory=dict)
    context_source: str = "context"
    catalogue: bool = False
    explain: bool = False
    elsewhere: frozenset[str] | None = None
    packed: bool = False
    scorer_version: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Pool:
    """What a request has to rank.

    Attributes:
        columns: float64[M, N], the predictions by which it is ranked.
        seen: bool[N], not to be shown again; None where there are none.
        logged: half precision holds the columns, and the decision's row keeps them.
    """

    columns: np.ndarray
    seen: np.ndarray | None
    logged: bool


class FusionService:
    """Answers fusion requests and takes feedback; one in each replica of the fusion deployment.

    Args:
        config: defaults and limits.
        models: what serves now.
        log: decisions and feedback are in it before they are answered.
        users: None where nobody is remembered.
        catalogue: of the items' entries.
        meters: what is measured goes there.
    """

    def __init__(self, config: ServingConfig, models: Models[FusionModel], log: LogWriter,
                 users: UserStates | None = None, catalogue: CurrentCatalogue | None = None,
                 meters: Meters | None = None) -> None:
        self._config, self._models, self._log, self._users = config, models, log, RememberedUsers(users)
        self._catalogue = catalogue or FixedCatalogue()
        self._keeping = Keeping(config.log_candidates_best, config.log_candidates_random)
        self._rng = np.random.default_rng()
        self.meters = meters or NoMeters()

    async def rank(self, stage: str, body: Body) -> Reply:
        """Ranks candidates that come with their predictions.

        Raises:
            InvalidFieldError, RefusedError: the request is bad, or names something that the model does not have.
        """
        watch = Stopwatch(self.meters, _FUSION)
        request = decode(FusionRequest, body, ("candidates.item_id",), ("candidates.predictions", "state"))
        candidates = request.candidates
        check_columns(candidates.item_id, candidates.predictions, candidates.seen, self._config.max_candidates)
        watch.lap("recfuse_decode_ms")
        reply = await self._decide(Ranking(
            user_id=str(request.user_id), stage=stage, scene=request.scene, session_id=request.session_id,
            state=request.state, context=request.context, item_ids=candidates.item_id,
            predictions=candidates.predictions, explore=request.explore, top_n=request.top_n, order=request.order,
            seed=request.seed, seen=candidates.seen, packed=body.answer_packed), watch)
        watch.whole("recfuse_request_ms")
        return reply

    async def decide(self, ranking: Ranking) -> Reply:
        """Ranks, logs, answers: the second half of a recommendation.

        Raises:
            InvalidFieldError, RefusedError: the request names something that the model does not have.
        """
        return await self._decide(ranking, Stopwatch(self.meters, _RECOMMEND))

    async def _decide(self, ranking: Ranking, watch: Stopwatch) -> Reply:
        model = self._models.arms.of(ranking.user_id)
        vocabulary = model.vocabulary
        if ranking.stage not in vocabulary.stages:
            raise RefusedError(404, "stage", ranking.stage, ", ".join(vocabulary.stages))
        scene = _scene(ranking, vocabulary)
        pool = self._pool(ranking, vocabulary)
        state, source = await self._state(model, ranking, scene, pool)
        explore = self._config.explore if ranking.explore is None else ranking.explore
        decision = model.actor.of(ranking.stage).act(state[None], explore, seed=ranking.seed)
        keys, scores = fuse_columns(pool.columns, decision.action[0], vocabulary)
        ranked = best_first(keys, ranking.order, pool.seen)
        watch.lap("recfuse_policy_ms")
        told = {"request_id": os.urandom(16).hex(), "model_version": model.version,
                "action_logp": float(decision.action_logp[0])}
        vectors = {"mu": decision.mu[0], "sigma": decision.sigma[0], "action": decision.action[0]}
        # The disk works while the answer is written; nobody hears of it before the decision is durable.
        with _durably():
            logged = self._log.append(DECISION, {
                **told, **vectors, "ts": time.time(), "user_id": ranking.user_id, "session_id": ranking.session_id,
                "stage": ranking.stage, "scene": scene, "state": state, "state_source": source, "explored": explore,
                "scorer_version": ranking.scorer_version, "vocabulary_hash": model.meaning,
                **self._kept(ranking, pool, ranked)})
        self._measure(ranking, decision, source, model.version)
        items = _items(ranking, pool.columns, scores, ranked[:ranking.top_n], vocabulary)
        if ranking.catalogue:
            self._add_entries(items, ranking.packed)
        # The log has the vectors in the vocabulary's order; who answers to people names their numbers. MessagePack has
        # no numbers of numpy, and JSON the shorter text of a float32.
        named = {name: dict(zip(vocabulary.fusion_parameters, vector.tolist() if ranking.packed else vector,
                                strict=True)) for name, vector in vectors.items()}
        answer = {**told, **named, "state_source": source, **ranking.extra, "items": items}
        reply = Reply(200, encode(answer, ranking.packed), packed=ranking.packed)
        watch.lap("recfuse_encode_ms")
        with _durably():
            await logged
        watch.lap("recfuse_log_ms")
        return reply

    async def feedback(self, checked: CheckedFeedback) -> Reply:
        """Logs what a user did with an answer, and remembers it of the user, once an event.

        Raises:
            RefusedError: the request names something that a model does not have or read.
        """
        watch = Stopwatch(self.meters, _FEEDBACK)
        request, arms = checked.request, self._models.arms
        model = arms.current if request.user_id is None else arms.of(str(request.user_id))
        check_behaviours(request.feedback, model.vocabulary)
        if request.features:
            # Who is the canary's today may be everybody's tomorrow, and the other way round.
            for each in (arms.current, *([] if arms.canary is None else [arms.canary.model])):
                check_features(each.encoder, request.features)
        with _durably():
            await self._log.append(FEEDBACK, {
                "ts": time.time(), "request_id": request.request_id, "event_id": checked.event_id,
                "feedback": request.feedback, "session_end": request.session_end})
        watch.lap("recfuse_log_ms")
        self.meters.record("recfuse_feedback", 1.0)
        source = None
        if request.user_id is not None and (request.items or request.features):
            source = await self._users.record(str(request.user_id), request.items or (), request.features,
                                              event=checked.event, history_size=checked.history_size)
        answer = {"request_id": request.request_id, "accepted": True, "state_source": source}
        return Reply(202, encode(answer, checked.packed), packed=checked.packed)

    def _measure(self, ranking: Ranking, decision: Decision, source: str, version: str) -> None:
        meters = self.meters
        meters.record("recfuse_decisions", 1.0, {"model_version": version, "stage": ranking.stage})
        meters.record("recfuse_candidates", len(ranking.item_ids), _RECOMMEND if ranking.catalogue else _FUSION)
        mu, sigma, action = decision.mu[0].tolist(), decision.sigma[0].tolist(), decision.action[0].tolist()
        meters.record("recfuse_sigma", sum(sigma) / len(sigma))
        distances = [abs(a - m) / s for a, m, s in zip(action, mu, sigma, strict=True)]
        meters.record("recfuse_action_distance", sum(distances) / len(distances))
        if max(distances) > 4.0:
            meters.record("recfuse_action_outliers", 1.0)
        if source in ("default", "degraded"):
            meters.record("recfuse_default_states", 1.0, {"status": source})

    def _add_entries(self, items: list[dict[str, Any]], packed: bool) -> None:
        entries = entries_of(self._catalogue.current, [item["item_id"] for item in items], packed)
        for item, entry in zip(items, entries, strict=True):
            item["catalogue"] = entry

    def _pool(self, ranking: Ranking, vocabulary: Vocabulary) -> _Pool:
        """The candidates, with predictions rounded as the log keeps them where it keeps them."""
        columns = _columns(ranking, vocabulary, self._config.constants)
        seen = np.array(ranking.seen, bool) if ranking.seen is not None and any(ranking.seen) else None
        if not self._config.log_candidates:
            return _Pool(columns, seen, logged=False)
        why = _why_unlogged(ranking.order, seen)
        if why is None:
            rounded = as_logged(columns)
            if rounded is not None and _takes(rounded, vocabulary):
                return _Pool(rounded.astype(np.float64), seen, logged=True)
            why = "half_precision"
        self.meters.record("recfuse_unlogged_candidates", 1.0, {"status": why})
        return _Pool(columns, seen, logged=False)

    def _kept(self, ranking: Ranking, pool: _Pool, ranked: np.ndarray) -> dict[str, Any]:
        """What the decision's row says of the candidates."""
        if not pool.logged:
            return {}
        rng = self._rng if ranking.seed is None else np.random.default_rng([ranking.seed, 1])
        return self._keeping.fields(ranking.item_ids, pool.columns, pool.seen, ranked, ranking.top_n, rng)

    async def _state(self, model: FusionModel, ranking: Ranking, scene: str, pool: _Pool) -> tuple[np.ndarray, str]:
        """The state float32[S] and where its context came from."""
        context, source = await self._context(model, ranking, scene)
        if model.candidates is None:
            return context, source
        seen = None if pool.seen is None else pool.seen[None]
        try:
            with np.errstate(over="ignore", invalid="ignore"):  # What overflows is refused below.
                part = model.candidates.encode(pool.columns[None], seen)[0]
        except InvalidFieldError:
            weighed_terms(pool.columns, model.vocabulary)  # names the prediction
            raise
        if not np.isfinite(part).all():
            raise RefusedError(422, "candidates.predictions", _largest(pool.columns),
                               "numbers whose mean and spread are finite")
        return np.concatenate([context, part]), source

    async def _context(self, model: FusionModel, ranking: Ranking, scene: str) -> tuple[np.ndarray, str]:
        """What the state says of who asks and when, float32, and where it came from: the request, its context, the
        store, or defaults alone."""
        size = model.vocabulary.context_size
        if ranking.state is not None:
            given = np.array(ranking.state, np.float64)
            if given.shape != (size,):
                rest = "" if model.candidates is None else (
                    f"; the other {model.vocabulary.candidate_size} of the state say what there is to rank and are "
                    "encoded here")
                raise RefusedError(422, "state", f"{len(given)} numbers", f"{size} numbers{rest}")
            if not (np.abs(given) <= FLOAT32_MAX).all():
                raise RefusedError(422, "state", float(given[np.abs(given).argmax()]), "numbers that fit float32")
            return given.astype(np.float32), "request"
        if model.encoder is None:
            if size == 0:
                return np.zeros(0, np.float32), "default"
            raise RefusedError(422, "state", None, f"{size} numbers: the model declares no features to encode one from")
        stored, source = ranking.stored, ranking.context_source
        if ranking.context is None:
            known = await self._users.get(ranking.user_id)
            stored, source = known.state.features, known.source
        zone = model.vocabulary.time_zone or self._config.time_zone
        said = {**clock_features(zone), **(ranking.context or {}), "scene": scene, "stage": ranking.stage}
        return _encoded(model.encoder, stored, said, source)


def _encoded(encoder: StateEncoder, stored: Mapping[str, Any], said: Mapping[str, Any],
             source: str) -> tuple[np.ndarray, str]:
    """The context, and where it came from: `degraded` where a stored value cannot be read and is left out."""
    while True:
        try:
            return encoder.encode_one({**stored, **said}), source
        except InvalidFieldError as error:
            if error.field in said or error.field not in stored:
                raise RefusedError(422, f"context.{error.field}", error.value, error.allowed) from None
            stored = {name: value for name, value in stored.items() if name != error.field}
            source = "degraded"


@contextmanager
def _durably() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        # Without the decision on disk the answer would be lost to learning; the client may try another replica.
        raise RefusedError(503, "decision_log", str(error), "a log that can be written; try again") from None


def _scene(ranking: Ranking, vocabulary: Vocabulary) -> str:
    """The request's, else that of its context, else the first."""
    named = (ranking.context or {}).get("scene") if ranking.scene is None else ranking.scene
    if named is None:
        return vocabulary.scenes[0] if vocabulary.scenes else "default"
    if vocabulary.scenes and named not in vocabulary.scenes:
        raise RefusedError(422, "scene", named, ", ".join(vocabulary.scenes))
    return str(named)


def check_columns(item_ids: Sequence[Any], predictions: Mapping[str, Sequence[float]], seen: Sequence[bool] | None,
                  limit: int) -> None:
    """Refuses more candidates than the limit, and columns of another length."""
    count = len(item_ids)
    check_count(item_ids, limit)
    for name, column in predictions.items():
        if len(column) != count:
            raise RefusedError(422, f"candidates.predictions.{name}", f"{len(column)} numbers",
                               f"{count} numbers, one for each item_id")
    if seen is not None and len(seen) != count:
        raise RefusedError(422, "candidates.seen", f"{len(seen)} booleans", f"{count} booleans, one for each item_id")


def check_count(item_ids: Sequence[Any], limit: int) -> None:
    """Refuses more candidates than the limit."""
    if len(item_ids) > limit:
        raise RefusedError(413, "candidates.item_id", f"{len(item_ids)} items", f"at most {limit} items")


def _columns(ranking: Ranking, vocabulary: Vocabulary, constants: Mapping[str, float]) -> np.ndarray:
    """float64[M, N], a row for each fusion parameter in their order, of `constants` where nobody predicts it."""
    predictions = {**constants, **ranking.predictions}
    missing = [name for name in vocabulary.fusion_parameters if name not in predictions]
    nobodys = [name for name in missing if name not in (ranking.elsewhere or ())]
    if nobodys:
        who = "" if ranking.elsewhere is None else "; the scorer predicts it in no scene"
        raise RefusedError(422, f"candidates.predictions.{nobodys[0]}", None,
                           f"predictions of each of {', '.join(vocabulary.fusion_parameters)}{who}")
    if len(missing) == vocabulary.action_size:
        raise RefusedError(422, "scene", ranking.scene,
                           f"predictions of one of {', '.join(vocabulary.fusion_parameters)} at least")
    columns = np.zeros((vocabulary.action_size, len(ranking.item_ids)))
    for row, name in enumerate(vocabulary.fusion_parameters):
        columns[row] = predictions.get(name, 0.0)
    return columns


def fuse_columns(columns: np.ndarray, action: np.ndarray, vocabulary: Vocabulary) -> tuple[np.ndarray, np.ndarray]:
    """`recfuse.fusion.ranking.fuse` in numpy, of predictions [M, N] and an action [M].

    Term by term, so that each candidate's sum is rounded alike wherever it stands, and equal candidates tie.

    Returns:
        float64[N] by which to rank, and the scores float64[N]; these are others for the formula `power` alone, whose
        products may tie where their logarithms differ.

    Raises:
        RefusedError: names the prediction that the formula does not take, or that no finite score comes of.
    """
    terms = weighed_terms(columns, vocabulary)
    with np.errstate(over="ignore", invalid="ignore"):  # What overflows is refused below.
        sums: np.ndarray = terms[0] * float(action[0])
        for row in range(1, len(terms)):
            sums += terms[row] * float(action[row])
        scores = np.exp(sums) if vocabulary.formula == "power" else sums
    if not np.isfinite(scores).all():
        raise RefusedError(422, "candidates.predictions", _largest(columns), "numbers whose fused score is finite")
    return sums, scores


def weighed_terms(columns: np.ndarray, vocabulary: Vocabulary) -> np.ndarray:
    """What the action weighs: the predictions, after their curves, or the logarithms of predictions above −offset."""
    if vocabulary.formula == "linear":
        return vocabulary.curved(columns)
    terms: np.ndarray = columns + vocabulary.offset
    if not terms.min() > 0.0:
        row, place = np.argwhere(~(terms > 0.0))[0]
        raise RefusedError(
            422, f"candidates.predictions.{vocabulary.fusion_parameters[row]}[{place}]",
            float(columns[row, place]), f"numbers > −{vocabulary.offset} (formula {vocabulary.formula})")
    return np.log(terms, out=terms)


def _takes(columns: np.ndarray, vocabulary: Vocabulary) -> bool:
    """Whether the formula takes these predictions."""
    return vocabulary.formula == "linear" or float(columns.min()) + vocabulary.offset > 0.0


def _why_unlogged(order: Order, seen: np.ndarray | None) -> str | None:
    """Why the action and the candidates would not tell the page that is shown; None where they do."""
    if order == "ascending":
        return "ascending"
    return "all_seen" if seen is not None and seen.all() else None


def _largest(columns: np.ndarray) -> float:
    return float(columns.flat[np.abs(columns).argmax()])


def best_first(scores: np.ndarray, order: Order, seen: np.ndarray | None = None) -> np.ndarray:
    """Positions in order, the best first; ties keep the candidates' order (maths 2.4), and seen ones are left out."""
    places: np.ndarray = np.argsort(-scores if order == "descending" else scores, kind="stable")
    return places if seen is None else places[~seen[places]]


def _items(ranking: Ranking, columns: np.ndarray, scores: np.ndarray, best: np.ndarray,
           vocabulary: Vocabulary) -> list[dict[str, Any]]:
    ids = ranking.item_ids
    items: list[dict[str, Any]] = [{"item_id": ids[i], "score": score}
                                   for i, score in zip(best.tolist(), scores[best].tolist(), strict=True)]
    if ranking.explain:
        for item, row in zip(items, columns[:, best].T.tolist(), strict=True):
            item["predictions"] = dict(zip(vocabulary.fusion_parameters, row, strict=True))
    return items
