"""When a fit ends."""

from __future__ import annotations

from pydantic import Field

from recfuse.config import Config

ITERATION_LIMIT = "iteration limit"


class StoppingRule(Config):
    """A fit ends on the first of these (maths 1.7). An iteration is one pass over the samples, and its loss is that on
    the samples held out, where some are."""

    iterations: int = Field(description="A fit ends after this number of passes over the samples.", ge=1)
    loss_below: float | None = Field(
        None, description="A fit ends once the mean loss of a pass lies below this; nothing leaves the rule out.")
    change_below: float | None = Field(
        None, description="A fit ends once its loss falls by less than this (0: it rose); nothing leaves the rule out.",
        ge=0)
    patience: int = Field(
        1, description="This number of passes in a row must fail to lower the best loss before them by change_below.",
        ge=1)

    def reason_to_stop(self, losses: list[float]) -> str | None:
        """Why a fit with these losses, one per iteration so far, ends; None while it goes on."""
        if self.loss_below is not None and losses[-1] < self.loss_below:
            return f"loss below {self.loss_below:g}"
        if self.change_below is not None and len(losses) > self.patience:
            before, since = min(losses[: -self.patience]), min(losses[-self.patience :])
            if before - since < self.change_below:
                return f"change below {self.change_below:g}"
        return ITERATION_LIMIT if len(losses) >= self.iterations else None
