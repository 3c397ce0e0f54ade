"""What a user may say about a report: the evaluation that it runs, and the directories that it collects from."""

from __future__ import annotations

from pydantic import Field, model_validator

from recfuse.config import require
from recfuse.evaluation.config import EvaluateConfig


class ReportConfig(EvaluateConfig):
    """Config of the job `evaluate`; what is missing in the outputs of other jobs is missing in the report."""

    scenes: str = Field("runs/scenes", description="The report reads the output of train_scenes here.")
    simulation: str = Field("runs/simulation", description="The report reads the output of simulate here.")
    ab_test: str = Field("runs/ab_test", description="The report reads the output of ab_test here.")
    serving: str = Field("runs/serving.json", description="The report reads latency_ms, times of requests in "
                                                          "milliseconds, from this JSON file, if there is one.")
    truth_persons: int = Field(18_000, ge=0, description=(
        "Where the held-out log is of that simulation, the truth beside its estimates is read off the lives of this "
        "many simulated persons; 0 for none."))

    @model_validator(mode="after")
    def _truth_has_an_error(self) -> ReportConfig:
        require(self.truth_persons != 1, "truth_persons", 1, "0, or an integer ≥ 2")
        return self
