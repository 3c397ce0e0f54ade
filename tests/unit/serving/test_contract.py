"""Policy, scorer, catalogue and users against each other: which set serves, and which part is said to lack what."""

from __future__ import annotations

import asyncio
import errno
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recfuse.behaviours import StateFeature, Vocabulary
from recfuse.bundle import BundleError, read_bundle, write_bundle
from recfuse.bundle.pointer import Pointer, read_pointer, write_pointer
from recfuse.config import InvalidFieldError
from recfuse.logs.account import Account
from recfuse.logs.exposures import ROWS_SCHEMA, Exposures
from recfuse.scenes.config import ModelConfig
from recfuse.scenes.inference import SceneScorer
from recfuse.scenes.registry import Registry, Scene
from recfuse.serving.api import create_app
from recfuse.serving.app import build_app
from recfuse.serving.config import ServingConfig, Supplements
from recfuse.serving.contract import Contract, paths_of
from recfuse.serving.gateway import Backends
from recfuse.serving.publish import publish
from recfuse.serving.replicas import FusionReplica, ScenesReplica
from recfuse.state.store import UserState, UserStateStore

from .conftest import TASKS, write_policy

ITEMS = {"item_id": [1, 2, 3], "price": [1.0, 2.0, 3.0], "brand": ["a", "b", "b"]}
USERS = {"user_id": [7, 8], "age": [30.0, 40.0], "segment": ["new", "old"]}
SCENES = {"feed": TASKS, "shop": TASKS}


def write_scorer(root: Path, scenes: Mapping[str, tuple[str, ...]] = SCENES, items: Mapping[str, Any] = ITEMS,
                 users: Mapping[str, Any] = USERS, seed: int = 0) -> Path:
    """A scenes bundle with random weights, fitted to two exposures of every item."""
    count = 2 * len(items["item_id"])
    rows = {"user_id": np.resize(users["user_id"], count), "item_id": np.resize(items["item_id"], count),
            "scene": np.resize(list(scenes), count)}
    columns = [pa.array(rows[field.name], field.type) if field.name in rows else
               pa.array(np.zeros(count, np.int64)).cast(field.type) for field in ROWS_SCHEMA]
    exposures = Exposures(pa.table(columns, schema=ROWS_SCHEMA), pa.table(dict(users)), pa.table(dict(items)),
                          pa.table({"user_id": pa.array([], pa.int64()), "items": pa.array([], pa.list_(pa.int64()))}),
                          Account(count, count), pa.table({}))
    config = ModelConfig(embedding_size=2, history_length=2, experts=1, expert_layers=(4,), tower_layers=(4,))
    registry = Registry(scenes=tuple(Scene(name=name, tasks=tasks) for name, tasks in scenes.items()))
    scorer = SceneScorer.untrained(exposures, registry, config, seed=seed)
    return scorer.export(root, training={"seed": seed}, data_fingerprint="none", metrics={})


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory, vocabulary: Vocabulary) -> Path:
    root = tmp_path_factory.mktemp("template")
    publish(root / "models", fusion=write_policy(root / "trained", vocabulary, seed=1),
            scenes=write_scorer(root / "trained"), catalogue=pa.table(ITEMS),
            users={"7": UserState(features={"age": 30.0, "segment": "new"}, history=(1,))})
    return root / "models"


@pytest.fixture
def models(tmp_path: Path, template: Path) -> Path:
    """Parts that fit each other."""
    return Path(shutil.copytree(template, tmp_path / "models"))


def point(models: Path, **changes: Any) -> None:
    pointer = read_pointer(models)
    write_pointer(models, Pointer(**{**vars(pointer), **{name: value.name if isinstance(value, Path) else value
                                                         for name, value in changes.items()}}))


def chosen(models: Path, supplements: Supplements | None = None, **changes: Any) -> dict[str, str]:
    """What is refused, and why, where a server of `models` is pointed to something else."""
    contract = Contract(supplements or Supplements())
    served = contract.choose(paths_of(read_pointer(models), models), None)
    point(models, **changes)
    return dict(contract.choose(paths_of(read_pointer(models), models), served.paths).errors)


