"""How exactly a column of numbers was logged, told by its values: decimals, a short float, or float32."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

EPSILON = float(np.finfo(np.float32).eps)
# Fewer distinct values may lie on a grid by chance, or by the nature of what they count.
_DISTINCT = 20
_MOST_DECIMALS = 6
# So many values are looked at before all of them are.
_GLANCE = 2_000
# A grid tells something where its step is so many times that of float32.
_COARSER = 32.0
# Bits of a float32 that are zero where it came from a shorter float; the rounding of that one; its name.
_SHORT = ((0xFFFF, 2.0**-8, "bfloat16"), (0x1FFF, 2.0**-11, "float16"))


@dataclass(frozen=True)
class Precision:
    """What a logged number may be off by: `half_step` + `relative` |number|.

    Attributes:
        half_step: half of the last decimal that was logged; 0 where the column is not rounded to decimals.
        relative: of the floating-point format.
        words: what the column is logged with, for notes; empty where it has the digits of a float32.
    """

    half_step: float = 0.0
    relative: float = EPSILON
    words: str = ""

    @classmethod
    def of(cls, values: NDArray[np.floating]) -> Precision:
        """That of a column's finite values, of any shape."""
        numbers = np.asarray(values[np.isfinite(values)], np.float64)
        if len(np.unique(numbers[:_GLANCE])) < _DISTINCT:
            return cls()
        for decimals in range(_MOST_DECIMALS + 1):
            if _on_grid(numbers[:_GLANCE], decimals) and _on_grid(numbers, decimals):
                return _decimal(decimals)
        bits = numbers.astype(np.float32).view(np.uint32)
        for mask, relative, name in _SHORT:
            if not (bits & np.uint32(mask)).any():
                return cls(relative=relative, words=f"the digits of a {name}")
        return cls()

    def of_few(self, values: NDArray[np.floating]) -> Precision:
        """That of a column which was logged beside this one: where its values are too few to tell, and have no more
        decimals than this one, they may have been rounded like it."""
        numbers = np.asarray(values[np.isfinite(values)], np.float64)
        own = Precision.of(numbers)
        few = 0 < len(np.unique(numbers[:_GLANCE])) < _DISTINCT
        if not own.words and self.half_step and few and _on_grid(numbers, round(-np.log10(2 * self.half_step))):
            return Precision(self.half_step, self.relative)  # a guess, of which nothing is said
        return own

    def error(self, values: NDArray[np.floating]) -> NDArray[np.float64]:
        """What each of the values may be off by, of their shape."""
        return np.asarray(self.half_step + self.relative * np.abs(np.asarray(values, np.float64)), np.float64)


def _decimal(decimals: int) -> Precision:
    words = f"{decimals} decimal{'' if decimals == 1 else 's'}" if decimals else "whole numbers"
    return Precision(half_step=0.5 * 10.0**-decimals, words=words)


def _on_grid(numbers: NDArray[np.float64], decimals: int) -> bool:
    """Whether all are multiples of 10^−decimals, as exactly as a float32 can say."""
    scale = 10.0**decimals
    size = np.abs(numbers)
    if _COARSER * EPSILON * scale * size.max() > 1.0:
        return False
    return bool((np.abs(numbers - np.round(numbers * scale) / scale) <= EPSILON * size).all())
