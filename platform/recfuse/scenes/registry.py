"""Which scenes there are and which tasks each of them has: the order of the model's (scene, task) pairs."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Annotated, Any, NamedTuple

import numpy as np
from pydantic import Field, model_validator

from recfuse.config import Config, require

logger = logging.getLogger("recfuse")
PositiveNumber = Annotated[float, Field(gt=0)]


class Pair(NamedTuple):
    """One output of the model: a task in a scene."""

    scene: str
    task: str

    def __str__(self) -> str:
        return f"({self.scene}, {self.task})"


class Scene(Config):
    """One scene: where requests are asked (home, cart)."""

    name: str = Field(min_length=1, pattern=r"\S", description="The column `scene` has this value on the scene's rows.")
    tasks: tuple[str, ...] = Field(description=(
        "These label columns are predicted there; too few positives in training are an error."))
    optional_tasks: tuple[str, ...] = Field((), description=(
        "These are predicted likewise, but left out (and logged) where the training rows hold too few positives."))
    like: str = Field("", description=(
        "The scene starts with the gates and towers of this scene, where training goes on from a bundle without it."))

    @model_validator(mode="after")
    def _has_distinct_tasks(self) -> Scene:
        every = self.tasks + self.optional_tasks
        require(bool(every), "tasks", every, "at least one task")
        require(len(set(every)) == len(every), "tasks", every, "distinct names")
        return self


class Registry(Config):
    """The scenes of one model.

    The head of a task in `numbers` predicts the mean of the cut number: its share of that value is fitted by cross
    entropy, whose minimum is the mean (fractional logit, Papke & Wooldridge 1996), so that calibration works as for
    labels.
    """

    scenes: tuple[Scene, ...] = Field(description="They stand in the order of the scene index.")
    numbers: dict[str, PositiveNumber] = Field(default_factory=dict, description=(
        "These tasks are no 0/1 labels but numbers such as watch time, each with the value at which it is cut; `depth` "
        "is the exposures still to come."))

    @model_validator(mode="after")
    def _names_are_distinct_and_numbers_tasks(self) -> Registry:
        names = [scene.name for scene in self.scenes]
        require(bool(self.scenes), "scenes", self.scenes, "at least one scene")
        require(len(set(names)) == len(names), "scenes", tuple(names), "distinct names")
        for task in self.numbers:
            require(task in self.task_names, "numbers", task, f"tasks of a scene: {', '.join(self.task_names)}")
        return self

    @cached_property
    def scene_names(self) -> tuple[str, ...]:
        return tuple(scene.name for scene in self.scenes)

    @cached_property
    def pairs(self) -> tuple[Pair, ...]:
        """Every (scene, task), scene by scene."""
        return tuple(Pair(s.name, task) for s in self.scenes for task in s.tasks + s.optional_tasks)

    @cached_property
    def task_names(self) -> tuple[str, ...]:
        """Every task that some scene has, in the order of first mention."""
        return tuple(dict.fromkeys(pair.task for pair in self.pairs))

    @cached_property
    def pair_scene(self) -> tuple[int, ...]:
        """Scene index of every pair."""
        return tuple(self.scene_names.index(pair.scene) for pair in self.pairs)

    @cached_property
    def pair_task(self) -> tuple[int, ...]:
        """Index into `task_names` of every pair."""
        return tuple(self.task_names.index(pair.task) for pair in self.pairs)

    def tasks_of(self, scene: str) -> tuple[str, ...]:
        """Raises InvalidFieldError for an unknown scene."""
        require(scene in self.scene_names, "scene", scene, ", ".join(self.scene_names))
        return tuple(pair.task for pair in self.pairs if pair.scene == scene)

    def only(self, scene: str) -> Registry:
        """The registry of one scene."""
        self.tasks_of(scene)
        return self._of(entry for entry in self.scenes if entry.name == scene)

    def without(self, scene: str) -> Registry:
        """The registry with a scene retired; it must not be the only one."""
        self.tasks_of(scene)
        return self._of(entry for entry in self.scenes if entry.name != scene)

    def with_copy(self, scene: str, like: str) -> Registry:
        """The registry with a new scene at its end that has the tasks of `like`."""
        self.tasks_of(like)
        require(scene not in self.scene_names, "scene", scene, f"a new name, none of {', '.join(self.scene_names)}")
        pattern = self.scenes[self.scene_names.index(like)]
        return self._of((*self.scenes, pattern.replace(name=scene)))

    def _of(self, scenes: Iterable[Scene]) -> Registry:
        """The registry of other scenes, with the numbers that they still have."""
        kept = tuple(scenes)
        tasks = {task for scene in kept for task in scene.tasks + scene.optional_tasks}
        return Registry(scenes=kept, numbers={task: cut for task, cut in self.numbers.items() if task in tasks})

    def scene_index(self, scenes: Sequence[str] | np.ndarray) -> np.ndarray:
        """int64[N], the index of each row's scene; −1 where it is not registered."""
        values, inverse = np.unique(np.asarray(scenes, dtype=str), return_inverse=True)
        table = np.array([self.scene_names.index(v) if v in self.scene_names else -1 for v in values], np.int64)
        return table[inverse.reshape(-1)] if len(values) else np.zeros(0, np.int64)

    def supported(self, positives: Mapping[Pair, float], minimum: int) -> Registry:
        """Without the optional pairs that have fewer than `minimum` positives; each is logged."""
        return self._without_optional({
            pair: f"{positives[pair]:.0f} positives in training, {minimum} needed" for pair in self.pairs
            if positives[pair] < minimum})

    def known_to(self, tasks: Mapping[str, Sequence[str]]) -> Registry:
        """Without the optional pairs that a scorer with these tasks by scene lacks; each is logged. A scene that is new
        to it has those of the scene that it is like."""
        return self._without_optional({
            Pair(scene.name, task): "the scorer that training goes on from lacks it" for scene in self.scenes
            for task in scene.optional_tasks
            if task not in tasks.get(scene.name if scene.name in tasks else scene.like, ())})

    def _without_optional(self, reasons: Mapping[Pair, str]) -> Registry:
        """Without the optional pairs that there is a reason against, and the scenes that have no others."""
        kept = []
        for scene in self.scenes:
            left_out = [task for task in scene.optional_tasks if Pair(scene.name, task) in reasons]
            for task in left_out:
                logger.info("pair %s is left out: %s", Pair(scene.name, task), reasons[Pair(scene.name, task)])
            optional = tuple(task for task in scene.optional_tasks if task not in left_out)
            if scene.tasks or optional:
                kept.append(scene.replace(optional_tasks=optional))
            else:
                logger.info("scene %s is left out with its optional tasks", scene.name)
        return self._of(kept)

    def to_manifest(self) -> dict[str, Any]:
        """What a bundle says of them, as JSON values; the optional tasks that are left are tasks."""
        return {"scenes": [{"name": s, "tasks": list(self.tasks_of(s))} for s in self.scene_names],
                "numbers": dict(self.numbers)}


# The five large scenes of KuaiRand-Pure. Seconds watched are a prediction too: they are what the policy is for, and no
# label says them. The rare reactions are too few there in the small scenes, so they are optional.
KUAIRAND = Registry(
    scenes=tuple(Scene(name=tab, tasks=("click", "long_view", "watch_time"),
                       optional_tasks=("like", "comment", "forward", "follow")) for tab in ("0", "1", "2", "4", "6")),
    numbers={"watch_time": 180.0})
