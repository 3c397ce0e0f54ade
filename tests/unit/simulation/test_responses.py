"""What users may answer with: the declaration, and a shop-like world that is built and played by it."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from recfuse.config import InvalidFieldError
from recfuse.simulation import shop
from recfuse.simulation.response import marginals, sigmoid, solve_shift
from recfuse.simulation.response_network import Rows, outcomes_of
from recfuse.simulation.responses import FEED, Responses
from recfuse.simulation.sessions import SessionEngine
from recfuse.simulation.world import World
from tests.unit.simulation import worlds

SHOP = shop.RESPONSES


@pytest.fixture(scope="module")
def world():
    """A tiny world of three steps, no interactions, and an amount after the last step."""
    return of_shop(worlds.world())


def of_shop(feed: World) -> World:
    """A feed's tiny world with the answers of a shop: click, order, and a revenue of 5 to 20 for an order."""
    rng = np.random.default_rng(3)
    entries, pool, _ = feed.logits.shape
    revenue = np.zeros((len(feed.scenes), 3, feed.watch_time.shape[2], feed.watch_time.shape[3]), np.float32)
    revenue[:, 2] = np.linspace(5, 20, feed.watch_time.shape[3])
    state = tuple(feature for feature in feed.vocabulary.state_features
                  if feature.name not in FEED.session_features)
    vocabulary = feed.vocabulary.replace(
        behaviours=SHOP.behaviours, state_features=state, candidate_features=None,
        state_size=sum(feature.width for feature in state))
    return feed.replace(
        responses=SHOP, vocabulary=vocabulary, logits=rng.normal(-.5, 1, (entries, pool, 2)).astype(np.float32),
        watch_level=np.zeros((entries, pool, 3), np.float32), watch_spread=np.ones(3, np.float32),
        outcome=np.zeros((3, 0), np.float32), watch_time=revenue)


def test_names_follow_from_the_declaration():
    assert FEED.feedback == ("watch_time", "click", "long_view", "like", "comment", "forward", "follow", "hate")
    assert FEED.session_features == ("hour", "requests_so_far", "watch_so_far", "interactions_so_far",
                                     "last_watch_time", "last_clicks")
    assert SHOP.feedback == ("revenue", "click", "order")
    assert SHOP.session_features == ("hour", "requests_so_far", "revenue_so_far", "orders_so_far", "last_revenue",
                                     "last_clicks")
    assert [(b.name, b.kind) for b in SHOP.behaviours] == [
        ("revenue", "long_term"), ("click", "short_term"), ("order", "short_term")]
    plain = Responses(ladder=("view", "buy"))
    assert plain.feedback == ("view", "buy")
    assert plain.session_features == ("hour", "requests_so_far", "buys_so_far", "last_views")
    assert [(b.name, b.kind) for b in plain.behaviours] == [("buy", "long_term"), ("view", "short_term")]
    assert SHOP.measures == ("revenue", "click", "order", "requests", "sessions")
    assert FEED.weights({"like": 2.0}, ("click", "watch_time", "like", "follow")) == {
        "click": 1.0, "watch_time": 1.0, "like": 2.0, "follow": .3}


@pytest.mark.parametrize(("values", "message"), [
    ({"ladder": ("click", "click")}, "ladder: got .*click.*differ"),
    ({"amount": "click"}, "ladder: got .*differ"),
    ({"ladder": ()}, "ladder"),
    ({"unwanted": ("dislike",)}, "unwanted: got 'dislike'; allowed: some of like"),
    ({"learned": ("order",)}, "learned: got 'order'; allowed: some of click, long_view, like"),
    ({"amount_after": "order"}, "amount_after: got 'order'; allowed: nothing, or one of click, long_view"),
    ({"item_edges": (3.0, 3.0)}, "item_edges: .*increase"),
    ({"item_column": ""}, "item_edges: got .*; allowed: nothing without item_column"),
    ({"amount_of": "price"}, "item_column: got 'duration'; allowed: nothing beside amount_of"),
    ({"amount": "", "item_column": "", "item_edges": ()}, "amount_is_time: got True; allowed: nothing without amount"),
])
def test_a_bad_declaration_is_one_line(values, message):
    with pytest.raises(InvalidFieldError, match=message) as caught:
        FEED.replace(**values)
    assert "\n" not in str(caught.value)


