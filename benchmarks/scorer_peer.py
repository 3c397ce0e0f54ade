"""One training of a peer in its own environment; needs numpy, torch and the peer, nothing of ours.

    python scorer_peer.py LIBRARY DATA.npz PREDICTIONS.npy BATCH THREADS SEED
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
import tempfile
from collections.abc import Callable

import numpy as np
import torch
from stopwatch import Stopwatch  # beside this file, which is run by its path

TASKS = ["click", "long_view"]
Predict = Callable[[np.ndarray], np.ndarray]
# What the stopwatch read after a training, and how to predict.
Trained = tuple[dict[str, float], Predict]


def deepctr_torch(codes: np.ndarray, labels: np.ndarray, sizes: list[int], batch: int) -> Trained:
    """deepctr-torch's MMOE with its own `fit`; it seeds torch itself, so it is given the seed of the round."""
    from deepctr_torch.inputs import SparseFeat
    from deepctr_torch.models import MMOE

    columns = [SparseFeat(f"f{i}", size, embedding_dim=16) for i, size in enumerate(sizes)]
    model = MMOE(columns, num_experts=8, expert_dnn_hidden_units=(128, 64), gate_dnn_hidden_units=(),
                 tower_dnn_hidden_units=(32,), task_types=("binary",) * 2, task_names=TASKS, device="cpu",
                 seed=torch.initial_seed())
    model.compile("adam", loss=["binary_crossentropy"] * 2, metrics=[])

    def inputs(rows: np.ndarray) -> dict[str, np.ndarray]:
        return {f"f{i}": rows[:, i] for i in range(len(sizes))}

    clock = Stopwatch()
    model.fit(inputs(codes), labels.astype(np.float32), batch_size=batch, epochs=1, verbose=0)
    return clock.read(), lambda rows: model.predict(inputs(rows), 8192)


def torch_rechub(codes: np.ndarray, labels: np.ndarray, sizes: list[int], batch: int) -> Trained:
    """torch-rechub's MMOE with its own MTLTrainer and DataLoader."""
    from torch.utils.data import DataLoader
    from torch_rechub.basic.features import SparseFeature
    from torch_rechub.models.multi_task import MMOE
    from torch_rechub.trainers import MTLTrainer
    from torch_rechub.utils.data import PredictDataset, TorchDataset

    features = [SparseFeature(f"f{i}", vocab_size=size, embed_dim=16) for i, size in enumerate(sizes)]
    model = MMOE(features, ["classification"] * 2, 8, expert_params={"dims": [128, 64]},
                 tower_params_list=[{"dims": [32]}] * 2)
    trainer = MTLTrainer(model, task_types=["classification"] * 2, n_epoch=1, device="cpu")

    def inputs(rows: np.ndarray) -> dict[str, np.ndarray]:
        return {f"f{i}": rows[:, i] for i in range(len(sizes))}

    def predict(rows: np.ndarray) -> np.ndarray:
        return np.asarray(trainer.predict(model, DataLoader(PredictDataset(inputs(rows)), 8192)))

    loader = DataLoader(TorchDataset(inputs(codes), labels.astype(np.float32)), batch, shuffle=True)
    clock = Stopwatch()
    trainer.train_one_epoch(loader)
    return clock.read(), predict


def fuxictr(codes: np.ndarray, labels: np.ndarray, sizes: list[int], batch: int) -> Trained:
    """FuxiCTR's MMoE with its own data loader and `train_epoch`.

    Its package on PyPI holds the multi-task base class and the layers, but not `model_zoo/multitask/MMoE`, so the
    forward pass is put together here from its own FeatureEmbedding and MLP_Block.
    """
    from fuxictr.features import FeatureMap
    from fuxictr.pytorch.dataloaders.npz_dataloader import NpzDataLoader
    from fuxictr.pytorch.layers import FeatureEmbedding, MLP_Block
    from fuxictr.pytorch.models import MultiTaskModel

    directory = tempfile.mkdtemp()
    names = [f"f{i}" for i in range(len(sizes))]
    spec = FeatureMap("scorer", directory)
    for name, size in zip(names, sizes, strict=True):
        spec.features[name] = {"source": "", "type": "categorical", "vocab_size": size}
    spec.labels, spec.num_fields = TASKS, len(sizes)
    spec.set_column_index()

    class MMoE(MultiTaskModel):
        def __init__(self) -> None:
            super().__init__(spec, task=["binary_classification"] * 2, num_tasks=2, eval_steps=10**9, verbose=0,
                             model_root=directory, metrics=["AUC"])
            self.embedding_layer = FeatureEmbedding(spec, 16)
            width = 16 * len(sizes)
            self.experts = torch.nn.ModuleList(
                MLP_Block(width, [128, 64], output_activation=None) for _ in range(8))
            self.gates = torch.nn.ModuleList(MLP_Block(width, [], output_dim=8) for _ in TASKS)
            self.towers = torch.nn.ModuleList(MLP_Block(64, [32], output_dim=1) for _ in TASKS)
            self.compile("adam", "binary_crossentropy", 1e-3)
            self.reset_parameters()

        def forward(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            x = self.embedding_layer(self.get_inputs(inputs)).flatten(start_dim=1)
            experts = torch.stack([expert(x) for expert in self.experts], dim=1)
            mixed = [(gate(x).softmax(1).unsqueeze(-1) * experts).sum(1) for gate in self.gates]
            return {f"{task}_pred": activation(tower(part)) for task, activation, tower, part in zip(
                TASKS, self.output_activation, self.towers, mixed, strict=True)}

    def loader(rows: np.ndarray, labels: np.ndarray, size: int, shuffle: bool) -> NpzDataLoader:
        path = f"{directory}/{len(rows)}.npz"
        np.savez(path, **{name: rows[:, i] for i, name in enumerate(names)},
                 **{task: labels[:, i].astype(np.int64) for i, task in enumerate(TASKS)})
        return NpzDataLoader(spec, path, batch_size=size, shuffle=shuffle)

    def predict(rows: np.ndarray) -> np.ndarray:
        found = model.predict(loader(rows, np.zeros((len(rows), 2)), 8192, False))
        return np.stack([np.asarray(found[task]) for task in TASKS], 1)

    model, batches = MMoE(), loader(codes, labels, batch, True)
    model._max_gradient_norm, model._total_steps, model._stop_training = 10.0, 0, False
    model._eval_steps, model._epoch_index = 10**9, 0
    clock = Stopwatch()
    model.train_epoch(batches)
    return clock.read(), predict


LIBRARIES = {"deepctr-torch": deepctr_torch, "torch-rechub": torch_rechub, "fuxictr": fuxictr}


def main(library: str, data: str, predictions: str, batch: str, threads: str, seed: str) -> None:
    """Trains, writes the predictions of the test rows, prints seconds and versions."""
    torch.set_num_threads(int(threads))
    torch.manual_seed(int(seed))
    np.random.seed(int(seed))  # noqa: NPY002  (the libraries draw from it)
    with np.load(data) as shared:
        codes, labels, training = shared["codes"].astype(np.int64), shared["labels"], shared["training"]
        sizes = shared["sizes"].tolist()
    times, predict = LIBRARIES[library](codes[training], labels[training], sizes, int(batch))
    np.save(predictions, predict(codes[~training]))
    print(json.dumps(times | {"versions":
                              f"{library} {importlib.metadata.version(library)}, torch {torch.__version__}"}))


if __name__ == "__main__":
    main(*sys.argv[1:])
