"""Training in the calling process: it learns, it is reproducible, and it refuses what it cannot learn."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from recfuse.config import InvalidFieldError
from recfuse.logs.exposures import Exposures
from recfuse.scenes import dataset
from recfuse.scenes.config import ModelConfig
from recfuse.scenes.dataset import scene_rows
from recfuse.scenes.encoder import FeatureEncoder
from recfuse.scenes.registry import Registry, Scene
from recfuse.scenes.training import blocks, local, shift, step, stop, tensors
from recfuse.scenes.training import problem as preparation
from recfuse.scenes.training.config import TrainingConfig
from recfuse.scenes.training.fit import train
from recfuse.scenes.training.problem import Problem, prepare
from recfuse.stats.ranking import auc


def test_training_learns_and_the_seed_decides(problem: Problem, exposures: Exposures, training_rows: np.ndarray,
                                              tmp_path: Path) -> None:
    longer = dataclasses.replace(problem, training=problem.training.replace(epochs=8))
    first, again = (train(longer, tmp_path, name).score_exposures(exposures) for name in ("a", "b"))
    np.testing.assert_array_equal(first["click"], again["click"])
    assert auc(exposures.column("click")[training_rows], first["click"][training_rows]) > 0.75


def test_rows_are_dealt_so_that_workers_side_by_side_take_whole_batches() -> None:
    """Batches of 4 for two workers; of the last three rows each gets one, and one is left out."""
    first, second = blocks.deal(np.arange(11), 4, 2)
    assert first.tolist() == [0, 1, 4, 5, 8]
    assert second.tolist() == [2, 3, 6, 7, 9]
    assert [part.tolist() for part in blocks.deal(np.arange(5), 3, 1)] == [[0, 1, 2, 3, 4]]
    assert [part.tolist() for part in blocks.deal(np.arange(5), 1, 2)] == [[0, 2], [1, 3]]


def test_unseen_optional_pairs_are_left_out(problem: Problem) -> None:
    """Hate comes in 0.1% of a thousand rows."""
    assert ("1", "hate") not in problem.registry.pairs
    assert len(problem.positive_weight) == len(problem.registry.pairs)


def test_required_pair_without_positives_is_named(exposures: Exposures, training_rows: np.ndarray) -> None:
    inside = np.array(exposures.rows["scene"].to_pylist()) == "0"
    quiet = training_rows & (exposures.column("click") == 0)
    registry = Registry(scenes=(Scene(name="0", tasks=("click",)),))
    with pytest.raises(InvalidFieldError, match=r"pair \(0, click\): got '0 positives'"):
        prepare(exposures.filter(inside), quiet[inside], registry, ModelConfig(experts=2), TrainingConfig(workers=0))


def test_patience_stops_on_a_later_day_and_keeps_the_best_epoch(
    problem: Problem, exposures: Exposures, training_rows: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The losses on the validation day are 3, 2, 4, 5: with a patience of 2 the fourth epoch is the last one."""
    base = problem
    training = base.training.replace(epochs=9, patience=2, batch_size=256)
    problem = prepare(exposures, training_rows, base.registry, base.model, training)
    days = exposures.column("day")
    held_out = days[training_rows].max()
    assert len(problem.validation) == (training_rows & (days == held_out)).sum()
    assert len(problem.rows) == (training_rows & (days < held_out)).sum()
    losses, seen = iter([3.0, 2.0, 4.0, 5.0]), []

    def loss(model: torch.nn.Module, _: Problem) -> float:
        seen.append(model.embedding.detach().clone())
        return next(losses)

    monkeypatch.setattr(stop, "validation_loss", loss)
    model = local.fit_in_process(problem, tmp_path)
    assert len(seen) == 4
    torch.testing.assert_close(model.embedding, seen[1], rtol=0, atol=0)


def test_validation_loss_is_the_training_loss_of_other_rows(problem: Problem, exposures: Exposures,
                                                           training_rows: np.ndarray) -> None:
    problem = prepare(exposures, training_rows, problem.registry, problem.model,
                    problem.training.replace(patience=1))
    model = preparation.untrained(problem)
    frozen = problem.training.replace(embedding_rate=1e-12, dense_rate=1e-12)
    stepper = step.Stepper(model, dataclasses.replace(problem, training=frozen), 1)
    expected = stepper.step(*tensors.tensors(problem.validation))
    assert stop.validation_loss(model, problem) == pytest.approx(expected, rel=1e-5)


def test_predictions_are_shifted_to_the_last_training_day(problem: Problem) -> None:
    """A model that says one half of everything is moved towards the rate of the last day, the more rows the nearer."""
    model = preparation.untrained(problem)
    logits = torch.zeros(len(problem.recent), len(problem.registry.pairs)) + problem.positive_weight.log()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shift, "predict_logits", lambda *_: logits)
        weak, strong = (shift.recent_shift(model, problem, deviation) for deviation in (1e-6, 1e3))
    rows = problem.rows.take(problem.recent)
    torch.testing.assert_close(weak, torch.zeros_like(weak), rtol=0, atol=1e-6)
    pair = problem.registry.pairs.index(("1", "click"))
    own = rows.scene == problem.registry.pair_scene[pair]
    rate = rows.labels[own, problem.registry.pair_task[pair]].mean()
    assert torch.sigmoid(strong[pair]).item() == pytest.approx(rate, abs=1e-4)


