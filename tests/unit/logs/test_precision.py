"""Numbers that were logged with few digits do not contradict their densities; wrong densities still do."""

from __future__ import annotations

import numpy as np
import pytest
from session_logs import row, table, vocabulary

from recfuse.logs.precision import Precision
from recfuse.logs.validation import Checked, check
from recfuse.stats.gaussian import gaussian_log_density, squashed_log_density

ROWS = 400


def drawn(sigma: float = .5, seed: int = 0, bounds: tuple[float, float] | None = None) -> dict[str, np.ndarray]:
    """Float64 columns of drawn actions with their exact densities."""
    rng = np.random.default_rng(seed)
    mu, spread = rng.uniform(-1, 1, (ROWS, 2)), sigma * rng.uniform(.5, 2, (ROWS, 2))
    u = mu + spread * rng.normal(size=mu.shape)
    action = u if bounds is None else bounds[0] + .5 * (bounds[1] - bounds[0]) * (1 + np.tanh(u))
    logp = gaussian_log_density(u, mu, spread) if bounds is None else squashed_log_density(action, mu, spread, bounds)
    return {"action": action, "mu": mu, "sigma": spread, "action_logp": logp}


def checked(columns: dict[str, np.ndarray], bounds: tuple[float, float] | None = None) -> Checked:
    rows = [row(k, explored=None, **{name: values[k].tolist() for name, values in columns.items()})
            for k in range(ROWS)]
    return check(table(rows), vocabulary().replace(action_range=bounds), "log")


@pytest.mark.parametrize("names", [("action",), ("mu",), ("sigma",), ("action_logp",),
                                   ("action", "mu", "sigma", "action_logp")], ids=", ".join)
@pytest.mark.parametrize("decimals", [1, 2, 4])
def test_columns_rounded_to_decimals_are_kept_and_said(names, decimals):
    columns = drawn(sigma=2.0)  # of deviations from 1 to 4, which are more than 20 also with one decimal
    columns |= {name: columns[name].round(decimals) for name in names}
    result = checked(columns)
    assert result.quarantine.num_rows == 0
    assert result.rows["explored"].to_pylist() == [True] * ROWS
    assert len(result.notes) == len(names)
    for name in names:
        assert any(note.startswith(f"{name} is logged with {decimals} decimal") for note in result.notes)


@pytest.mark.parametrize("bounds", [(-1.0, 1.0), (0.0, 5.0)])
def test_squashed_actions_are_rounded_up_to_the_ends_of_their_range(bounds):
    columns = drawn(sigma=1.0, bounds=bounds)
    columns["action"] = columns["action"].round(2)
    assert np.isin(columns["action"], bounds).any()
    assert checked(columns, bounds).quarantine.num_rows == 0
    wrong = checked({**columns, "action_logp": columns["action_logp"] + 3}, bounds)
    assert wrong.quarantine.num_rows > .8 * ROWS


@pytest.mark.parametrize("wrong", [np.exp, lambda logp: logp / np.log(2), lambda logp: logp / 2, lambda logp: -logp,
                                   lambda logp: logp + .1], ids=["exp", "log2", "mean", "negative", "shifted"])
def test_a_wrong_density_is_quarantined_for_all_its_rounded_actions(wrong):
    columns = drawn()
    columns["action"] = columns["action"].round(2)
    result = checked({**columns, "action_logp": wrong(columns["action_logp"])})
    assert result.quarantine.num_rows > .8 * ROWS


def test_a_constant_mean_is_as_exact_as_the_actions_beside_it():
    columns = drawn()
    columns["mu"][:] = [.3012, -.2049]
    columns["action"] = (columns["mu"] + columns["sigma"] * np.random.default_rng(1).normal(size=(ROWS, 2)))
    columns["action_logp"] = gaussian_log_density(columns["action"], columns["mu"], columns["sigma"])
    both = {**columns, "action": columns["action"].round(2), "mu": columns["mu"].round(2)}
    assert checked(both).quarantine.num_rows == 0
    assert checked({**columns, "mu": columns["mu"].round(2)}).quarantine.num_rows > .5 * ROWS


def test_halves_are_as_exact_as_halves_are():
    columns = drawn()
    columns["action"] = columns["action"].astype(np.float16).astype(np.float64)
    result = checked(columns)
    assert result.quarantine.num_rows == 0
    assert result.notes == ("action is logged with the digits of a float16; densities are checked as far as these "
                            "tell",)


def test_rounded_actions_at_their_mean_were_not_drawn_where_chance_puts_few_there():
    columns = drawn()
    columns["action_logp"] = gaussian_log_density(columns["mu"], columns["mu"], columns["sigma"])
    result = checked({**columns, "action": columns["mu"].round(2)})
    assert result.quarantine.num_rows == 0
    assert result.rows["explored"].to_pylist() == [False] * ROWS


@pytest.mark.parametrize(("values", "words"), [
    (np.arange(50), "whole numbers"), (np.arange(50) / 4, "2 decimals"), (np.arange(50) / 1e6, "6 decimals"),
    (np.arange(50) / 1e7, ""), (np.arange(19) / 100, ""), (np.arange(50) / 3, ""), (1e6 + np.arange(50) / 100, ""),
    (np.full(50, .5), ""), (np.full(50, np.nan), ""), (np.zeros(0), "")])
def test_the_decimals_of_a_column(values, words):
    assert Precision.of(values.astype(np.float32)).words == words


def test_no_column_of_drawn_numbers_looks_rounded():
    for seed in range(50):
        values = np.random.default_rng(seed).normal(size=20).astype(np.float32)
        assert Precision.of(values) == Precision()
