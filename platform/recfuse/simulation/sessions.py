"""Sessions in a world: requests, ranked pages, responses, staying or leaving, returning."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from recfuse.simulation.response import marginals, sigmoid
from recfuse.simulation.uniform import mix, uniform
from recfuse.simulation.world import World
from recfuse.state.candidates import CandidateEncoder
from recfuse.state.encoder import StateEncoder

DAY = 86_400.0
# What the draws of a request are for; draws of a place on the page follow, per place.
_OFFSET, _SCENE, _LEAVE, _RETURN, _START, _OUTCOME, _LOOK, _WATCH, _INTERACT = range(9)
# A request takes so many seconds, and so many more where the amount is no time.
_PAUSE, _LOOKING = 5.0, 20.0


@dataclass
class Sessions:
    """B sessions under way, one a user; arrays `[B]` unless said otherwise.

    Attributes:
        user: position in the world; number: of this user's session; entry: position in the world's entries.
        person: what the luck hangs on; several persons may have the tastes of one user.
        request: requests answered so far; clock: days since the start; mood: of the user, 0 is neutral.
        seen: bool[B, P], shown in this session; key: uint64, what the session's random numbers hang on.
        watch, interactions, last_watch, last_clicks: the session so far: amounts; interactions that are wanted, or
            last steps of the ladder where there are none; amount and first steps of the last request.
    """

    user: np.ndarray
    person: np.ndarray
    number: np.ndarray
    entry: np.ndarray
    request: np.ndarray
    clock: np.ndarray
    mood: np.ndarray
    seen: np.ndarray
    key: np.ndarray
    watch: np.ndarray
    interactions: np.ndarray
    last_watch: np.ndarray
    last_clicks: np.ndarray

    def take(self, index: np.ndarray) -> Sessions:
        """The sessions at these positions."""
        return Sessions(**{name: column[index] for name, column in self.__dict__.items()})

    def put(self, index: np.ndarray, other: Sessions) -> None:
        """Replaces the sessions at these positions."""
        for name, column in self.__dict__.items():
            column[index] = getattr(other, name)


@dataclass(frozen=True)
class Page:
    """What one request of B sessions brought.

    Attributes:
        feedback: float32[B, F], as in `World.feedback`, sums over the places looked at.
        shown: int64[B, page], positions in the pool, best place first; looked: bool[B, page].
        outcome: int64[B, page], steps of the ladder; watch_time: float32[B, page], the amount; 0 where not looked.
        left: bool[B], the user left by choice; cut: bool[B], the session reached its greatest length.
        satisfaction: float64[B], raw: before standardisation; mood: float64[B], the user's after it.
        offset: int64[B], where in the pool the candidates began; seen: bool[B, candidates], those that were not to be
            shown again; places: int64[B, page], of what was shown among the candidates.
    """

    feedback: np.ndarray
    shown: np.ndarray
    looked: np.ndarray
    outcome: np.ndarray
    watch_time: np.ndarray
    left: np.ndarray
    cut: np.ndarray
    satisfaction: np.ndarray
    mood: np.ndarray
    offset: np.ndarray
    seen: np.ndarray
    places: np.ndarray


class SessionEngine:
    """The dynamics. No state of its own: `Sessions` hold it, `seed` and the sessions' keys hold the luck.

    Args:
        world: where; seed: the luck of every session.
    """

    def __init__(self, world: World, seed: int) -> None:
        self.world, self.seed = world, seed
        self.config = world.config
        self._encoder = StateEncoder(world.vocabulary)
        self._candidates = CandidateEncoder(world.vocabulary) if world.vocabulary.candidate_features else None
        self._first = world.first_entry
        pool, candidates = self.config.pool, self.config.candidates
        # [E, P, M, candidates]: a window of candidates is a slice of the terms, without a copy.
        self._windows, self._predictions = (
            np.lib.stride_tricks.sliding_window_view(of_pool, candidates, axis=2)[:, :, :pool].transpose(0, 2, 1, 3)
            for of_pool in (world.terms, world.predictions))
        self._places = np.arange(self.config.page)
        # What each interaction adds to satisfaction.
        responses = world.responses
        self._value = np.array([self.config.hate_value if name in responses.unwanted else self.config.interaction_value
                                for name in responses.interactions], np.float32)
        self._ladder = len(responses.ladder)
        self._counted = world.columns(responses.wanted or responses.ladder[-1:])
        self._user_columns = {name: world.features[name] for name in self._encoder.names if name in world.features}

    def start(self, user: np.ndarray, person: np.ndarray, number: np.ndarray, clock: np.ndarray,
              mood: np.ndarray) -> Sessions:
        """New sessions of these users `[B]` at these times."""
        rows = len(user)
        key = mix(self.seed, person, number)
        return Sessions(
            user=user.copy(), person=person.copy(), number=number.copy(), key=key, clock=clock.copy(), mood=mood.copy(),
            entry=self._choose_entry(user, uniform(key, _SCENE)), request=np.zeros(rows, np.int64),
            seen=np.zeros((rows, self.config.pool), bool), watch=np.zeros(rows, np.float32),
            interactions=np.zeros(rows, np.float32), last_watch=np.zeros(rows, np.float32),
            last_clicks=np.zeros(rows, np.float32))

    def first(self, user: np.ndarray, person: np.ndarray) -> Sessions:
        """Everybody's first session, at a time within the first mean return."""
        number = np.zeros(len(user), np.int64)
        spread = min(self.config.return_days, self.config.horizon_days)
        clock = uniform(mix(self.seed, person, number), _START) * spread
        return self.start(user, person, number, clock, np.zeros(len(user)))

    def next(self, sessions: Sessions) -> Sessions:
        """The same users' next sessions: a user in a good mood returns sooner, and has forgotten half of it."""
        config = self.config
        effect = config.return_effect if config.responsive else 0.0
        mean = config.return_days * np.exp(-effect * sessions.mood)
        gap = -np.log1p(-uniform(sessions.key, _RETURN)) * mean
        return self.start(sessions.user, sessions.person, sessions.number + 1, sessions.clock + gap, sessions.mood * .5)

    def context(self, sessions: Sessions) -> dict[str, np.ndarray]:
        """The state features of the next request, as columns `[B]`."""
        return {**self._entry_context(sessions.entry, sessions.user), **self._moving_context(sessions)}

    def _entry_context(self, entry: np.ndarray, user: np.ndarray) -> dict[str, np.ndarray]:
        columns = {name: column[user] for name, column in self._user_columns.items()}
        return {**columns, "scene": np.array(self.world.scenes)[self.world.entry_scene[entry]]}

    def _moving_context(self, sessions: Sessions) -> dict[str, np.ndarray]:
        """What moves in a session, by the names that the responses have."""
        watch, last = ((sessions.watch,), (sessions.last_watch,)) if self.world.responses.amount else ((), ())
        columns = (np.floor((sessions.clock * 24 + 8) % 24), sessions.request, *watch, sessions.interactions, *last,
                   sessions.last_clicks)
        return dict(zip(self.world.responses.session_features, columns, strict=True))

    @cached_property
    def _entry_states(self) -> np.ndarray:
        """float32[E, S]: of every entry what does not move; the rest as of a context that lacks it."""
        entries = np.arange(len(self.world.entry_user))
        return self._encoder.encode(self._entry_context(entries, self.world.entry_user), rows=len(entries))

    @cached_property
    def _moving(self) -> tuple[StateEncoder, np.ndarray] | None:
        """The encoder of what moves, and its columns of the state; None where the state has none of it."""
        vocabulary = self.world.vocabulary
        features, starts = vocabulary.state_features, np.cumsum([0, *(f.width for f in vocabulary.state_features)])
        names = self.world.responses.session_features
        moving = [k for k, feature in enumerate(features) if feature.name in names]
        if not moving:
            return None
        places = np.concatenate([np.arange(starts[k], starts[k + 1]) for k in moving])
        part = vocabulary.replace(state_features=tuple(features[k] for k in moving), state_size=len(places),
                                  candidate_features=None)
        return StateEncoder(part), places

    def observe(self, sessions: Sessions) -> np.ndarray:
        """States, float32[B, S]."""
        states = self._entry_states[sessions.entry]
        if self._moving is not None:
            encoder, places = self._moving
            states[:, places] = encoder.encode(self._moving_context(sessions), rows=len(states))
        if self._candidates is None:
            return states
        offset, seen = self.offered(sessions)
        encoded = self._candidates.encode(self.predictions(sessions.entry, offset), seen)
        return np.concatenate([states, encoded], 1)

    def predictions(self, entry: np.ndarray, offset: np.ndarray) -> np.ndarray:
        """float16[B, M, candidates], of the candidates that begin at these places of the pools."""
        result: np.ndarray = self._predictions[entry, offset]
        return result

    def scores(self, entry: np.ndarray, offset: np.ndarray, seen: np.ndarray, action: np.ndarray) -> np.ndarray:
        """float32[B, candidates], fused by `action` [B, M] (maths 2); −∞ where a candidate was seen."""
        scores: np.ndarray = np.matmul(action[:, None, :].astype(np.float32), self._windows[entry, offset])[:, 0]
        scores[seen] = -np.inf
        return scores

    def offered(self, sessions: Sessions) -> tuple[np.ndarray, np.ndarray]:
        """Where in the pool the next request's candidates begin, and which of them are not to be shown again."""
        config = self.config
        offset = (uniform(_luck(sessions), _OFFSET) * config.pool).astype(np.int64)
        seen = np.take_along_axis(sessions.seen, self.places_in_pool(offset), 1)
        # Candidates that would not fill a page are all offered anew.
        seen[(~seen).sum(1) < config.page] = False
        return offset, seen

    def places_in_pool(self, offset: np.ndarray) -> np.ndarray:
        """int64[B, candidates], of the candidates that begin at these places of the pools."""
        places: np.ndarray = (offset[:, None] + np.arange(self.config.candidates)) % self.config.pool
        return places

    def expected_satisfaction(self, sessions: Sessions, action: np.ndarray) -> np.ndarray:
        """float64[B]: the mean raw satisfaction with the page that `action` [B, M] ranks, by the response model."""
        shown = self.rank(sessions, action)
        chance = marginals(self.world.logits[sessions.entry[:, None], shown], self.world.outcome)
        value = chance[..., :self._ladder].sum(-1) + chance[..., self._ladder:] @ self._value
        attention = self.config.attention ** self._places
        result: np.ndarray = (value @ (attention / attention.sum())).astype(np.float64)
        return result

    def rank(self, sessions: Sessions, action: np.ndarray) -> np.ndarray:
        """The page of every session, int64[B, page] positions in the pool, fused by `action` [B, M] (maths 2)."""
        return self._rank(sessions, action)[0]

    def _rank(self, sessions: Sessions, action: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """What is shown, by its places in the pool; and of the candidates offset, seen, and places of what is shown."""
        offset, seen = self.offered(sessions)
        scores = self.scores(sessions.entry, offset, seen, action)
        places = np.argsort(-scores, axis=1, kind="stable")[:, :self.config.page]
        return (offset[:, None] + places) % self.config.pool, offset, seen, places

    def step(self, sessions: Sessions, action: np.ndarray) -> Page:
        """Ranks by `action` [B, M], draws the response and moves the sessions on by one request."""
        return self._answer(sessions, *self._rank(sessions, action))

    def show(self, sessions: Sessions, places: np.ndarray) -> Page:
        """Likewise, of pages that somebody else has ranked: int64[B, page], places among the offered candidates."""
        offset, seen = self.offered(sessions)
        return self._answer(sessions, (offset[:, None] + places) % self.config.pool, offset, seen, places)

    def _answer(self, sessions: Sessions, shown: np.ndarray, offset: np.ndarray, seen: np.ndarray,
                places: np.ndarray) -> Page:
        """Draws the response to what is shown and moves the sessions on."""
        base = _luck(sessions)
        looked, outcome, interacted, watch = self._respond(sessions, base, shown)
        amount, amounts = watch.sum(1, keepdims=True), len(self.world.responses.amounts)
        feedback = np.concatenate([
            amount[:, :amounts], *((outcome > step).sum(1, keepdims=True) for step in range(self._ladder)),
            interacted.sum(1)], 1).astype(np.float32)
        satisfaction = _satisfaction(looked, outcome, interacted @ self._value)
        scene = self.world.entry_scene[sessions.entry]
        went = (satisfaction - self.world.page_mean[sessions.entry]) / self.world.page_std[scene]
        memory = self.config.mood_memory
        # Unit variance under the logged policy: chance averages out over requests, steady quality adds up.
        sessions.mood[:] = memory * sessions.mood + np.sqrt(1 - memory**2) * went
        sessions.request += 1
        spent = amount[:, 0] if self.world.responses.amount_is_time else _LOOKING
        sessions.clock += (spent + _PAUSE) / DAY
        np.put_along_axis(sessions.seen, shown, True, 1)
        exhausted = sessions.seen.sum(1) > self.config.pool - self.config.candidates
        sessions.seen[exhausted] = False
        sessions.watch += amount[:, 0]
        sessions.interactions += feedback[:, self._counted].sum(1)
        sessions.last_watch[:], sessions.last_clicks[:] = amount[:, 0], feedback[:, amounts]
        effect = self.config.stay_effect if self.config.responsive else 0.0
        left = uniform(base, _LEAVE) < sigmoid(self.world.leave[scene] - effect * sessions.mood)
        cut = ~left & (sessions.request >= self.config.max_requests)
        return Page(feedback, shown, looked, outcome, watch, left, cut, satisfaction, sessions.mood.copy(), offset,
                    seen, places)

    def _choose_entry(self, user: np.ndarray, u: np.ndarray) -> np.ndarray:
        entry, last = self._first[user].copy(), self._first[user + 1] - 1
        for _ in range(len(self.world.scenes)):
            entry += (entry < last) & (u >= self.world.entry_share[entry])
        return entry

    def _respond(self, sessions: Sessions, base: np.ndarray,
                 shown: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """looked, outcome, watch `[B, page]` and interactions `[B, page, K]`; zero where nobody looked."""
        world = self.world
        entry = sessions.entry[:, None]
        draw = mix(base[:, None], self._places)
        # Whoever looks at a place has looked at all before it.
        looked = np.logical_and.accumulate(
            (uniform(draw, _LOOK) < self.config.attention) | (self._places == 0), axis=1)
        logits = world.logits[entry, shown]
        u = uniform(draw, _OUTCOME)
        reached = np.cumprod(sigmoid(logits[..., :self._ladder]), -1)
        outcome = np.where(looked, (u[..., None] < reached).sum(-1), 0)
        chance = sigmoid(logits[..., self._ladder:] + world.outcome[outcome])
        kinds = np.arange(chance.shape[-1])
        interacted = (uniform(draw[..., None], _INTERACT, kinds) < chance) & looked[..., None]
        watch = world.amount(entry, shown, outcome, uniform(draw, _WATCH)) * looked
        return looked, outcome, interacted, watch


def _luck(sessions: Sessions) -> np.ndarray:
    """uint64[B]: what the next request's random numbers hang on; apart from those of the session itself."""
    return mix(sessions.key, sessions.request + 16)


def _satisfaction(looked: np.ndarray, outcome: np.ndarray, interactions: np.ndarray) -> np.ndarray:
    """float64[B]: mean over the places looked at of: 1 a step of the ladder, plus what the interactions
    [B, page] are worth."""
    result: np.ndarray = ((outcome + interactions) * looked).sum(1) / looked.sum(1)
    return result.astype(np.float64)
