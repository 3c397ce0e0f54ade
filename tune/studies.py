"""What a search asks of the trials of a learner, and the names that their reports use."""

from __future__ import annotations

from typing import Any, Protocol

from recfuse.tune.space import Assignment

# Of a trial's last report: `DONE`, the columns of its worth, and where its bundle lies.
DONE, BUNDLE, PASSES, FINAL_PASSES = "judged", "bundle", "passes", "final_passes"
OFF_POLICY, EXPLAINED = "ope_", "explained_"


class Run(Protocol):
    """A trial under way."""

    def step(self) -> dict[str, Any]:
        """Trains for one pass and reports it; the last report holds DONE and the trial's worth."""
        ...

    def close(self) -> None:
        """Gives back what the trial held."""
        ...


class Study(Protocol):
    """What is swept. A study travels to the trials once, by the object store.

    Attributes:
        objective: the measure that a sweep climbs; guarded: those it must not pay with.
        relative: whether worths are changes from a base, or values by themselves.
    """

    @property
    def objective(self) -> str: ...

    @property
    def guarded(self) -> tuple[str, ...]: ...

    @property
    def relative(self) -> bool: ...

    @property
    def discounts(self) -> dict[str, float]:
        """The discounts that trials start from, by behaviour, and by kind where its behaviours share one."""
        ...

    def check(self, assignment: Assignment) -> None:
        """Raises InvalidFieldError where the choices do not fit the config."""
        ...

    def limit(self, assignment: Assignment) -> int:
        """The most sample-passes that a trial can take."""
        ...

    def value(self, assignment: Assignment, field: str) -> Any:
        """What a field is in a trial, whether the trial chose it or not."""
        ...

    def load(self, bundle: str) -> Any:
        """What a trial left behind: a policy or a scorer, from the name of its bundle."""
        ...

    def begin(self, assignment: Assignment) -> Run:
        """Starts a trial in this process."""
        ...
