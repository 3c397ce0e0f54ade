"""The application on a real Ray with real HTTP: endpoints, bad input, parity with the policy, hot swap, the loop."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow.parquet as pq
import pytest
from browser import CHROMIUM, Browser, browser
from clusters import LOOPBACK_ADDRESSES, descendants, listening
from deltalake import DeltaTable

from recfuse.behaviours import Behaviour, StateFeature, Vocabulary
from recfuse.bundle import read_bundle
from recfuse.bundle.pointer import Pointer, read_pointer, write_pointer
from recfuse.evaluation.config import Targets
from recfuse.fusion.config import NetworkConfig
from recfuse.fusion.inference import FusionActor, export_policy
from recfuse.fusion.networks import GaussianPolicies, Normalisation
from recfuse.jobs import collect, ingest, train_fusion
from recfuse.learning.algorithms.two_stage import TwoStageConfig
from recfuse.learning.settings import StoppingRule
from recfuse.logs.exposures import Exposures
from recfuse.report.page import write_report
from recfuse.report.sections import SECTIONS
from recfuse.rollout.config import Plan, RolloutConfig
from recfuse.rollout.rollout import start as start_rollout
from recfuse.rollout.store import Store
from recfuse.scenes.config import ModelConfig
from recfuse.scenes.inference import SceneScorer
from recfuse.scenes.registry import Registry, Scene
from recfuse.serving.config import ServingConfig
from recfuse.serving.console.paths import ACTION
from recfuse.serving.local import free_port
from recfuse.serving.publish import publish
from recfuse.simulation.exposures import generate
from recfuse.state.encoder import StateEncoder
from recfuse.state.store import UserState, UserStateStore
from tests.unit.report.test_report import DATA

TASKS = ("click", "long_view")
TOKEN = "token-of-the-test"
VOCABULARY = Vocabulary(
    behaviours=(Behaviour(name="watch_time", kind="long_term", transform="log1p"),
                Behaviour(name="like", kind="short_term")),
    fusion_parameters=(*TASKS, "like"), state_size=5, formula="log_sum", scenes=("0", "1"),
    state_features=(StateFeature(name="age", mean=30.0, std=10.0, default=30.0), StateFeature(name="seen", log=True),
                    StateFeature(name="scene", categories=("0", "1"))),
)


@dataclass
class Server:
    client: httpx.Client
    models: Path
    log: Path
    runs: Path
    actors: list[FusionActor]
    exposures: Exposures
    early: list[str]  # what its port answered, in turn, while it started

    def post(self, path: str, body: Any) -> httpx.Response:
        if isinstance(body, bytes):
            return self.client.post(path, content=body)
        return self.client.post(path, json=body)


def write_policy(root: Path, seed: int) -> Path:
    policy = GaussianPolicies(("watch_time",), NetworkConfig(hidden=(16,)), Normalisation.identity(5, 3), seed=seed)
    for parameter in policy.parameters():
        parameter.data.mul_(5.0)  # so that the mean depends on the state
    return export_policy(root, policy, VOCABULARY, training={}, data_fingerprint="none", metrics={})


def write_scorer(root: Path, exposures: Exposures) -> Path:
    registry = Registry(scenes=(Scene(name="0", tasks=(*TASKS, "like")), Scene(name="1", tasks=TASKS)))
    config = ModelConfig(embedding_size=4, history_length=5, experts=2, expert_layers=(8,), tower_layers=(4,))
    scorer = SceneScorer.untrained(exposures, registry, config)
    return scorer.export(root, training={}, data_fingerprint="none", metrics={})


@pytest.fixture(scope="module")
def server(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    from recfuse.serving.local import running

    root, log = tmp_path_factory.mktemp("models"), tmp_path_factory.mktemp("decisions")
    exposures = generate(seed=0, users=50, items=40, rows=2_000)
    policies = [write_policy(root, seed) for seed in (1, 2)]
    pq.write_table(exposures.items, root / "catalogue.parquet")
    with UserStateStore(root / "users.sqlite") as users:
        users.put_many([("7", UserState(features={"age": 50, "seen": 3}, history=(1, 2)))])
    write_pointer(root, Pointer(fusion=policies[0].name, scenes=write_scorer(root, exposures).name,
                                catalogue="catalogue.parquet", users="users.sqlite"))
    port = free_port()
    runs = tmp_path_factory.mktemp("runs")
    config = ServingConfig(models=str(root), decision_log=str(log), poll_seconds=0.2, tokens=(TOKEN,),
                           max_body_bytes=100_000, runs=str(runs))
    actors = [FusionActor.from_bundle(read_bundle(path)) for path in policies]
    with watched(port) as early, running(config, port) as url, httpx.Client(
            base_url=url, timeout=30, headers={"Authorization": f"Bearer {TOKEN}"}) as client:
        yield Server(client, root, log, runs, actors, exposures, early)


@contextmanager
def watched(port: int) -> Iterator[list[str]]:
    """What a client that does not wait sees of a server, from before it starts until it has answered ten times."""
    seen: list[str] = []
    over = threading.Event()

    def ask() -> None:
        while not over.is_set() and seen.count("422") < 10:
            try:
                answer = httpx.post(f"http://127.0.0.1:{port}/v1/recommend", json={}, timeout=30,
                                    headers={"Authorization": f"Bearer {TOKEN}"})
                value = answer.json()["error"]["value"]
                seen.append(f"503 {value}, {answer.headers['retry-after']} s" if answer.status_code == 503 else
                            str(answer.status_code))
            except httpx.HTTPError as error:
                seen.append(type(error).__name__)
            time.sleep(0.01)

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        yield seen
    finally:
        over.set()
        asking.join()


def fusion_body(n: int = 3, **changes: Any) -> dict[str, Any]:
    predictions = {name: [(i + k + 1) / (n + 3) for i in range(n)]
                   for k, name in enumerate(VOCABULARY.fusion_parameters)}
    return {"user_id": "u", "state": [0.5, 1, 1, 0, 0], **changes,
            "candidates": {"item_id": list(range(n)), "predictions": predictions}}


def test_while_it_starts_its_port_says_so(server: Server) -> None:
    deadline = time.monotonic() + 30
    while server.early.count("422") < 10 and time.monotonic() < deadline:
        time.sleep(0.1)
    said = [answer for answer, _ in groupby(server.early)]
    if said[0] == "ConnectError":  # before anybody was asked to listen
        said = said[1:]
    assert server.early.count("503 starting, 1 s") > 10
    assert set(said) == {"503 starting, 1 s", "422"}
    assert said[-1] == "422"


def test_endpoints(server: Server) -> None:
    items = server.exposures.items["item_id"].to_pylist()
    answer = server.post("/v1/fusion/fine/rank", fusion_body(explore=False, top_n=2))
    assert answer.status_code == 200, answer.text
    assert (len(answer.json()["items"]), answer.json()["action"]) == (2, answer.json()["mu"])
    answer = server.post("/v1/scenes/1/rank", {
        "user": {"user_id": 7}, "candidates": {"item_id": [*items[:15], 10**15]}, "weights": {"click": .8}})
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert len(body["items"]) == 10
    assert body["unknown"]["item_id"] == 1
    assert all(set(item["probabilities"]) == set(TASKS) for item in body["items"])
    known = next(item for item in body["items"] if item["catalogue"])
    expected = server.exposures.items.to_pylist()[items.index(known["item_id"])]
    assert known["catalogue"]["parameters"]["duration"] == pytest.approx(expected["duration"])
    answer = server.post("/v1/recommend", {"user": {"user_id": 7}, "scene": "1", "explain": True, "explore": False,
                                           "candidates": {"item_id": items[:20]}, "top_n": 5})
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert (len(body["items"]), body["state_source"]) == (5, "store")
    state = StateEncoder(VOCABULARY).encode_one({"age": 50, "seen": 3, "scene": "1"})
    mean = server.actors[0].act(state[None], explore=False).mu[0]
    np.testing.assert_allclose(list(body["mu"].values()), mean, atol=1e-6)
    # The scene has no task `like`, which another one has, and which so decides nothing.
    assert {item["predictions"]["like"] for item in body["items"]} == {0.0}
    models = server.client.get("/v1/models").json()
    assert models["fusion"]["model_version"] == server.actors[0].version
    assert models["scenes"]["tasks"] == {"0": [*TASKS, "like"], "1": list(TASKS)}
    assert server.client.get("/healthz").status_code == 200
    assert server.client.get("/docs").status_code == 200


def test_the_commands_of_the_documentation_work_in_a_shell(server: Server) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    document = server.client.get("/openapi.json").json()
    for path, operations in document["paths"].items():
        for operation in operations.values():
            command = operation["description"].split("```")[1].removeprefix("sh\n").strip()
            done = subprocess.run(command + " -o /dev/null -w '%{http_code}'", shell=True, capture_output=True,
                                  text=True, timeout=30, env={**os.environ, "TOKEN": TOKEN})
            assert done.stdout in ("200", "202"), (path, command, done.stdout)


def test_probabilities_are_the_scorers(server: Server) -> None:
    pointer = json.loads((server.models / "current.json").read_text())
    scorer = SceneScorer.from_bundle(read_bundle(server.models / pointer["scenes"]))
    table = server.exposures.items.slice(0, 12)
    columns = {name: table[name].to_numpy(zero_copy_only=False) for name in table.column_names}
    expected = scorer.score("0", {"user_id": 7, "age": 50, "seen": 3, "hour": 3, "history": [1, 2]}, columns)
    answer = server.post("/v1/scenes/0/rank", {"user": {"user_id": 7, "hour": 3}, "top_n": 12,
                                               "candidates": {"item_id": table["item_id"].to_pylist()}}).json()
    for item in answer["items"]:
        position = columns["item_id"].tolist().index(item["item_id"])
        for task in TASKS:
            # Rows of items are in half precision.
            assert item["probabilities"][task] == pytest.approx(float(expected.probabilities[task][position]), abs=1e-4)


def test_served_mean_equals_the_policys_on_1000_states(server: Server) -> None:
    states = np.random.default_rng(0).normal(size=(1_000, 5)).astype(np.float32)
    expected = server.actors[0].act(states, explore=False).mu

    def mean(state: np.ndarray) -> list[float]:
        answer: dict[str, Any] = server.post("/v1/fusion/fine/rank", fusion_body(1, state=state.tolist())).json()
        return [answer["mu"][name] for name in VOCABULARY.fusion_parameters]

    with ThreadPoolExecutor(16) as clients:
        served = list(clients.map(mean, states))
    assert np.abs(np.array(served) - expected).max() <= 1e-6


BAD: list[tuple[str, str, Any, int, str | None, str]] = [
    ("POST", "/v1/fusion/best/rank", fusion_body(), 404, "stage", "coarse, fine, rerank, mix"),
    ("POST", "/v1/fusion/fine/rank", b"{", 400, "body", "a JSON object"),
    ("POST", "/v1/fusion/fine/rank", fusion_body(state=[1.0]), 422, "state", "5 numbers"),
    ("POST", "/v1/fusion/fine/rank", b'{"user_id":"u","state":[NaN],"candidates":{"item_id":[1],"predictions":{}}}',
     422, "state[0]", "a finite number"),
    ("POST", "/v1/fusion/fine/rank", {**fusion_body(), "candidates": {"item_id": [], "predictions": {}}}, 422,
     "candidates.item_id", "at least 1 item"),
    ("POST", "/v1/fusion/fine/rank", {**fusion_body(), "candidates": {"item_id": [1], "predictions": {}}}, 422,
     "candidates.predictions.click", "click, long_view, like"),
    ("POST", "/v1/fusion/fine/rank", b" " * 100_001, 413, "body", "at most 100000 bytes"),
    ("POST", "/v1/scenes/9/rank", {"user": {"user_id": 1}, "candidates": {"item_id": [1]}}, 404, "scene", "0, 1"),
    ("POST", "/v1/scenes/1/rank", {"user": {"user_id": 1}, "candidates": {"item_id": [1.5]}}, 422,
     "candidates.item_id[0]", "a valid integer"),
    ("POST", "/v1/scenes/1/rank", {"user": {"user_id": 1}, "candidates": {"item_id": [1, 2], "duration": [1.0, "x"]}},
     422, "item.duration", "values of one type"),
    ("POST", "/v1/scenes/1/rank", {"user": {"user_id": 1}, "candidates": {"item_id": [1]}, "weights": {"order": 1}},
     422, "weights.order", "click, long_view"),
    ("POST", "/v1/recommend", {"user": {"user_id": 1}, "scene": "9", "candidates": {"item_id": [1]}}, 422, "scene",
     "0, 1"),
    ("POST", "/v1/feedback", {"request_id": "r", "feedback": {"joy": 1}}, 422, "feedback.joy", "watch_time, like"),
    ("GET", "/v1/recommend", None, 405, "method", "POST"),
    ("GET", "/nothing", None, 404, "path", "/docs"),
]


@pytest.mark.parametrize(("method", "path", "body", "status", "field", "allowed"), BAD)
def test_bad_requests(
    server: Server, method: str, path: str, body: Any, status: int, field: str | None, allowed: str
) -> None:
    response = server.post(path, body) if method == "POST" else server.client.get(path)
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert error["field"] == field, error
    assert allowed in error["allowed"]


def test_without_a_token_only_health_answers(server: Server) -> None:
    headers = {"Authorization": "Bearer something-else"}
    assert server.client.get("/v1/models", headers=headers).status_code == 401
    assert server.client.get("/healthz", headers=headers).status_code == 200


def test_nothing_listens_beyond_loopback(server: Server) -> None:
    open_sockets = {}
    for process, line in descendants(os.getpid()).items():
        with suppress(OSError):  # it ended while we looked
            open_sockets[f"{process} {line}"] = listening(process)
    for what in ("raylet", "ray::ServeReplica", "ray::ProxyActor"):
        assert any(what in line and addresses for line, addresses in open_sockets.items()), (what, open_sockets)
    assert not {line: addresses for line, addresses in open_sockets.items() if not addresses <= LOOPBACK_ADDRESSES}


@pytest.fixture(scope="module")
def tab(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A browser on the server's console, with a token."""
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed")
    with browser(tmp_path_factory.mktemp("browser") / "profile") as tab:
        tab.look(1400, 900)
        show(tab, server, "inspector")
        tab.wait("document.getElementById('message').textContent.includes('token')")
        tab.complaints.clear()  # the browser notes an answer of 401
        tab.run(f"document.getElementById('token').value = '{TOKEN}'; "
                "document.querySelector('#token-form button').click()")
        yield tab
        assert tab.complaints == []
        assert not [address for address in tab.asked if not address.startswith((str(server.client.base_url), "data:"))]


