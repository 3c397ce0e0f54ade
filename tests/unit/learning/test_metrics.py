"""How entries of metrics are joined, averaged and called."""

from __future__ import annotations

import torch

from recfuse.learning.metrics import HeldOut, Metric, Per, join_steps, means_over_pass, steps_of_pass

TOTAL, EACH = Metric("total"), Metric("each", Per.SHORT_TERM)


def test_steps_of_one_minibatch_are_strung_together_by_behaviour_and_else_added():
    steps = [[{TOTAL: torch.tensor(1.0), EACH: torch.tensor([1.0])}],
             [{TOTAL: torch.tensor(2.0), EACH: torch.tensor([5.0])}]]
    [joined] = join_steps(steps)
    assert joined[TOTAL] == 3.0
    assert joined[EACH].tolist() == [1.0, 5.0]


def test_a_pass_is_the_mean_over_its_steps_and_parts():
    seen = [{EACH: torch.tensor([float(number), 2.0 * number])} for number in range(4)]
    assert means_over_pass(steps_of_pass(seen, parts=2, workers=1))[EACH].tolist() == [1.5, 3.0]


def test_names_come_from_what_the_entries_belong_to():
    assert EACH.numbers(torch.tensor([1.0, 2.0]), ("like", "follow")) == {"each/like": 1.0, "each/follow": 2.0}
    assert TOTAL.numbers(torch.tensor(3.0), ()) == {"total": 3.0}
    assert Metric("sum", is_logged=False).numbers(torch.tensor(3.0), ()) == {}


def test_explained_variance_of_samples_held_out():
    """Targets 0, 2, 4 have the variance 8/3; errors of 1 explain 1 − 3/8 of it."""
    explained = Metric("explained_variance", Per.CRITIC)
    held_out = HeldOut(explained, 1, torch.device("cpu"))
    target = torch.tensor([[0.0], [2.0], [4.0]])
    held_out.add_values(target + 1.0, target)
    held_out.add_loss(torch.tensor(2.0), 3)
    held_out.add_loss(torch.tensor(6.0), 1)
    metrics = {metric.name: value for metric, value in held_out.metrics(1).items()}
    torch.testing.assert_close(metrics["explained_variance"], torch.tensor([0.625], dtype=torch.float64))
    assert metrics["holdout_loss"] == 3.0
