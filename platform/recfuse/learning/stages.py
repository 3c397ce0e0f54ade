"""Samples of the stages that get policies of their own, beneath the output of a training."""

from __future__ import annotations

from pathlib import Path

from recfuse.config import InvalidFieldError, require
from recfuse.learning.config import TrainFusionConfig
from recfuse.learning.samples import SampleSet
from recfuse.logs.reading import open_samples
from recfuse.logs.stages import count_stages, write_stage
from recfuse.runtime.outputs import Output

# Beneath an output: a directory per stage, with its samples, checkpoint, history and metrics.
STAGES, _SAMPLES = "stages", "samples"


def check_settings(config: TrainFusionConfig, samples: SampleSet) -> None:
    """Refuses stages that cannot have policies of their own.

    Raises:
        InvalidFieldError: a stage that the vocabulary lacks, or an algorithm that learns a vocabulary with its policy.
    """
    known = samples.vocabulary.stages
    for stage in config.policy_per_stage:
        require(stage in known, "policy_per_stage", stage, f"stages of the samples' vocabulary: {', '.join(known)}")
    if config.policy_per_stage:
        serves = config.learning.networks(samples.vocabulary, samples.mean_values).serves
        require(serves != "monotone", "policy_per_stage", config.policy_per_stage,
                f"nothing with the algorithm {config.learning.algorithm}, whose curves are those of the whole bundle")


def open_stages(config: TrainFusionConfig, samples: SampleSet, directory: Path, claimed: Output
                ) -> dict[str, SampleSet]:
    """The samples of each stage, which are written beneath the directory.

    Args:
        claimed: the output, which the job joins before it writes.

    Raises:
        InvalidFieldError: a stage without samples, or without an action that was drawn.
    """
    if not config.policy_per_stage:
        return {}
    source = open_samples(config.samples)
    counts = count_stages(source)
    told = ", ".join(f"{stage} ({count:,})" for stage, count in counts.items()) or "none, so ingest them anew"
    for stage in config.policy_per_stage:
        require(stage in counts, "policy_per_stage", stage, f"stages that have samples: {told}")
    claimed.join()
    opened: dict[str, SampleSet] = {}
    for stage in config.policy_per_stage:
        place = directory / stage / _SAMPLES
        write_stage(source, samples.fingerprint, stage, place)
        try:
            opened[stage] = SampleSet.open(place, config.learning.network.action_range)
        except InvalidFieldError as error:
            raise InvalidFieldError(f"policy_per_stage.{stage}: {error.field}", error.value, error.allowed) from None
    return opened