def test_a_ladder_of_any_length_sums_to_its_parts():
    """Three steps and one interaction, by hand: each outcome's share times the interaction's chance after it."""
    logits = np.array([.2, -.4, .7, -1.0])
    added = np.array([[0.0], [.5], [1.0], [2.0]])
    a, b, c = sigmoid(logits[:3])
    shares = np.array([1 - a, a * (1 - b), a * b * (1 - c), a * b * c])
    assert shares.sum() == pytest.approx(1)
    found = marginals(logits, added)
    np.testing.assert_allclose(found, [a, a * b, a * b * c, shares @ sigmoid(-1.0 + added[:, 0])])
    target = np.array([.3, .12, .03, .05])
    many = np.random.default_rng(0).normal(0, 1, (4_000, 4)).astype(np.float32)
    moved = many + solve_shift(many, added.astype(np.float32), target, rounds=20).astype(np.float32)
    np.testing.assert_allclose(marginals(moved, added.astype(np.float32)).mean(0), target, rtol=1e-3)


def test_no_order_without_a_click_and_no_revenue_without_an_order(world):
    engine, users = SessionEngine(world, 5), np.arange(world.users)
    clicks = orders = looked = 0
    expected = np.zeros(2)
    for number in range(40):
        zeros = np.zeros(len(users))
        sessions = engine.start(users, users, np.full(len(users), number), zeros, zeros)
        page = engine.step(sessions, np.ones((len(users), world.vocabulary.action_size)))
        assert ((page.outcome == 2) == (page.watch_time > 0)).all()
        assert (page.feedback[:, 2] <= page.feedback[:, 1]).all()
        np.testing.assert_allclose(page.feedback[:, 0], page.watch_time.sum(1), rtol=1e-6)
        np.testing.assert_allclose(engine.context(sessions)["orders_so_far"], page.feedback[:, 2])
        np.testing.assert_allclose(engine.context(sessions)["last_revenue"], page.feedback[:, 0])
        chance = marginals(world.logits[sessions.entry[:, None], page.shown], world.outcome)
        expected += (chance * page.looked[..., None]).sum((0, 1))
        clicks, orders, looked = (clicks + page.feedback[:, 1].sum(), orders + page.feedback[:, 2].sum(),
                                  looked + page.looked.sum())
    np.testing.assert_allclose([clicks, orders], expected, atol=4 * np.sqrt(looked / 4))


def test_the_declaration_is_kept_with_the_world(world, tmp_path):
    world.save(tmp_path)
    again = World.load(tmp_path)
    assert again.responses == SHOP
    assert again.feedback == ("revenue", "click", "order")


def test_a_later_step_implies_the_earlier_ones_and_amounts_come_after_their_step():
    exposures, truth = shop.generate(users=300, items=60, rows=4_000)
    rows = Rows.read(exposures, tuple(shop.PAGES), SHOP)
    order, click = exposures.column("order"), exposures.column("click")
    np.testing.assert_array_equal(outcomes_of(exposures, SHOP), np.where(order > 0, 2, click))
    np.testing.assert_array_equal(rows.labels, np.stack([(click > 0) | (order > 0), order > 0], 1))
    assert truth.revenue.sum() == pytest.approx(exposures.column("revenue").sum(), rel=.25)
    early = exposures.rows.set_column(exposures.rows.column_names.index("revenue"), "revenue",
                                      pa.array(np.ones(exposures.rows.num_rows, np.float32)))
    paid = type(exposures)(early, exposures.users, exposures.items, exposures.history, exposures.account,
                           exposures.quarantine)
    with pytest.raises(InvalidFieldError, match=r"revenue: got 1.0; allowed: 0 in exposures without order"):
        Rows.read(paid, tuple(shop.PAGES), SHOP)
    lacking = r"responses.amount: got 'watch_time'; allowed: a column of the exposures: .*order"
    with pytest.raises(InvalidFieldError, match=lacking):
        Rows.read(exposures, tuple(shop.PAGES), FEED)