def two_futures(problem: Problem, exposures: Exposures) -> tuple[Problem, Problem]:
    """Two problems whose data differ on the test day alone: in its labels and its items."""
    registry = Registry(scenes=(Scene(name="1", tasks=("click", "long_view")),))
    inside = exposures.filter(np.array(exposures.rows["scene"].to_pylist()) == "1")
    rows = inside.column("day") < inside.column("day").max()
    labels = [np.where(rows, inside.column(name), 1 - inside.column(name)) for name in ("click", "long_view")]
    changed = inside.rows
    for name, values in (*zip(("click", "long_view"), labels, strict=True),
                         ("item_id", np.where(rows, inside.column("item_id"), 7))):
        index = changed.column_names.index(name)
        changed = changed.set_column(index, changed.schema.field(name),
                                     pa.array(values).cast(changed.schema.field(name).type))
    first, second = (prepare(source, rows, registry, problem.model, problem.training)
                     for source in (inside, dataclasses.replace(inside, rows=changed)))
    return first, second


def test_nothing_of_later_days_reaches_the_model(problem: Problem, exposures: Exposures) -> None:
    """Vocabularies, quantiles, normalisation, weights, priors and training histories: all from earlier rows alone."""
    first, second = two_futures(problem, exposures)
    for name in ("positive_weight", "task_weight", "prior_logits"):
        torch.testing.assert_close(getattr(first, name), getattr(second, name), rtol=0, atol=0)
    assert first.encoder.table_rows == second.encoder.table_rows
    for a, b in zip(first.encoder.fitted, second.encoder.fitted, strict=True):
        np.testing.assert_array_equal(a.values, b.values)
        assert (a.mean, a.std) == (b.mean, b.std)
    np.testing.assert_array_equal(first.rows.ids(), second.rows.ids())
    np.testing.assert_array_equal(first.rows.history, second.rows.history)


@pytest.mark.parametrize("leak", ["vocabularies", "weights", "histories"])
def test_a_leak_would_be_seen(problem: Problem, exposures: Exposures, leak: str,
                              monkeypatch: pytest.MonkeyPatch) -> None:
    """Each way to let the test day in makes the two futures differ, so the test above cannot pass with it."""
    if leak == "vocabularies":
        fit = FeatureEncoder.fit
        monkeypatch.setattr(FeatureEncoder, "fit", lambda features, source, training, length: fit(
            features, source, np.ones_like(training), length))
    if leak == "weights":
        whole: list[pa.Table] = []
        count, encode = preparation.count_pairs, preparation._hold_out
        monkeypatch.setattr(preparation, "_hold_out", lambda source, *rest: (whole.append(source.rows),
                                                                         encode(source, *rest))[1])
        monkeypatch.setattr(preparation, "count_pairs", lambda _, registry: count(whole[-1], registry))
    if leak == "histories":
        monkeypatch.setattr(dataset, "row_histories", lambda source, length: np.repeat(
            source.column("item_id")[-length:][None, :], source.rows.num_rows, axis=0))
    first, second = two_futures(problem, exposures)
    seen = {"vocabularies": [one.values.tolist() for one in first.encoder.fitted]
            != [one.values.tolist() for one in second.encoder.fitted],
            "weights": not torch.equal(first.positive_weight, second.positive_weight)
            or not torch.equal(first.prior_logits, second.prior_logits),
            "histories": not np.array_equal(first.rows.history, second.rows.history)}
    assert seen[leak]


@pytest.mark.parametrize(("field", "value"), [
    ("epochs", -1), ("batch_size", 0), ("embedding_rate", 0.0), ("dense_rate", -1.0), ("strategy", "none"),
    ("patience", -1), ("calibration_days", -1), ("final_rate", 0.0), ("workers", -1), ("threads", 0),
    ("minimum_positives", 0),
])
def test_bad_configs_are_named(field: str, value: object) -> None:
    with pytest.raises(InvalidFieldError, match=f"{field}: got "):
        TrainingConfig(**{field: value})


def test_manual_weights_come_by_task_and_by_pair(problem: Problem, exposures: Exposures,
                                                 training_rows: np.ndarray) -> None:
    """A click weighs 15 times; a pair's own weight goes before its task's."""
    registry = Registry(scenes=(Scene(name="0", tasks=("click",)), Scene(name="1", tasks=("click", "long_view"))))
    rows = scene_rows(exposures, registry)
    chosen = rows.column("day") < rows.column("day").max()
    training = problem.training.replace(strategy="manual",
                                   positive_weight={"click": 15.0, "1/click": 2.0, "long_view": 4.0},
                                   task_weight={"long_view": 0.5})
    found = prepare(rows, chosen, registry, problem.model, training)
    assert found.positive_weight.tolist() == [15.0, 2.0, 4.0]
    assert found.task_weight.tolist() == [1.0, 1.0, 0.5]
    with pytest.raises(InvalidFieldError, match=r"positive_weight of \(1, long_view\): got None; allowed: a number"):
        prepare(rows, chosen, registry, problem.model, training.replace(positive_weight={"click": 15.0}))
    with pytest.raises(InvalidFieldError, match="strategy: got 'sqrt'; allowed: manual, with weights of one's own"):
        training.replace(strategy="sqrt")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there_is_named(problem: Problem, tmp_path: Path) -> None:
    mine = dataclasses.replace(problem, training=problem.training.replace(device="cuda"))
    with pytest.raises(InvalidFieldError, match=r"training\.device: got 'cuda'; allowed: cpu or auto, with 0 GPUs"):
        train(mine, tmp_path)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_trains_the_same_model(problem: Problem, exposures: Exposures, tmp_path: Path) -> None:
    scores = [train(dataclasses.replace(problem, training=problem.training.replace(device=device)), tmp_path,
                    device).score_exposures(exposures)["click"] for device in ("cpu", "cuda")]
    np.testing.assert_allclose(scores[0], scores[1], atol=1e-3)
