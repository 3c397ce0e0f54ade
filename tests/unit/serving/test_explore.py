"""Today's weights with exploration as a bundle that serving loads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from own_shop import TODAY, Shop

from recfuse.behaviours import Behaviour
from recfuse.bundle import read_bundle
from recfuse.bundle.pointer import Pointer, read_pointer
from recfuse.config import InvalidFieldError
from recfuse.fusion.inference import FusionActor
from recfuse.logs.draft import declare, to_yaml
from recfuse.serving.app import build_app
from recfuse.serving.config import ExploreConfig
from recfuse.serving.explore import explore

WEIGHTS = "add_to_cart:0.2, margin:1"


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    Shop().write_candidates(tmp_path / "candidates.parquet")
    draft = declare([Behaviour(name="revenue", kind="long_term")], ("add_to_cart", "margin"), ("home", "cart"),
                    "log_sum", 5)
    (tmp_path / "vocabulary.yaml").write_text(to_yaml(draft.vocabulary, "a shop"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def config(**changes: object) -> ExploreConfig:
    return ExploreConfig(**{"weights": WEIGHTS, "candidates": "candidates.parquet", "top": 5, **changes})


def test_what_is_published_serves_and_explores_as_told(shop: Path) -> None:
    result = explore(config(change=.25))
    pointer = read_pointer("runs/models")
    assert pointer == result.pointer == Pointer(fusion=pointer.fusion)
    build_app({"models": "runs/models"})
    actor = FusionActor.from_bundle(read_bundle(shop / "runs" / "models" / str(pointer.fusion)))
    assert actor.fixed is not None
    np.testing.assert_allclose(actor.fixed.mu, TODAY, rtol=1e-6)
    np.testing.assert_allclose(actor.fixed.sigma, result.exploration.sigma, rtol=1e-6)
    # The shop's own ranking, drawn by the served policy, changes as much as promised.
    rng, visits = np.random.default_rng(0), Shop().visits(400, seed=8)
    drawn = actor.act(np.zeros((400, actor.vocabulary.state_size), np.float32), True, rng).action
    changed = [1 - len(set(visit.page(TODAY)) & set(visit.page(action))) / 5
               for visit, action in zip(visits, drawn, strict=True)]
    assert np.mean(changed) == pytest.approx(.25, abs=4 * np.std(changed) / 20)


def test_a_second_one_says_what_served_before(shop: Path) -> None:
    first = explore(config())
    assert first.before is None
    assert explore(config(change=.3)).before == first.pointer.fusion
    assert explore(config(change=.3)).pointer == read_pointer("runs/models")


@pytest.mark.parametrize(("changes", "message"), [
    ({"candidates": ""}, "candidates: got ''; allowed: requests to try σ on"),
    ({"weights": "click:1"}, "weights: got 'click:1'; allowed: name:number, each once, of add_to_cart, margin"),
    ({"weights": "margin:1,margin:2"}, "each once"),
    ({"weights": "margin:x"}, r"weights\.margin: got 'x'; allowed: a number"),
    ({"weights": ""}, "one of which is not 0"),
    ({"vocabulary": "nowhere.yaml"}, "vocabulary: got"),
])
def test_bad_options_are_named(shop: Path, changes: dict[str, str], message: str) -> None:
    with pytest.raises(InvalidFieldError, match=message):
        explore(config(**changes))
    assert not Path("runs").exists()


def test_without_a_vocabulary_the_way_to_one_is_named(shop: Path) -> None:
    Path("vocabulary.yaml").unlink()
    with pytest.raises(InvalidFieldError, match="recfuse init"):
        explore(config())
