"""Which pairs there are, and which of them the data support."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import yaml

from recfuse.config import InvalidFieldError, from_mapping
from recfuse.scenes.registry import KUAIRAND, Pair, Registry, Scene
from recfuse.simulation.responses import FEED


def registry() -> Registry:
    return Registry(scenes=(Scene(name="a", tasks=("click",), optional_tasks=("like",)),
                            Scene(name="b", tasks=("order", "click"))))


def test_pairs_are_in_the_order_of_scenes_and_tasks() -> None:
    assert registry().pairs == (("a", "click"), ("a", "like"), ("b", "order"), ("b", "click"))
    assert registry().task_names == ("click", "like", "order")
    assert registry().pair_scene == (0, 0, 1, 1)
    assert registry().pair_task == (0, 1, 2, 0)
    assert registry().only("b").pairs == (("b", "order"), ("b", "click"))


def test_scene_index_of_rows() -> None:
    assert registry().scene_index(np.array(["b", "z", "a"])).tolist() == [1, -1, 0]


def test_optional_pairs_with_few_positives_are_dropped_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    counts = {Pair("a", "click"): 1, Pair("a", "like"): 4, Pair("b", "order"): 0, Pair("b", "click"): 9}
    with caplog.at_level(logging.INFO, "recfuse"):
        logging.getLogger("recfuse").propagate = True
        kept = registry().supported(counts, 5)
    assert kept.pairs == (("a", "click"), ("b", "order"), ("b", "click"))
    assert "pair (a, like) is left out: 4 positives in training, 5 needed" in caplog.text
    assert registry().supported(counts, 4).pairs == registry().pairs


def test_the_demo_predicts_click_long_view_and_seconds_everywhere() -> None:
    for scene in ("0", "1", "2", "4", "6"):
        assert KUAIRAND.tasks_of(scene)[:3] == ("click", "long_view", "watch_time")
    assert KUAIRAND.numbers == {"watch_time": 180.0}


def test_the_job_s_config_names_the_tasks_that_a_feed_answers_with() -> None:
    declared = yaml.safe_load(Path("jobs/config/train_scenes.yaml").read_text())["registry"]
    assert from_mapping(Registry, declared, "registry") == KUAIRAND
    assert set(KUAIRAND.task_names) == {*FEED.ladder, FEED.amount, *FEED.wanted}


@pytest.mark.parametrize(("make", "message"), [
    (lambda: Registry(scenes=()), "scenes: got"),
    (lambda: Registry(scenes=(Scene(name="a", tasks=("x",)),) * 2), "scenes: got .*distinct"),
    (lambda: Scene(name="a", tasks=()), "tasks: got .*at least one task"),
    (lambda: Scene(name="a", tasks=("x",), optional_tasks=("x",)), "tasks: got .*distinct"),
    (lambda: registry().tasks_of("z"), "scene: got 'z'; allowed: a, b"),
])
def test_bad_registries_are_named(make, message: str) -> None:
    with pytest.raises(InvalidFieldError, match=message):
        make()


def test_numbers_follow_their_scenes() -> None:
    both = Registry(scenes=(Scene(name="a", tasks=("click", "watch_time")), Scene(name="b", tasks=("click",))),
                    numbers={"watch_time": 60.0})
    assert both.only("a").numbers == {"watch_time": 60.0}
    assert both.without("a").numbers == {}
    assert both.to_manifest()["numbers"] == {"watch_time": 60.0}
    for numbers, message in (({"dwell": 5.0}, "numbers: got 'dwell'; allowed: tasks of a scene: click, watch_time"),
                             ({"click": 0.0}, r"numbers.click: got 0.0; allowed: a number > 0")):
        with pytest.raises(InvalidFieldError, match=message):
            Registry(scenes=both.scenes, numbers=numbers)
