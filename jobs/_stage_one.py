"""Who judges stage one before stage two begins: persons of a simulated world, or users of a served log."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from recfuse.bundle.pointer import Pointer, read_pointer
from recfuse.config import InvalidFieldError, require
from recfuse.evaluation.ab import run_ab, span
from recfuse.evaluation.config import AbConfig, Targets
from recfuse.evaluation.verdict import decide
from recfuse.learning.config import StageOneTest
from recfuse.learning.stage_one_test import Judge, Judgement
from recfuse.simulation.arms import read_arm
from recfuse.simulation.experiment import ab_test
from recfuse.simulation.output import WORLD
from recfuse.simulation.world import World

_ARM = "stage_one"


def judge_of(test: StageOneTest) -> Judge | None:
    """The judge that a config names; None for none.

    Raises:
        InvalidFieldError: there is no such world, or no such directory of models.
    """
    if test.judge == "simulated":
        return Simulated(test)
    return Served(test) if test.judge == "served" else None


class Simulated:
    """Simulated persons, each of whom lives once under the base and once under the policy, with the same luck. A
    behaviour is below its floor where its estimate is."""

    def __init__(self, test: StageOneTest) -> None:
        self._test, self._simulation = test, Path(test.simulation)
        self._world = World.load(self._simulation / WORLD)
        self._base = read_arm(test.base, self._simulation, self._world)

    def __call__(self, bundle: Path, floors: Mapping[str, float]) -> Judgement:
        measures = self._world.responses.measures
        for name in floors:
            require(name in measures, "stage_one_test.floors", name, f"what the world measures: {', '.join(measures)}")
        arm = read_arm(f"{_ARM}={bundle}", self._simulation, self._world)
        result = ab_test(self._world, [self._base, arm], persons=self._test.persons, seed=self._test.seed, paired=True)
        changes = {name: result.effect(_ARM, name) for name in floors}
        below = tuple(name for name, floor in floors.items() if changes[name][0] < floor)
        return Judgement(changes, below, True, f"{self._test.persons:,} simulated persons: {_words(changes, floors)}")


class Served:
    """Users of a served log. A behaviour is below its floor where it surely is; the test is over where one surely is,
    or all are surely kept."""

    def __init__(self, test: StageOneTest) -> None:
        self._test = test
        read_pointer(test.models)

    def __call__(self, bundle: Path, floors: Mapping[str, float]) -> Judgement:
        pointer = read_pointer(self._test.models)
        try:
            test = run_ab(self._config(bundle, pointer, floors))
        except InvalidFieldError as error:
            if error.field != "logs":
                raise
            return Judgement({}, (), False, f"serve it as the canary of {self._test.models} ({error})")
        verdict = decide(test)
        effects = {name: test.effect(name) for name in floors}
        changes = {name: (each.estimate, each.low, each.high) for name, each in effects.items()}
        broken = tuple(name for name, floor in floors.items() if changes[name][2] < floor)
        below = (broken or (verdict.row,)) if verdict.action == "roll back" else ()
        return Judgement(changes, below, bool(below) or verdict.kept, verdict.words)

    def _config(self, bundle: Path, pointer: Pointer, floors: Mapping[str, float]) -> AbConfig:
        """The test of a bundle that is, or was, the canary."""
        share = pointer.canary_share if pointer.fusion_canary == bundle.name else 0.0
        require(0 < share < 1, "logs", self._test.logs, f"a log of {bundle.name} as the canary of a share of the users")
        return AbConfig(logs=self._test.logs, models=self._test.models, base=pointer.fusion or "", canary=bundle.name,
                        share=share, targets=Targets(floors=floors))


def _words(changes: Mapping[str, tuple[float, float, float]], floors: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {span(*changes[name])} against its floor {floor:+.2%}" for name, floor in floors.items())
