"""Pages of tables: columns of logs and samples, the vocabulary, meters, estimators."""

from __future__ import annotations

import pyarrow as pa
import yaml

from docs.site.text import code, docstring, table
from recfuse.behaviours import Behaviour, CandidateFeatures, StateFeature, Vocabulary
from recfuse.evaluation.answers import OffPolicyEstimate
from recfuse.evaluation.blocks import Block
from recfuse.evaluation.estimator import QUESTIONS
from recfuse.evaluation.estimators import ESTIMATORS
from recfuse.logs.schema import sample_schema, session_log_schema
from recfuse.serving.meters import METERS, TAGS

EXAMPLE = Vocabulary(
    behaviours=(Behaviour(name="watch_time", kind="long_term"), Behaviour(name="like", kind="short_term")),
    fusion_parameters=("click", "long_view", "like"), state_size=24, formula="log_sum")


def _columns(schema: pa.Schema) -> str:
    return table(["column", "type"], [(f"`{field.name}`", f"`{field.type}`") for field in schema])


def logs() -> str:
    """Columns of session logs and samples, and the fields of a vocabulary."""
    fields = [(Vocabulary, "vocabulary.yaml"), (Behaviour, "behaviours"), (StateFeature, "state_features"),
              (CandidateFeatures, "candidate_features")]
    parts = ["# Log schema", "[Your own logs](../logs.md) says which columns may be left out. Types are those of a "
             "vocabulary with two behaviours, three fusion parameters and a state of 24 numbers.",
             "## Session log", docstring(session_log_schema), _columns(session_log_schema(EXAMPLE)),
             "## Samples", docstring(sample_schema), _columns(sample_schema(EXAMPLE)), "## Vocabulary"]
    for config, name in fields:
        parts += [f"### {name}", docstring(config), table(["field", "what it says"], [
            (f"`{field}`", info.description or "") for field, info in config.model_fields.items()])]
    example = yaml.safe_dump(EXAMPLE.to_dict(), sort_keys=False, width=100)
    return "\n\n".join([*parts, "As a file:", code(example, "yaml")])


def metrics() -> str:
    """What serving measures of itself, and what `recfuse evaluate` writes to metrics.json."""
    tags = ", ".join(f"`{tag}`" for tag in TAGS)
    parts = ["# Metrics", "## Of serving", f"Ray's metrics port has them. Tags: {tags}. A histogram "
             "is two counters, `NAME_bucket` with the tag `le`, and `NAME_sum`.",
             table(["meter", "kind", "what it is"], [(f"`{name}`", kind, words)
                                                     for name, (kind, words, _) in METERS.items()]),
             "## Questions of an evaluation", "`metrics.json` of `recfuse evaluate` has a block for each.",
             table(["question", "a value is per", "in words"], [(each.name, each.unit, each.words)
                                                                for each in QUESTIONS]),
             "## Estimators", table(["estimator", "question", "formula"], [
                 (each.name, each.question.name, f"`{each.formula}`") for each in ESTIMATORS]),
             "## A block", docstring(Block), "## An estimate", docstring(OffPolicyEstimate)]
    return "\n\n".join(parts)
