"""The benchmark of intervals: its figures by hand, and a rerun that goes on where the last one stopped."""

import dataclasses

import numpy as np
import pytest

from benchmarks.ope import Coverage, measured
from tests.unit.simulation import worlds


def test_coverage_by_hand():
    """Estimates 1.1, .9, 1.3 of a truth of 1, ± .196: two of three hold it. z = 1, −1, 3: mean 1, deviation √(8/3),
    third moment 0."""
    estimate = np.array([1.1, .9, 1.3])[:, None]
    of = Coverage.of(np.stack([estimate, estimate - .196, estimate + .196], 1))
    assert of.logs == 3
    assert of.share[0] == pytest.approx(2 / 3)
    assert of.error[0] == pytest.approx(.1)
    assert of.half[0] == pytest.approx(.196)
    np.testing.assert_allclose([moment[0] for moment in of.moments], [1, (8 / 3)**.5, 0], atol=1e-12)


def test_an_interrupted_measurement_goes_on(tmp_path):
    def run(logs, output):
        return measured(worlds.world(), logs, persons=200, critic_persons=400, truth_persons=2_000, output=output)

    run(2, tmp_path / "a")
    file, = (tmp_path / "a").iterdir()
    begun = file.read_text()
    file.write_text(begun + '{"half a li')
    resumed, whole = run(3, tmp_path / "a"), run(3, None)
    assert file.read_text().startswith(begun)
    assert len(file.read_text().splitlines()) == 1 + 3
    assert resumed.keys() == whole.keys()
    for name, of in whole.items():
        for field in dataclasses.fields(of):
            np.testing.assert_array_equal(getattr(resumed[name], field.name), getattr(of, field.name))