@pytest.mark.parametrize(("change", "words"), [
    ({"scenes": ("feed", "page")}, r"scenes-\w+ lacks scenes of fusion-\w+: page "),
    ({"scenes": ("feed",)}, r"fusion-\w+ lacks scenes of scenes-\w+: shop "),
    ({"fusion_parameters": ("click", "margin")}, r"scenes-\w+ lacks fusion parameters of fusion-\w+: margin "),
    ({"state_features": (StateFeature(name="age", categories=("young", "old")), StateFeature(name="x"))},
     r"scenes-\w+ reads age as a number, and fusion-\w+ as text such as 'young'"),
    ({"state_features": (StateFeature(name="segment"), StateFeature(name="age"), StateFeature(name="x"),
                         StateFeature(name="y"))},
     r"scenes-\w+ reads segment as text such as 'new', and fusion-\w+ as a number"),
    ({"state_features": (StateFeature(name="segment", categories=("cold", "warm", "hot")),)},
     r"scenes-\w+ knows no category of segment that fusion-\w+ knows: new, old, and cold, warm, hot"),
])
def test_a_policy_that_does_not_fit_says_what_is_lacking(
    tmp_path: Path, models: Path, vocabulary: Vocabulary, change: dict[str, Any], words: str
) -> None:
    policy = write_policy(models, vocabulary.replace(**change), seed=2)
    errors = chosen(models, fusion=policy)
    assert list(errors) == ["fusion"]
    assert re.search(words, errors["fusion"]), errors


def write_staged(root: Path, vocabulary: Vocabulary, stage: str) -> Path:
    """A policy beside which one of a stage lies, whatever its vocabulary says of that."""
    bundle = read_bundle(write_policy(root, vocabulary, seed=3))
    told = {name: bundle.manifest[name] for name in ("shapes", "network", "training", "data_fingerprint", "metrics")}
    return write_bundle(root, kind="fusion", tensors={"policy": bundle.tensors["policy"],
                                                      f"policy-{stage}": bundle.tensors["policy"]},
                        manifest={**told, "vocabulary": bundle.manifest["vocabulary"], "stages": {stage: told}})


def test_a_policy_of_a_stage_that_nobody_can_ask_at_does_not_fit(models: Path, vocabulary: Vocabulary) -> None:
    words = vocabulary.replace(stages=("fine", "mix"))
    policy = write_staged(models, words, "coarse")
    said = f"{policy.name} has policies of stages that its vocabulary lacks: coarse"
    assert chosen(models, fusion=policy) == {"fusion": said}
    with pytest.raises(BundleError, match=said):
        publish(models, fusion=policy)


def test_what_serves_says_which_stages_have_policies(
    models: Path, vocabulary: Vocabulary, serve: Callable[..., Server]
) -> None:
    server = serve()
    assert server.described("fusion")["stage_policies"] == []
    point(models, fusion=write_staged(models, vocabulary, "mix"))
    server.look()
    assert server.described("fusion")["stage_policies"] == ["mix"]
    assert server.recommend().status_code == 200


@pytest.mark.parametrize(("change", "words"), [
    ({"scenes": {"page feed": TASKS, "page shop": TASKS}}, r"scenes-\w+ lacks scenes of fusion-\w+: feed, shop "),
    ({"scenes": {**SCENES, "wall": TASKS}}, r"fusion-\w+ lacks scenes of scenes-\w+: wall "),
    ({"scenes": {"feed": ("click",), "shop": ("click",)}},
     r"scenes-\w+ lacks fusion parameters of fusion-\w+: long_view "),
    ({"scenes": {"feed": TASKS, "shop": ("like",)}}, r"predicts no fusion parameter of fusion-\w+ in scenes shop"),
    ({"items": {**ITEMS, "weight": [1.0, 2.0, 3.0]}},
     r"catalogue-\w+.parquet lacks columns that scenes-\w+ reads: weight "),
    ({"items": {**ITEMS, "price": ["low", "low", "high"]}},
     r"has double in price, and scenes-\w+ reads integers or text"),
    ({"items": {**ITEMS, "brand": [1.0, 2.0, 3.0]}}, r"has string in brand, and scenes-\w+ reads numbers"),
    ({"items": {**ITEMS, "item_id": [11, 12, 13]}}, r"scenes-\w+ knows none of the 3 items of catalogue-\w+.parquet"),
    ({"users": {**USERS, "segment": [1.0, 2.0]}}, r"users.sqlite has 'new' in segment of user 7 .*reads numbers"),
])
def test_a_scorer_that_does_not_fit_says_what_is_lacking(
    models: Path, change: dict[str, Any], words: str
) -> None:
    errors = chosen(models, scenes=write_scorer(models, **change))
    assert list(errors) == ["scenes"]
    assert re.search(words, errors["scenes"]), errors


