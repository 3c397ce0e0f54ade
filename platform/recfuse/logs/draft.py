"""A first vocabulary: from a sample of a session log, or from what its owner says; what was guessed is said.

Of a log its behaviours are told by their values: numbers that count something are short-term, all others long-term. The
count of fusion parameters, the width of the state, scenes, stages and the formula are read off the rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from recfuse.behaviours import STAGES, Behaviour, CandidateFeatures, Formula, StateFeature, Vocabulary
from recfuse.config import InvalidFieldError, require
from recfuse.logs.candidates import reproduces
from recfuse.logs.columns import plain_columns, without_views
from recfuse.logs.source import BROKEN, list_log, pieces, read_piece
from recfuse.logs.validation import REQUIRED

_MOST_SCENES = 50
_TRIED = 200  # requests whose page tells the formula
_LEAST_FIT = 0.9
# A behaviour that is brought by so small a share of the requests is sparse, whatever its numbers.
_SPARSE = 0.02


@dataclass(frozen=True)
class Draft:
    """A vocabulary and what was guessed of it.

    Attributes:
        vocabulary: that the log's rows fit.
        guesses: sentences, one a guess.
    """

    vocabulary: Vocabulary
    guesses: tuple[str, ...]


def parse_behaviours(text: str) -> list[Behaviour]:
    """Of `name:kind,name`; a name alone is short-term.

    Raises:
        InvalidFieldError: another kind.
    """
    result = []
    for each in parse_names(text):
        name, colon, kind = (part.strip() for part in each.partition(":"))
        require(not colon or kind in ("long_term", "short_term"), f"behaviours.{name}", kind, "long_term, short_term")
        result.append(Behaviour(name=name, kind="long_term" if kind == "long_term" else "short_term"))
    return result


def parse_names(text: str) -> list[str]:
    """Of `name,name`."""
    return [each.strip() for each in text.split(",") if each.strip()]


def declare(behaviours: Sequence[Behaviour], predictions: Sequence[str], scenes: Sequence[str], formula: Formula,
            page: int) -> Draft:
    """The vocabulary of somebody who has no log yet. Its states say what there is to rank, and on which page."""
    features = (StateFeature(name="scene", categories=tuple(scenes)),) if len(scenes) > 1 else ()
    size = CandidateFeatures.width_of(len(predictions))
    vocabulary = Vocabulary(
        behaviours=tuple(behaviours), fusion_parameters=tuple(predictions), scenes=tuple(scenes), formula=formula,
        state_features=features, candidate_features=CandidateFeatures(page=page),
        state_size=size + sum(feature.width for feature in features))
    return Draft(vocabulary, (
        f"state: {vocabulary.state_size} numbers that serving computes, {size} of what there is to rank"
        + (" and the others of the scene" if features else ""),
        f"formula: {formula}"))


def read_draft(path: str, rows: int, behaviours: Sequence[Behaviour], predictions: Sequence[str],
               scenes: Sequence[str], formula: Formula | None) -> Draft:
    """The vocabulary of a log; what is given is taken, the rest is read off so many of its rows.

    Raises:
        InvalidFieldError: it cannot be read, already has a vocabulary, or lacks a column.
    """
    table = _sample(path, rows)
    guesses: list[str] = []
    width, parameters = (_width(table, name) for name in ("state", "action"))
    guesses.append(f"state: {width} numbers; action: {parameters} fusion parameters")
    names = tuple(predictions) or tuple(f"prediction_{k + 1}" for k in range(parameters))
    require(len(names) == parameters, "predictions", list(names), f"{parameters} names, one a number of `action`")
    if not predictions:
        guesses.append(f"fusion_parameters: {', '.join(names)}; the log does not name them: rename them in their order")
    kinds = list(behaviours) or _behaviours(table, guesses)
    places = tuple(scenes) or _scenes(table, guesses)
    stages = tuple(stage for stage in STAGES if stage in pc.unique(table["stage"].cast(pa.string())).to_pylist())
    require(bool(stages), "stage", pc.unique(table["stage"]).to_pylist()[:3], ", ".join(STAGES))
    by = formula or _formula(table, parameters, guesses)
    guesses += _what_is_there(table)
    return Draft(Vocabulary(behaviours=tuple(kinds), fusion_parameters=names, state_size=width, formula=by,
                            scenes=places, stages=stages), tuple(guesses))


def _sample(path: str, rows: int) -> pa.Table:
    files = list_log(path)
    require(not files.vocabularies, "logs", path,
            f"a log without a vocabulary; {', '.join(files.vocabularies[:1])} lies in this one")
    tables: list[pa.Table] = []
    for piece in pieces(files)[0]:
        try:
            tables.append(without_views(read_piece(files, piece)))
        except BROKEN:  # ingest quarantines it
            continue
        if sum(table.num_rows for table in tables) >= rows:
            break
    require(bool(tables), "logs", path, "readable Parquet")
    table = pa.concat_tables(tables, promote_options="permissive").slice(0, rows).combine_chunks()
    lacking = [name for name in REQUIRED if name not in table.column_names]
    require(not lacking, lacking[0] if lacking else "", "missing column", f"columns {', '.join(REQUIRED)}")
    return table


def _width(table: pa.Table, name: str) -> int:
    lengths = pc.value_counts(pc.list_value_length(table[name]).drop_null()).to_pylist()
    require(bool(lengths), name, "no list", "a list of numbers")
    commonest: int = max(lengths, key=lambda each: each["counts"])["values"]
    return commonest


def _feedback(table: pa.Table) -> Mapping[str, NDArray[np.float64]]:
    """Behaviour → values, NaN where it is null."""
    column = table["feedback"]
    kind = column.type
    if pa.types.is_map(kind):
        names = sorted({key for row in column.to_pylist() for key, _ in row or ()})
        column = plain_columns(table, tuple(names), ("feedback",)).table["feedback"]
    elif pa.types.is_struct(kind):
        names = [field.name for field in kind]
    else:
        raise InvalidFieldError("feedback", str(kind), "a struct or a map of behaviours")
    values = {name: pc.struct_field(column, name).cast(pa.float64(), safe=False) for name in names}
    return {name: pc.fill_null(each, float("nan")).to_numpy() for name, each in values.items()}


def _behaviours(table: pa.Table, guesses: list[str]) -> list[Behaviour]:
    values = _feedback(table)
    require(bool(values), "feedback", "no field", "at least one behaviour")
    known = {name: column[np.isfinite(column)] for name, column in values.items()}
    dense = {name: bool(len(column)) and not (column == np.floor(column)).all() for name, column in known.items()}
    if not any(dense.values()):
        densest = max(known, key=lambda name: float((known[name] != 0).mean()) if len(known[name]) else 0.0)
        dense[densest] = True
    result = []
    for name, column in known.items():
        share = float((column != 0).mean()) if len(column) else 0.0
        if dense[name]:
            scale = float(f"{column.std():.2g}") if column.std() > 0 else 1.0
            result.append(Behaviour(name=name, kind="long_term", scale=scale))
            why = f"numbers, in {share:.0%} of the requests; divided by {scale:g}, their standard deviation"
        else:
            result.append(Behaviour(name=name, kind="short_term"))
            why = f"counts, in {share:.1%} of the requests" + ("; seldom" if share < _SPARSE else "")
        guesses.append(f"behaviour {name}: {result[-1].kind} ({why})")
    return result


def _scenes(table: pa.Table, guesses: list[str]) -> tuple[str, ...]:
    names = sorted(name for name in pc.unique(table["scene"].cast(pa.string())).to_pylist() if name)
    if len(names) > _MOST_SCENES:
        guesses.append(f"scenes: any, since the sample has {len(names)} of them")
        return ()
    guesses.append(f"scenes: {', '.join(names)}")
    return tuple(names)


def _formula(table: pa.Table, parameters: int, guesses: list[str]) -> Formula:
    """The formula by which the actions give the pages that were shown; linear where nothing tells."""
    fits = _fits(table, parameters)
    best = max(fits, key=lambda formula: fits[formula], default=None)
    if best is None or fits[best] < _LEAST_FIT:
        told = "" if best is None else f"; the pages of the log fit {best} in {fits[best]:.0%} of the requests"
        guesses.append(f"formula: linear, which nothing in the log tells{told}")
        return "linear"
    guesses.append(f"formula: {best}, by which the actions give {fits[best]:.0%} of the pages that were shown")
    return best


def _fits(table: pa.Table, parameters: int) -> dict[Formula, float]:
    if not {"candidates", "shown"} <= set(table.column_names):
        return {}
    there = table.filter(pc.and_(pc.is_valid(table["candidates"]), pc.is_valid(table["shown"]))).slice(0, _TRIED)
    plain = plain_columns(there, (), ("candidates", "shown", "action")).table.to_pylist()
    tried: dict[Formula, list[bool]] = {"linear": [], "log_sum": []}
    for row in plain:
        predictions = np.array(row["candidates"]["predictions"], np.float64)
        if len(row["action"]) != parameters or not len(predictions) or len(predictions) % parameters:
            continue
        of = predictions.astype(np.float16).reshape(1, parameters, -1)
        seen = np.array(row["candidates"]["seen"] or [False] * of.shape[2], bool)
        shown = np.array([row["shown"]], np.int64)
        if len(seen) != of.shape[2] or not ((shown >= 0) & (shown < of.shape[2])).all():
            continue
        for formula, results in tried.items():
            with np.errstate(invalid="ignore"):
                results.append(bool(reproduces(of, ~seen[None], np.array([row["action"]], np.float32), shown, formula,
                                               1e-3)[0]))
    return {formula: float(np.mean(results)) for formula, results in tried.items() if results}


def _what_is_there(table: pa.Table) -> list[str]:
    """Sentences on the columns that a log may lack."""
    def has(name: str) -> bool:
        return name in table.column_names and table[name].null_count < table.num_rows

    sessions = "by session_id" if has("session_id") else "cut at pauses of 30 minutes, since session_id is not there"
    if has("action_logp"):
        density = "as logged"
    elif has("mu") and has("sigma"):
        density = "computed from mu and sigma, since action_logp is not there"
    else:
        density = "unknown: neither action_logp nor mu and sigma are there; ingest needs `--density optional`"
    kept = "kept, so that replay can learn from them" if has("candidates") and has("shown") else "not kept"
    return [f"sessions: {sessions}", f"densities: {density}", f"candidates: {kept}"]


def to_yaml(vocabulary: Vocabulary, source: str) -> str:
    """The vocabulary as YAML with comments."""
    lines = [f"# The vocabulary of {source}: what the numbers of its session logs mean.",
             "# It travels with logs and bundles.",
             "# long_term: dense, is to rise; short_term: sparse, must not pay for it.",
             "# discount: how much later requests of a session count; scale: divides the numbers.",
             "behaviours:"]
    for behaviour in vocabulary.behaviours:
        more = "" if behaviour.scale == 1 else f", scale: {behaviour.scale:g}"
        name, discount = _text(behaviour.name), behaviour.gamma
        lines.append(f"- {{name: {name}, kind: {behaviour.kind}, discount: {discount:g}{more}}}")
    lines += ["# The predictions that are fused, in the order of the numbers of `action`.",
              f"fusion_parameters: {_list(vocabulary.fusion_parameters)}",
              "# linear: Σ a p; log_sum: Σ a log(p + offset).", f"formula: {vocabulary.formula}",
              "# Pages, and steps of ranking, that a log may name; no scenes allow any.",
              f"scenes: {_list(vocabulary.scenes)}", f"stages: {_list(vocabulary.stages)}",
              "# How many numbers say who asks, when, and what there is to rank.",
              f"state_size: {vocabulary.state_size}"]
    if vocabulary.candidate_features is not None:
        lines += ["# What serving computes of the candidates; a page has so many places.",
                  f"candidate_features: {{page: {vocabulary.candidate_features.page}}}"]
    if vocabulary.state_features:
        lines += ["# What serving encodes of a request's context.", "state_features:"]
        lines += [f"- {{name: {_text(feature.name)}, categories: {_list(feature.categories)}}}"
                  for feature in vocabulary.state_features]
    return "\n".join(lines) + "\n"


def _list(names: Sequence[str]) -> str:
    return f"[{', '.join(_text(name) for name in names)}]"


def _text(name: str) -> Any:
    return '"' + name.replace("\\", "\\\\").replace('"', '\\"') + '"' if not name.isidentifier() or name in (
        "null", "true", "false", "yes", "no", "on", "off", "y", "n") else name
