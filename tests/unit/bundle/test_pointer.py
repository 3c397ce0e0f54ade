"""The pointer of a models directory."""

import threading
from pathlib import Path

import pytest

from recfuse.bundle import BundleError
from recfuse.bundle.pointer import POINTER, Pointer, read_pointer, write_pointer


def test_round_trip(tmp_path: Path) -> None:
    pointer = Pointer(fusion="fusion-1", catalogue="catalogue.parquet")
    assert write_pointer(tmp_path / "models", pointer) == tmp_path / "models" / POINTER
    assert read_pointer(tmp_path / "models") == pointer
    assert pointer.path(tmp_path, "fusion") == tmp_path / "fusion-1"
    assert pointer.path(tmp_path, "users") is None
    assert [path.name for path in (tmp_path / "models").iterdir()] == [POINTER]


@pytest.mark.parametrize(("text", "message"), [
    ("", "expected a JSON object"),
    ("[]", "expected a JSON object"),
    ('{"fusion": "../elsewhere"}', "fusion is '../elsewhere'"),
    ('{"fusion": "/etc"}', "fusion is '/etc'"),
    ('{"fusion": ".."}', "expected the name"),
    ('{"scenes": 3}', "scenes is 3"),
    ('{"fusion_canary": "../x"}', "fusion_canary is"),
    ('{"canary_share": 2}', "canary_share is 2; expected a number from 0 to 1"),
    ('{"canary_share": "0.1"}', "canary_share is '0.1'"),
    ('{"fusions": "x"}', "expected a JSON object with fusion, scenes, catalogue, users"),
])
def test_a_bad_pointer_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / POINTER).write_text(text)
    with pytest.raises(BundleError, match=message):
        read_pointer(tmp_path)


def test_a_missing_pointer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=POINTER):
        read_pointer(tmp_path)


def test_a_reader_never_sees_half(tmp_path: Path) -> None:
    write_pointer(tmp_path, Pointer(fusion="a" * 100))
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            for letter in "ab":
                write_pointer(tmp_path, Pointer(fusion=letter * 100))

    writer = threading.Thread(target=write)
    writer.start()
    try:
        assert {read_pointer(tmp_path).fusion for _ in range(300)} <= {"a" * 100, "b" * 100}
    finally:
        stop.set()
        writer.join()
