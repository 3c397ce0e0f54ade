"""The simulated world: users, their pools of candidates, the scorer's predictions and the response model's answers.

Everything that a step needs is precomputed per (entry, pool item), where an *entry* is one user in one scene; a step is
then gathers and sums. What a world assumes, and the real log cannot say, is in `WorldConfig` and nowhere else.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from recfuse.behaviours import Vocabulary
from recfuse.config import InvalidFieldError, from_mapping, require
from recfuse.simulation.response import HEADS, INTERACTIONS, OUTCOMES

# What a page's response is counted in; a vocabulary's behaviours are some of these.
FEEDBACK = ("watch_time", "click", "long_view", *INTERACTIONS)
VOCABULARY_FILE, ARRAYS_FILE, WORLD_FILE = "vocabulary.yaml", "world.npz", "world.json"
# Features of a session as it goes; all but the hour through log(1 + x).
SESSION_FEATURES = ("hour", "requests_so_far", "watch_so_far", "interactions_so_far", "last_watch_time", "last_clicks")


@dataclass(frozen=True, kw_only=True)
class WorldConfig:
    """What the world assumes.

    A session is all of a user's visits within the window of the logs, and one exposure of the log stands for one
    request: the public logs keep a small part of what was shown, so that shorter windows hold about one exposure.

    Attributes:
        users: simulated users, drawn from those of the exposures by their number of rows.
        pool: items retrieved per entry; candidates: of them per request; page: items shown.
        attention: probability of looking at the next place of the page after each one.
        stay_effect: log-odds by which one unit of mood (a standard deviation under the logged policy) lowers the
            probability of leaving. The thinned public log cannot say it (there, what was shown hardly moves whether
            another exposure follows), so it is declared.
        interaction_value, hate_value: what a like, comment, forward or follow, and what a hate, adds to the
            satisfaction with a page, where a click is worth 1 and a long view 2; moods are made of satisfactions. In
            the log no interaction moves staying beyond its interval (`python -m benchmarks.staying`): declared, too.
        return_effect: log of the factor by which one unit of mood shortens the time until the user returns.
        mood_memory: autocorrelation of the mood from one request to the next; what is new is how the page went.
        responsive: False switches both effects off: then nothing that is shown has consequences beyond its page.
        return_days: mean days until a user returns at neutral mood; horizon_days: the length of a simulation.
        max_requests: a session that long is cut.
        retrieval: item feature whose values in the user's history raise an item's chance of retrieval.
    """

    users: int = 2_000
    pool: int = 100
    candidates: int = 50
    page: int = 6
    attention: float = 0.85
    stay_effect: float = 1.5
    interaction_value: float = 1.0
    hate_value: float = -3.0
    return_effect: float = 0.3
    mood_memory: float = 0.5
    responsive: bool = True
    return_days: float = 4.0
    horizon_days: float = 11.0
    max_requests: int = 60
    retrieval: str = "tag"
    seed: int = 11

    def __post_init__(self) -> None:
        for name in ("users", "pool", "candidates", "page", "max_requests"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "an integer ≥ 1")
        require(self.candidates <= self.pool, "candidates", self.candidates, f"at most pool = {self.pool}")
        require(self.page <= self.candidates, "page", self.page, f"at most candidates = {self.candidates}")
        require(0 < self.attention <= 1, "attention", self.attention, "a number in (0, 1]")
        require(0 <= self.mood_memory < 1, "mood_memory", self.mood_memory, "a number in [0, 1)")
        for name in ("interaction_value", "hate_value"):
            require(math.isfinite(getattr(self, name)), name, getattr(self, name), "a finite number")
        for name in ("return_days", "horizon_days"):
            require(getattr(self, name) > 0, name, getattr(self, name), "a number > 0")


@dataclass(frozen=True)
class World:
    """A world, ready to be simulated. E entries, P pool items, M fusion parameters, H heads, U users.

    Attributes:
        terms: float32[E, M, P + candidates]: what a fusion parameter multiplies, log(prediction + offset) or the
            prediction; the pool's beginning is repeated at its end, so that a window of candidates is one slice.
        logits: float32[E, P, H] of the response model, calibrated to this world.
        item: int32[E, P], positions in `item_ids`; duration_bin: int8[E, P].
        entry_user, entry_scene: int64[E]; the entries of a user are neighbours, those of user u from `first_entry[u]`.
        entry_share: float64[E], cumulated within a user: which of the user's entries a session is.
        user_ids, item_ids: int64[U], int64[I]: the source's ids.
        outcome, watch_time: of the response model.
        leave: float64[S], log-odds of leaving after a request at neutral mood.
        page_mean: float64[E], the raw satisfaction with a page that the user has learned to expect in the scene, under
            the logged policy: mood is about what is better or worse than that. page_std: float64[S], its spread.
        features: state feature → column `[U]` (strings for categorical ones).
        start: first day of the simulation, µs since 1970, UTC.
    """

    config: WorldConfig
    vocabulary: Vocabulary
    scenes: tuple[str, ...]
    terms: np.ndarray
    logits: np.ndarray
    item: np.ndarray
    duration_bin: np.ndarray
    entry_user: np.ndarray
    entry_scene: np.ndarray
    entry_share: np.ndarray
    user_ids: np.ndarray
    item_ids: np.ndarray
    outcome: np.ndarray
    watch_time: np.ndarray
    leave: np.ndarray
    page_mean: np.ndarray
    page_std: np.ndarray
    features: Mapping[str, np.ndarray]
    start: int

    def __post_init__(self) -> None:
        entries, parameters, padded = self.terms.shape
        pool = self.config.pool
        require(padded == pool + self.config.candidates, "terms", self.terms.shape, f"[E, M, {pool} + candidates]")
        require(parameters == self.vocabulary.action_size, "terms", self.terms.shape,
                f"{self.vocabulary.action_size} fusion parameters")
        require(self.logits.shape == (entries, pool, len(HEADS)), "logits", self.logits.shape,
                f"{(entries, pool, len(HEADS))}")
        require(self.outcome.shape == (len(OUTCOMES), len(INTERACTIONS)), "outcome", self.outcome.shape,
                f"{(len(OUTCOMES), len(INTERACTIONS))}")
        unknown = set(self.vocabulary.behaviour_names) - set(FEEDBACK)
        require(not unknown, "behaviours", sorted(unknown), f"some of {', '.join(FEEDBACK)}")

    @property
    def users(self) -> int:
        return len(self.user_ids)

    @property
    def first_entry(self) -> np.ndarray:
        """int64[U + 1]: where each user's entries begin."""
        return np.searchsorted(self.entry_user, np.arange(self.users + 1))

    def replace(self, **changes: Any) -> World:
        """A copy with other values."""
        return dataclasses.replace(self, **changes)

    def save(self, directory: str | Path) -> None:
        """Writes arrays (npz, no pickles), config (JSON) and vocabulary (YAML)."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        arrays = {name: getattr(self, name) for name in _ARRAYS}
        arrays |= {f"feature_{name}": column for name, column in self.features.items()}
        np.savez(directory / ARRAYS_FILE, **arrays)
        plain = {"config": dataclasses.asdict(self.config), "scenes": self.scenes, "start": self.start}
        (directory / WORLD_FILE).write_text(json.dumps(plain, indent=1))
        self.vocabulary.save(directory / VOCABULARY_FILE)

    @classmethod
    def load(cls, directory: str | Path) -> World:
        """Reads what `save` wrote.

        Raises:
            InvalidFieldError: a file is missing or unreadable.
        """
        directory = Path(directory)
        for file in (ARRAYS_FILE, WORLD_FILE, VOCABULARY_FILE):
            require((directory / file).is_file(), "world", str(directory), f"a directory with {file}")
        try:
            plain = json.loads((directory / WORLD_FILE).read_text())
            with np.load(directory / ARRAYS_FILE, allow_pickle=False) as arrays:
                values = {name: arrays[name] for name in arrays.files}
            known = {name: values.pop(name) for name in _ARRAYS}
            config, scenes, start = plain["config"], tuple(plain["scenes"]), int(plain["start"])
        except (ValueError, KeyError, OSError) as error:
            raise InvalidFieldError("world", str(directory), f"a world that `simulate` wrote ({error})") from None
        features = {name.removeprefix("feature_"): column for name, column in values.items()}
        return cls(config=from_mapping(WorldConfig, config, WORLD_FILE), scenes=scenes, start=start, features=features,
                   vocabulary=Vocabulary.load(directory / VOCABULARY_FILE), **known)


_ARRAYS = ("terms", "logits", "item", "duration_bin", "entry_user", "entry_scene", "entry_share", "user_ids",
           "item_ids", "outcome", "watch_time", "leave", "page_mean", "page_std")
