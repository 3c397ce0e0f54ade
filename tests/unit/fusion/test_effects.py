"""Effects regressed on centred replay features (maths 5.3)."""

import pytest
import torch

from recfuse.fusion.effects import FOLDS, EffectSums, Modifiers
from recfuse.fusion.replay import Candidates, antithetic_noise, attention_of, expected_features, page_features

PAGE, USERS, VISITS, WIDTH = 3, 400, 20, 12


@pytest.fixture(scope="module")
def requests():
    """Rows of users, some of whom have rich pools and stay for reasons of their own."""
    generator = torch.Generator().manual_seed(7)
    rich = torch.rand(USERS, 1, 1, generator=generator).repeat_interleave(VISITS, 0)
    columns = torch.rand(USERS * VISITS, WIDTH, 2, generator=generator) * (0.3 + rich)
    candidates = Candidates(columns, columns, torch.ones(columns.shape[:2], dtype=torch.bool))
    mu = torch.ones(len(columns), 2)
    sigma = torch.full((len(columns), 2), 1.0)
    action = mu + sigma * torch.randn(len(columns), 2, generator=generator)
    attention = attention_of(0.8, PAGE, columns)
    shown = page_features(candidates, action.unsqueeze(1), attention)[:, 0]
    expected = expected_features(candidates, mu, sigma, antithetic_noise(256, 2, generator), attention)
    noise = 0.3 * torch.randn(len(columns), generator=generator)
    return shown, shown - expected, rich[:, 0, 0], noise


def sums(features: torch.Tensor, reward: torch.Tensor, scene: torch.Tensor | None = None, scenes: int = 1,
         number: torch.Tensor | None = None) -> EffectSums:
    modifiers = Modifiers(scenes, 1)
    result = EffectSums.zeros(modifiers, features.shape[1], 1)
    number = torch.zeros(len(features), 1) if number is None else number.unsqueeze(1)
    fold = torch.arange(USERS).repeat_interleave(VISITS) % FOLDS
    scene = torch.zeros(len(features), dtype=torch.int64) if scene is None else scene
    for part in torch.arange(len(features)).split(1000):
        result.add(features[part], modifiers.of(scene[part], number[part]), reward[part].unsqueeze(1), fold[part])
    return result


def test_centring_recovers_the_effect_where_rich_users_would_pass_for_good_pages(requests):
    """Maths R3: r = h(s) + B · f(s, a), with h a function of the pool."""
    shown, centred, rich, noise = requests
    effect = torch.tensor([0.7, -0.4])
    reward = shown @ effect + 6.0 * rich + noise
    found = sums(centred, reward).fit().coefficients[:2, :, 0].sum(0)
    assert found == pytest.approx(effect, abs=0.15)
    raw = sums(shown - shown.mean(0), reward).fit().coefficients[:2, :, 0].sum(0)
    assert (raw.float() - effect).abs().max() > 1.0


def test_centred_features_have_no_mean_given_the_pool(requests):
    """Maths R2, over thirds of the pools: within five standard errors of 0."""
    _, centred, rich, _ = requests
    for low, high in ((0.0, 1 / 3), (1 / 3, 2 / 3), (2 / 3, 1.0)):
        some = centred[(rich >= low) & (rich < high)]
        assert (some.mean(0).abs() < 5 * some.std(0) / len(some) ** 0.5).all()


def test_scenes_may_differ(requests):
    shown, centred, _, noise = requests
    scene = torch.arange(len(shown)) % 2
    effects = torch.tensor([[0.7, 0.0], [-0.5, 0.9]])
    reward = (centred * effects[scene]).sum(1) + 0.1 * noise
    model = sums(centred, reward, scene, 2).fit()
    assert (model.coefficients[0] + model.coefficients[1:3])[:, :, 0].float() == pytest.approx(effects, abs=0.1)
    assert model.explained_variance[0] > 0.5
    modifiers = Modifiers(2, 1).of(scene, torch.zeros(len(scene), 1))
    assert model(centred, modifiers)[:, 0] == pytest.approx((centred * effects[scene]).sum(1), abs=0.3)


def test_effects_may_depend_on_the_state(requests):
    """r = (.5 + .3 x) f₁ with a number x of the state that the pages say nothing of."""
    _, centred, _, noise = requests
    number = torch.randn(len(centred), generator=torch.Generator().manual_seed(3))
    reward = (0.5 + 0.3 * number) * centred[:, 0] + 0.1 * noise
    model = sums(centred, reward, number=number).fit()
    assert model.coefficients[:2, 0, 0].sum() == pytest.approx(0.5, abs=0.05)
    assert model.coefficients[2, :, 0].float() == pytest.approx(torch.tensor([0.3, 0.0]), abs=0.05)
    without = sums(centred, 0.5 * centred[:, 0] + noise, number=number).fit()
    assert without.coefficients[2].abs().max() < 0.1


def test_noise_explains_nothing(requests):
    _, centred, rich, noise = requests
    model = sums(centred, 5 * rich + noise).fit()
    assert float(model.explained_variance[0]) < 0.003
    assert (model.coefficients.abs() < 0.3).all()


def test_ridge_of_one_penalty_is_that_of_the_normal_equations(requests):
    """Without noise every penalty but the smallest loses, so that least squares is recovered to the penalty's bias."""
    _, centred, _, _ = requests
    reward = centred @ torch.tensor([2.0, -1.0])
    found = sums(centred, reward).fit().coefficients[:2, :, 0].sum(0)
    assert found.float() == pytest.approx(torch.tensor([2.0, -1.0]), rel=1e-3)


def test_sums_less_a_feature_are_those_of_what_is_left(requests):
    _, centred, rich, noise = requests
    reward = centred @ torch.tensor([0.7, -0.4]) + rich + noise
    found = sums(centred, reward).less({0: (1, -0.4)})
    expected = sums(centred, reward + 0.4 * centred[:, 1])
    assert found.grams == pytest.approx(expected.grams, rel=1e-4, abs=1e-2)
    assert found.fit().coefficients[:2, 1, 0].sum() == pytest.approx(0.0, abs=0.15)


def test_jackknife_says_how_far_off_a_slope_is(requests):
    """The slope of r = .6 f₁ + noise, and its error beside that of least squares (rows are independent here)."""
    _, centred, _, noise = requests
    first = centred[:, :1]
    slope, error = sums(first, 0.6 * first[:, 0] + noise).slope(0, 0)
    by_hand = float(noise.std() / (first.square().sum() ** 0.5))
    assert slope == pytest.approx(0.6, abs=4 * by_hand)
    assert error == pytest.approx(by_hand, rel=0.5)


def test_models_of_halves_and_without_a_fold(requests):
    _, centred, _, noise = requests
    total = sums(centred, centred @ torch.tensor([1.0, 1.0]) + noise)
    halves = [total.fit(range(start, FOLDS, 2)).coefficients for start in (0, 1)]
    assert not torch.equal(*halves)
    model = total.fit()
    again = total.fit(range(FOLDS), like=model)
    assert torch.allclose(again.coefficients, model.coefficients)
    assert total.rows == USERS * VISITS
