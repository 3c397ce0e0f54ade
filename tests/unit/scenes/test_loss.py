"""The masked weighted loss (maths 3.2) and its calibration (3.4)."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recfuse.config import InvalidFieldError
from recfuse.scenes.loss import calibrated, multi_scene_loss


def test_by_hand() -> None:
    """One row with y = 1, z = 0 in pair 0 (p = 3, ω = 2): 2 · 3 · log 2; pair 1 is another scene's."""
    loss = multi_scene_loss(torch.zeros(1, 2), torch.ones(1, 2), torch.tensor([[True, False]]),
                            torch.tensor([3.0, 7.0]), torch.tensor([2.0, 5.0]))
    assert loss.item() == pytest.approx(6 * math.log(2))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 20))
def test_s2_plain_case_is_bce_with_logits(seed: int, rows: int) -> None:
    """Property S2: p = 1, ω = 1, one pair, every row in its scene."""
    generator = torch.Generator().manual_seed(seed)
    z = 5 * torch.randn(rows, 1, generator=generator, dtype=torch.float64)
    y = torch.randint(0, 2, (rows, 1), generator=generator).double()
    ours = multi_scene_loss(z, y, torch.ones(rows, 1), torch.ones(1).double(), torch.ones(1).double())
    torch.testing.assert_close(ours, torch.nn.BCEWithLogitsLoss(reduction="sum")(z, y))


def test_weighted_case_is_bce_with_pos_weight_per_pair() -> None:
    torch.manual_seed(0)
    z, y = torch.randn(6, 3).double(), torch.randint(0, 2, (6, 3)).double()
    p, w = torch.tensor([1.0, 4.0, 0.5]).double(), torch.tensor([2.0, 0.1, 1.0]).double()
    expected = sum(w[t] * torch.nn.BCEWithLogitsLoss(pos_weight=p[t], reduction="sum")(z[:, t], y[:, t])
                   for t in range(3))
    torch.testing.assert_close(multi_scene_loss(z, y, torch.ones(6, 3).bool(), p, w), expected)


def test_masked_entries_have_exactly_no_gradient_whatever_they_hold() -> None:
    logits = torch.tensor([[0.3, float("nan")], [float("inf"), -1.0]], requires_grad=True)
    labels = torch.tensor([[1.0, float("nan")], [float("nan"), 0.0]])
    loss = multi_scene_loss(logits, labels, torch.eye(2).bool(), torch.ones(2), torch.ones(2))
    loss.backward()
    assert torch.isfinite(loss)
    assert logits.grad is not None
    assert logits.grad[0, 1] == 0
    assert logits.grad[1, 0] == 0
    assert (logits.grad.diag() != 0).all()


def test_gradient_agrees_with_finite_differences() -> None:
    torch.manual_seed(0)
    z = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    y, mask = torch.randint(0, 2, (4, 3)).double(), torch.randint(0, 2, (4, 3)).bool()
    p, w = torch.rand(3).double() + 0.5, torch.rand(3).double()
    assert torch.autograd.gradcheck(lambda logits: multi_scene_loss(logits, y, mask, p, w), (z,))


def test_calibration_undoes_the_positive_weight() -> None:
    """With a constant feature the optimum of the weighted loss is z = log(p · odds)."""
    rate, p = torch.tensor(0.02), torch.tensor(49.0)
    z = torch.log(p * rate / (1 - rate))
    torch.testing.assert_close(calibrated(z, p), rate)


@pytest.mark.parametrize(("change", "message"), [
    ({"labels": torch.zeros(2, 2)}, r"labels: got \(2, 2\); allowed: \(2, 3\)"),
    ({"mask": torch.zeros(3, 3)}, r"mask: got \(3, 3\)"),
    ({"positive_weight": torch.ones(2)}, r"positive_weight: got \(2,\); allowed: \(3,\)"),
    ({"task_weight": torch.ones(1)}, r"task_weight: got \(1,\)"),
    ({"logits": torch.zeros(3)}, r"logits: got \(3,\); allowed: \[B, T\]"),
])
def test_wrong_shapes_are_named(change: dict, message: str) -> None:
    fine = {"logits": torch.zeros(2, 3), "labels": torch.zeros(2, 3), "mask": torch.ones(2, 3),
            "positive_weight": torch.ones(3), "task_weight": torch.ones(3)}
    with pytest.raises(InvalidFieldError, match=message):
        multi_scene_loss(**(fine | change))
