"""The one state encoder: training and serving call the same code, so a context cannot mean two things."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from recfuse.behaviours import StateFeature, Vocabulary
from recfuse.config import InvalidFieldError, require

Column = np.ndarray | Sequence[Any]
_FLOAT32_MAX = float(np.finfo(np.float32).max)
_PLAIN = frozenset((float, int, bool))


class StateEncoder:
    """Encodes contexts by `vocabulary.state_features`.

    A numeric feature becomes (x − mean) / std, after log(1 + x) where the feature says so; a missing one takes its
    default. A categorical feature becomes one-hot over its categories plus a last column for any other value, a missing
    one included. Keys of a context that are no state feature are ignored: a request may say more than a model reads.

    Args:
        vocabulary: its `state_features` fix the columns and their order.

    Raises:
        InvalidFieldError: the vocabulary has no state features.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        features = vocabulary.state_features
        require(len(features) > 0, "state_features", features, "at least one state feature to encode contexts with")
        self.features = features
        # What candidates say comes after it (recfuse.state.candidates).
        self.state_size = vocabulary.context_size
        self.names = tuple(feature.name for feature in features)
        self._index = {feature.name: {category: i for i, category in enumerate(feature.categories)}
                       for feature in features if feature.categories}
        starts = np.cumsum([0, *(feature.width for feature in features)])[:-1].tolist()
        self._one_hots = [(feature, start) for feature, start in zip(features, starts, strict=True)
                          if feature.categories]
        # Numeric features are normalised together, a row of numbers each: a request has one number a feature.
        self._numeric = tuple(feature for feature in features if not feature.categories)
        self._places = [start for feature, start in zip(features, starts, strict=True) if not feature.categories]
        self._mean = np.array([[feature.mean] for feature in self._numeric], np.float64).reshape(-1, 1)
        self._std = np.array([[feature.std] for feature in self._numeric], np.float64).reshape(-1, 1)
        self._log = [k for k, feature in enumerate(self._numeric) if feature.log]
        # The same for one context, where a loop over the features would cost more than the numbers.
        self._defaults = {feature.name: feature.default for feature in self._numeric}
        self._one_mean, self._one_std = self._mean[:, 0], self._std[:, 0]
        places = self._places
        contiguous = places == list(range(places[0], places[0] + len(places))) if places else False
        self._span: slice | list[int] = slice(places[0], places[0] + len(places)) if contiguous else places

    def encode(self, contexts: Mapping[str, Column], rows: int | None = None) -> np.ndarray:
        """States of B contexts given as columns.

        Args:
            contexts: feature name → column of B values; None within a column is a missing value.
            rows: B; needed only where `contexts` may hold no state feature at all.

        Returns:
            float32[B, S]; where the vocabulary has candidate features, the first columns of the states alone.

        Raises:
            InvalidFieldError: columns of different lengths, or a value that its feature does not take.
        """
        rows = self._rows(contexts, rows)
        states = np.zeros((rows, self.state_size), np.float32)
        if self._numeric:
            states[:, self._places] = self._normalised(contexts, rows).T
        for feature, start in self._one_hots:
            self._one_hot(feature, contexts.get(feature.name), states[:, start:start + feature.width])
        return states

    def encode_one(self, context: Mapping[str, Any]) -> np.ndarray:
        """The state of one context, float32[S]; the same numbers as `encode`, in a fraction of its time."""
        state = self._one(context)
        if state is None:  # something is unusual or wrong, which `encode` sorts out and names
            columns = {name: [context[name]] for name in self.names if name in context}
            return self.encode(columns, rows=1)[0]
        return state

    def _one(self, context: Mapping[str, Any]) -> np.ndarray | None:
        state = np.zeros(self.state_size, np.float32)
        if self._numeric:
            known = [default if (value := context.get(name)) is None else value
                     for name, default in self._defaults.items()]
            if not _PLAIN.issuperset(map(type, known)):
                return None
            try:
                numbers = np.array(known, np.float64)
            except OverflowError:
                return None
            if self._log:
                logged = numbers[self._log]
                if not logged.min() >= 0.0:
                    return None
                numbers[self._log] = np.log1p(logged)
            with np.errstate(over="ignore"):  # what overflows is refused on the next line
                numbers = (numbers - self._one_mean) / self._one_std
            if not np.abs(numbers).max() <= _FLOAT32_MAX:  # NaN and infinity included
                return None
            state[self._span] = numbers
        for feature, start in self._one_hots:
            value = context.get(feature.name)
            if not (value is None or isinstance(value, (str, bool, int))):
                return None
            text = value if isinstance(value, str) else str(value)
            other = len(feature.categories)
            state[start + self._index[feature.name].get(text, other)] = 1.0
        return state

    def _rows(self, contexts: Mapping[str, Column], rows: int | None) -> int:
        for name in self.names:
            if name in contexts:
                length = len(contexts[name])
                rows = length if rows is None else rows
                require(length == rows, name, length, f"{rows} values, as in the other columns")
        if rows is None:
            raise InvalidFieldError("context", sorted(contexts), f"at least one of {', '.join(self.names)}")
        return rows

    def _normalised(self, contexts: Mapping[str, Column], rows: int) -> np.ndarray:
        """(x − mean) / std of every numeric feature, float64[features, B]."""
        numbers = np.empty((len(self._numeric), rows))
        for k, feature in enumerate(self._numeric):
            column = contexts.get(feature.name)
            numbers[k] = feature.default if column is None else _numbers(feature, column)
        if not np.isfinite(numbers).all():
            self._refuse(numbers, ~np.isfinite(numbers))
        if self._log:
            logged = numbers[self._log]
            if (logged < 0).any():
                self._refuse(logged, logged < 0, self._log)
            numbers[self._log] = np.log1p(logged)
        with np.errstate(over="ignore"):  # what overflows is refused on the next line
            encoded: np.ndarray = (numbers - self._mean) / self._std
        fits = np.abs(encoded) <= _FLOAT32_MAX
        if not fits.all():
            k, row = np.argwhere(~fits)[0]
            raise InvalidFieldError(self._numeric[k].name, float(numbers[k, row]),
                                    "a number that fits float32 when encoded")
        return encoded

    def _refuse(self, numbers: np.ndarray, bad: np.ndarray, features: Sequence[int] | None = None) -> None:
        k, row = np.argwhere(bad)[0]
        feature = self._numeric[k if features is None else features[k]]
        raise InvalidFieldError(feature.name, float(numbers[k, row]),
                                "a finite number ≥ 0" if feature.log else "a finite number")

    def _one_hot(self, feature: StateFeature, column: Column | None, block: np.ndarray) -> None:
        if column is None:
            block[:, -1] = 1.0
            return
        index, other = self._index[feature.name], len(feature.categories)
        values = column.tolist() if isinstance(column, np.ndarray) else column
        try:
            positions = [index.get(value if isinstance(value, str) else _category(feature, value), other)
                         for value in values]
        except TypeError:
            raise InvalidFieldError(feature.name, values, "strings, integers or booleans") from None
        block[np.arange(len(positions)), positions] = 1.0


def _category(feature: StateFeature, value: Any) -> str:
    # Logs hold integer codes where JSON clients send strings; both name the same category. None is no category.
    if value is None or isinstance(value, (bool, int)):
        return str(value)
    raise InvalidFieldError(feature.name, value, "a string, an integer, a boolean or null")


def _numbers(feature: StateFeature, column: Column) -> np.ndarray:
    if isinstance(column, np.ndarray) and column.dtype.kind in "fiub":
        return _flat(feature, column.astype(np.float64))
    filled: list[Any] = []
    for value in column:
        if type(value) is float:
            filled.append(value)
        elif value is None:
            filled.append(feature.default)
        elif isinstance(value, (bool, int, float, np.number, np.bool_)):
            filled.append(value)
        else:
            raise InvalidFieldError(feature.name, value, "a finite number")
    try:
        return np.array(filled, np.float64)
    except OverflowError:
        raise InvalidFieldError(feature.name, max(filled, key=abs), "a number that fits float64") from None


def _flat(feature: StateFeature, numbers: np.ndarray) -> np.ndarray:
    require(numbers.ndim == 1, feature.name, f"an array of shape {numbers.shape}", "one number a row")
    return numbers
