"""What users may answer with, and which answer follows which: the declaration that a world is fitted by.

Answers to an item climb a *ladder*: every step may happen only after the one before it, as an order after a click.
*Interactions* may happen whatever the step. One *amount*, where there is one, is a number, as seconds watched or what
was paid.
"""

from __future__ import annotations

from functools import cached_property
from itertools import pairwise

from pydantic import Field, model_validator

from recfuse.behaviours import Behaviour
from recfuse.config import Config, require

HOUR = "hour"


class Responses(Config):
    """Names are label columns of the exposures, and behaviours of the session logs."""

    ladder: tuple[str, ...] = Field(
        min_length=1, description="Binary answers, each of which only follows the one before "
        "it; a later one in the exposures implies the earlier ones.")
    interactions: tuple[str, ...] = Field(
        (), description="Binary answers that may follow any step of the ladder, or none.")
    unwanted: tuple[str, ...] = Field((), description="These interactions lower satisfaction.")
    amount: str = Field("", description="A number ≥ 0 that every answer brings, the long-term behaviour; where empty, "
                        "the last step of the ladder is that.")
    amount_after: str = Field(
        "", description="Before this step of the ladder the amount is 0, as revenue before an order; empty where every "
        "outcome has one.")
    amount_of: str = Field("", description="The amount is a multiple of this number of the item, as revenue is of the "
                           "price; the multiple is what is drawn.")
    amount_is_time: bool = Field(False, description="The amount is in seconds, and moves the clock of a session.")
    item_column: str = Field("", description="Amounts are drawn from exposures of items that are alike in this number; "
                             "from those of all items where empty.")
    item_edges: tuple[float, ...] = Field(
        (), description="Items are alike between two of these values of the column.")
    learned: tuple[str, ...] = Field((), description="Short-term behaviours of the session logs, beside the "
                                     "long-term one; all wanted answers where empty.")

    @model_validator(mode="after")
    def _check(self) -> Responses:
        names = self.feedback
        require(len(set(names)) == len(names), "ladder", names, "names that differ from each other, from the "
                "interactions' and from the amount's")
        for field in ("amount_after", "amount_of", "amount_is_time", "item_column"):
            value = getattr(self, field)
            require(bool(self.amount) or not value, field, value, "nothing without amount")
        require(not (self.amount_of and self.item_column), "item_column", self.item_column,
                "nothing beside amount_of, by which amounts tell items apart already")
        require(bool(self.item_column) or not self.item_edges, "item_edges", self.item_edges,
                "nothing without item_column")
        for field, known in (("unwanted", self.interactions), ("learned", self.heads)):
            for name in getattr(self, field):
                require(name in known, field, name, f"some of {', '.join(known) or 'none'}")
        require(self.amount_after in ("", *self.ladder), "amount_after", self.amount_after,
                f"nothing, or one of {', '.join(self.ladder)}")
        edges = self.item_edges
        require(all(low < high for low, high in pairwise(edges)), "item_edges", edges,
                "numbers that increase")
        return self

    @property
    def heads(self) -> tuple[str, ...]:
        """The binary answers."""
        return (*self.ladder, *self.interactions)

    @property
    def outcomes(self) -> int:
        """How many ends a ladder has: none of its steps, the first, …"""
        return len(self.ladder) + 1

    @property
    def feedback(self) -> tuple[str, ...]:
        """Columns of what a request brings: the amount, then the binary answers."""
        return (*self.amounts, *self.heads)

    @property
    def amounts(self) -> tuple[str, ...]:
        """The amount, where there is one."""
        return (self.amount,) if self.amount else ()

    @property
    def primary(self) -> str:
        """The long-term behaviour."""
        return self.amount or self.ladder[-1]

    @property
    def wanted(self) -> tuple[str, ...]:
        """The interactions that raise satisfaction."""
        return tuple(name for name in self.interactions if name not in self.unwanted)

    @property
    def seconds(self) -> str:
        """The amount where it is a time; empty where it is none."""
        return self.amount if self.amount_is_time else ""

    @cached_property
    def session_features(self) -> tuple[str, ...]:
        """State features of a session as it goes; all but the hour are counts or amounts."""
        so_far = "interactions" if self.wanted else f"{self.ladder[-1]}s"
        return (HOUR, "requests_so_far", *(f"{name.removesuffix('_time')}_so_far" for name in self.amounts),
                f"{so_far}_so_far", *(f"last_{name}" for name in self.amounts), f"last_{self.ladder[0]}s")

    @property
    def behaviours(self) -> tuple[Behaviour, ...]:
        """Of the session logs."""
        # Λ = 0.5: with an advantage of unit variance the tilt exp(A/Λ) moves a Gaussian by at most two of its
        # deviations, about as far as an effective sample size of 2% supports. An amount is learned in its unit, as A/B
        # tests count it: log(1 + seconds) hardly sees how long what is shown lasts.
        return (Behaviour(name=self.primary, kind="long_term"),
                *(Behaviour(name=name, kind="short_term", multiplier=0.125)
                  for name in self.learned or (*self.ladder, *self.wanted) if name != self.primary))

    @property
    def measures(self) -> tuple[str, ...]:
        """What an A/B test compares: feedback per user, and how often a user came and asked."""
        return (*self.feedback, "requests", "sessions")

    def weights(self, tuned: dict[str, float], parameters: tuple[str, ...]) -> dict[str, float]:
        """Hand-tuned fusion weights, as an operator would: steps of the ladder and the amount count 1, what people do
        with an item besides a third of that; `tuned` goes before."""
        return {name: tuned.get(name, 1.0 if name in (*self.amounts, *self.ladder) else .3) for name in parameters}


# A long view follows a click. Edges in seconds: the shorter of 18 s and the duration makes a long view, so that short
# videos stand apart.
FEED = Responses(
    ladder=("click", "long_view"), interactions=("like", "comment", "forward", "follow", "hate"), unwanted=("hate",),
    amount="watch_time", amount_is_time=True, item_column="duration",
    item_edges=(1.0, 7.0, 12.0, 18.0, 30.0, 60.0, 120.0, 240.0),
    learned=("click", "like", "comment", "forward", "follow"))
