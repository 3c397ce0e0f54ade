"""Who is in which bucket, and who is held out of the logs."""

import numpy as np

from recfuse.simulation.persons import assign


def test_everybody_is_in_one_bucket_in_proportion():
    persons = np.arange(20_000)
    bucket = assign(persons, 3, salt=1, shares=[.8, .1, .1])
    np.testing.assert_allclose(np.bincount(bucket) / 20_000, [.8, .1, .1], atol=.01)
    np.testing.assert_array_equal(bucket[::-1], assign(persons[::-1], 3, salt=1, shares=[.8, .1, .1]))
    other = assign(persons, 3, salt=2, shares=[.8, .1, .1])
    assert (bucket != other).mean() > .2, "another test shuffles anew"
