"""V-trace against a plain loop and the on-policy closed form."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from recfuse.config import InvalidFieldError
from recfuse.fusion.traces import v_trace


def sessions(rows: int = 300, seed: int = 0) -> dict[str, torch.Tensor]:
    """Sessions of a few requests each, some of them cut without an end."""
    rng = np.random.default_rng(seed)
    done = (rng.random(rows) < 0.2).astype(float)
    cut = rng.random(rows) < 0.05
    continues = (done == 0) & ~cut
    continues[-1] = False
    tensors = {name: rng.standard_normal((rows, 2)) for name in ("value", "next_value", "feedback")}
    return {name: torch.from_numpy(values) for name, values in {
        **tensors, "done": done, "log_ratio": rng.standard_normal(rows), "continues": continues,
        "discount": np.array([0.9, 0.0])}.items()}


def loop(batch: dict[str, torch.Tensor], limit: float) -> np.ndarray:
    """The definition of Espeholt et al., equation (1): v_s = V(s_s) + Σ_t γ^{t−s} (Π c_i) δ_t, term by term."""
    b = {name: tensor.numpy() for name, tensor in batch.items()}
    ratio = np.minimum(limit, np.exp(b["log_ratio"]))
    result = b["value"].copy()
    for j, gamma in enumerate(b["discount"]):
        for start in range(len(result)):
            t, weight = start, 1.0
            while True:
                ahead = gamma * b["next_value"][t, j] if b["done"][t] == 0 else 0.0
                result[start, j] += weight * ratio[t] * (b["feedback"][t, j] + ahead - b["value"][t, j])
                if not b["continues"][t]:
                    break
                weight *= gamma * ratio[t]
                t += 1
    return result


@pytest.mark.parametrize("limit", [0.7, 1.0, 3.0])
def test_against_a_plain_loop(limit):
    batch = sessions()
    # Within a session the next value is that of the next row.
    batch["next_value"][:-1][batch["continues"][:-1]] = batch["value"][1:][batch["continues"][:-1]]
    found = v_trace(**batch, trace_max=limit)
    np.testing.assert_allclose(found.target.numpy(), loop(batch, limit), rtol=1e-10, atol=1e-12)
    # The advantage takes the corrected value of the next request where there is one.
    following = np.where(batch["continues"].numpy()[:, None], np.roll(found.target.numpy(), -1, 0),
                         batch["next_value"].numpy())
    share = batch["discount"].numpy() * (1 - batch["done"].numpy())[:, None]
    expected = batch["feedback"].numpy() + share * following - batch["value"].numpy()
    np.testing.assert_allclose(found.advantage.numpy(), expected, rtol=1e-9, atol=1e-9)


def test_on_policy_it_is_the_discounted_sum_of_what_follows():
    """ρ = c = 1: v_t = r_t + γ r_{t+1} + … + γ^n V(s_n), whatever V says in between."""
    feedback = torch.tensor([[1.0], [2.0], [4.0], [8.0], [16.0]])
    continues = torch.tensor([True, True, False, True, False])
    done = torch.tensor([0.0, 0.0, 1.0, 0.0, 0.0])
    value = torch.tensor([[3.0], [-1.0], [5.0], [7.0], [2.0]])
    next_value = torch.tensor([[-1.0], [5.0], [float("nan")], [2.0], [10.0]])
    found = v_trace(value, next_value, feedback, done, torch.tensor([0.5]), torch.zeros(5), continues)
    # 1 + 1 + 1, 2 + 2, 4; and with a bootstrap of 10: 8 + ½·(16 + 5), 16 + 5.
    torch.testing.assert_close(found.target, torch.tensor([[3.0], [4.0], [4.0], [18.5], [21.0]]))


def test_bad_shapes_are_named():
    batch = sessions(4)
    with pytest.raises(InvalidFieldError, match=r"log_ratio: got \(3,\); allowed: \(4,\)"):
        v_trace(**{**batch, "log_ratio": batch["log_ratio"][:3]})
    with pytest.raises(InvalidFieldError, match=r"continues: got True; allowed: false in the last row"):
        v_trace(**{**batch, "continues": torch.ones(4, dtype=torch.bool)})