def show(tab: Browser, server: Server, page: str) -> None:
    tab.open(f"{server.client.base_url}/console/{page}")


def decided(server: Server) -> int:
    """Rows of the decision log."""
    return sum(file.read_bytes().rstrip(b"\0").count(b"\n") for file in server.log.glob("*.jsonl"))


def test_the_inspector_shows_a_decision_and_re_orders(server: Server, tab: Browser) -> None:
    rows = decided(server)
    tab.wait("document.querySelectorAll('#flips li').length && document.querySelector('#weights-chart .main-svg')")
    assert tab.run("document.querySelectorAll('#weights-chart .barlayer .point').length") == len(TASKS) + 1
    assert tab.run("document.querySelectorAll('#joins path').length") == tab.run(
        "document.querySelectorAll('#left li').length") == 20
    assert "/v1/recommend" in tab.run("document.getElementById('curl').textContent")
    order = "[...document.querySelectorAll('#{} li')].map((row) => row.dataset.id)"
    left, right = (tab.run(order.format(side)) for side in ("left", "right"))
    assert sorted(left) == sorted(right)
    tab.run("""((slider) => {
        slider.value = slider.value - slider.min > slider.max - slider.value ? slider.min : slider.max;
        slider.dispatchEvent(new Event('input', {bubbles: true})) })(document.getElementById('weight-0'))""")
    assert tab.run(order.format("left")) == left
    moved = tab.run(order.format("right"))
    assert moved != right
    assert sorted(moved) == sorted(right)
    dots = "document.querySelectorAll('#weights-chart .scatterlayer .point').length"
    before = tab.run(dots)
    tab.run("document.getElementById('sample').click()")
    tab.wait(f"{dots} === {before + len(TASKS) + 1}")
    tab.run("""((slider) => { slider.value = slider.max; slider.dispatchEvent(new Event('input', {bubbles: true})) })
        (document.querySelector('#features input[type=range]'))""")
    tab.wait("document.getElementById('source').textContent === 'from the sliders'")
    assert decided(server) == rows