@pytest.mark.parametrize(("change", "supplements"), [
    ({"scenes": {**SCENES, "wall": TASKS}}, {"unshared_scenes": ("wall",)}),
    ({"scenes": {"feed": TASKS}}, {"unshared_scenes": ("shop",)}),
    ({"scenes": {"feed": ("click",), "shop": ("click",)}}, {"constants": {"long_view": 0.5}}),
    ({"scenes": {"feed": ("click",), "shop": ("click",)}}, {"sent": ("long_view",)}),
    ({"items": {**ITEMS, "weight": [1.0, 2.0, 3.0]}}, {"sent": ("weight",)}),
    ({"items": {"item_id": [3, 4, 5]}}, {}),  # new items, fewer columns
    ({"users": {"user_id": [1, 2], "city": [1, 2]}}, {}),
])
def test_what_the_config_names_may_be_lacking(
    models: Path, change: dict[str, Any], supplements: dict[str, Any]
) -> None:
    assert chosen(models, Supplements(**supplements), scenes=write_scorer(models, **change)) == {}


def test_a_constant_must_suit_the_formula(models: Path) -> None:
    """log_sum takes predictions above −0.001."""
    with pytest.raises(BundleError, match=r"constants.long_view is -0.5"):
        chosen(models, Supplements(constants={"long_view": -0.5}))


def test_catalogues_are_compared_with_the_scorer(models: Path) -> None:
    pq.write_table(pa.table({"item_id": [1], "price": ["much"]}), models / "other.parquet")
    errors = chosen(models, catalogue="other.parquet")
    assert list(errors) == ["catalogue"]
    assert re.search(r"other.parquet lacks columns that scenes-\w+ reads: brand.*other.parquet has string in price",
                     errors["catalogue"])


def test_a_canary_offers_what_the_policy_offers(models: Path, vocabulary: Vocabulary) -> None:
    """Its users may ask for the same scenes and stages, and tell the same behaviours."""
    fewer = vocabulary.replace(stages=("fine",), behaviours=vocabulary.behaviours[:1])
    errors = chosen(models, fusion_canary=write_policy(models, fewer, seed=2), canary_share=0.5)
    assert re.search(r"lacks stages of fusion-\w+: coarse, rerank, mix.*lacks behaviours of fusion-\w+: like",
                     errors["fusion_canary"])
    other_order = vocabulary.replace(fusion_parameters=TASKS[::-1])
    assert chosen(models, fusion_canary=write_policy(models, other_order, seed=2), canary_share=0.5) == {}


def test_two_canaries_share_users_and_must_fit_each_other(models: Path, vocabulary: Vocabulary) -> None:
    policy = write_policy(models, vocabulary.replace(fusion_parameters=("click", "like")), seed=2)
    scorer = write_scorer(models, {"feed": (*TASKS, "like"), "shop": (*TASKS, "like")})
    point(models, scenes=scorer)
    assert chosen(models, fusion_canary=policy, canary_share=0.5) == {}
    narrow = write_scorer(models, seed=3)
    errors = chosen(models, scenes_canary=narrow)
    assert list(errors) == ["scenes_canary"]
    assert re.search(r"lacks tasks .* in scene feed: like.*lacks fusion parameters of fusion-\w+: like",
                     errors["scenes_canary"])


def test_parts_that_need_each_other_come_together_and_hold_up_no_other(models: Path, vocabulary: Vocabulary) -> None:
    """A policy and a scorer with a new prediction: neither without the other; a damaged catalogue delays neither."""
    policy = write_policy(models, vocabulary.replace(fusion_parameters=("click", "like")), seed=2)
    scorer = write_scorer(models, {"feed": ("click", "like"), "shop": ("click", "like")})
    contract, before = Contract(Supplements()), paths_of(read_pointer(models), models)
    (models / "damaged.parquet").write_bytes(b"PAR1")
    point(models, fusion=policy, scenes=scorer, catalogue="damaged.parquet")
    choice = contract.choose(paths_of(read_pointer(models), models), before)
    assert (choice.paths["fusion"], choice.paths["scenes"]) == (policy, scorer)
    assert choice.paths["catalogue"] == before["catalogue"]
    assert list(choice.errors) == ["catalogue"]
    shutil.move(scorer / "model.safetensors", scorer / "kept")
    choice = Contract(Supplements()).choose(paths_of(read_pointer(models), models), before)
    assert {name: choice.paths[name] for name in ("fusion", "scenes")} == {
        name: before[name] for name in ("fusion", "scenes")}
    assert "model.safetensors: No such file" in choice.errors["scenes"]
    assert "model.safetensors: No such file" in choice.errors["fusion"], "it waits for the scorer"


