"""Cycles of steps that a death may cut off anywhere: whoever comes next goes on with the step that was begun."""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from recfuse.config import InputError, InvalidFieldError, require
from recfuse.evaluation.files import read_json, write_whole

logger = logging.getLogger("recfuse")
STATE = "loop.json"
_CYCLE = "cycle-"


@dataclass(frozen=True)
class Step:
    """Attributes:
        name: of the step.
        run: does it in the directory of the cycle and says in a line what came of it; a second call finishes what a
            first one began.
        makes: it is part of the way to a new candidate, and left out where none is wanted.
    """

    name: str
    run: Callable[[Path], str]
    makes: bool = False


@dataclass
class Cycle:
    """Attributes:
        number: from 1 on. began: seconds since 1970. makes: a candidate is wanted.
        done: step → what came of it. finished: all steps are done.
    """

    number: int
    began: float
    makes: bool
    done: dict[str, str] = field(default_factory=dict)
    finished: bool = False


@dataclass(frozen=True)
class Cycles:
    """A directory of cycles.

    Attributes:
        directory: of the state, beneath which each cycle has a directory of its own.
        steps: of a cycle.
        wants: whether a cycle that begins shall make a candidate.
        keep: so many of the last cycles keep their directories.
    """

    directory: Path
    steps: Sequence[Step]
    wants: Callable[[], bool]
    keep: int = 5

    def read(self) -> Cycle | None:
        """The last cycle; None before the first.

        Raises:
            InvalidFieldError: the file is none of ours.
        """
        plain = read_json(self.directory / STATE)
        try:
            return None if plain is None else Cycle(**plain)
        except TypeError as error:
            raise InvalidFieldError("output", str(self.directory / STATE),
                                    f"the state of a loop, as it was written ({error})") from None

    def run(self, now: float | None = None) -> Cycle:
        """One cycle, or what is left of one that was cut off.

        A step that refuses its input (too few rows, say) ends the way to a candidate; the cycle goes on.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        cycle = self.read()
        if cycle is None or cycle.finished:
            number = 1 if cycle is None else cycle.number + 1
            place = self._place(number)
            # So whatever has the name of a cycle that has begun is the loop's own.
            require(not place.exists(), "output", str(place), "nothing of this name before its cycle begins")
            cycle = Cycle(number, time.time() if now is None else now, self.wants())
            self._write(cycle)
        place = self._place(cycle.number)
        place.mkdir(exist_ok=True)
        for step in self.steps:
            if step.name in cycle.done or (step.makes and not cycle.makes):
                continue
            try:
                line = step.run(place)
            except InputError as error:
                line, cycle.makes = f"refused: {error}", cycle.makes and not step.makes
                logger.warning("loop: %s %s", step.name, line)
            cycle.done[step.name] = line
            self._write(cycle)
            logger.info("loop: cycle %d, %s: %s", cycle.number, step.name, line)
        cycle.finished = True
        self._write(cycle)
        if cycle.number > self.keep:
            shutil.rmtree(self._place(cycle.number - self.keep), ignore_errors=True)
        return cycle

    def every(self, seconds: float, cycles: int = 0, sleep: Callable[[float], object] = time.sleep) -> Iterator[Cycle]:
        """Cycles that begin so many seconds apart, one after the other; 0 cycles never end.

        Args:
            cycles: that are run in this call.
        """
        require(seconds >= 0, "every", seconds, "a time ≥ 0")
        number = 0
        while not cycles or number < cycles:
            last = self.read()
            if last is not None and last.finished:
                sleep(max(last.began + seconds - time.time(), 0.0))
            yield self.run()
            number += 1

    def _place(self, number: int) -> Path:
        return self.directory / f"{_CYCLE}{number:05d}"

    def _write(self, cycle: Cycle) -> None:
        write_whole(self.directory / STATE, json.dumps(asdict(cycle), indent=1))
