"""Weights from counts (maths 3.3), worked by hand."""

from __future__ import annotations

import pytest
import torch

from recfuse.config import InvalidFieldError
from recfuse.scenes.weights import task_weights


@pytest.mark.parametrize(("strategy", "expected"), [
    # N⁺ = (10, 1), N⁻ = (90, 15): p = (9, 15), M = p N⁺ + N⁻ = (180, 30).
    ("uniform", (1.0, 1.0)),
    # 1/M = (1, 6)/180, mean 3.5/180.
    ("balanced", (1 / 3.5, 6 / 3.5)),
    # M^−½ ∝ (1, √6), mean (1 + √6)/2.
    ("sqrt", (2 / (1 + 6**0.5), 2 * 6**0.5 / (1 + 6**0.5))),
])
def test_by_hand(strategy: str, expected: tuple[float, float]) -> None:
    p, w = task_weights(torch.tensor([10.0, 1.0]), torch.tensor([90.0, 15.0]), strategy)
    torch.testing.assert_close(p, torch.tensor([9.0, 15.0]))
    torch.testing.assert_close(w, torch.tensor(expected))


def test_balanced_gives_every_pair_the_same_total() -> None:
    plus, minus = torch.tensor([10.0, 700.0, 3.0]), torch.tensor([90.0, 300.0, 7.0])
    p, w = task_weights(plus, minus)
    torch.testing.assert_close(w * (p * plus + minus), torch.full((3,), float((w * (p * plus + minus))[0])))
    assert w.mean() == pytest.approx(1.0)


def test_bound_on_the_positive_weight() -> None:
    """p = (9, 15) bounded by 10; M = p N⁺ + N⁻ = (180, 25)."""
    p, w = task_weights([10, 1], [90, 15], "balanced", largest_positive_weight=10)
    torch.testing.assert_close(p, torch.tensor([9.0, 10.0]))
    torch.testing.assert_close(w[1] / w[0], torch.tensor(180 / 25))


def test_manual_weights_are_taken_as_they_are() -> None:
    # The weights of the company's earlier system: click 15, order 400.
    p, w = task_weights([70, 2], [930, 998], "manual", positive_weight=[15, 400], task_weight=[1, 0.5])
    assert (p.tolist(), w.tolist()) == ([15, 400], [1, 0.5])


@pytest.mark.parametrize(("plus", "minus", "message"), [
    ([0, 3], [4, 4], r"pair \(6, like\): got '0 positives'; allowed: at least one positive"),
    ([1, 3], [4, 0], r"pair \(0, click\): got '0 negatives'; allowed: at least one negative"),
])
def test_pair_without_a_class_is_named(plus: list[int], minus: list[int], message: str) -> None:
    with pytest.raises(InvalidFieldError, match=message):
        task_weights(plus, minus, names=["(6, like)", "(0, click)"])


@pytest.mark.parametrize(("kwargs", "message"), [
    ({"strategy": "focal"}, "strategy: got 'focal'; allowed: balanced, sqrt, uniform, manual"),
    ({"strategy": "manual"}, "positive_weight: got None; allowed: given with manual"),
    ({"largest_positive_weight": 0.5}, "largest_positive_weight: got 0.5; allowed: a number ≥ 1"),
    ({"positive_weight": [1.0]}, "positive_weight: got .*allowed: given with manual"),
    ({"strategy": "manual", "positive_weight": [0.0], "task_weight": [1.0]}, "positive_weight: got .*numbers > 0"),
    ({"strategy": "manual", "positive_weight": [1.0], "task_weight": [1.0, 1.0]}, r"task_weight: got \(2,\)"),
])
def test_bad_arguments_are_named(kwargs: dict, message: str) -> None:
    with pytest.raises(InvalidFieldError, match=message):
        task_weights([1], [1], **kwargs)


def test_negative_counts_are_refused() -> None:
    with pytest.raises(InvalidFieldError, match=r"positives: got .*counts ≥ 0"):
        task_weights([-1.0], [1.0])