def test_one_bad_user_stops_no_policy(models: Path, vocabulary: Vocabulary) -> None:
    """One of three with text for a number; a policy that suits nobody is refused."""
    with UserStateStore(models / "users.sqlite") as users:
        users.put_many([("8", UserState(features={"age": "much"})), ("9", UserState(features={"age": 1}))])
    numeric = vocabulary.replace(state_features=(StateFeature(name="segment", default=1.0), StateFeature(name="x"),
                                                 StateFeature(name="y"), StateFeature(name="age")), scenes=())
    supplements = Supplements(unshared_scenes=("feed", "shop"))
    assert chosen(models, supplements, fusion=write_policy(models, vocabulary, seed=2)) == {}
    with UserStateStore(models / "users.sqlite") as users:
        users.put_many([("9", UserState(features={"age": "little"}))])
    # Most ages are bad now, for the policy that serves as for the next one.
    assert chosen(models, supplements, fusion=write_policy(models, vocabulary, seed=3)) == {}
    point(models, scenes=None)
    errors = chosen(models, supplements, fusion=write_policy(models, numeric, seed=3))
    assert errors["fusion"].startswith("users.sqlite has 'new' in segment of user 7 (1 of 1 users), and fusion-")


def test_export_moves_no_pointer_to_what_does_not_fit(tmp_path: Path, models: Path, vocabulary: Vocabulary) -> None:
    before = read_pointer(models)
    scorer = write_scorer(tmp_path / "trained", {"page": TASKS})
    bad = ({"scenes": scorer}, {"catalogue": pa.table({"item_id": [1]})},
           {"users": {"7": UserState(features={"age": 1.0}), "8": UserState(features={"age": "much"})}},
           {"fusion": write_policy(tmp_path / "trained", vocabulary.replace(fusion_parameters=("like", "buy")), 3)})
    for parts in bad:
        with pytest.raises(BundleError, match=r"lacks|reads"):
            publish(models, **parts)  # type: ignore[arg-type]
        assert read_pointer(models) == before
    with UserStateStore(models / "users.sqlite") as users:
        assert users.get("7").features["age"] == 30.0  # type: ignore[union-attr]
    allowed = Supplements(unshared_scenes=("feed", "shop", "page"))
    assert publish(models, scenes=scorer, supplements=allowed).scenes == scorer.name


def test_a_server_does_not_start_with_parts_that_do_not_fit(models: Path) -> None:
    point(models, scenes=write_scorer(models, {"feed": ("click",), "shop": ("click",)}))
    with pytest.raises(InvalidFieldError, match=r"^models: .*lacks fusion parameters of fusion-\w+: long_view"):
        build_app({"models": str(models)})
    build_app({"models": str(models), "constants": {"long_view": 0.5}})


