"""Every architecture by its name in a config: this product's and the baselines."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from recfuse.scenes.baselines import (
    EntireSpace,
    GatedPersonalisation,
    ProgressiveExtraction,
    SharedBottom,
    SingleTask,
    Star,
    TaskMixture,
)
from recfuse.scenes.config import Architecture, ModelConfig
from recfuse.scenes.mixture import MultiSceneModel
from recfuse.scenes.model import SceneModel

ARCHITECTURES: dict[Architecture, type[SceneModel]] = {
    "multi_scene": MultiSceneModel, "single_task": SingleTask, "shared_bottom": SharedBottom, "mmoe": TaskMixture,
    "ple": ProgressiveExtraction, "star": Star, "pepnet": GatedPersonalisation, "esmm": EntireSpace,
}


def build_model(config: ModelConfig, *, table_rows: int, fields: int, numeric: int, item_field: int,
                pair_scene: Sequence[int], pair_task: Sequence[int], field_rows: Sequence[tuple[int, int]] = (),
                prior_logits: Tensor | None = None) -> SceneModel:
    """The network of `config.architecture`; arguments as of SceneModel."""
    return ARCHITECTURES[config.architecture](
        config, table_rows=table_rows, fields=fields, numeric=numeric, item_field=item_field, pair_scene=pair_scene,
        pair_task=pair_task, field_rows=field_rows, prior_logits=prior_logits)
