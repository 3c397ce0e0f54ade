"""The learners of a training run: they go on from the checkpoint, and start anew on the nodes that are left."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from ray.exceptions import RayError

from recfuse.config import InvalidFieldError
from recfuse.learning.algorithm import FusionAlgorithm, FusionAlgorithmConfig
from recfuse.learning.phases import names_of
from recfuse.learning.resume import RunIdentity
from recfuse.learning.samples import SampleSet
from recfuse.learning.settings import LearningSettings
from recfuse.learning.stage_one_test import StageOneGate, phase_after
from recfuse.runtime import ray_compat
from recfuse.runtime.console import Progress
from recfuse.runtime.placement import NoRoomError, described, most_workers, nodes, room_for, shares
from recfuse.runtime.waiting import Watch

logger = logging.getLogger("recfuse")
# How often in a row the learners are lost before a pass is complete, until the run gives up.
RESTARTS = 3
_RECOUNT_SECONDS = 1.0


class Run:
    """Learners that go on from the checkpoint. Where they are lost, so many start anew as the nodes that are left hold;
    when nodes have come back, so many as were asked for.

    Args:
        settings: of the learning, with the learners that are asked for.
        checkpoint: directory of the checkpoint; one of another run moves aside.
        watch: of the job.
        name: begins the lines of progress.
        gate: judges stage one before stage two begins; None where nobody does.

    Attributes:
        algorithm: as it stands.
        resumed_at: iterations that were done before.
    """

    def __init__(self, settings: LearningSettings, samples: SampleSet, checkpoint: Path, identity: RunIdentity,
                 watch: Watch, *, name: str = "train_fusion", gate: StageOneGate | None = None) -> None:
        self._settings, self._samples, self._watch = settings, samples, watch
        self._name, self._gate = name, gate
        self._checkpoint, self._identity = checkpoint, identity
        self._failures = self._passes = 0
        self.algorithm = self._build(settings)

    def __enter__(self) -> Self:
        try:
            self.resumed_at = self._resume()
        except BaseException:
            self.algorithm.stop()
            raise
        self._watch.look = self._end_where_a_node_is_lost
        return self

    def __exit__(self, *_: object) -> None:
        self._watch.look = None
        with contextlib.suppress(RayError):
            self.algorithm.stop()

    def finish(self) -> None:
        """Runs what is left of every phase.

        Raises:
            RayError: learners were lost again and again before they completed a pass.
        """
        anew, done = False, False
        while not done:
            try:
                if anew:
                    self._start_anew()
                self._advance()
            except (RayError, NoRoomError) as error:
                self._count(error)
            anew, done = True, self.algorithm.finished

    def _advance(self) -> None:
        """Passes until all are done, or there is room for more learners; what follows stage one when it is judged."""
        if self._gate is not None:
            if not self._run(before=phase_after(self.algorithm)):
                return
            self._hold(self._gate.pass_(self.algorithm))
        self._run()

    def _hold(self, multipliers: Mapping[str, float]) -> None:
        """Goes on from the checkpoint with these multipliers λ, where the learners have others."""
        settings = self.algorithm.settings
        vocabulary = settings.apply_to(self._samples.vocabulary)
        if all(behaviour.multiplier == multipliers[behaviour.name] for behaviour in vocabulary.short_term):
            return
        self._settings = self._settings.replace(multipliers=dict(multipliers))
        self.algorithm.stop()
        self.algorithm = self._build(settings.replace(multipliers=dict(multipliers)))
        self._resume()

    def _count(self, error: Exception) -> None:
        if isinstance(error, InvalidFieldError):  # Ray gives what a task raises both kinds
            raise error
        passes = len(self.algorithm.progress.history)
        if isinstance(error, RayError):
            self._failures = self._failures + 1 if passes == self._passes else 1
            self._passes = passes
        if self._failures > RESTARTS:
            raise error
        logger.warning("train_fusion: a learner was lost (%s); starting the learners anew from the last complete "
                       "iteration", type(error).__name__)

    def _start_anew(self) -> None:
        """As many learners as find room, from the checkpoint."""
        with contextlib.suppress(RayError):
            self.algorithm.end_learners()
            self.algorithm.stop()
        settings = self._settings_that_fit()
        if settings.num_learners != self.algorithm.settings.num_learners:
            logger.info("train_fusion: going on with %d of %d learners; %s", settings.num_learners,
                        self._settings.num_learners, described(nodes()))
        self.algorithm = self._build(settings)
        self._resume()

    def _build(self, settings: LearningSettings) -> FusionAlgorithm:
        algorithm = FusionAlgorithmConfig().learn(settings, self._samples).build_algo()
        algorithm.listen(self._watch)
        if self._watch.workers is not None:
            self._watch.workers.number = settings.num_learners
        return algorithm

    def _settings_that_fit(self) -> LearningSettings:
        """Counts the nodes anew; waits while they have no room for a single learner."""
        wanted = self._settings.num_learners
        while wanted:
            room = wanted if ray_compat.may_grow() else self._room()
            if room:
                self._watch.wants = ""
                return fitting(self._settings, room)
            self._watch.wants = "a node with room for a learner"
            time.sleep(_RECOUNT_SECONDS)
        return self._settings

    def _room(self) -> int:
        return most_workers(self._settings.num_learners, nodes(), shares(gpus=self._settings.gpus))

    def _may_be_more(self) -> bool:
        """Whether nodes have free room for more learners than there are."""
        seats = self.algorithm.config.seats
        if seats is None or seats.workers == self._settings.num_learners:
            return False
        more = fitting(self._settings, self._room()).num_learners - seats.workers
        return 0 < more <= room_for(seats.share.need, [node.free for node in nodes()])

    def _end_where_a_node_is_lost(self) -> None:
        """Called by the watch: the learner beside the lost one would wait in a collective, and RLlib for both."""
        if self.algorithm.has_lost_node():
            self.algorithm.end_learners()

    def _resume(self) -> int:
        """Loads the checkpoint of the same run, if there is one; a checkpoint of another run moves aside."""
        algorithm, checkpoint = self.algorithm, self._checkpoint
        if not self._identity.take_up(checkpoint) or not algorithm.has_checkpoint(checkpoint):
            return 0
        algorithm.load_checkpoint(str(checkpoint))
        lines = algorithm.follow_limits(checkpoint)
        logger.info("train_fusion: resuming after %d iterations%s", len(algorithm.progress.history),
                    "".join(f"; {line}" for line in lines))
        return len(algorithm.progress.history)

    def _run(self, before: str = "") -> bool:
        """Passes of all phases, or of those before the named one; False where there came to be room for more learners
        before they were done."""
        algorithm = self.algorithm
        names = names_of(algorithm.settings.phases)
        end = names.index(before) if before else len(names)
        while not algorithm.finished and algorithm.progress.phase < end:
            phase = algorithm.phase
            limit = phase.rule(algorithm.settings).iterations
            progress = Progress(f"{self._name} {phase.name}", limit, "passes")
            progress.advance(len(algorithm.progress.losses))
            while not algorithm.finished and algorithm.phase.name == phase.name:
                algorithm.train()
                algorithm.save_checkpoint(str(self._checkpoint))
                self._watch.moved()
                progress.advance(1, describe(algorithm.progress.history[-1]))
                if not algorithm.finished and self._may_be_more():
                    return False
            progress.finish(f"{describe(algorithm.progress.history[-1])}; {algorithm.progress.stopped[phase.name]}")
        return True


def fitting(settings: LearningSettings, room: int) -> LearningSettings:
    """The settings with the most learners that find room and divide a minibatch; of those that divide it into the same
    parts, so that no bit changes, where there are such."""
    most = min(room, settings.num_learners)
    found = [settings.replace(num_learners=number) for number in range(most, 0, -1)
             if settings.minibatch_size % number == 0]
    same = [each for each in found if each.parts == settings.parts]
    return (same or found)[0]


def describe(entry: dict[str, Any]) -> str:
    """One line of an iteration: the loss, and per kind of metric its value, or the range over the behaviours."""
    parts = [f"loss {entry['loss']:.4f}"]
    for kind in ("holdout_loss", "explained_variance", "gain", "entropy", "kl", "clipped_share", "ess_share", "tau",
                 "multiplier"):
        values = sorted(value for name, value in entry.items() if name.partition("/")[0] == kind)
        if values:
            text = f"{values[0]:.3g}" if len(values) == 1 else f"{values[0]:.3g}..{values[-1]:.3g}"
            parts.append(f"{kind.replace('_', ' ')} {text}")
    return ", ".join(parts)
