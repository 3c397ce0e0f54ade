"""Output directories: a marker says whose they are, one process at a time, nothing foreign is removed."""

from __future__ import annotations

import subprocess
import sys

import pytest

from recfuse.config import InvalidFieldError
from recfuse.runtime.outputs import LOCK, MARKER, claim


def write(directory, *names):
    for name in names:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text("content")


def names(directory):
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*")
                  if path.is_file() and path.name not in (MARKER, LOCK))


def test_what_the_job_wrote_is_removed_by_its_next_run(tmp_path):
    for _ in range(2):
        with claim(str(tmp_path), "ingest") as output:
            output.begin()
            assert names(tmp_path) == []
            write(tmp_path, "part-0.parquet", "quarantine/a.parquet")
            output.finish()
    with claim(str(tmp_path), "ingest") as output:
        assert output.finished
        assert names(tmp_path) == ["part-0.parquet", "quarantine/a.parquet"]


FOREIGN = [
    (["part-00000-x.snappy.parquet", "vocabulary.yaml"], "ingest", "part-00000-x.snappy.parquet"),
    ([".hidden"], "ingest", ".hidden"),
    (["deep/er/notes.txt"], "ingest", "deep/er/notes.txt"),
]


@pytest.mark.parametrize(("files", "job", "named"), FOREIGN)
def test_a_directory_of_somebody_else_is_refused_untouched(tmp_path, files, job, named):
    write(tmp_path, *files)
    with claim(str(tmp_path), job) as output, pytest.raises(InvalidFieldError, match="what ingest wrote") as caught:
        output.begin()
    assert caught.value.value == named
    assert names(tmp_path) == sorted(files)


def test_a_file_that_was_put_beside_what_the_job_wrote_is_refused_too(tmp_path):
    with claim(str(tmp_path), "ingest") as output:
        output.begin()
        write(tmp_path, "part-0.parquet")
        output.finish()
    write(tmp_path, "part-mine.parquet")
    with claim(str(tmp_path), "ingest") as output, pytest.raises(InvalidFieldError, match="part-mine"):
        output.begin()
    assert names(tmp_path) == ["part-0.parquet", "part-mine.parquet"]


def test_what_another_job_wrote_is_refused(tmp_path):
    with claim(str(tmp_path), "simulate") as output:
        output.begin()
        write(tmp_path, "log.parquet")
        output.finish()
    with claim(str(tmp_path), "ingest") as output, pytest.raises(InvalidFieldError, match="what simulate wrote"):
        output.begin()
    assert names(tmp_path) == ["log.parquet"]


def test_a_run_that_was_cut_off_is_cleared_by_the_names_that_the_job_writes(tmp_path):
    with claim(str(tmp_path), "ingest", patterns=("part-*",)) as output:
        output.begin()
        write(tmp_path, "part-0.parquet")
    with claim(str(tmp_path), "ingest", patterns=("part-*",)) as output:
        assert not output.finished
        write(tmp_path, "mine.txt")
        with pytest.raises(InvalidFieldError, match=r"mine\.txt"):
            output.begin()
        (tmp_path / "mine.txt").unlink()
        output.begin()
    assert names(tmp_path) == []


def test_what_a_version_without_markers_wrote_is_known_by_its_account(tmp_path):
    write(tmp_path, "part-0.parquet", "account.json")
    with claim(str(tmp_path), "ingest", known=("account.json",)) as output:
        output.begin()
    assert names(tmp_path) == []


def test_a_second_process_is_refused_at_once_and_a_dead_one_holds_nothing(tmp_path):
    code = (f"import sys, time\nfrom recfuse.runtime.outputs import claim\nwith claim({str(tmp_path)!r}, 'ingest'):\n"
            "    print('held', flush=True)\n    time.sleep(60)")
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(InvalidFieldError, match="no other job is writing to"), claim(str(tmp_path), "ingest"):
        pass
    holder.kill()
    holder.wait()
    with claim(str(tmp_path), "ingest") as output:
        output.begin()


def test_a_file_is_no_directory(tmp_path):
    write(tmp_path, "file")
    place = str(tmp_path / "file")
    with pytest.raises(InvalidFieldError, match=r"output: got .*allowed: a directory"), claim(place, "x"):
        pass


def test_a_job_that_adds_to_a_directory_joins_it(tmp_path):
    """Nothing is removed, and another job's directory is refused."""
    write(tmp_path, "mine.txt")
    for _ in range(2):
        with claim(str(tmp_path), "train_fusion") as output:
            output.join()
    assert names(tmp_path) == ["mine.txt"]
    with claim(str(tmp_path), "train_online") as output, pytest.raises(InvalidFieldError, match="by train_fusion"):
        output.join()
    with claim(str(tmp_path), "ingest") as output, pytest.raises(InvalidFieldError, match="what train_fusion wrote"):
        output.begin()
    assert names(tmp_path) == ["mine.txt"]


def test_one_file_of_a_directory_is_replaced_where_the_job_wrote_it(tmp_path):
    write(tmp_path, "sub/of_another.txt")
    for text in ("first", "second"):
        with claim(str(tmp_path), "demo") as output:
            output.require_replaceable("serving.json")
            output.replace("serving.json", text)
        assert (tmp_path / "serving.json").read_text() == text
    assert names(tmp_path) == ["serving.json", "sub/of_another.txt"]
    with claim(str(tmp_path), "ingest") as output, pytest.raises(InvalidFieldError, match="was written by demo"):
        output.replace("serving.json", "third")


def test_one_file_that_the_job_did_not_write_is_kept(tmp_path):
    write(tmp_path, "serving.json")
    with claim(str(tmp_path), "demo") as output:
        for refuse in (output.require_replaceable, lambda name: output.replace(name, "new")):
            with pytest.raises(InvalidFieldError, match=r"serving.json.*that demo did not write"):
                refuse("serving.json")
    assert (tmp_path / "serving.json").read_text() == "content"
    assert not (tmp_path / MARKER).exists()


@pytest.mark.parametrize("content", [b"{oops", b"", b"[]", b"null", b"\xff\xfe\x00", b'{"job": 1}',
                                     b'{"job": "ingest", "state": "finished"}'])
def test_a_broken_marker_is_named_and_nothing_is_removed(tmp_path, content):
    write(tmp_path, "part-0.parquet")
    (tmp_path / MARKER).write_bytes(content)
    with pytest.raises(InvalidFieldError, match=r"output: got .*recfuse-output.json'; allowed: the marker of a job"), \
            claim(str(tmp_path), "ingest"):
        pass
    assert names(tmp_path) == ["part-0.parquet"]


def test_a_directory_in_place_of_the_lock_is_named(tmp_path):
    (tmp_path / LOCK).mkdir()
    with pytest.raises(InvalidFieldError, match=r"can be written to \(Is a directory: .recfuse-lock\)"), \
            claim(str(tmp_path), "ingest"):
        pass
