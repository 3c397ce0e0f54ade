"""How long a job waits, and the field of its config that says so; no Ray here, so that help comes without one."""

from __future__ import annotations

from typing import Any

from pydantic import Field

SAY_AFTER_SECONDS = 30.0
WAIT_LIMIT_SECONDS = 1800.0


def wait_limit() -> Any:
    """The field `wait_limit` of a job's config. It is no part of a config's `repr`, by which runs are told apart."""
    return Field(WAIT_LIMIT_SECONDS, ge=SAY_AFTER_SECONDS, repr=False, description=(
        "The job ends with an error where it has waited so many seconds for CPUs, a place or another worker."))