def test_flip_points_by_hand(server: Server, tab: Browser) -> None:
    """Scores 2, 1 and .5 at the weights 1 and 1, and one place: the first leaves for the second where its weight falls
    below .5, or the other one's rises above 2."""
    show(tab, server, "inspector")
    found = tab.run("""import('/console/static/ranking.js').then(({flips}) => flips(
        [[2, 0], [0, 1], [0, .5]].map((terms, place) => ({terms, place})), [1, 1], 1)
        .map((flip) => [flip.parameter, flip.sign, flip.at, flip.leaves, flip.enters]))""")
    assert found == [[0, -1, .5, 0, 1], [1, 1, 2, 0, 1]]


def test_a_person_promotes_and_rolls_back_on_the_board(server: Server, tab: Browser) -> None:
    before, candidate = read_pointer(server.models), server.actors[1].version
    start_rollout(RolloutConfig(action="start", models=str(server.models), candidate=str(server.models / candidate),
                                plan=Plan(targets=Targets(goals={"watch_time": 0.0}, floors={"like": -.1}))))
    canary = read_pointer(server.models)
    promote = ACTION.format(action="promote")
    wrong = server.client.post(promote, json={"reason": "x", "candidate": candidate},
                               headers={"Authorization": "Bearer another-token"})
    assert (wrong.status_code, read_pointer(server.models)) == (401, canary)
    show(tab, server, "board")
    for action, state, served in (("promote", "promoted", candidate), ("rollback", "rolled back", before.fusion)):
        tab.wait(f"document.querySelector('[data-action={action}]')?.disabled === false")
        tab.run(f"document.querySelector('[data-action={action}]').click()")
        tab.run("document.getElementById('decide-yes').click()")  # without a reason nothing is sent
        assert tab.run("document.getElementById('decide').open")
        tab.run(f"document.getElementById('reason').value = 'why {action}'; "
                "document.getElementById('decide-yes').click()")
        tab.wait(f"document.getElementById('state')?.textContent === '{state}'")
        assert read_pointer(server.models) == Pointer(**{**asdict(before), "fusion": served})
        assert Store(server.models).audit()[-1].why == f"why {action}"
        assert f"why {action}" in tab.run("document.getElementById('audit').textContent")


