"""A log of rankings whose effects are known, as samples for replay (maths 5)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from recfuse.behaviours import Behaviour, Vocabulary
from recfuse.fusion.replay import Candidates, attention_of, features_of_shown, pages
from recfuse.logs.schema import VOCABULARY_FILE, complete, sample_schema
from recfuse.stats.gaussian import gaussian_log_density

PAGE, WIDTH, VISITS, SIGMA = 3, 16, 10, 0.7


def vocabulary() -> Vocabulary:
    """Two columns; the state says one number of the user, and one that means nothing."""
    return Vocabulary(
        behaviours=(Behaviour(name="watch_time", kind="long_term", discount=0.0),
                    Behaviour(name="like", kind="short_term")),
        fusion_parameters=("watch_time", "like"), state_size=2)


def write(directory: Path, *, users: int = 600, spread: float = 0.0, effect: float = 1.0, seed: int = 0) -> Path:
    """Writes samples.

    Args:
        spread: of what a user's watch time gains by the first column; `effect` is its mean. The first number of the
            state tells it. The second column is worth as much less to whom the first is worth more.
        effect: 0 where what is shown changes nothing.
    """
    generator, of = torch.Generator().manual_seed(seed), vocabulary()
    rows = users * VISITS
    person = torch.randn(users, generator=generator).repeat_interleave(VISITS)
    rich = torch.rand(users, 1, 1, generator=generator).repeat_interleave(VISITS, 0)
    predictions = (torch.rand(rows, 2, WIDTH, generator=generator) * (0.5 + rich)).half()
    is_open = torch.ones(rows, WIDTH, dtype=torch.bool)
    candidates = Candidates.of(predictions, is_open, of)
    mu = torch.ones(rows, 2)
    action = mu + SIGMA * torch.randn(rows, 2, generator=generator)
    shown = pages(candidates, action.unsqueeze(1), PAGE)[:, 0]
    features = features_of_shown(candidates, shown, attention_of(0.85, PAGE, action))
    worth = torch.stack([effect + spread * person, effect - spread * person], 1)
    noise = torch.randn(rows, 2, generator=generator)
    watch = 5.0 + 3.0 * rich[:, 0, 0] + (worth * features).sum(1) + 0.5 * noise[:, 0]
    like = 0.5 * features[:, 1] * (effect > 0) + 0.3 + 0.1 * noise[:, 1]
    state = torch.stack([person, torch.randn(rows, generator=generator)], 1)
    density = gaussian_log_density(action.numpy(), mu.numpy(), np.full((rows, 2), SIGMA, np.float32))
    columns = {
        "user_id": pa.array([f"u{row // VISITS}" for row in range(rows)]),
        "request_id": pa.array([f"r{row}" for row in range(rows)]),
        "scene": pa.array(["default"] * rows), "state": fixed(state), "action": fixed(action),
        "action_logp": pa.array(density.astype(np.float32)), "explored": pa.array(np.ones(rows, bool)),
        "feedback": fixed(torch.stack([watch, like], 1)), "next_state": fixed(torch.zeros(rows, 2)),
        "done": pa.array(np.ones(rows, np.float32)), "truncated": pa.array(np.zeros(rows, bool)), "mu": fixed(mu),
        "sigma": fixed(torch.full((rows, 2), SIGMA)), "predictions": lists(predictions.flatten(1)),
        "open": lists(is_open), "shown": lists(shown.to(torch.int16))}
    directory.mkdir(parents=True, exist_ok=True)
    of.save(directory / VOCABULARY_FILE)
    pq.write_table(complete(columns, sample_schema(of)), directory / "part-00000.parquet")
    return directory


def fixed(values: torch.Tensor) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(values.float().numpy().ravel()), values.shape[1])


def lists(values: torch.Tensor) -> pa.Array:
    rows, width = values.shape
    return pa.ListArray.from_arrays(np.arange(0, rows * width + 1, width, dtype=np.int32),
                                    pa.array(values.numpy().ravel()))