@dataclass
class Server:
    """Real replicas, the policy's and the scorer's, behind HTTP in this process; nobody looks at the pointer but
    `look`."""

    models: Path
    log: Path
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        config = ServingConfig(models=str(self.models), decision_log=str(self.log), poll_seconds=0, explore=False,
                               **self.options)
        self.fusion, self.scenes = FusionReplica(config, follow=False), ScenesReplica(config, follow=False)
        self.api = create_app(Backends(self.fusion, self.scenes), config)

    def look(self) -> None:
        """As `Watcher` does."""
        followers = [*self.fusion.followers, *self.scenes.followers]
        for follower in followers:
            follower.prepare()
        for follower in followers:
            follower.swap()

    def request(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        async def send() -> httpx.Response:
            async with httpx.AsyncClient(transport=httpx.ASGITransport(self.api), base_url="http://test") as client:
                return await client.request(method, path, **arguments)
        return asyncio.run(send())

    def described(self, kind: str) -> dict[str, Any]:
        return dict(self.request("GET", "/v1/models").json()[kind])

    def versions(self) -> tuple[str, str]:
        return self.described("fusion")["model_version"], self.described("scenes")["model_version"]

    def recommend(self, scene: str = "feed") -> httpx.Response:
        return self.request("POST", "/v1/recommend", json={
            "user": {"user_id": 7}, "scene": scene, "candidates": {"item_id": [1, 2, 3]}, "explain": True})


@pytest.fixture
def serve(models: Path, tmp_path: Path) -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def start(**options: Any) -> Server:
        servers.append(Server(models, tmp_path / f"log-{len(servers)}", options))
        return servers[-1]

    yield start
    for server in servers:
        server.fusion.close()
        server.scenes.close()


def test_what_does_not_fit_is_not_swapped_in_and_is_named(
    models: Path, vocabulary: Vocabulary, serve: Callable[..., Server]
) -> None:
    server, before = serve(), read_pointer(models)
    scorer = write_scorer(models, {"page": TASKS})
    point(models, scenes=scorer)
    server.look()
    assert server.versions() == (before.fusion, before.scenes)
    described = server.described("scenes")
    assert (described["wanted"], described["model_version"]) == (scorer.name, before.scenes)
    assert f"{scorer.name} lacks scenes of {before.fusion}: feed, shop" in described["error"]
    assert server.described("fusion")["error"] is None
    assert server.recommend().status_code == 200
    point(models, fusion=write_policy(models, vocabulary.replace(scenes=("page",)), seed=2))
    server.look()
    assert server.versions() == (read_pointer(models).fusion, scorer.name)
    assert server.recommend("page").status_code == 200


def test_a_bundle_may_come_after_its_pointer_and_replicas_converge(
    tmp_path: Path, models: Path, vocabulary: Vocabulary, serve: Callable[..., Server]
) -> None:
    """The policy comes whole, then the scorer file by file; nobody serves one without the other."""
    servers, before = [serve(), serve()], read_pointer(models)
    policy = write_policy(tmp_path / "new", vocabulary.replace(fusion_parameters=("click", "like")), seed=2)
    scorer = write_scorer(tmp_path / "new", {"feed": ("click", "like"), "shop": ("click", "like")})
    point(models, fusion=policy, scenes=scorer)
    copies = [lambda: shutil.copytree(policy, models / policy.name), (models / scorer.name).mkdir]
    copies += [lambda file=file: shutil.copy(file, models / scorer.name) for file in sorted(scorer.iterdir())]
    for copy in copies:
        for server in servers:
            server.look()
            assert server.versions() == (before.fusion, before.scenes)
            assert server.recommend().status_code == 200
        copy()
    for server in servers:
        server.look()
        assert server.versions() == (policy.name, scorer.name)
        assert (server.described("fusion")["error"], server.described("scenes")["error"]) == (None, None)
        assert server.recommend().status_code == 200


@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), OSError(errno.ESTALE, "Stale file handle"),
                                   MemoryError("no memory")])
def test_a_passing_fault_is_tried_again(
    models: Path, vocabulary: Vocabulary, serve: Callable[..., Server], monkeypatch: pytest.MonkeyPatch,
    error: Exception
) -> None:
    """Nothing of the bundle changes in between."""
    server, before, read = serve(), read_pointer(models), Path.read_bytes
    policy, faults = write_policy(models, vocabulary, seed=2), iter([error] * 3)

    def faulty(path: Path) -> bytes:
        if policy.name in path.parts and (fault := next(faults, None)) is not None:
            raise fault
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", faulty)
    point(models, fusion=policy)
    looks = 0
    while server.versions()[0] != policy.name:
        server.look()
        looks += 1
        assert looks < 10
        assert server.recommend().status_code == 200
        if looks == 1:
            assert server.versions() == (before.fusion, before.scenes)
            assert str(error.args[-1]) in server.described("fusion")["error"]
    assert server.described("fusion")["error"] is None


def test_constants_are_predictions_where_nobody_predicts(models: Path, serve: Callable[..., Server]) -> None:
    """The scorer's go before them, and the request's before both; the log has what ranked."""
    publish(models, scenes=write_scorer(models.parent / "few", {"feed": ("click",), "shop": ("click",)}),
            supplements=Supplements(constants={"long_view": 0.25}))
    server = serve(constants={"long_view": 0.25, "click": 0.125})
    items = server.recommend().json()["items"]
    assert {item["predictions"]["long_view"] for item in items} == {0.25}
    assert 0.125 not in {item["predictions"]["click"] for item in items}
    own = {"item_id": [1, 2], "predictions": {"long_view": [0.5, 1.0]}}
    answer = server.request("POST", "/v1/recommend", json={
        "user": {"user_id": 7}, "scene": "feed", "candidates": own, "explain": True}).json()
    assert {item["predictions"]["long_view"] for item in answer["items"]} == {0.5, 1.0}
    bare = server.request("POST", "/v1/fusion/fine/rank", json={
        "user_id": 7, "candidates": {"item_id": ["a"], "predictions": {}}})
    assert [item["item_id"] for item in bare.json()["items"]] == ["a"]
