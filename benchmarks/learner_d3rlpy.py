"""d3rlpy's IQL on a copy of our samples: runs in an environment of its own, which `prepare` makes beside our .venv.

    python -m benchmarks.learner --parts peers

It borrows torch and numpy of our environment, so that both use the same arithmetic; d3rlpy itself never becomes a
dependency. d3rlpy wants older gymnasium and gym for its environments, which a fit on logged samples does not touch.
"""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
import time
import venv
from pathlib import Path

PACKAGES = ("d3rlpy==2.8.1", "h5py", "structlog", "colorama", "gym==0.26.2", "gym-notices", "dataclasses-json",
            "marshmallow", "typing-inspect", "mypy_extensions")


def prepare(directory: Path) -> Path:
    """The environment's Python; made once."""
    python = directory / "bin" / "python"
    if not (directory / ".installed").exists():
        venv.create(directory, with_pip=True)
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        (directory / "lib" / version / "site-packages" / "ours.pth").write_text(sysconfig.get_paths()["purelib"])
        subprocess.run([str(python), "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-deps",
                        *PACKAGES], check=True)
        (directory / ".installed").touch()
    return python


def samples_per_second(python: Path, samples: Path, rows: int, batch: int, updates: int, threads: int) -> float:
    """Runs this file in that environment."""
    arguments = json.dumps({"samples": str(samples), "rows": rows, "batch": batch, "updates": updates,
                            "threads": threads})
    done = subprocess.run([str(python), __file__, arguments], check=True, stdout=subprocess.PIPE, text=True,
                          stderr=subprocess.DEVNULL)
    return float(done.stdout.strip().splitlines()[-1])


def _measure(samples: str, rows: int, batch: int, updates: int, threads: int) -> float:
    import d3rlpy
    import numpy as np
    import pyarrow.parquet as pq
    import torch

    torch.set_num_threads(threads)
    table = pq.ParquetDataset(sorted(Path(samples).glob("*.parquet"))).read().slice(0, rows)

    def matrix(name: str) -> np.ndarray:
        return np.stack(table[name].to_numpy()).astype(np.float32)

    ends = table["done"].to_numpy().copy()
    ends[-1] = 1.0
    dataset = d3rlpy.dataset.MDPDataset(matrix("state"), matrix("action"), matrix("feedback").sum(1), ends)
    encoder = d3rlpy.models.VectorEncoderFactory([256, 128])
    algorithm = d3rlpy.algos.IQLConfig(
        batch_size=batch, actor_encoder_factory=encoder, critic_encoder_factory=encoder,
        value_encoder_factory=encoder).create(device="cpu:0")
    silent = d3rlpy.logging.NoopAdapterFactory()

    def fit(steps: int) -> None:
        algorithm.fit(dataset, n_steps=steps, n_steps_per_epoch=steps, show_progress=False, logger_adapter=silent)

    fit(3)
    begin = time.perf_counter()
    fit(updates)
    return updates * batch / (time.perf_counter() - begin)


if __name__ == "__main__":
    print(_measure(**json.loads(sys.argv[1])))
