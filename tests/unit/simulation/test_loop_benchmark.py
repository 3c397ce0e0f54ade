"""The pure parts of benchmarks/loop.py: persons, their connections, what is killed, and the tables."""

from __future__ import annotations

import socket
import sys
import threading
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from benchmarks.loop import Result, markdown, summary
from benchmarks.loop_candidates import BETTER, EQUAL, WORSE
from benchmarks.loop_clients import Connections, Life, Local, user_ids
from benchmarks.loop_inside import Inside
from benchmarks.loop_rounds import beside
from benchmarks.loop_trial import Kills, Outcome
from recfuse.bundle.arms import Canary
from recfuse.bundle.pointer import Pointer, write_pointer
from recfuse.fusion.inference import export_policy
from recfuse.fusion.policies import FixedGaussian
from recfuse.simulation.rollout import rollout
from recfuse.simulation.session_logs import session_log
from recfuse.simulation.sessions import SessionEngine
from tests.unit.simulation import worlds


def test_shown_pages_are_answered_as_ranked_ones() -> None:
    world = worlds.world()
    engine = SessionEngine(world, seed=4)
    persons = np.arange(64)
    action = np.random.default_rng(0).normal(size=(64, world.vocabulary.action_size)).astype(np.float32)
    one, other = (engine.first(persons % world.users, persons) for _ in range(2))
    for _ in range(3):
        offset, seen = engine.offered(one)
        places = np.argsort(-engine.scores(one.entry, offset, seen, action), axis=1, kind="stable")
        ranked, shown = engine.step(one, action), engine.show(other, places[:, :world.config.page])
        np.testing.assert_array_equal(ranked.shown, shown.shown)
        np.testing.assert_array_equal(ranked.feedback, shown.feedback)
        np.testing.assert_array_equal(one.seen, other.seen)


def test_lives_do_not_depend_on_pieces_of_time_and_leave_nobody_behind() -> None:
    world = worlds.world()
    policy = FixedGaussian(np.ones(world.vocabulary.action_size), .3)
    lives = []
    for stops in ([6.0], [.5, 2.0, 2.25, 6.0]):
        engine = SessionEngine(world, seed=2)
        life = Life(engine, 2 * world.users, .5, 12)
        for stop in stops:
            life.until(stop, Local(engine, policy))
        lives.append(life.brought)
    np.testing.assert_allclose(lives[0], lives[1], rtol=1e-6)
    assert (lives[0][:, -1] > 0).all()


def test_persons_inside_are_served_by_their_arms_and_every_request_is_logged(tmp_path: Path) -> None:
    world = worlds.world()
    size, models = world.vocabulary.action_size, tmp_path / "models"
    base, other = FixedGaussian(np.ones(size), .3), FixedGaussian(-np.ones(size), .3)
    names = [export_policy(models, policy, world.vocabulary, training={}, data_fingerprint="", metrics={}).name
             for policy in (base, other)]
    write_pointer(models, Pointer(fusion=names[0]))
    engine = SessionEngine(world, seed=2)
    inside, alone = Inside(engine, 1e9, models, tmp_path / "logs"), Local(engine, base)
    one, two = (Life(engine, world.users, 1.0, 4) for _ in range(2))
    one.until(2.0, inside)
    two.until(2.0, alone)
    np.testing.assert_array_equal(one.brought, two.brought)
    write_pointer(models, Pointer(fusion=names[0], fusion_canary=names[1], canary_share=.5))
    inside.follow()
    one.until(4.0, inside)
    inside.write()
    inside.write()
    rows = pq.read_table(tmp_path / "logs" / "part-00000.parquet").to_pydict()
    assert len(rows["ts"]) == one.brought[:, -1].sum()
    assert sum(feedback["watch_time"] for feedback in rows["feedback"]) == pytest.approx(one.brought[:, 0].sum(), 1e-4)
    before = 1e9 + 2 * 86_400
    takes = Canary(None, names[1], .5).takes
    assert {version for version, ts in zip(rows["model_version"], rows["ts"], strict=True)
            if ts.timestamp() < before} == {names[0]}
    assert all(version == names[takes(user)] for version, user, ts in zip(
        rows["model_version"], rows["user_id"], rows["ts"], strict=True) if ts.timestamp() >= before)
    assert len(set(rows["request_id"])) == len(rows["ts"])


