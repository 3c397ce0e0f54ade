"""What the learner reads for replay is what the log kept, padded; nobody else pays for it."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
import samples as toy
import torch
from session_logs import ranked_row, row, table, vocabulary

from recfuse.behaviours import Vocabulary
from recfuse.config import InvalidFieldError
from recfuse.fusion.replay import Candidates, pages
from recfuse.learning.candidates import ARRAYS, COLUMNS, replay_arrays
from recfuse.learning.samples import InMemory, SampleSet
from recfuse.learning.windows import Windows
from recfuse.logs.schema import VOCABULARY_FILE
from recfuse.logs.sessions import SessionRule, to_samples
from recfuse.logs.validation import check

PARAMETERS = 3


def words() -> Vocabulary:
    return vocabulary(parameters=PARAMETERS).replace(formula="log_sum")


def some_samples(rows: int = 60, lacking: tuple[int, ...] = (), same: int = 0, **changes) -> pa.Table:
    rng, of = np.random.default_rng(0), words()
    bare = {"mu": [0.0] * 3, "sigma": [1.0] * 3, "action": [.1] * 3, "action_logp": None}
    logged = [row(k, user=f"u{k // 7}", **bare) if k in lacking else
              ranked_row(k, rng, of, same or int(rng.integers(4, 12)), user=f"u{k // 7}",
                         scene=("feed", "cart")[k % 2], **changes) for k in range(rows)]
    checked = check(table(logged, of), of, "log")
    assert checked.quarantine.num_rows == 0
    return to_samples(checked.rows, of, SessionRule()).table


def opened(directory, content: pa.Table, files: int = 3) -> SampleSet:
    directory.mkdir(parents=True, exist_ok=True)
    words().save(directory / VOCABULARY_FILE)
    for number, start in enumerate(range(0, content.num_rows, -(-content.num_rows // files))):
        pq.write_table(content.slice(start, -(-content.num_rows // files)), directory / f"part-{number:05d}.parquet")
    return SampleSet.open(directory)


class Files:
    """Reads the files as Ray Data gives them to the learner."""

    def __init__(self, found: SampleSet, columns: tuple[str, ...]) -> None:
        self._table = pyarrow.dataset.dataset(list(found.files)).to_table(columns=list(columns))

    def iter_batches(self, *, batch_size, **_):
        for start in range(0, self._table.num_rows, batch_size):
            yield self._table.slice(start, batch_size)


def windows_of(found: SampleSet, replay: bool, window_rows: int = 25, memory: int = 1 << 30) -> Windows:
    names = (*found.schema.names, *(COLUMNS if replay else ()))
    return Windows(Files(found, names), found.vocabulary.behaviours, found.reward_std, found.rows, window_rows, memory,
                   torch.device("cpu"), replay=found.replay_shape if replay else None)


@pytest.mark.parametrize("same", [0, 9])
def test_windows_hold_what_the_log_kept(tmp_path, same):
    content = some_samples(same=same)
    found = opened(tmp_path, content)
    assert found.has_candidates
    assert (found.candidates, found.page) == (same or 11, 3)
    parts = [window for _, window in windows_of(found, True)]
    assert [len(part["done"]) for part in parts] == [25, 25, 10]
    whole = {name: torch.cat([part[name] for part in parts]) for name in ARRAYS}
    kinds = {"predictions": torch.float16, "open": torch.bool, "shown": torch.int16, "mu": torch.float32,
             "sigma": torch.float32, "scene": torch.int64, "user": torch.int64}
    assert {name: values.dtype for name, values in whole.items()} == kinds
    for place, sample in enumerate(content.to_pylist()):
        count, page = len(sample["open"]), len(sample["shown"])
        assert whole["predictions"][place, :, :count].flatten().tolist() == sample["predictions"]
        assert whole["open"][place].tolist() == sample["open"] + [False] * (found.candidates - count)
        assert whole["shown"][place].tolist() == sample["shown"] + [-1] * (3 - page)
        assert not whole["predictions"][place, :, count:].any()
    np.testing.assert_array_equal(whole["mu"], np.zeros((60, 3)))
    np.testing.assert_array_equal(whole["sigma"], np.ones((60, 3)))
    assert whole["scene"].tolist() == [words().scenes.index(name) for name in content["scene"].to_pylist()]
    users = content["user_id"].to_pylist()
    assert len(set(whole["user"].tolist())) == len(set(users)) == len(set(zip(users, whole["user"].tolist(),
                                                                              strict=True)))
    assert (whole["user"] >= 0).all()


def test_windows_replay_the_page_of_the_logged_action(tmp_path):
    found = opened(tmp_path, some_samples())
    for _, window in windows_of(found, True):
        candidates = Candidates.of(window["predictions"], window["open"], found.vocabulary)
        replayed = pages(candidates, window["action"].unsqueeze(1), found.page)[:, 0]
        shown = window["shown"].long()
        assert torch.equal(torch.where(shown >= 0, replayed, -1), shown)


def test_whoever_does_not_replay_reads_nothing_of_it(tmp_path):
    found = opened(tmp_path, some_samples())
    assert not set(COLUMNS) & set(found.schema.names)
    [window] = [window for _, window in windows_of(found, False, 100)]
    assert not set(ARRAYS) & set(window)


def test_the_memory_limit_counts_the_columns_of_replay(tmp_path):
    found = opened(tmp_path, some_samples())
    plain = sum(column.nbytes for column in next(iter(windows_of(found, False)))[1].values()) / 25 * 60
    for replay, kept in ((False, True), (True, False)):
        windows = windows_of(found, replay, memory=int(plain) + 1)
        assert sum(len(window["done"]) for _, window in windows) == 60
        assert (windows._kept is not None) == kept


def test_samples_without_candidates_have_none(tmp_path):
    old = SampleSet.open(toy.write(tmp_path / "toy", toy.bandit(50)))
    assert (old.has_candidates, old.candidates, old.page) == (False, 0, 0)
    dropped = some_samples().drop_columns(["predictions", "open", "shown", "mu", "sigma"])
    assert not opened(tmp_path / "older", dropped).has_candidates
    assert not opened(tmp_path / "some", some_samples(lacking=(3, 50))).has_candidates


def test_a_sample_without_candidates_replays_to_nothing(tmp_path):
    found = opened(tmp_path, some_samples(lacking=(3,)))
    place = [sample["request_id"] for sample in some_samples(lacking=(3,)).to_pylist()].index("r3")
    columns = found.columns(replay=True)
    assert not columns["open"][place].any()
    assert (columns["shown"][place] == -1).all()
    assert not columns["predictions"][place].any()


def test_samples_that_were_not_drawn_need_no_candidates(tmp_path):
    content = some_samples(lacking=(3, 50))
    explored = pa.array([number not in ("r3", "r50") for number in content["request_id"].to_pylist()])
    content = content.set_column(content.schema.get_field_index("explored"), "explored", explored)
    found = opened(tmp_path, content)
    assert (found.has_candidates, found.not_drawn) == (True, 2)


def test_samples_in_memory_are_read_as_files_are(tmp_path):
    found = opened(tmp_path, some_samples())
    columns = found.columns(replay=True)
    inside = SampleSet.of(columns, found.vocabulary, "memory")
    assert (inside.has_candidates, inside.replay_shape) == (True, found.replay_shape)
    windows = Windows(InMemory(columns), found.vocabulary.behaviours, found.reward_std, 60, 25, 1 << 30,
                      torch.device("cpu"), replay=inside.replay_shape)
    for (_, left), (_, right) in zip(windows, windows_of(found, True), strict=True):
        for name in (*ARRAYS, "state", "feedback"):
            assert torch.equal(left[name], right[name]), name


@pytest.mark.parametrize(("name", "values", "message"), [
    ("predictions", [[.5] * 5] * 60, "samples.predictions: got .*; allowed: 3 numbers for each of"),
    ("predictions", None, "samples.predictions: got 'nan or infinity'"),
    ("shown", [[40]] * 60, "samples.shown: got .*40.*; allowed: positions of the sample's candidates"),
])
def test_bad_columns_of_replay_are_named(name, values, message, tmp_path):
    content = some_samples()
    if values is None:
        values = [[np.inf] * len(given) for given in content[name].to_pylist()]
    content = content.set_column(content.schema.get_field_index(name), name,
                                 pa.array(values, content.schema.field(name).type))
    found = opened(tmp_path, content)
    with pytest.raises(InvalidFieldError, match=message):
        replay_arrays(pyarrow.dataset.dataset(list(found.files)).to_table(), found.replay_shape)


def test_a_column_of_another_type_is_named(tmp_path):
    content = some_samples()
    single = content["predictions"].cast(pa.list_(pa.float32()))
    content = content.set_column(content.schema.get_field_index("predictions"), "predictions", single)
    with pytest.raises(InvalidFieldError, match=r"samples.predictions: got 'list<.*float>'; allowed: list<.*halffloat"):
        opened(tmp_path, content)
