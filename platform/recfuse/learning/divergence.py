"""What is said of a training whose loss is no number: where it happened, in which terms, which columns are extreme."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from recfuse.config import InputError
from recfuse.learning.context import Context
from recfuse.learning.metrics import LOSS, Metric
from recfuse.learning.phases import Phase, Prepared

# A value so many times as far from the median as half of the others are is extreme.
_EXTREME = 1e3
_NAMED = 4


class DivergedError(InputError):
    """A training cannot go on; its message is one line."""


def has_diverged(context: Context[Any], phase: Phase, loss: Tensor) -> bool:
    """Whether the mean loss of a pass, or a parameter after it, is no finite number; the same on every worker."""
    parameters = [p for name in phase.networks for p in getattr(context.module, name).parameters()]
    return not (bool(loss.isfinite().all()) and all(bool(parameter.isfinite().all()) for parameter in parameters))


def describe_divergence(
    context: Context[Any], phase: Phase, iteration: int, steps: Mapping[Metric, Tensor], prepared: Prepared,
) -> str:
    """One sentence.

    Args:
        iteration: of the phase, from 0.
        steps: metric → [steps, parts, …] of the pass.
    """
    broken = [step for step, loss in enumerate(steps[LOSS]) if not bool(loss.isfinite().all())]
    if broken:
        terms = [name for metric, value in steps.items() if metric is not LOSS
                 for name in _broken_names(context, metric, value[broken[0]])]
        what = f"the loss is not finite from step {broken[0] + 1} of pass {iteration + 1} on" + (
            f", by {', '.join(terms)}" if terms else "")
    else:
        what = f"parameters are not finite after pass {iteration + 1}, whose losses all were"
    extremes = _extremes(context, phase, prepared)
    return f"{phase.name}: {what}; " + (
        f"extreme values: {', '.join(extremes)}" if extremes else
        "no column holds extreme values, so that a lower learning rate may help")


def _broken_names(context: Context[Any], metric: Metric, value: Tensor) -> list[str]:
    """Entries [parts, …] of a metric that are not finite."""
    numbers = metric.numbers(value.flatten(1).sum(0) if value.ndim > 1 else value.sum(), context.names(metric.per))
    return [name for name, number in numbers.items() if not math.isfinite(number)]


def _extremes(context: Context[Any], phase: Phase, prepared: Prepared) -> list[str]:
    """The columns that the phase reads with values far from all others, the farthest first."""
    usual: dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]] = {}
    found: dict[str, tuple[float, float]] = {}
    for position, window in context.windows:
        for name, column in _columns(phase, prepared, position, window):
            values = column.reshape(len(column), -1).double().cpu().numpy()
            center, width = usual.setdefault(name, _center_and_width(values))
            with np.errstate(invalid="ignore", over="ignore"):
                far = np.nan_to_num(np.abs(values - center) / width, nan=np.inf)
            for index, row in enumerate(far.argmax(0)):
                label = _label(context, name, index, far.shape[1])
                if far[row, index] > max(_EXTREME, found.get(label, (0.0, 0.0))[0]):
                    found[label] = float(far[row, index]), float(values[row, index])
    farthest = sorted(found, key=lambda label: -found[label][0])
    others = len(farthest) - _NAMED
    return [f"{label} {found[label][1]:.3g}" for label in farthest[:_NAMED]] + (
        [f"{others} more columns"] if others > 0 else [])


def _columns(
    phase: Phase, prepared: Prepared, position: int, window: Mapping[str, Tensor]
) -> Iterator[tuple[str, Tensor]]:
    rows = len(window["done"])
    yield from ((name, window[name]) for name in phase.columns if name not in prepared.learned)
    yield from ((name, column[position : position + rows]) for name, column in prepared.learned.items())


def _center_and_width(values: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Median of each column, and the median distance to it; where half of the values are one, their size, or 1."""
    finite = np.where(np.isfinite(values), values, 0.0)
    center = np.median(finite, 0)
    width = np.median(np.abs(finite - center), 0)
    return center, np.where(width > 0, width, np.maximum(np.abs(center), 1.0))


def _label(context: Context[Any], name: str, index: int, width: int) -> str:
    if name == "feedback":
        return f"{name}.{context.vocabulary.behaviours[index].name} (in deviations)"
    return name if width == 1 else f"{name}[{index}]"


def finite_or_raise(loss: float, described: list[str]) -> None:
    """Raises DivergedError where the loss of a pass is no number.

    Args:
        described: what the learners say of it.
    """
    if not math.isfinite(loss):
        said = next((text for text in described if text), f"the loss is {loss}")
        raise DivergedError(f"training cannot go on: {said}; the checkpoint of the pass before is kept")
