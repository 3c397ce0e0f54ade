"""The shop as a world: its rates are the generator's, an order pays its price, and own names do as well."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from recfuse.config import InvalidFieldError, load
from recfuse.fusion.policies import FixedGaussian
from recfuse.logs.exposure_files import write_exposures
from recfuse.logs.exposures import Exposures
from recfuse.simulation import shop
from recfuse.simulation.arms import Arm
from recfuse.simulation.config import SimulateConfig
from recfuse.simulation.experiment import ab_test
from recfuse.simulation.response import marginals
from recfuse.simulation.responses import Responses
from recfuse.simulation.sessions import SessionEngine
from recfuse.simulation.simulate import Made, make_world, responses_of, simulate
from recfuse.simulation.world import World, WorldConfig

SIZES = {"seed": 2, "users": 600, "items": 120}
PAGES = tuple(shop.HOME_AND_CART)
SMALL = WorldConfig(users=150, pool=40, candidates=20, page=4)
# How the shop of another team calls things.
NAMES = {"click": "view", "order": "buy", "revenue": "paid"}


class TrueScorer:
    """The generator's truth with noise in its log-odds, in the form of a scorer."""

    version = "scenes-true"

    def __init__(self, names: dict[str, str] | None = None) -> None:
        self._names = names or {name: name for name in NAMES}
        self.tasks = dict.fromkeys(PAGES, tuple(self._names.values()))

    def score_exposures(self, exposures: Exposures) -> dict[str, NDArray[np.float32]]:
        item = exposures.column("item_id")
        page = np.array([PAGES.index(name) for name in exposures.rows["scene"].to_pylist()])
        true = shop.tastes(**SIZES)
        rng = np.random.default_rng(0)
        click, given = (1 / (1 + (1 / p - 1) * np.exp(.3 * rng.standard_normal(len(p))))
                        for p in true.probabilities(exposures.column("user_id"), item, page, shop.HOME_AND_CART))
        values = (click, click * given, click * given * true.now[item])
        return {name: value.astype(np.float32) for name, value in zip(self._names.values(), values, strict=True)}


@functools.cache
def shop_exposures() -> tuple[Exposures, shop.Truth]:
    return shop.generate(**SIZES, rows=24_000, pages=shop.HOME_AND_CART)


@functools.cache
def made() -> Made:
    return make_world(SimulateConfig(exposures="shop", world=SMALL), TrueScorer(), shop_exposures()[0])


