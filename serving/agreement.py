"""Whether parts that serve together mean the same: each function gives a sentence for everything that does not fit.

A sentence begins with the part that lacks something. Nothing here depends on what served before, so that every replica
that sees the same parts comes to the same answer.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from recfuse.behaviours import StateFeature
from recfuse.logs.ids import keys_of, read_keys
from recfuse.scenes.encoder import FittedFeature
from recfuse.serving.config import Supplements
from recfuse.serving.parts import Items, Policy, Predictor, Users, category_texts

_OF_REQUESTS = ("scene", "stage")  # The request itself names them; scenes are compared as such.
_SHOWN = 5


def of_policy_and_scorer(policy: Policy, scorer: Predictor, supplements: Supplements) -> Iterator[str]:
    """Scenes, fusion parameters, and features of one name."""
    vocabulary, apart = policy.vocabulary, set(supplements.unshared_scenes)
    if vocabulary.scenes:
        for one, other, scenes in ((scorer.name, policy.name, set(vocabulary.scenes) - set(scorer.tasks) - apart),
                                   (policy.name, scorer.name, set(scorer.tasks) - set(vocabulary.scenes) - apart)):
            if scenes:
                yield f"{one} lacks scenes of {other}: {_some(scenes)} (allowed where unshared_scenes names them)"
    given = {*supplements.constants, *supplements.sent}
    missing = [name for name in vocabulary.fusion_parameters if name not in scorer.predicted | given]
    if missing:
        yield (f"{scorer.name} lacks fusion parameters of {policy.name}: {_some(missing)} (allowed where constants "
               "or sent names them)")
    empty = [scene for scene, tasks in scorer.tasks.items()
             if (not vocabulary.scenes or scene in vocabulary.scenes) and scene not in apart
             and not {*tasks, *given} & set(vocabulary.fusion_parameters)]
    if empty and not missing:
        yield f"{scorer.name} predicts no fusion parameter of {policy.name} in scenes {_some(empty)}"
    states = {feature.name: feature for feature in vocabulary.state_features}
    for fitted in scorer.features:
        feature = states.get(fitted.feature.name)
        if feature is not None and fitted.feature.source != "item" and feature.name not in _OF_REQUESTS:
            yield from _of_one_name(policy.name, feature, scorer.name, fitted)


def of_policy(policy: Policy, supplements: Supplements) -> Iterator[str]:
    """Stages with policies of their own; constants, under the policy's formula."""
    vocabulary = policy.vocabulary
    unknown = [stage for stage in policy.stages if stage not in vocabulary.stages]
    if unknown:
        yield f"{policy.name} has policies of stages that its vocabulary lacks: {_some(unknown)}"
    for name, value in supplements.constants.items():
        if name in vocabulary.fusion_parameters and vocabulary.formula != "linear" and value <= -vocabulary.offset:
            yield (f"{policy.name} takes numbers > −{vocabulary.offset} by its formula {vocabulary.formula}: "
                   f"constants.{name} is {value:g}")


def of_canary(policy: Policy, canary: Policy) -> Iterator[str]:
    """What a request or feedback of the canary's users may name, and clients' own states."""
    own, other = policy.vocabulary, canary.vocabulary
    for words, needed, there, is_open in (
            ("scenes", own.scenes, other.scenes, not other.scenes), ("stages", own.stages, other.stages, False),
            ("behaviours", own.behaviour_names, other.behaviour_names, False)):
        lacking = [name for name in needed if name not in there]
        if lacking and not is_open:
            yield f"{canary.name} lacks {words} of {policy.name}: {_some(lacking)}"
    if other.scenes and not own.scenes:
        yield f"{canary.name} takes scenes {_some(other.scenes)} alone, and {policy.name} any"
    if not (own.state_features and other.state_features) and own.context_size != other.context_size:
        yield f"{canary.name} reads states of {other.context_size} numbers, and {policy.name} of {own.context_size}"


def of_scorer_canary(scorer: Predictor, canary: Predictor) -> Iterator[str]:
    """What a request of the canary's users may name."""
    lacking = set(scorer.tasks) - set(canary.tasks)
    if lacking:
        yield f"{canary.name} lacks scenes of {scorer.name}: {_some(lacking)}"
    for scene, tasks in scorer.tasks.items():
        tasks_lacking = set(tasks) - set(canary.tasks.get(scene, tasks))
        if tasks_lacking:
            yield f"{canary.name} lacks tasks of {scorer.name} in scene {scene}: {_some(tasks_lacking)}"