def test_runs_reports_and_docs_open(server: Server, tab: Browser) -> None:
    version = server.actors[0].version
    (server.runs / "one" / "report").mkdir(parents=True)
    shutil.copytree(server.models / version, server.runs / "one" / "fusion" / version)
    write_report(server.runs / "one" / "report" / "report.html", DATA)
    (server.runs / "one" / "report" / "metrics.json").write_text(json.dumps({"policy": version}))
    show(tab, server, "runs")
    tab.wait(f"document.querySelector('article')?.textContent.includes('{version}')")
    tab.open(f"{server.client.base_url}" + tab.run("document.querySelector('article a').getAttribute('href')"))
    inside = "document.getElementById('report').contentDocument"
    tab.wait(f"parseInt(document.getElementById('report').style.height) > 2000 && {inside}.images.length")
    assert tab.run(f"[...{inside}.images].every((each) => each.complete && each.naturalWidth > 0)")
    assert tab.run(f"{inside}.images.length") == len(SECTIONS)
    tab.call("Network.setExtraHTTPHeaders", headers={"Authorization": f"Bearer {TOKEN}"})
    tab.open(f"{server.client.base_url}/docs")
    tab.wait("document.querySelectorAll('.opblock').length >= 6")


def test_the_loop_closes(server: Server, tmp_path: Path) -> None:
    """Serve → feedback over HTTP → collect → ingest → train → publish → serve: the next policy answers."""
    requests = {}
    for number in range(60):
        user, last = f"loop{number // 3}", number % 3 == 2
        answer = server.post("/v1/fusion/mix/rank", fusion_body(user_id=user, scene="1", session_id=user)).json()
        requests[answer["request_id"]] = answer
        body = {"request_id": answer["request_id"], "session_end": last,
                "feedback": {"watch_time": 10 + number % 7, "like": number % 2}}
        assert server.post("/v1/feedback", body).status_code == 202
    logs, samples = tmp_path / "logs", tmp_path / "samples"
    account = collect.main(collect.CollectConfig(
        decision_log=str(server.log), models=str(server.models), output=str(logs)), now=time.time() + 7_200)
    assert account.joined >= 60
    table = DeltaTable(logs / "sessions").to_pyarrow_table()
    rows = {row["request_id"]: row for row in table.to_pylist()}
    assert set(requests) <= set(rows)
    for number, (request_id, answer) in enumerate(requests.items()):
        row = rows[request_id]
        assert (row["stage"], row["scene"], row["last"]) == ("mix", "1", number % 3 == 2)
        assert row["feedback"] == {"watch_time": 10 + number % 7, "like": number % 2}
        np.testing.assert_array_equal(np.array(row["action"], np.float32),
                                      np.array(list(answer["action"].values()), np.float32))
        ids = row["candidates"]["item_ids"]
        assert [ids[place] for place in row["shown"]] == [str(item["item_id"]) for item in answer["items"]]
    ingested = ingest.main(ingest.IngestConfig(logs=str(logs), output=str(samples), cut="bootstrap"))
    assert (ingested.account.kept, ingested.account.quarantined) == (account.written, {})
    replayable = {row["request_id"]: row["shown"] for path in samples.rglob("*.parquet")
                  for row in pq.read_table(path).to_pylist() if row.get("predictions")}
    assert {request_id: rows[request_id]["shown"] for request_id in requests} == {
        request_id: replayable[request_id] for request_id in requests}
    once = StoppingRule(iterations=1)
    trained = train_fusion.main(train_fusion.TrainFusionConfig(
        samples=str(samples), output=str(tmp_path / "fusion"),
        learning=TwoStageConfig(network=NetworkConfig(hidden=(8,)), critics=once, cloning=once, stage_one=once,
                                  stage_two=once, minibatch_size=32)))
    before = read_pointer(server.models)
    publish(server.models, fusion=trained.bundle)
    wait_for_version(server, trained.bundle.name)
    state = np.array([[0.5, 1, 1, 0, 0]], np.float32)
    answer = server.post("/v1/fusion/fine/rank", fusion_body(explore=False)).json()
    expected = FusionActor.from_bundle(read_bundle(trained.bundle)).act(state, explore=False).mu[0]
    np.testing.assert_allclose(list(answer["mu"].values()), expected, atol=1e-6)
    write_pointer(server.models, before)
    wait_for_version(server, str(before.fusion))


