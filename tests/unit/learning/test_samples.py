from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import samples as toy

from recfuse.behaviours import Behaviour
from recfuse.config import InvalidFieldError
from recfuse.learning.moments import rewards
from recfuse.learning.samples import SampleSet, arrays
from recfuse.learning.windows import is_held_out, minibatches


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
    with pytest.raises(InvalidFieldError, match=r"samples: got .*nowhere.*; allowed: a directory that exists"):
        SampleSet.open(tmp_path / "nowhere")
    columns = toy.bandit(20)
    empty = toy.write(tmp_path / "empty", columns, files=1)
    (empty / "part-00000.parquet").unlink()
    with pytest.raises(InvalidFieldError, match=r"allowed: a directory with at least one Parquet file"):
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


@pytest.mark.parametrize("name", ["a b", "a%41b", "q?z", "h#1", "dt=2024-05-01", "done=1", "größe"])
def test_a_path_means_itself(tmp_path, name):
    columns = toy.bandit(90)
    plain = SampleSet.open(toy.write(tmp_path / "plain", columns))
    odd = SampleSet.open(toy.write(tmp_path / name / "samples", columns))
    assert odd.fingerprint == plain.fingerprint
    np.testing.assert_array_equal(odd.columns()["done"], columns["done"])
    assert SampleSet.open(f"file://{tmp_path}/plain").normalisation == plain.normalisation


def test_files_are_taken_by_what_they_are(tmp_path):
    directory = toy.write(tmp_path, toy.bandit(90))
    files = sorted(directory.glob("*.parquet"))
    files[0].rename(directory / "part-00000.PARQUET")
    files[1].rename(directory / "part-00001")
    (directory / "_temporary.parquet").write_bytes(b"cut off")
    assert SampleSet.open(directory).rows == 90


def changed(columns: dict, name: str) -> dict:
    values = columns[name].copy()
    values[3] = 1.0 - values[3]
    return {**columns, name: values}


@pytest.mark.parametrize("name", ["state", "action", "action_logp", "feedback", "next_state", "done"])
def test_the_fingerprint_covers_what_is_learned_from(tmp_path, name):
    columns = toy.bandit(100)
    first = SampleSet.open(toy.write(tmp_path / "a", columns)).fingerprint
    assert SampleSet.open(toy.write(tmp_path / "b", changed(columns, name))).fingerprint != first


@pytest.mark.parametrize("name", ["user_id", "request_id", "explored", "truncated"])
def test_the_fingerprint_covers_every_other_column(tmp_path, name):
    first = SampleSet.open(toy.write(tmp_path / "a", toy.bandit(100), files=1)).fingerprint
    directory = toy.write(tmp_path / "b", toy.bandit(100), files=1)
    table = toy.table(toy.bandit(100), toy.vocabulary())
    other = ["x", *table[name].to_pylist()[1:]] if name.endswith("_id") else [True] * 100
    place = table.column_names.index(name)
    table = table.set_column(place, table.schema.field(name), pa.array(other, table.schema.field(name).type))
    pq.write_table(table, directory / "part-00000.parquet")
    assert SampleSet.open(directory).fingerprint != first


def test_actions_that_were_not_drawn_count_for_states_and_rewards_alone(tmp_path):
    columns = toy.bandit(1000)
    drawn = np.arange(1000) % 4 > 0
    columns["action"][~drawn] = 50.0
    columns["action_logp"][~drawn] = np.nan
    opened = SampleSet.open(toy.write(tmp_path, {**columns, "explored": drawn}, files=1))
    assert (opened.rows, opened.not_drawn, opened.has_density) == (1000, 250, True)
    np.testing.assert_allclose(opened.normalisation.action_std, columns["action"][drawn].std(0), rtol=1e-5)
    np.testing.assert_allclose(opened.normalisation.state_std, columns["state"].std(0), rtol=1e-5)
    np.testing.assert_array_equal(opened.columns()["explored"], drawn)
    whole = SampleSet.of({**columns, "explored": drawn}, toy.vocabulary(), "x")
    assert whole.normalisation == opened.normalisation
    with pytest.raises(InvalidFieldError, match=r"samples.explored: got 'false in all 1,000 rows'; allowed: at least"):
        SampleSet.open(toy.write(tmp_path / "none", {**columns, "explored": np.zeros(1000, bool)}))


