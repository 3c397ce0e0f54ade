"""Arrow schemas of session logs and samples (design 3.1, 3.2), from the vocabulary."""

from __future__ import annotations

import pyarrow as pa

from recfuse.behaviours import Vocabulary

VOCABULARY_FILE = "vocabulary.yaml"
ACCOUNT_FILE = "account.json"


def session_log_schema(vocabulary: Vocabulary) -> pa.Schema:
    """One row a request; what simulation and serving write and ingest reads."""
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
        pa.field("model_version", pa.string()),
        pa.field("feedback", feedback),
        pa.field("last", pa.bool_()),
    ])


def sample_schema(vocabulary: Vocabulary) -> pa.Schema:
    """One row a transition: contiguous float32 columns, so that a batch becomes tensors without a Python object a row.

    `feedback` holds the logged values in the order of `vocabulary.behaviours`; transforms and scales are the learner's.
    `done` is 1.0 where the request is the last of its session. `user_id` is carried for splits by user and for
    intervals over users.
    """
    state = pa.list_(pa.float32(), vocabulary.state_size)
    action = pa.list_(pa.float32(), vocabulary.action_size)
    return pa.schema([
        pa.field("user_id", pa.string()),
        pa.field("state", state),
        pa.field("action", action),
        pa.field("action_logp", pa.float32()),
        pa.field("feedback", pa.list_(pa.float32(), len(vocabulary.behaviours))),
        pa.field("next_state", state),
        pa.field("done", pa.float32()),
    ])
