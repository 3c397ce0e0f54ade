"""An algorithm of a file of its own: trained by the job, in this process and in workers, resumed, exported."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import outside_algorithm
import pytest
import samples as toy
from outside_algorithm import RewardWeightedConfig

from recfuse.bundle import read_bundle
from recfuse.config import InvalidFieldError
from recfuse.fusion.config import NetworkConfig
from recfuse.fusion.inference import FusionActor
from recfuse.jobs.train_fusion import main
from recfuse.learning import registry
from recfuse.learning.config import TrainFusionConfig
from recfuse.learning.options import choose_algorithm
from recfuse.learning.settings import StoppingRule

pytestmark = pytest.mark.usefixtures("local_ray")
SETTINGS = RewardWeightedConfig(
    network=NetworkConfig(hidden=(32,), sigma_min=0.2), cloning=StoppingRule(iterations=1), minibatch_size=256,
    window_rows=2048, policy_learning_rate=5e-3)


@pytest.fixture(scope="module")
def samples(tmp_path_factory) -> Path:
    return toy.write(tmp_path_factory.mktemp("samples"), toy.bandit(4000), files=1)


@pytest.mark.parametrize("workers", [0, 2])
def test_it_learns_what_it_is_for(samples, tmp_path, workers):
    """One request at a time is all that the bandit has, so that its reward is enough; and any number of workers ends
    with the same bits."""
    whole = main(TrainFusionConfig(samples=str(samples), output=str(tmp_path), learning=SETTINGS))
    if workers:
        other = main(TrainFusionConfig(samples=str(samples), output=str(tmp_path / "workers"),
                                       learning=SETTINGS.replace(num_learners=workers)))
        for name, tensor in read_bundle(whole.bundle).tensors["policy"].items():
            np.testing.assert_array_equal(read_bundle(other.bundle).tensors["policy"][name].numpy(), tensor.numpy())
        return
    assert whole.metrics.keys() == {"cloning", "regression"}
    assert whole.metrics["regression"]["largest_weight"] > 1
    bundle = read_bundle(whole.bundle)
    assert bundle.manifest["training"]["algorithm"] == "reward_weighted"
    state = toy.bandit(500, seed=9)["state"]
    best = toy.optimum(state)
    mean = FusionActor.from_bundle(bundle).act(state, explore=False).mu
    assert np.sqrt(((mean - best) ** 2).sum(1)).mean() < 0.75 * np.sqrt((best**2).sum(1)).mean()
    assert main(TrainFusionConfig(samples=str(samples), output=str(tmp_path), learning=SETTINGS)).resumed_at == 11


def test_a_name_or_an_import_path_finds_it():
    assert registry.find("reward_weighted") is RewardWeightedConfig
    for name in ("reward_weighted", "outside_algorithm:RewardWeightedConfig"):
        flags = ["--algorithm", name, "--learning.sharpness", "3"]
        config = choose_algorithm(TrainFusionConfig, {}, flags, "")
        assert type(config.learning) is RewardWeightedConfig
        assert TrainFusionConfig(**config.to_dict()) == config


def test_a_file_in_the_current_directory_is_found(tmp_path, monkeypatch):
    source = Path(outside_algorithm.__file__).read_text().replace("reward_weighted", "users_own")
    (tmp_path / "users_file.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(registry, "_registered", {**registry._registered})
    assert registry.settings("users_file:RewardWeightedConfig").sharpness == 2.0
    with pytest.raises(InvalidFieldError, match=r"algorithm: got 'users_file:None'; allowed: .*no attribute 'None'"):
        registry.settings("users_file:None")
    with pytest.raises(InvalidFieldError, match="algorithm: got 'users_file:LARGEST'; allowed: "):
        registry.settings("users_file:LARGEST")


def test_a_name_belongs_to_one_class():
    class Other(RewardWeightedConfig):
        """Another class of the same name."""

    with pytest.raises(InvalidFieldError, match="algorithm: got 'reward_weighted'; allowed: a name that outside_al"):
        registry.register(Other)
