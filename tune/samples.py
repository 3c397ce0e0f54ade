"""Samples for a sweep that was given none: the first steps of the demo, by the functions that its jobs call."""

from __future__ import annotations

import logging
from pathlib import Path

from recfuse.logs.config import IngestConfig
from recfuse.logs.exposures import SCORER_SHARE
from recfuse.logs.ingest import ingest
from recfuse.logs.schema import VOCABULARY_FILE
from recfuse.scenes.config import TrainScenesConfig
from recfuse.scenes.train_scenes import train_scenes
from recfuse.simulation.config import SimulateConfig
from recfuse.simulation.simulate import simulate
from recfuse.simulation.sources import read_source

logger = logging.getLogger("recfuse")


def make_samples(demo: str, exposures: str = "embedded") -> None:
    """Makes what is absent in the demo's directory, with the demo's configs, so that the demo takes it up.

    Args:
        demo: output of jobs/demo.py, or where it would be.
        exposures: as of the demo.
    """
    samples = Path(demo) / "samples"
    if (samples / VOCABULARY_FILE).is_file():
        return
    logger.info("sweep: %s is absent; making the demo's samples", samples)
    scorer = TrainScenesConfig(exposures=exposures, output=f"{demo}/scenes", share=SCORER_SHARE)
    source = read_source(scorer.exposures, scorer.layout, scorer.orphan, scorer.registry)
    scenes = train_scenes(scorer, source.exposures, source.registry, source.features)
    world = simulate(SimulateConfig(exposures=exposures, scorer=str(scenes.bundle), output=f"{demo}/simulation"))
    ingest(IngestConfig(logs=str(world.logs), output=str(samples)))
