"""The simulated world: users, their pools of candidates, the scorer's predictions and the response model's answers.

Everything that a step needs is precomputed per (entry, pool item), where an *entry* is one user in one scene; a step is
then gathers and sums. What a world assumes, and the real log cannot say, is in `WorldConfig` and nowhere else.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from pydantic import Field, model_validator

from recfuse.behaviours import Vocabulary
from recfuse.config import Config, InvalidFieldError, from_mapping, require
from recfuse.simulation.response import sigmoid
from recfuse.simulation.responses import FEED, Responses

# What a page's response is counted in; a vocabulary's behaviours are some of these.
# Of the files below; a world of another one does not mean the same.
FORMAT = 4
VOCABULARY_FILE, ARRAYS_FILE, WORLD_FILE = "vocabulary.yaml", "world.npz", "world.json"


class WorldConfig(Config):
    """What the world assumes.

    A session is all of a user's visits within the window of the logs, and one exposure of the log stands for one
    request: the public logs keep a small part of what was shown, so that shorter windows hold about one exposure.

    The effects of mood are declared, since the thinned public log cannot say them: there, what was shown hardly moves
    whether another exposure follows, and no interaction moves it beyond its interval
    (`python -m benchmarks.staying`). The spread of what predictions mean is estimated from the public log
    (`python -m benchmarks.meaning`); its interval is wide.
    """

    users: int = Field(
        2_000, description="So many users are drawn from those of the exposures who occur in the scenes.", ge=1)
    pool: int = Field(100, description="So many items are retrieved for a user in a scene.", ge=1)
    candidates: int = Field(50, description="A request ranks so many items of the pool.", ge=1)
    page: int = Field(6, description="A request shows so many items.", ge=1)
    attention: float = Field(
        0.85, description="After each place of the page the next one is looked at with this probability.", gt=0, le=1)
    stay_effect: float = Field(
        1.5, description="One unit of mood (a standard deviation under the logged policy) lowers the log-odds of "
        "leaving by this.")
    interaction_value: float = Field(
        1.0, description="A like, comment, forward or follow adds this to the satisfaction with a page, where a click "
        "is worth 1 and a long view 2.")
    hate_value: float = Field(-3.0, description="A hate adds this to the satisfaction with a page.")
    return_effect: float = Field(
        0.3, description="One unit of mood shortens the time until the user returns by a factor of this logarithm.")
    mood_memory: float = Field(
        0.5, description="The mood has this autocorrelation from one request to the next; what is new is how the page "
        "went.", ge=0, lt=1)
    responsive: bool = Field(
        True, description="Where false, both effects of mood are off, and what is shown has no consequences beyond its "
        "page.")
    meaning_spread: float = Field(
        0.3, description="How much a prediction means (the slope of answers on it) differs by person with this "
        "standard deviation around 1; 0 for none.", ge=0, le=3)
    return_days: float = Field(4.0, description="At neutral mood a user returns after so many days on average.", gt=0)
    horizon_days: float = Field(11.0, description="A simulation lasts so many days.", gt=0)
    max_requests: int = Field(60, description="A session is cut after so many requests.", ge=1)
    candidate_features: bool = Field(
        True, description="States also say what there is to rank: means, spreads and correlations of the candidates' "
        "predictions.")
    retrieval: str = Field(
        "tag", description="Values of this item feature in a user's history raise an item's chance of retrieval.")
    seed: int = Field(11, description="The seed of users and pools.", ge=0)

    @model_validator(mode="after")
    def _sizes_fit(self) -> Self:
        require(self.candidates <= self.pool, "candidates", self.candidates, f"at most pool = {self.pool}")
        require(self.page <= self.candidates, "page", self.page, f"at most candidates = {self.candidates}")
        return self


@dataclass(frozen=True)
class World:
    """A world, ready to be simulated. E entries, P pool items, M fusion parameters, H heads, U users.

    Attributes:
        terms: float32[E, M, P + candidates]: what a fusion parameter multiplies, log(prediction + offset) or the
            prediction; the pool's beginning is repeated at its end, so that a window of candidates is one slice.
        predictions: float16[E, M, P + candidates], what `terms` are of: as a log keeps them.
        logits: float32[E, P, H] of the response model, calibrated to this world.
        watch_level: float32[E, P, outcomes]: after every outcome, the log-odds of the quantile at which the watch time
            of an item lies among those of its scene, outcome and range of durations, but for chance; watch_spread:
            float32[outcomes], how much of it is chance.
        item: int32[E, P], positions in `item_ids`; duration_bin: int8[E, P].
        entry_user, entry_scene: int64[E]; the entries of a user are neighbours, those of user u from `first_entry[u]`.
        entry_share: float64[E], cumulated within a user: which of the user's entries a session is.
        user_ids, item_ids: int64[U], int64[I]: the exposures' ids.
        outcome, watch_time: of the response model.
        leave: float64[S], log-odds of leaving after a request at neutral mood.
        page_mean: float64[E], the raw satisfaction with a page that the user has learned to expect in the scene, under
            the logged policy: mood is about what is better or worse than that. page_std: float64[S], its spread.
        features: state feature → column `[U]` (strings for categorical ones).
        start: first day of the simulation, µs since 1970, UTC.
        factor: float32[I], what the amount of an item is a multiple of; 1 for nothing.
        responses: what users may answer with; `watch_time` stands for its amount, `duration_bin` for its item column.
    """

    config: WorldConfig
    vocabulary: Vocabulary
    scenes: tuple[str, ...]
    terms: np.ndarray
    predictions: np.ndarray
    logits: np.ndarray
    watch_level: np.ndarray
    item: np.ndarray
    duration_bin: np.ndarray
    entry_user: np.ndarray
    entry_scene: np.ndarray
    entry_share: np.ndarray
    user_ids: np.ndarray
    item_ids: np.ndarray
    outcome: np.ndarray
    watch_time: np.ndarray
    watch_spread: np.ndarray
    leave: np.ndarray
    page_mean: np.ndarray
    page_std: np.ndarray
    features: Mapping[str, np.ndarray]
    start: int
    factor: np.ndarray
    responses: Responses = FEED

    def __post_init__(self) -> None:
        entries, parameters, padded = self.terms.shape
        pool = self.config.pool
        require(padded == pool + self.config.candidates, "terms", self.terms.shape, f"[E, M, {pool} + candidates]")
        require(parameters == self.vocabulary.action_size, "terms", self.terms.shape,
                f"{self.vocabulary.action_size} fusion parameters")
        require(self.predictions.shape == self.terms.shape, "predictions", self.predictions.shape,
                f"{self.terms.shape}, as terms")
        heads, outcomes, interactions = (len(self.responses.heads), self.responses.outcomes,
                                         len(self.responses.interactions))
        for name, shape in (("logits", (entries, pool, heads)), ("watch_level", (entries, pool, outcomes)),
                            ("outcome", (outcomes, interactions))):
            require(getattr(self, name).shape == shape, name, getattr(self, name).shape, str(shape))
        unknown = set(self.vocabulary.behaviour_names) - set(self.feedback)
        require(not unknown, "behaviours", sorted(unknown), f"some of {', '.join(self.feedback)}")

    @property
    def feedback(self) -> tuple[str, ...]:
        """Names of the columns of what a request brings."""
        return self.responses.feedback

    def columns(self, names: Iterable[str]) -> list[int]:
        """Their places among `feedback`."""
        return [self.feedback.index(name) for name in names]

    @property
    def users(self) -> int:
        return len(self.user_ids)

    @property
    def first_entry(self) -> np.ndarray:
        """int64[U + 1]: where each user's entries begin."""
        return np.searchsorted(self.entry_user, np.arange(self.users + 1))

    def quantile(self, entry: np.ndarray, place: np.ndarray, outcome: np.ndarray, chance: np.ndarray) -> np.ndarray:
        """int64[...]: column of `watch_time` of items of pools after an outcome, given uniform numbers `chance`."""
        chance = chance.clip(1e-9, 1 - 1e-9)
        level = self.watch_level[entry, place, outcome] + self.watch_spread[outcome] * np.log(chance / (1 - chance))
        columns = self.watch_time.shape[-1]
        result: np.ndarray = (sigmoid(level) * columns).astype(np.int64).clip(max=columns - 1)
        return result

    def amount(self, entry: np.ndarray, place: np.ndarray, outcome: np.ndarray, chance: np.ndarray) -> np.ndarray:
        """float32[...]: the amount of items of pools after an outcome, given uniform numbers `chance`."""
        quantile = self.quantile(entry, place, outcome, chance)
        drawn: np.ndarray = self.watch_time[self.entry_scene[entry], outcome, self.duration_bin[entry, place], quantile]
        return drawn * self.factor[self.item[entry, place]] if self.responses.amount_of else drawn

    def under(self, vocabulary: Vocabulary) -> World:
        """The same world, read and ranked by another vocabulary of the same fusion parameters and contexts."""
        if vocabulary.meaning == self.vocabulary.meaning:
            return self
        if vocabulary.formula == "linear":
            terms = vocabulary.curved(self.predictions).astype(np.float32)
        else:
            terms = np.log(self.predictions.astype(np.float64) + vocabulary.offset).astype(np.float32)
        return self.replace(vocabulary=vocabulary, terms=terms)

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
        plain = {"format": FORMAT, "config": self.config.to_dict(), "scenes": self.scenes, "start": self.start,
                 "responses": self.responses.to_dict()}
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
            require(plain.get("format") == FORMAT, "world", str(directory),
                    f"a world of format {FORMAT}; older ones are built anew by the job simulate")
            known = {name: values.pop(name) for name in _ARRAYS}
            config, scenes, start = plain["config"], tuple(plain["scenes"]), int(plain["start"])
            # Worlds of before this was declared are those of a feed.
            responses = from_mapping(Responses, plain.get("responses", {}), WORLD_FILE)
        except InvalidFieldError:
            raise
        except (ValueError, KeyError, OSError) as error:
            raise InvalidFieldError("world", str(directory), f"a world that `simulate` wrote ({error})") from None
        features = {name.removeprefix("feature_"): column for name, column in values.items()}
        return cls(config=from_mapping(WorldConfig, config, WORLD_FILE), scenes=scenes, start=start, features=features,
                   vocabulary=Vocabulary.load(directory / VOCABULARY_FILE), responses=responses, **known)


_ARRAYS = ("terms", "predictions", "logits", "watch_level", "watch_spread", "item", "duration_bin", "entry_user",
           "entry_scene", "entry_share", "user_ids", "item_ids", "outcome", "watch_time", "factor", "leave",
           "page_mean", "page_std")


def contexts_of(directory: str | Path) -> tuple[Mapping[str, np.ndarray], np.ndarray]:
    """State feature → column [U] of a world's users, and their ids [U].

    Raises:
        InvalidFieldError: as of `World.load`.
    """
    world = World.load(directory)
    return world.features, world.user_ids
