"""Users in groups: disjoint, stable, twins together."""

from __future__ import annotations

import numpy as np
import pyarrow.dataset as ds
import pytest
import samples as toy

from recfuse.config import InvalidFieldError
from recfuse.tune.settings import SplitConfig
from recfuse.tune.split import GROUPS, groups_of, split_samples


def test_every_user_has_one_group_and_the_shares_are_kept():
    users = [f"u{number}" for number in range(20_000)]
    found = groups_of(users, SplitConfig(judge=0.2, last=0.3))
    assert np.allclose(np.bincount(found) / len(users), [0.5, 0.2, 0.3], atol=0.02)
    assert (found == groups_of(users[::-1], SplitConfig(judge=0.2, last=0.3))[::-1]).all()
    assert (found != groups_of(users, SplitConfig(judge=0.2, last=0.3, seed=1))).any()


def test_the_simulators_twins_stay_together():
    found = groups_of([f"{user}{twin}" for user in range(200) for twin in ("", ".1", ".12")], SplitConfig())
    assert (found.reshape(200, 3) == found.reshape(200, 3)[:, :1]).all()
    apart = groups_of([f"{user}{twin}" for user in range(200) for twin in ("", ".1")], SplitConfig(person=".*"))
    assert (apart.reshape(200, 2)[:, 0] != apart.reshape(200, 2)[:, 1]).any()


def test_samples_are_dealt_out_whole_and_only_once(tmp_path):
    source = toy.write(tmp_path / "samples", toy.bandit(rows=900))
    config = SplitConfig(judge=0.3, last=0.3)
    targets = split_samples(source, tmp_path / "split", config)
    parts = {name: ds.dataset(sorted(path.glob("*.parquet"))).to_table() for name, path in targets.items()}
    assert sum(part.num_rows for part in parts.values()) == 900
    users = [set(parts[name]["user_id"].to_pylist()) for name in GROUPS]
    assert users[0].isdisjoint(users[1])
    assert users[2].isdisjoint(users[0] | users[1])
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("split/*/*.parquet")}
    split_samples(source, tmp_path / "split", config)
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("split/*/*.parquet")}, "read only once"


def test_the_samples_themselves_are_never_overwritten(tmp_path):
    source = toy.write(tmp_path / "learn", toy.bandit(rows=900))
    with pytest.raises(InvalidFieldError, match="output"):
        split_samples(source, tmp_path, SplitConfig())
    assert len(list(source.glob("*.parquet"))) == 3


def test_a_group_without_users_is_refused(tmp_path):
    source = toy.write(tmp_path / "samples", toy.bandit(rows=10))  # one user
    with pytest.raises(InvalidFieldError, match=r"split\.(learn|judge|last)"):
        split_samples(source, tmp_path / "split", SplitConfig())


@pytest.mark.parametrize(("changes", "field"), [({"judge": 0.0}, "judge"), ({"judge": 0.6, "last": 0.4}, "last"),
                                                ({"person": "("}, "person")])
def test_bad_shares_are_refused(changes, field):
    with pytest.raises(InvalidFieldError, match=field):
        SplitConfig(**changes)
