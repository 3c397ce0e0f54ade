"""What a user may say about a report: the evaluation that it runs, and the directories that it collects from."""

from __future__ import annotations

from pydantic import Field

from recfuse.evaluation.config import EvaluateConfig


class ReportConfig(EvaluateConfig):
    """Config of the job `evaluate`; what is missing in the outputs of other jobs is missing in the report."""

    scenes: str = Field("runs/scenes", description="The output of train_scenes is here.")
    simulation: str = Field("runs/simulation", description="The output of simulate is here.")
    ab_test: str = Field("runs/ab_test", description="The output of ab_test is here.")
    serving: str = Field("runs/serving.json", description="A JSON file with latency_ms, if it is there, shows how fast "
                                                          "serving answers.")