def played(world: World, action: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Outcomes and amounts of many first pages, and the prices of what they showed; [N] each, of places looked at."""
    engine, users = SessionEngine(world, 5), np.arange(world.users)
    price = shop.tastes(**SIZES).now.astype(np.float32)
    parts = []
    for number in range(40):
        zeros = np.zeros(len(users))
        sessions = engine.start(users, users, np.full(len(users), number), zeros, zeros)
        page = engine.step(sessions, np.tile(np.array(action, np.float32), (len(users), 1)))
        shown = price[world.item_ids[world.item[sessions.entry[:, None], page.shown]]]
        parts.append([values[page.looked] for values in (page.outcome, page.watch_time, shown)])
    return tuple(np.concatenate(column) for column in zip(*parts, strict=True))


def test_rates_under_the_logged_policy_are_the_truth() -> None:
    """Per page, the mean of the probabilities that the exposures were drawn from, to a tenth."""
    exposures, truth = shop_exposures()
    page = np.array(exposures.rows["scene"].to_pylist())
    simulated = {(scene, name): value for scene, name, value, _ in made().calibration.rows}
    for scene in PAGES:
        for name in ("click", "order"):
            assert simulated[scene, name] == pytest.approx(getattr(truth, name)[page == scene].mean(), rel=.1)
        # As many orders as pay their price once.
        assert simulated[scene, "revenue / price"] == pytest.approx(simulated[scene, "order"], rel=.15)


def test_who_answers_what_is_the_truth() -> None:
    """Log-odds of clicks in the pools, within a page, go with those that the generator has for the same pairs."""
    world, true = made().world, shop.tastes(**SIZES)
    chance = marginals(world.logits, world.outcome)
    for place in range(len(PAGES)):
        entries = np.flatnonzero(world.entry_scene == world.scenes.index(PAGES[place]))
        user = np.repeat(world.user_ids[world.entry_user[entries]], world.config.pool)
        item = world.item_ids[world.item[entries]].ravel()
        click, given = true.probabilities(user, item, np.full(len(user), place), shop.HOME_AND_CART)
        for column, p in enumerate((click, click * given)):
            assert np.corrcoef(np.log(chance[entries, :, column]).ravel(), np.log(p))[0, 1] > .8


def test_an_order_follows_a_click_and_pays_the_price() -> None:
    outcome, amount, price = played(made().world, (1.0, 1.0, 1.0))
    np.testing.assert_allclose(amount[outcome == 2], price[outcome == 2], rtol=1e-6)
    assert (amount[outcome < 2] == 0).all()
    assert min((outcome == step).sum() for step in range(3)) > 30


def test_a_feature_below_zero_takes_no_logarithm() -> None:
    """Serving refuses a logarithm of what is below 0, and users are published as the exposures have them."""
    world = made().world
    feature = {each.name: each for each in world.vocabulary.state_features}
    assert world.features["activity"].min() < 0
    assert not feature["activity"].log
    assert feature["spent_before"].log


def test_ranking_by_revenue_sells_dearer_items_and_earns_more() -> None:
    world = made().world
    assert world.vocabulary.fusion_parameters == ("click", "order", "revenue")
    dear, cheap = (played(world, action) for action in ((0.0, 0.0, 1.0), (0.0, 1.0, 0.0)))
    assert dear[2].mean() > 1.1 * cheap[2].mean()
    arms = [Arm(name, FixedGaussian(mu, .01), True) for name, mu in (("random", [0.0] * 3), ("revenue", [0.0, 0, 1]))]
    result = ab_test(world, arms, persons=1_500, paired=True)
    assert result.measures == ("revenue", "click", "order", "requests", "sessions")
    assert result.effect("revenue", "revenue")[1] > 0


def renamed(exposures: Exposures) -> Exposures:
    """The exposures as another team calls their labels."""
    rows = exposures.rows.rename_columns([NAMES.get(name, name) for name in exposures.rows.column_names])
    return Exposures(rows, exposures.users, exposures.items, exposures.history, exposures.account, exposures.quarantine)


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """Exposures in the native layout and a config that declares what their labels are."""
    write_exposures(renamed(shop_exposures()[0]), str(tmp_path / "pages"))
    (tmp_path / "simulate.yaml").write_text(
        f"logs: {tmp_path / 'pages'}\nlayout: native\noutput: {tmp_path / 'out'}\npersons: 60\nholdout_persons: 10\n"
        "world: {users: 100, pool: 40, candidates: 20, page: 4}\n"
        "responses: {ladder: [view, buy], amount: paid, amount_after: buy, amount_of: price}\n")
    return tmp_path / "simulate.yaml"


def test_own_names_are_declared_in_a_file(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recfuse.simulation.simulate.load_scorer", lambda path: TrueScorer(NAMES))
    result = simulate(load(SimulateConfig, own))
    world = World.load(result.world)
    assert world.feedback == ("paid", "view", "buy")
    assert [(each.name, each.kind) for each in world.vocabulary.behaviours] == [
        ("paid", "long_term"), ("view", "short_term"), ("buy", "short_term")]
    assert {feature.name for feature in world.vocabulary.state_features} >= {
        "paid_so_far", "buys_so_far", "last_paid", "last_views", "past_view_rate", "past_buy_rate", "past_paid"}
    assert result.requests > 0
    assert all(row[4] == "–" for row in result.response_rows), "nobody published an AUC for these"


def test_a_world_without_an_amount_is_for_its_last_step() -> None:
    """Its orders are those of the world with revenue, since an amount changes nobody's mind."""
    config = SimulateConfig(responses=Responses(ladder=("click", "order")), world=SMALL)
    world = make_world(config, TrueScorer(), shop_exposures()[0]).world
    assert world.feedback == ("click", "order")
    assert [each.name for each in world.vocabulary.long_term] == ["order"]
    outcome, amount, _ = played(world, (1.0, 1.0, 1.0))
    assert not amount.any()
    assert np.mean(outcome == 2) == pytest.approx(np.mean(played(made().world, (1.0, 1.0, 1.0))[0] == 2), rel=.3)
    arm = Arm("random", FixedGaussian([0.0] * 3, .01), True)
    result = ab_test(world, [arm, Arm("order", FixedGaussian([0.0, 1, 0], .01), True)], persons=800, paired=True)
    assert result.effect("order", "order")[1] > 0


@pytest.mark.parametrize(("change", "message"), [
    ({"ladder": ("view", "order")}, "rows.order: got .*allowed: a label column order"),
    ({"amount": "spent"}, r"responses.amount: got 'spent'; allowed: a column of the exposures: .*paid"),
    ({"amount_of": "cost"}, r"responses.amount_of: got 'cost'; allowed: a column of the items: .*price"),
    ({"amount_of": "", "item_column": "weight"}, r"responses.item_column: got 'weight'; allowed: a column of the it"),
])
def test_a_declaration_that_the_exposures_do_not_fit_is_one_line(
        own: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, object], message: str) -> None:
    monkeypatch.setattr("recfuse.simulation.simulate.load_scorer", lambda path: TrueScorer(NAMES))
    config = load(SimulateConfig, own)
    change = {"amount_after": "", **change}
    with pytest.raises(InvalidFieldError, match=message) as caught:
        simulate(config.replace(responses=responses_of(config).replace(**change)))
    assert "\n" not in str(caught.value)
