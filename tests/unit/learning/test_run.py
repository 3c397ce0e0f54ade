"""How many learners go on where not all of them find room."""

from __future__ import annotations

import pytest

from recfuse.learning.algorithms.two_stage import TwoStageConfig
from recfuse.learning.run import fitting


@pytest.mark.parametrize(("wanted", "room", "shards", "minibatch", "number"), [
    (2, 2, 2, 1024, 2), (2, 1, 2, 1024, 1), (4, 3, 4, 1024, 2), (8, 5, 8, 1024, 4), (2, 9, 2, 1024, 2),
    (3, 2, 2, 1023, 1), (6, 5, 2, 1020, 5),
])
def test_the_most_that_divide_a_minibatch_into_the_same_parts(wanted, room, shards, minibatch, number):
    settings = TwoStageConfig(num_learners=wanted, shards=shards, minibatch_size=minibatch)
    found = fitting(settings, room)
    assert found.num_learners == number
    assert found == settings.replace(num_learners=number), "nothing else changes"


def test_bits_do_not_change_where_the_shards_are_more_than_the_learners():
    settings = TwoStageConfig(num_learners=8, shards=8)
    assert {fitting(settings, room).parts for room in range(1, 9)} == {8}
