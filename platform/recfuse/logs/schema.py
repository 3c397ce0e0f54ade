"""Arrow schemas of session logs and samples (design 3.1, 3.2), from the vocabulary."""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa

from recfuse.behaviours import Vocabulary

VOCABULARY_FILE = "vocabulary.yaml"
ACCOUNT_FILE = "account.json"
# Half precision holds a prediction to three digits in two bytes. Whoever logs candidates ranks by the rounded numbers,
# so that the log's own numbers give the ranking that was shown.
CANDIDATES = pa.struct([
    pa.field("item_ids", pa.list_(pa.string())),
    pa.field("predictions", pa.list_(pa.float16())),
    pa.field("seen", pa.list_(pa.bool_())),
])


def session_log_schema(vocabulary: Vocabulary) -> pa.Schema:
    """One row a request; what simulation and serving write and every job reads.

    `explored` says whether the action was drawn from N(mu, sigma²); null where nobody knows. `last` ends a session.
    `position` orders requests with equal `ts`; null where the log has nothing of the kind. `scorer_version` names the
    scorer that predicted, `vocabulary_hash` is `Vocabulary.meaning` of the model that decided; null where not told.

    `candidates` is what there was to rank, N items: their ids; `predictions`, M·N numbers, one fusion parameter after
    the other; `seen`, which of them the session had shown already and were not to be shown again (null: none).
    `candidates_total` is how many there were before the log kept N of them. `shown` are the positions among the
    candidates that were shown, best place first. All three are null where the log keeps no candidates.
    """
    state = pa.list_(pa.float32(), vocabulary.state_size)
    action = pa.list_(pa.float32(), vocabulary.action_size)
    feedback = pa.struct([pa.field(name, pa.float32()) for name in vocabulary.behaviour_names])
    return pa.schema([
        pa.field("session_id", pa.string()),
        pa.field("request_id", pa.string()),
        pa.field("user_id", pa.string()),
        pa.field("ts", pa.timestamp("us", "UTC")),
        pa.field("stage", pa.string()),
        pa.field("scene", pa.string()),
        pa.field("state", state),
        pa.field("mu", action),
        pa.field("sigma", action),
        pa.field("action", action),
        pa.field("action_logp", pa.float64()),
        pa.field("explored", pa.bool_()),
        pa.field("model_version", pa.string()),
        pa.field("scorer_version", pa.string()),
        pa.field("vocabulary_hash", pa.string()),
        pa.field("feedback", feedback),
        pa.field("last", pa.bool_()),
        pa.field("position", pa.int64()),
        pa.field("candidates", CANDIDATES),
        pa.field("candidates_total", pa.int32()),
        pa.field("shown", pa.list_(pa.int16())),
    ])


def sample_schema(vocabulary: Vocabulary) -> pa.Schema:
    """One row a transition: contiguous float32 columns, so that a batch becomes tensors without a Python object a row.

    `feedback` holds the logged values in the order of `vocabulary.behaviours`; transforms and scales are the learner's.
    `done` is 1.0 where the request is the last of its session. `truncated` is true where it is the last that is known
    of a session which the end of the log cuts; exactly one of them ends every session. `explored` is false where the
    action was not drawn from the policy. `user_id` is carried for splits by user and intervals over users,
    `request_id` tells whether a request was learned from, `ts`, `stage`, `scene` and `model_version` (who decided; null
    where the log does not say) are for splits by them.

    `mu` and `sigma` of the policy that drew the action, `predictions` (M·N numbers, one fusion parameter after the
    other), `open` (which of the N candidates could be shown) and `shown` (positions, best place first) are for replay
    (maths 5); null where the log keeps no candidates.
    """
    state = pa.list_(pa.float32(), vocabulary.state_size)
    action = pa.list_(pa.float32(), vocabulary.action_size)
    return pa.schema([
        pa.field("user_id", pa.string()),
        pa.field("request_id", pa.string()),
        pa.field("ts", pa.timestamp("us", "UTC")),
        pa.field("stage", pa.string()),
        pa.field("scene", pa.string()),
        pa.field("state", state),
        pa.field("action", action),
        pa.field("action_logp", pa.float32()),
        pa.field("explored", pa.bool_()),
        pa.field("feedback", pa.list_(pa.float32(), len(vocabulary.behaviours))),
        pa.field("next_state", state),
        pa.field("done", pa.float32()),
        pa.field("truncated", pa.bool_()),
        pa.field("model_version", pa.string()),
        pa.field("mu", action),
        pa.field("sigma", action),
        pa.field("predictions", pa.list_(pa.float16())),
        pa.field("open", pa.list_(pa.bool_())),
        pa.field("shown", pa.list_(pa.int16())),
    ])


def complete(columns: Mapping[str, pa.Array], schema: pa.Schema) -> pa.Table:
    """A table of the schema; a column that is not given is null in every row."""
    rows = len(next(iter(columns.values())))
    return pa.table({field.name: columns[field.name] if field.name in columns else pa.nulls(rows, field.type)
                     for field in schema}, schema=schema)
