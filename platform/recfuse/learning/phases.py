"""A phase of an algorithm: one fit, as a value that the learner runs pass by pass without knowing whose it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from recfuse.learning.context import Context
    from recfuse.learning.gradients import Batch
    from recfuse.learning.metrics import Metric, Metrics
    from recfuse.learning.module import FusionPolicyModule
    from recfuse.learning.stopping import StoppingRule


@dataclass(frozen=True)
class PhaseLoss:
    """What a loss says of a batch.

    Attributes:
        loss: scalar, with gradient.
        metrics: without gradient.
        judged: scalar that the stopping rule looks at on samples held out, the lower the better; None takes the loss.
            The value of a policy's surrogate does not compare policies.
    """

    loss: Tensor
    metrics: Metrics = field(default_factory=dict)
    judged: Tensor | None = None


Loss = Callable[["Context[Any]", "Batch"], PhaseLoss]


@dataclass(frozen=True)
class Step:
    """One step on a minibatch.

    Attributes:
        batch: columns [n, …], n of them for each part.
        loss: of a part of the batch.
        networks: names of those whose optimizers take the step.
        follow: called after it; as a rule it moves target networks.
    """

    batch: Batch
    loss: Loss
    networks: tuple[str, ...]
    follow: Callable[[Context[Any]], None] | None = None


@dataclass(frozen=True)
class Prepared:
    """What networks that no step of a phase changes say about every sample, before a pass.

    Attributes:
        learned: name → [n, …] on the CPU in the order of the samples; becomes a column of the batches.
        judged: the same for samples held out, where they are judged by something else.
        metrics: go into the history of the pass.
    """

    learned: Mapping[str, Tensor] = field(default_factory=dict)
    judged: Mapping[str, Tensor] | None = None
    metrics: Metrics = field(default_factory=dict)

    def columns(self, is_held_out: bool) -> Mapping[str, Tensor]:
        """Those of samples of this kind."""
        return self.judged if is_held_out and self.judged is not None else self.learned


@dataclass(frozen=True)
class Fitted:
    """Values that a phase fits, whose explained variance is reported.

    Attributes:
        explained: what it is called.
        values: of a batch what is fitted, and to what: [n, c] both.
    """

    explained: Metric
    values: Callable[[Context[Any], Batch], tuple[Tensor, Tensor]]


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One fit of an algorithm.

    Hooks take the context of the run (settings, module, samples, workers) first; `begin` takes the module alone.

    Attributes:
        name: in the history and in checkpoints.
        seed: goes into the seed of the order of the samples; another number is another order, and other bits.
        rule: when the fit ends, by the settings.
        columns: of the samples, that its batches have.
        drawn_only: reads no sample whose action was not drawn. Phases that fit critics alone read all samples; whatever
            fits policies, densities, ratios or weights must not.
        networks: whose optimizers its steps use; what was computed from them is forgotten after each pass.
        loss: of a part of a batch.
        follow: after each step; moves target networks, as a rule.
        begin: before its first pass: where its networks start from what earlier phases fitted.
        leave: once the next phase begins.
        prepare: before each pass: what networks that stay as they are say about every sample.
        draw: random columns for a window of so many rows, the same for any number of workers.
        every: one of so many minibatches, and of the samples held out, is looked at; by default each one is.
        steps: of a minibatch and its number in the pass; by default one step on all of it.
        judge: the loss on samples held out, where it is another function.
        fitted: values whose explained variance is reported.
        finish: after a pass, of the means of its metrics; what it changes is the same on every worker.
        diagnose: of states [n, S], after a pass.
        search: in place of all steps: a pass that changes parameters without gradients.
    """

    name: str
    seed: int
    rule: Callable[[Any], StoppingRule]
    columns: tuple[str, ...] = ()
    drawn_only: bool = True
    networks: tuple[str, ...] = ()
    loss: Loss | None = None
    follow: Callable[[Context[Any]], None] | None = None
    begin: Callable[[FusionPolicyModule], None] | None = None
    leave: Callable[[Context[Any]], None] | None = None
    prepare: Callable[[Context[Any]], Prepared] | None = None
    draw: Callable[[Context[Any], np.random.Generator, int], Batch] | None = None
    every: Callable[[Context[Any]], int] | None = None
    steps: Callable[[Context[Any], Batch, int], Iterator[Step]] | None = None
    judge: Loss | None = None
    fitted: Fitted | None = None
    finish: Callable[[Context[Any], Metrics], Metrics] | None = None
    diagnose: Callable[[Context[Any], Tensor], Metrics] | None = None
    search: Callable[[Context[Any], np.random.Generator, int], Metrics] | None = None

    def steps_of(self, context: Context[Any], batch: Batch, number: int) -> Iterator[Step]:
        """The steps on a minibatch."""
        if self.steps is not None:
            yield from self.steps(context, batch, number)
        else:
            assert self.loss is not None
            yield Step(batch, self.loss, self.networks, self.follow)


def names_of(phases: Sequence[Phase]) -> tuple[str, ...]:
    """Names of phases, in order."""
    return tuple(phase.name for phase in phases)