def of_scorer_and_items(scorer: Predictor, items: Items, supplements: Supplements) -> Iterator[str]:
    """The columns that the scorer reads, their types, and ids."""
    read = [fitted for fitted in scorer.features if fitted.feature.source == "item"]
    names = dict.fromkeys(fitted.feature.name for fitted in read)
    missing = [name for name in names if name not in items.schema.names and name not in supplements.sent]
    if missing:
        yield f"{items.name} lacks columns that {scorer.name} reads: {_some(missing)} (allowed where sent names them)"
    for fitted in read:
        name, kind = fitted.feature.name, fitted.feature.kind
        if name in items.schema.names and not _column_fits(items.schema.field(name).type, fitted):
            yield (f"{items.name} has {items.schema.field(name).type} in {name}, and {scorer.name} reads "
                   f"{'integers or text' if kind == 'categorical' else 'numbers'}")
    for fitted in read:
        named = fitted.feature.name == "item_id" and fitted.feature.kind == "categorical"
        if named and len(fitted.values) and len(items.item_ids) and not _share_ids(items.item_ids, fitted.values):
            yield (f"{scorer.name} knows none of the {len(items.item_ids):,} items of {items.name}, such as "
                   f"{items.item_ids[0].as_py()!r}; it knows such as {fitted.values[0].item()!r}")


def of_policy_and_users(policy: Policy, users: Users, every: bool) -> Iterator[tuple[str, str]]:
    """Types of stored features that the state reads, each with its sentence; with `every` one user is enough, else most
    must be wrong."""
    for feature in policy.vocabulary.state_features:
        reads = "text, integers or booleans" if feature.categories else "numbers"
        yield from _of_users(users, feature.name, lambda value, f=feature: _state_takes(value, f),
                             f"{policy.name} reads {reads}", every)


def of_scorer_and_users(scorer: Predictor, users: Users, every: bool) -> Iterator[tuple[str, str]]:
    """The same of stored features that the scorer reads."""
    for fitted in scorer.features:
        if fitted.feature.source == "user" and fitted.feature.name != "user_id":
            reads = "text or integers" if fitted.feature.kind == "categorical" else "numbers"
            yield from _of_users(users, fitted.feature.name, lambda value, f=fitted: _scorer_takes(value, f),
                                 f"{scorer.name} reads {reads}", every)


def _of_users(users: Users, name: str, takes: Any, reads: str, every: bool) -> Iterator[tuple[str, str]]:
    values = {user: features[name] for user, features in users.features.items() if features.get(name) is not None}
    bad = [user for user, value in values.items() if not takes(value)]
    if bad and (every or 2 * len(bad) > len(values)):
        yield name, (f"{users.name} has {values[bad[0]]!r} in {name} of user {bad[0]} ({len(bad)} of {len(values)} "
                     f"users), and {reads}")


def _of_one_name(policy: str, feature: StateFeature, scorer: str, fitted: FittedFeature) -> Iterator[str]:
    """A feature that both read of the same request or store must have values that both take."""
    texts = category_texts(fitted)
    if not feature.categories:
        if texts and not any(map(_is_integer, texts)):
            yield f"{scorer} reads {feature.name} as text such as {min(texts)!r}, and {policy} as a number"
    elif fitted.feature.kind != "categorical":
        if not any(map(_is_integer, feature.categories)):
            yield f"{scorer} reads {feature.name} as a number, and {policy} as text such as {feature.categories[0]!r}"
    elif texts and not texts & set(feature.categories):
        yield (f"{scorer} knows no category of {feature.name} that {policy} knows: {_some(texts)}, and "
               f"{_some(feature.categories)}")


def _column_fits(kind: pa.DataType, fitted: FittedFeature) -> bool:
    whole = pa.types.is_integer(kind) or pa.types.is_boolean(kind) or pa.types.is_null(kind)
    if fitted.feature.kind == "categorical":
        return whole or pa.types.is_string(kind) or pa.types.is_large_string(kind)
    return whole or pa.types.is_floating(kind) or pa.types.is_decimal(kind)


def _state_takes(value: Any, feature: StateFeature) -> bool:
    if feature.categories:
        return isinstance(value, (str, bool, int))
    return isinstance(value, (bool, int, float)) and math.isfinite(value) and (value >= 0 or not feature.log)


def _scorer_takes(value: Any, fitted: FittedFeature) -> bool:
    return isinstance(value, (str, bool, int) if fitted.feature.kind == "categorical" else (bool, int, float))


def _share_ids(item_ids: pa.ChunkedArray, known: np.ndarray) -> bool:
    """Whether some item is known; ids as text are those as numbers, as clients may send either."""
    keys, valid = read_keys(item_ids, "item_id")
    return bool(np.isin(keys[valid], keys_of(known.tolist())).any())


def _is_integer(text: str) -> bool:
    return text.removeprefix("-").isascii() and text.removeprefix("-").isdigit()


def _some(names: Any) -> str:
    """The first names in words, and how many more."""
    ordered: Sequence[str] = sorted(names) if isinstance(names, (set, frozenset)) else list(names)
    more = f" and {len(ordered) - _SHOWN} more" if len(ordered) > _SHOWN else ""
    return ", ".join(map(str, ordered[:_SHOWN])) + more