def wait_for_version(server: Server, version: str) -> None:
    deadline = time.monotonic() + 20
    while (answer := server.post("/v1/fusion/fine/rank", fusion_body()).json())["model_version"] != version:
        assert time.monotonic() < deadline, f"still {answer['model_version']}"
        time.sleep(0.05)


def test_the_pointer_swaps_bundles_and_a_bad_one_is_refused(server: Server) -> None:
    pointer = json.loads((server.models / "current.json").read_text())

    def versions_until(done: Any) -> set[str]:
        seen = set()
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            response = server.post("/v1/fusion/fine/rank", fusion_body())
            assert response.status_code == 200
            seen.add(response.json()["model_version"])
            if done(response.json()):
                return seen
        raise AssertionError(f"nothing changed; versions {seen}")

    write_pointer(server.models, Pointer(**{**pointer, "fusion": server.actors[1].version}))
    versions_until(lambda answer: answer["model_version"] == server.actors[1].version)
    write_pointer(server.models, Pointer(**{**pointer, "fusion": "fusion-missing"}))
    versions = versions_until(lambda _: server.client.get("/v1/models").json()["fusion"]["error"])
    assert versions == {server.actors[1].version}
    write_pointer(server.models, Pointer(**pointer))
    versions_until(lambda answer: answer["model_version"] == server.actors[0].version)
