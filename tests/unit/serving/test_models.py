"""Which bundle serves, and its replacement."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pyarrow as pa
import pytest

from recfuse.behaviours import Vocabulary
from recfuse.bundle import Bundle, BundleError
from recfuse.bundle.pointer import POINTER, Pointer, write_pointer
from recfuse.fusion.inference import FusionActor
from recfuse.serving.attempts import Attempts
from recfuse.serving.meters import LocalMeters
from recfuse.serving.models import ServedCatalogue, ServedModel, Watcher
from recfuse.serving.publish import publish

from .conftest import write_policy


@pytest.fixture
def bundles(tmp_path: Path, vocabulary: Vocabulary) -> list[Path]:
    return [write_policy(tmp_path, vocabulary, seed) for seed in (1, 2)]


@pytest.fixture
def served(tmp_path: Path, bundles: list[Path]) -> ServedModel[FusionActor]:
    write_pointer(tmp_path, Pointer(fusion=bundles[0].name))
    return ServedModel(tmp_path, "fusion", FusionActor.from_bundle)


def flip_a_byte(bundle: Path) -> None:
    path = bundle / "policy.safetensors"
    payload = bytearray(path.read_bytes())
    payload[-1] ^= 1
    path.write_bytes(payload)


def test_follows_the_pointer(tmp_path: Path, bundles: list[Path], served: ServedModel[FusionActor]) -> None:
    first = served.current
    assert first.version == bundles[0].name
    assert served.refresh()
    assert served.current is first
    write_pointer(tmp_path, Pointer(fusion=bundles[1].name))
    assert served.refresh()
    assert (served.current.version, served.error) == (bundles[1].name, None)


def test_a_flipped_byte_refuses_to_start(tmp_path: Path, bundles: list[Path]) -> None:
    write_pointer(tmp_path, Pointer(fusion=bundles[0].name))
    flip_a_byte(bundles[0])
    with pytest.raises(BundleError, match=r"policy\.safetensors: SHA-256 is .*; expected"):
        ServedModel(tmp_path, "fusion", FusionActor.from_bundle)


def test_a_bad_bundle_leaves_the_old_one_serving(
    tmp_path: Path, bundles: list[Path], served: ServedModel[FusionActor]
) -> None:
    flip_a_byte(bundles[1])
    bad = ((bundles[1].name, "SHA-256"), ("fusion-missing", "manifest.json"), (None, "fusion is null"))
    for pointer, message in bad:
        write_pointer(tmp_path, Pointer(fusion=pointer))
        assert not served.refresh()
        assert served.current.version == bundles[0].name
        assert message in str(served.error)
    (tmp_path / POINTER).write_text("{")
    assert not served.refresh()
    assert "JSON" in str(served.error)
    write_pointer(tmp_path, Pointer(fusion=bundles[0].name))
    assert served.refresh()
    assert served.error is None


def test_a_pinned_bundle_goes_before_the_pointer(
    tmp_path: Path, bundles: list[Path], served: ServedModel[FusionActor]
) -> None:
    served.pin(str(bundles[1]))
    assert served.current.version == bundles[1].name
    served.refresh()
    assert served.current.version == bundles[1].name
    served.pin(None)
    assert served.current.version == bundles[0].name


def test_the_catalogue_follows_the_pointer_and_a_bad_one_is_refused(tmp_path: Path) -> None:
    write_pointer(tmp_path, Pointer())
    served = ServedCatalogue(tmp_path)
    watcher = Watcher([served], 0.01)
    assert served.current is None
    first = publish(tmp_path, catalogue=pa.table({"item_id": [1]}))
    publish(tmp_path, catalogue=pa.table({"item_id": [1, 2]}))
    deadline = time.monotonic() + 30
    while served.current is None or len(served.current) != 2:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    watcher.close()
    (tmp_path / "bad.parquet").write_text("no")
    write_pointer(tmp_path, Pointer(catalogue="bad.parquet"))
    assert not served.refresh()
    assert "bad.parquet" in str(served.error)
    assert len(served.current) == 2
    write_pointer(tmp_path, first)
    assert served.refresh()
    assert (len(served.current), served.error) == (1, None)


def test_the_watcher_swaps_by_itself(tmp_path: Path, bundles: list[Path]) -> None:
    swapped = threading.Event()

    def build(bundle: Bundle) -> str:
        if bundle.version == bundles[1].name:
            swapped.set()
        return bundle.version

    write_pointer(tmp_path, Pointer(fusion=bundles[0].name))
    watcher = Watcher([ServedModel(tmp_path, "fusion", build)], 0.02)
    write_pointer(tmp_path, Pointer(fusion=bundles[1].name))
    assert swapped.wait(5.0)
    watcher.close()


def test_a_canary_serves_its_share_of_the_users(
    tmp_path: Path, bundles: list[Path], served: ServedModel[FusionActor]
) -> None:
    """Of 20,000 users a quarter, within 4 binomial deviations (1.2%); the same ones at every look."""
    users = [str(number) for number in range(20_000)]
    write_pointer(tmp_path, Pointer(fusion=bundles[0].name, fusion_canary=bundles[1].name, canary_share=0.25))
    assert served.refresh()
    taken = {user for user in users if served.arms.of(user).version == bundles[1].name}
    assert abs(len(taken) / len(users) - 0.25) < 0.0125
    assert all(served.arms.of(user) is served.current for user in set(users) - taken)
    write_pointer(tmp_path, Pointer(fusion=bundles[0].name, fusion_canary=bundles[1].name, canary_share=0.5))
    assert served.refresh()
    assert taken < {user for user in users if served.arms.of(user) is not served.current}
    write_pointer(tmp_path, Pointer(fusion=bundles[0].name))
    assert served.refresh()
    assert served.canary is None


def test_a_bad_canary_serves_nobody_and_holds_nothing_up(
    tmp_path: Path, bundles: list[Path], served: ServedModel[FusionActor]
) -> None:
    flip_a_byte(bundles[1])
    write_pointer(tmp_path, Pointer(fusion=bundles[0].name, fusion_canary=bundles[1].name, canary_share=1.0))
    assert not served.refresh()
    assert (served.canary, served.error) == (None, None)
    assert "SHA-256" in str(served.canary_error)
    assert {served.arms.of(str(user)).version for user in range(50)} == {bundles[0].name}
    write_pointer(tmp_path, Pointer(fusion=bundles[0].name, fusion_canary=bundles[0].name, canary_share=1.0))
    assert served.refresh()
    assert served.canary_error is None


def test_an_attempt_is_due_when_something_changed_and_else_ever_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses of 2, 4, 8, 16, 30, 30 s by hand; none after another key."""
    now = 0.0
    monkeypatch.setattr("recfuse.serving.attempts.time.monotonic", lambda: now)
    attempts, pauses = Attempts(2.0), []
    for _ in range(6):
        attempts.ended("a", succeeded=False)
        begin = now
        while not attempts.due("a"):
            now += 1.0
        pauses.append(now - begin)
    assert pauses == [2, 4, 8, 16, 30, 30]
    assert attempts.due("b")
    attempts.ended("b", succeeded=False)
    assert (attempts.due("b"), attempts.succeeded) == (False, False)
    attempts.ended("b", succeeded=True)
    now += 1e6
    assert (attempts.due("b"), attempts.succeeded, attempts.due("a")) == (False, True, True)