def test_a_file_without_the_newer_columns_is_read_as_drawn(tmp_path):
    directory = toy.write(tmp_path, {**toy.bandit(90), "explored": np.arange(90) % 2 > 0})
    table = pq.read_table(directory / "part-00000.parquet").drop_columns(["explored", "truncated", "ts", "scene"])
    pq.write_table(table, directory / "part-00000.parquet")
    assert SampleSet.open(directory).not_drawn == 30


@pytest.mark.parametrize(("scale", "shift"), [(3e-7, 0.0), (1e-9, 0.0), (1e-9, -1e-8), (1e30, 0.0), (1e30, -3e30),
                                              (1.0, -1000.0)])
def test_moments_keep_the_scale_of_what_varies(tmp_path, scale, shift):
    columns = toy.bandit(2000)
    plain = SampleSet.open(toy.write(tmp_path / "plain", columns))
    for name in ("state", "action", "feedback"):
        columns[name] = (columns[name].astype(float) * scale + shift).astype(np.float32)
    opened = SampleSet.open(toy.write(tmp_path / "scaled", columns))
    for name in ("state_std", "action_std"):
        expected = np.array(getattr(plain.normalisation, name)) * scale
        np.testing.assert_allclose(getattr(opened.normalisation, name), expected, rtol=1e-3)
    np.testing.assert_allclose(opened.reward_std, np.array(plain.reward_std) * scale, rtol=1e-3)


@pytest.mark.parametrize("value", [0.0, 1e-9, -0.1, 7.0, -1e30])
def test_a_constant_column_is_left_alone(tmp_path, value):
    columns = toy.bandit(500)
    columns["state"][:, 1] = value
    opened = SampleSet.open(toy.write(tmp_path, columns))
    assert opened.normalisation.state_std[1] == 1.0
    assert opened.normalisation.state_mean[1] == np.float32(value)


def broken(directory: Path) -> None:
    (directory / "part-00001.parquet").write_bytes(b"PAR1 nothing PAR1")


def flipped(directory: Path) -> None:
    table = pq.read_table(directory / "part-00001.parquet")
    pq.write_table(table, directory / "part-00001.parquet", write_page_checksum=True, use_dictionary=False,
                   compression="none")
    data = bytearray((directory / "part-00001.parquet").read_bytes())
    data[len(data) // 2] ^= 0xFF
    (directory / "part-00001.parquet").write_bytes(bytes(data))


def of_doubles(directory: Path) -> None:
    table = pq.read_table(directory / "part-00001.parquet")
    place, kind = table.column_names.index("state"), pa.list_(pa.float64(), toy.STATES)
    pq.write_table(table.set_column(place, "state", table["state"].cast(kind)), directory / "part-00001.parquet")


def other_words(directory: Path) -> None:
    (directory / "more").mkdir()
    toy.vocabulary().replace(fusion_parameters=("one", "two")).save(directory / "more" / "vocabulary.yaml")


@pytest.mark.parametrize(("spoil", "message"), [
    (broken, r"samples: got 'part-00001.parquet'; allowed: Parquet that can be read"),
    (flipped, r"samples: got 'part-00001.parquet'; allowed: Parquet that can be read"),
    (of_doubles, r"samples.state: got '.*double>\[3\]'; allowed: .*float>\[3\] \(in part-00001.parquet\)"),
    (other_words, r"vocabulary more/vocabulary.yaml: got 'fusion_parameters'; allowed: the same as in vocabulary.yaml"),
    (lambda directory: (directory / "vocabulary.yaml").unlink(), r"vocabulary: got .*; allowed: a YAML file"),
    (lambda directory: (directory / "vocabulary.yaml").write_text("{: ["), r"vocabulary: got .*; allowed: a YAML file"),
], ids=["broken", "flipped", "doubles", "other words", "no words", "bad words"])
def test_what_cannot_be_read_is_refused_in_a_line(tmp_path, spoil, message):
    directory = toy.write(tmp_path, toy.bandit(300))
    spoil(directory)
    with pytest.raises(InvalidFieldError, match=message) as refused:
        SampleSet.open(directory)
    assert "\n" not in str(refused.value)


def test_no_rows_and_logs_are_refused(tmp_path):
    with pytest.raises(InvalidFieldError, match=r"samples: got .*; allowed: at least one row"):
        SampleSet.open(toy.write(tmp_path / "empty", {name: values[:0] for name, values in toy.bandit(3).items()}))
    log = toy.write(tmp_path / "log", toy.bandit(3), files=1)
    pq.write_table(pa.table({"session_id": ["a"], "ts": [1]}), log / "part-00000.parquet")
    with pytest.raises(InvalidFieldError, match="samples, as the job `ingest` writes them; this is a session log"):
        SampleSet.open(log)
