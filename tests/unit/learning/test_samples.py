from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import samples as toy

from recfuse.behaviours import Behaviour
from recfuse.config import InvalidFieldError
from recfuse.learning.samples import SampleSet, arrays, is_held_out, minibatches, rewards


def test_moments_against_numpy(tmp_path):
    columns = toy.bandit(1000)
    columns["state"][:, 1] += 1e4  # large means must not cost digits
    columns["state"][:, 2] = 7.0
    opened = SampleSet.open(toy.write(tmp_path, columns))
    assert opened.rows == 1000
    normalisation = opened.normalisation
    np.testing.assert_allclose(normalisation.state_mean, columns["state"].astype(float).mean(0), rtol=1e-9)
    np.testing.assert_allclose(normalisation.state_std[:2], columns["state"].astype(float).std(0)[:2], rtol=1e-6)
    assert normalisation.state_std[2] == 1.0  # a constant column
    np.testing.assert_allclose(normalisation.action_std, columns["action"].astype(float).std(0), rtol=1e-6)
    np.testing.assert_allclose(opened.reward_mean, columns["feedback"].astype(float).mean(0), rtol=1e-6)
    assert opened.done_mean == 1.0


def test_mean_values_are_the_mean_reward_over_the_horizon(tmp_path):
    """γ = ½ and no session ends: V = r̄ / (1 − ½); γ = 0: V = r̄."""
    columns = toy.bandit(1000) | {"done": np.zeros(1000, np.float32)}
    opened = SampleSet.open(toy.write(tmp_path, columns))
    mean, std = columns["feedback"].mean(0), columns["feedback"].std(0)
    np.testing.assert_allclose(opened.mean_values, mean / std * [2, 1], rtol=1e-4)


def test_the_fingerprint_is_of_the_content(tmp_path):
    columns = toy.bandit(100)
    first = SampleSet.open(toy.write(tmp_path / "a", columns)).fingerprint
    assert SampleSet.open(toy.write(tmp_path / "b", columns)).fingerprint == first
    columns["action"][3, 0] += 1
    assert SampleSet.open(toy.write(tmp_path / "c", columns)).fingerprint != first


def test_columns_come_without_loss():
    columns = toy.bandit(50)
    read = arrays(pa.concat_tables([toy.table(columns, toy.vocabulary())] * 2).slice(10, 50))
    for name, values in read.items():
        np.testing.assert_array_equal(values, np.concatenate([columns[name]] * 2)[10:60])


def test_rewards_by_hand():
    behaviours = (Behaviour(name="w", kind="long_term", transform="log1p", scale=2.0),
                  Behaviour(name="l", kind="short_term", scale=0.5))
    got = rewards(np.array([[np.e - 1, 3.0]], np.float32), behaviours)
    np.testing.assert_allclose(got, [[0.5, 6.0]], rtol=1e-6)
    with pytest.raises(InvalidFieldError, match=r"samples.feedback.w: got -1.0; allowed: numbers > -1 for"):
        rewards(np.array([[-1.0, 3.0]], np.float32), behaviours)


def test_any_number_of_workers_takes_the_same_steps():
    alone = list(minibatches(103, 10, (1, 2), 0, 1, 1))
    for workers in (2, 5):
        shares = [list(minibatches(103, 10, (1, 2), rank, workers, workers)) for rank in range(workers)]
        together = [np.concatenate(parts) for parts in zip(*shares, strict=True)]
        assert len(together) == len(alone) == 10
        for one, many in zip(alone, together, strict=True):
            np.testing.assert_array_equal(one, many)
    assert len(np.unique(np.concatenate(alone))) == 100


def test_few_rows_are_one_minibatch():
    assert [len(rows) for rows in minibatches(7, 10, (0,), 0, 1, 1)] == [7]
    assert [len(rows) for rows in minibatches(7, 10, (0,), 0, 1, 2)] == [6]
    assert [len(rows) for rows in minibatches(7, 10, (0,), 1, 2, 2)] == [3]
    assert list(minibatches(0, 10, (0,), 0, 1, 1)) == []


def test_held_out_rows_are_runs_and_do_not_depend_on_the_window():
    whole = is_held_out(0, 100_000, 0.1, seed=1)
    assert 0.08 < whole.mean() < 0.12
    np.testing.assert_array_equal(is_held_out(777, 1000, 0.1, seed=1), whole[777:1777])
    assert (np.diff(whole.astype(int)) != 0).sum() < 100_000 / 64 * 2 * 0.12
    assert not is_held_out(0, 1000, 0.0, seed=1).any()


def test_bad_samples_are_named(tmp_path):
    with pytest.raises(InvalidFieldError, match=r"samples: got .*nowhere.*; allowed: a directory of samples"):
        SampleSet.open(tmp_path / "nowhere")
    columns = toy.bandit(20)
    empty = toy.write(tmp_path / "empty", columns, files=1)
    (empty / "part-00000.parquet").unlink()
    with pytest.raises(InvalidFieldError, match=r"allowed: a directory with at least one .parquet file"):
        SampleSet.open(empty)
    nan = toy.bandit(20)
    nan["state"][3, 1] = np.nan
    with pytest.raises(InvalidFieldError, match=r"samples.state: got 'nan or infinity'; allowed: finite numbers"):
        SampleSet.open(toy.write(tmp_path / "nan", nan))
    lacking = toy.write(tmp_path / "lacking", columns, files=1)
    pq.write_table(toy.table(columns, toy.vocabulary()).drop_columns(["done"]), lacking / "part-00000.parquet")
    with pytest.raises(InvalidFieldError, match=r"samples.done: got .*; allowed: a column of this name"):
        SampleSet.open(lacking)
    wide = toy.write(tmp_path / "wide", columns)
    toy.vocabulary().replace(state_size=4).save(wide / "vocabulary.yaml")
    with pytest.raises(InvalidFieldError, match=r"samples.state: got 'fixed_size_list<.*>\[3\]'; allowed: .*\[4\]"):
        SampleSet.open(wide)
