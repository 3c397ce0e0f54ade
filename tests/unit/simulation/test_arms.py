"""How a text becomes an arm."""

import numpy as np
import pytest

from recfuse.config import InvalidFieldError
from recfuse.simulation.arms import fixed_weights
from tests.unit.simulation import worlds


def test_fixed_weights_are_a_policy():
    np.testing.assert_array_equal(fixed_weights("click:1.5,follow:-2", worlds.world()).mu, [1.5, 0, 0, 0, 0, -2])
    with pytest.raises(InvalidFieldError, match=r"policies: weight order: got 1\.0; allowed: weights of click"):
        fixed_weights("order:1", worlds.world())
