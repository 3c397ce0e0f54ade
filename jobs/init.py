"""A first vocabulary.yaml: from a sample of one's own session log, or from options, or by questions at a terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from pydantic import Field

from recfuse.config import Config, InvalidFieldError, require
from recfuse.runtime.console import start


class InitConfig(Config):
    """Config of the job."""

    logs: str = Field("", description=(
        "A session log whose columns and values are looked at: a directory or a Delta table, on any filesystem."))
    behaviours: str = Field("", description=(
        "Behaviours as `name:kind,name`; long_term is dense and to rise, short_term, the default, is sparse."))
    predictions: str = Field("", description="Names of the predictions that are fused, in their order, as `name,name`.")
    scenes: str = Field("", description="Names of the scenes, as `name,name`; empty takes the log's, or allows any.")
    formula: Literal["linear", "log_sum", "power"] | None = Field(None, description=(
        "How predictions are fused; nothing takes what the shown pages of the log fit, or linear."))
    page: int = Field(10, ge=1, description="Without a log, states say what the best so many candidates are like.")
    rows: int = Field(20_000, ge=1, description="So many rows of the log are looked at.")
    output: str = Field("vocabulary.yaml", min_length=1, description="This file is written; it must not exist yet.")


def main(config: InitConfig, ask: Callable[[str], str] | None = None) -> Path:
    """Writes the file and returns its path; what was guessed is printed, a line a guess.

    Args:
        ask: puts a question to somebody; None where nobody is there to answer.
    """
    from recfuse.logs.draft import declare, parse_behaviours, parse_names, read_draft, to_yaml

    path = Path(config.output)
    require(not path.exists() and not path.is_symlink(), "output", config.output,
            "a file that does not exist yet; nothing is overwritten")
    if not config.logs and not config.behaviours and not config.predictions and ask is not None:
        config = _asked(config, ask)
    behaviours = parse_behaviours(config.behaviours)
    predictions, scenes = parse_names(config.predictions), parse_names(config.scenes)
    if config.logs:
        draft = read_draft(config.logs, config.rows, behaviours, predictions, scenes, config.formula)
    else:
        for name, given in (("behaviours", behaviours), ("predictions", predictions)):
            require(bool(given), name, "", f"{name} as options, or a session log (--logs)")
        draft = declare(behaviours, predictions, scenes, config.formula or "linear", config.page)
    _write_new(path, to_yaml(draft.vocabulary, config.logs or "one's own scenes"))
    for guess in draft.guesses:
        print(guess)
    print(f"wrote {path}; read it, then: " + (
        f"recfuse ingest --logs {config.logs} --vocabulary {path}" if config.logs else
        f"recfuse explore --vocabulary {path} --weights … --candidates …"))
    return path


def _write_new(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666), "w") as file:
            file.write(text)
    except FileExistsError:
        raise InvalidFieldError("output", str(path), "a file that does not exist yet; nothing is overwritten") from None


def _asked(config: InitConfig, ask: Callable[[str], str]) -> InitConfig:
    logs = ask("A directory of session logs to look at (empty where there is none yet): ")
    if logs:
        return config.replace(logs=logs, predictions=ask("Names of the predictions, in order, by commas: "))
    return config.replace(
        behaviours=ask("Behaviours by commas, the dense ones with :long_term (revenue:long_term,click,order): "),
        predictions=ask("Predictions that are fused, by commas (add_to_cart,margin): "),
        scenes=ask("Scenes, by commas (empty allows any): "))


def command() -> None:
    """The job's command line."""
    config = start(InitConfig, description=__doc__)
    main(config, input if sys.stdin.isatty() and sys.stdout.isatty() else None)


if __name__ == "__main__":
    command()