def test_persons_have_the_names_of_session_logs() -> None:
    world = worlds.world()
    persons = np.array([0, 3, world.users + 3])
    policy = FixedGaussian(np.ones(world.vocabulary.action_size), .3)
    table = session_log(world, rollout(world, policy, seed=1, persons=persons), "v")
    assert set(user_ids(world, persons)) == set(table["user_id"].to_pylist())


class Moody(threading.Thread):
    """A server that hangs up on its first connection, refuses the second for want of room, then echoes bodies, of
    which the third connection brings one alone."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.taken = 0

    def run(self) -> None:
        while True:
            connection, _ = self.listener.accept()
            self.taken += 1
            threading.Thread(target=self.serve, args=(connection, self.taken), daemon=True).start()

    @staticmethod
    def serve(connection: socket.socket, number: int) -> None:
        with connection, connection.makefile("rb") as lines:
            while lines.readline():
                length = 0
                while (line := lines.readline().strip()):
                    length = int(line.split(b": ")[1]) if line.startswith(b"content-length") else length
                body = lines.read(length)
                if number == 1:
                    return
                status = b"503 Service Unavailable" if number == 2 else b"200 OK"
                head = b"HTTP/1.1 " + status + b"\r\nContent-Length: %d\r\n\r\n" % length
                connection.sendall(head)
                connection.sendall(body)
                if number == 3:
                    return


def test_requests_that_are_cut_off_or_refused_are_sent_again_and_answers_keep_their_order() -> None:
    server = Moody()
    server.start()
    kept = Connections(f"http://127.0.0.1:{server.listener.getsockname()[1]}", 4)
    bodies = [b"%d" % number for number in range(50)]
    requests = [b"POST / HTTP/1.1\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body) for body in bodies]
    assert kept.ask(requests) == bodies
    assert kept.ask(requests[:3]) == bodies[:3]
    assert kept.sent == 53
    assert 2 <= kept.again <= 3  # what the server has closed may be known, or not yet
    assert server.taken >= 6  # three were lost, one of them perhaps in the end
    kept.close()


def test_a_loop_that_is_killed_runs_until_it_ends_by_itself(tmp_path: Path) -> None:
    file = tmp_path / "runs"
    program = f"import time; time.sleep(.4); open({str(file)!r}, 'a').write('.')"
    kills = Kills(0)
    kills._lasted = .4
    for _ in range(4):
        kills.of_loop([sys.executable, "-c", program])
    assert file.read_text().count(".") == 4
    assert kills.loops >= 1
    with pytest.raises(RuntimeError, match="ended with 3"):
        kills.of_loop([sys.executable, "-c", "raise SystemExit(3)"])


def outcome(name: str, state: str, share: float, step: str = "promoted") -> Outcome:
    return Outcome(name, state, ("gate", "canary at 0.01", step), "why", share, 2, 4)


def test_tables_say_what_became_of_candidates() -> None:
    brought, nothing = np.full((6, 2), 3.0), np.full((6, 2), 2.0)
    nothing[:2] = nothing[4:] = 100.0  # outside of the test
    found = (outcome(EQUAL, "rolled back", .5), outcome(WORSE, "rolled back", .2), outcome(BETTER, "promoted", .5))
    plain = Result(7, found, brought, nothing, 18, 1_000, 3, 2.0, 9.0)
    other = (*found[:2], outcome(BETTER, "promoted", .5, "rolled back"))
    killed = Result(7, other, brought, nothing, 19, 1_000, 0, 2.0, 9.0, "2 loops, 1 replicas")
    assert plain.change(found[0], 0) == pytest.approx(.5)
    words = summary([plain, killed])
    assert "promoted in 1 of 1 lives" in words
    assert "had 50% of the users in 0" in words
    assert "2,000 requests were answered, 500 a second" in words
    assert "shown 36 pages; the session logs have 37 rows" in words
    assert "with 2 loops, 1 replicas killed: the steps are others" in words
    assert beside(brought, nothing, slice(2, 4), (0,)) == ["6 (+50.0%)"]
    assert markdown("T", ("a", "b"), [("1", "2")]) == "**T**\n\n| a | b |\n|---|---|\n| 1 | 2 |"