def test_a_damaged_bundle_is_read_again_when_its_files_change(tmp_path: Path, bundles: list[Path]) -> None:
    """Not at every look before."""
    reads: list[str] = []

    def build(bundle: Bundle) -> str:
        reads.append(bundle.version)
        raise MemoryError("no memory")

    write_pointer(tmp_path, Pointer(fusion=bundles[0].name))
    served = ServedModel(tmp_path, "fusion", lambda bundle: bundle.version, retry_seconds=1e6)
    served._build = build  # type: ignore[method-assign]
    write_pointer(tmp_path, Pointer(fusion=bundles[1].name))
    for _ in range(3):
        assert not served.refresh()
    assert (len(reads), served.current) == (1, bundles[0].name)
    (bundles[1] / "arrived").touch()
    assert not served.refresh()
    assert len(reads) == 2
    assert served.error == "MemoryError: no memory"
    write_pointer(tmp_path, Pointer(fusion=bundles[0].name))
    assert served.refresh()
    assert served.error is None


def test_what_was_prepared_serves_after_the_swap(tmp_path: Path, bundles: list[Path], served: ServedModel[FusionActor],
                                                 ) -> None:
    write_pointer(tmp_path, Pointer(fusion=bundles[1].name))
    assert served.prepare()
    assert (served.current.version, served.wanted) == (bundles[0].name, bundles[1].name)
    served.swap()
    assert served.current.version == bundles[1].name


def test_a_gauge_says_which_replica_is_behind(tmp_path: Path, bundles: list[Path]) -> None:
    gauges: dict[str, float] = {}
    meters = LocalMeters(lambda *_: None, lambda name, value, tags: gauges.update({f"{name} {tags['status']}": value}),
                         seconds=0)
    write_pointer(tmp_path, Pointer(fusion=bundles[0].name))
    served = ServedModel(tmp_path, "fusion", FusionActor.from_bundle, meters=meters)
    for name, behind in ((bundles[0].name, 0.0), ("fusion-missing", 1.0), (bundles[1].name, 0.0)):
        write_pointer(tmp_path, Pointer(fusion=name))
        served.refresh()
        meters.flush()
        assert gauges == {"recfuse_outdated fusion": behind}
