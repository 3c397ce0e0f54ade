"""The console's pages, files and values, through the HTTP layer, on the replicas themselves."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from recfuse.behaviours import Vocabulary
from recfuse.bundle.pointer import read_pointer
from recfuse.fusion.inference import export_policy
from recfuse.fusion.policies import FixedGaussian
from recfuse.serving.console import assets, paths
from recfuse.serving.console.vectors import hand_tuned

from .conftest import TOKEN, Console

REQUEST = {"user": {"user_id": 7}, "scene": "feed", "explore": False, "top_n": None, "candidates": {
    "item_id": [1, 2, "z"], "predictions": {"click": [.1, .5, .2], "long_view": [.3, .1, .9]}}}


def test_every_page_opens_and_names_only_files_that_are_there(console: Callable[..., Console]) -> None:
    server = console(tokens=(TOKEN,))
    for path in paths.PAGES:
        answer = server.ask("GET", path)
        assert answer.status_code == 200, path
        assert "default-src 'self'" in answer.headers["content-security-policy"]
        addresses = re.findall(r'(?:src|href)="([^"]+)"', answer.text)
        assert not [each for each in addresses if each.startswith(("http:", "https:", "//"))]
        for address in (each for each in addresses if each.startswith(paths.STATIC)):
            assert server.ask("GET", address).status_code == 200, address


def test_files_are_whole_compressed_or_not(console: Callable[..., Console]) -> None:
    server = console()
    for name in ("console.css", "plotly.min.js", "swagger-ui-bundle.js"):
        expected = assets.files()[name].read_bytes()
        for encoding in ("gzip", "identity"):
            answer = server.ask("GET", assets.file_address(name), headers={"Accept-Encoding": encoding})
            assert answer.content == expected
            assert answer.headers.get("content-encoding", "identity") == encoding
    for name in ("nothing.js", "..%2Fassets.py", "%2Fetc%2Fpasswd"):
        assert server.ask("GET", f"{paths.STATIC}/{name}").status_code == 404


def test_values_need_a_token_where_there_is_one(console: Callable[..., Console]) -> None:
    server = console(tokens=(TOKEN,))
    for path in (paths.OPTIONS, paths.CANDIDATES, f"{paths.FEATURES}?user=7"):
        assert server.ask("GET", path).status_code == 401
        assert server.ask("GET", path, headers={"Authorization": "Bearer another-token"}).status_code == 401
        assert server.ask("GET", path, headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200
    assert server.ask("POST", paths.DECIDE, json=REQUEST).status_code == 401


def test_docs_ask_nobody_else(console: Callable[..., Console]) -> None:
    addresses = re.findall(r'(?:src|href)="([^"]+)"', console().ask("GET", "/docs").text)
    assert len(addresses) == 3
    assert all(address.startswith(paths.STATIC) for address in addresses)


def test_the_inspector_is_told_what_may_be_asked(console: Callable[..., Console]) -> None:
    """A slider reaches three standard deviations about the mean."""
    server = console()
    options = server.get(paths.OPTIONS)
    assert (options["version"], options["scorer"], options["items"]) == (read_pointer(server.models).fusion, None, 3)
    age, scene = options["features"]
    assert age == {"name": "age", "low": 0.0, "high": 60.0, "default": 30.0, "log": False}
    assert scene == {"name": "scene", "categories": ["feed", "shop"]}
    assert server.get(f"{paths.CANDIDATES}?count=2&seed=1")["item_id"] != []
    assert set(server.get(f"{paths.CANDIDATES}?count=50")["item_id"]) == {1, 2, 3}
    assert server.get(f"{paths.FEATURES}?user=7") == {"features": {"age": 50}}
    assert server.get(f"{paths.FEATURES}?user=stranger") == {"features": {}}


def test_a_look_is_what_would_be_served_and_leaves_no_trace(console: Callable[..., Console]) -> None:
    server = console()
    answer = server.ask("POST", f"{paths.DECIDE}?draws=3&seed=5", json=REQUEST)
    assert answer.status_code == 200, answer.text
    shown = answer.json()
    assert server.rows() == 0
    assert server.meters.totals() == {}
    served = server.ask("POST", "/v1/recommend", json={**REQUEST, "top_n": 3}).json()
    assert server.rows() == 1
    assert [item["id"] for item in shown["items"]] == [item["item_id"] for item in served["items"]]
    np.testing.assert_allclose(shown["mu"], list(served["mu"].values()), rtol=1e-6)
    # The terms are what the formula weighs: a score is their sum by the weights.
    scores = [float(np.dot(shown["mean"], item["terms"])) for item in shown["items"]]
    np.testing.assert_allclose(scores, [item["score"] for item in served["items"]], rtol=1e-5)
    assert len(shown["draws"]) == 3
    assert shown["draws"] != [shown["mean"]] * 3
    again = server.ask("POST", f"{paths.DECIDE}?draws=1&seed=6", json=REQUEST).json()
    assert again["draws"] == shown["draws"][1:2]


@pytest.mark.parametrize(("changes", "status", "field"), [
    ({"scene": "moon"}, 422, "scene"), ({"stage": "best"}, 404, "stage"), ({"user": {}}, 422, "user.user_id"),
    ({"context": {"age": "old"}}, 422, "context.age"), ({"candidates": {"item_id": []}}, 422, "candidates.item_id"),
    ({"candidates": {"item_id": [1]}}, 422, "candidates.predictions")])
def test_bad_questions_are_refused_as_the_endpoint_refuses_them(
    console: Callable[..., Console], changes: dict[str, Any], status: int, field: str
) -> None:
    answer = console().ask("POST", paths.DECIDE, json={**REQUEST, **changes})
    assert (answer.status_code, answer.json()["error"]["field"]) == (status, field)


def test_a_hand_tuned_vector_comes_from_a_bundle_or_the_samples_or_is_unknown(
    console: Callable[..., Console], vocabulary: Vocabulary
) -> None:
    server = console()
    version = str(read_pointer(server.models).fusion)
    assert hand_tuned(server.models, version) == ()  # the fixture's network saw no samples
    explored = export_policy(server.models, FixedGaussian([.7, 1.5], .1), vocabulary,
                             training={"explore": {"weights": "click:.7,long_view:1.5"}}, data_fingerprint="none",
                             metrics={})
    vector, = hand_tuned(server.models, version)
    assert vector.values == pytest.approx({"click": .7, "long_view": 1.5})
    assert explored.name in vector.source
    # Weights of other predictions say nothing.
    other = vocabulary.replace(fusion_parameters=("buy", "like"))
    export_policy(server.models, FixedGaussian([1, 1], .1), other, training={"explore": {}}, data_fingerprint="none",
                  metrics={})
    assert len(hand_tuned(server.models, version)) == 1
    shown = server.ask("POST", paths.DECIDE, json=REQUEST).json()
    np.testing.assert_allclose(shown["hand_tuned"][0]["values"], [.7, 1.5])
