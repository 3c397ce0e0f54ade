"""Stages that get policies of their own: what is refused before anything is learned, and which samples each has."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import samples as toy
from staged_samples import write

from recfuse.config import InvalidFieldError
from recfuse.learning import registry
from recfuse.learning.config import TrainFusionConfig
from recfuse.learning.samples import SampleSet
from recfuse.learning.stages import check_settings, open_stages
from recfuse.runtime.outputs import claim


def opened(directory: Path, output: Path, **options: object) -> dict[str, SampleSet]:
    config = TrainFusionConfig(samples=str(directory), output=str(output), **options)
    samples = SampleSet.open(directory)
    check_settings(config, samples)
    with claim(config.output, "train_fusion") as claimed:
        return open_stages(config, samples, output / "stages", claimed)


def test_every_stage_learns_from_its_own_requests(tmp_path):
    directory = write(tmp_path / "samples", 90, {"coarse": 1, "fine": 2})
    stages = opened(directory, tmp_path / "out", policy_per_stage=("fine", "coarse"))
    assert {stage: found.rows for stage, found in stages.items()} == {"fine": 60, "coarse": 30}
    states = np.concatenate([found.columns()["state"] for found in stages.values()])
    whole = SampleSet.open(directory).columns()["state"]
    np.testing.assert_array_equal(np.sort(states[:, 0]), np.sort(whole[:, 0]))
    assert opened(directory, tmp_path / "out", policy_per_stage=("fine",))["fine"].fingerprint == (
        stages["fine"].fingerprint), "a run that is started anew goes on with the same samples"
    assert opened(directory, tmp_path / "none") == {}
    assert not (tmp_path / "none" / "stages").exists()


@pytest.mark.parametrize(("stages", "message"), [
    (("mix",), r"policy_per_stage: got 'mix'; allowed: stages that have samples: coarse \(10\), fine \(20\)"),
    (("rerank",), r"policy_per_stage: got 'rerank'; allowed: stages of the samples' vocabulary: coarse, fine, mix"),
    (("last",), r"policy_per_stage"),
    (("fine", "fine"), r"policy_per_stage: got \('fine', 'fine'\); allowed: every stage once"),
])
def test_a_stage_that_cannot_have_a_policy_is_named(tmp_path, stages, message):
    of = toy.vocabulary().replace(stages=("coarse", "fine", "mix"))
    directory = write(tmp_path / "samples", 30, {"coarse": 1, "fine": 2}, of)
    with pytest.raises(InvalidFieldError, match=message):
        opened(directory, tmp_path / "out", policy_per_stage=stages)


def test_a_stage_whose_actions_were_not_drawn_is_named(tmp_path):
    directory = write(tmp_path / "samples", 30, {"coarse": 1, "fine": 2})
    table = pq.read_table(directory / "part-0.parquet")
    explored = [stage == "fine" for stage in table["stage"].to_pylist()]
    place = table.schema.get_field_index("explored")
    pq.write_table(table.set_column(place, table.schema.field(place), [explored]), directory / "part-0.parquet")
    with pytest.raises(InvalidFieldError, match=r"stage.coarse: samples.explored: got 'false in all 10 rows"):
        opened(directory, tmp_path / "out", policy_per_stage=("coarse",))


def test_curves_are_of_the_whole_bundle(tmp_path):
    directory = write(tmp_path / "samples", 30, {"coarse": 1, "fine": 2})
    with pytest.raises(InvalidFieldError, match=r"nothing with the algorithm monotone"):
        opened(directory, tmp_path / "out", policy_per_stage=("fine",), learning=registry.settings("monotone"))
