"""The steps of the loop: what `jobs/loop.py` runs."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from recfuse.bundle import newest_bundle
from recfuse.config import read
from recfuse.jobs import collect, ingest, train_fusion
from recfuse.learning.config import TrainFusionConfig
from recfuse.learning.options import choose_algorithm
from recfuse.logs.config import IngestConfig
from recfuse.rollout import rollout
from recfuse.rollout.config import LoopConfig, RolloutConfig
from recfuse.rollout.cycle import Step
from recfuse.rollout.store import UNDER_WAY, Store
from recfuse.serving.config import CollectConfig
from recfuse.tune.settings import SplitConfig
from recfuse.tune.split import JUDGE, LEARN, split_samples

_WHO = "loop"


@dataclass(frozen=True)
class Steps:
    """The jobs of a cycle, each of which goes on where an earlier call of it ended.

    Attributes:
        clock: seconds since 1970, by which windows and shares of users end.
    """

    config: LoopConfig
    clock: Callable[[], float] = time.time

    def all(self) -> list[Step]:
        """In their order; where a candidate is under way it is judged, and no other is made."""
        collects = [Step("collect", self.collect)] if self.config.decision_log else []
        return [*collects, Step("ingest", self.ingest, makes=True), Step("split", self.split, makes=True),
                Step("train", self.train, makes=True), Step("candidate", self.start, makes=True),
                Step("verdict", self.judge)]

    def wants_candidate(self) -> bool:
        """Whether none is under way."""
        state = Store(self.config.models).read()
        return state is None or state.state not in UNDER_WAY

    def collect(self, _: Path) -> str:
        """Decisions and feedback → session table."""
        account = collect.main(CollectConfig(
            decision_log=self.config.decision_log, models=self.config.models, output=self.config.plan.logs,
            window_minutes=self.config.window_minutes), self.clock())
        return f"{account.written:,} decisions, {account.waiting_bytes:,} bytes wait"

    def ingest(self, place: Path) -> str:
        """Session table → samples."""
        result = ingest.main(IngestConfig(logs=self.config.plan.logs, output=str(place / "samples")))
        return f"{result.account.kept:,} samples of {result.sessions:,} sessions"

    def split(self, place: Path) -> str:
        """Samples → those that train and those that judge, by user."""
        split_samples(place / "samples", place / "split", SplitConfig(
            judge=self.config.judging, last=self.config.judging / 10, person=r"^.*"))
        return f"{self.config.judging:.0%} of the users judge"

    def train(self, place: Path) -> str:
        """Samples → policy."""
        file = self.config.training
        given = choose_algorithm(TrainFusionConfig, read(file) if file else {}, [], Path(file).name)
        result = train_fusion.main(given.replace(samples=str(place / "split" / LEARN), output=str(place / "fusion")))
        return result.bundle.name

    def start(self, place: Path) -> str:
        """Policy → gate and canary; one that was a candidate before is none again."""
        candidate = newest_bundle(place / "fusion", "fusion")
        store = Store(self.config.models)
        tried = [row for row in store.audit() if row.candidate == candidate.name]
        if tried and tried[-1].step != "candidate → gate":
            return f"{candidate.name} was a candidate before: {tried[-1].step}"
        state = rollout.start(RolloutConfig(
            action="start", models=self.config.models, candidate=str(candidate), who=_WHO,
            reason=f"learned in {place.name}", holdout=str(place / "split" / JUDGE),
            samples=str(place / "split" / LEARN), plan=self.config.plan), self.clock())
        return f"{state.candidate} is {state.words}: {state.row.why}"

    def judge(self, _: Path) -> str:
        """A look at what was served of the candidate under way."""
        if Store(self.config.models).read() is None:
            return "no candidate yet"
        look = rollout.judge(self.config.models, self.clock())
        said = f": {look.verdict.words}" if look.verdict is not None else ""
        return f"{look.rollout.candidate} is {look.rollout.words}{said}"
