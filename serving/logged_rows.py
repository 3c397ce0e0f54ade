"""What a line of a decision log must hold to be moved; whoever reads a log finds damage here, a line at a time."""

from __future__ import annotations

from typing import Annotated, Any, Literal, NotRequired

import orjson
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from recfuse.config import shorten

AHEAD_SECONDS = 600.0  # by which a row may be stamped after the clock of whoever reads it
_Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
_Time = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)]
_Text = Annotated[str, Field(strict=True)]
_Key = Annotated[str, Field(strict=True, min_length=1)]
_Flag = Annotated[bool, Field(strict=True)]
_Place = Annotated[int, Field(strict=True, ge=0, lt=2**31)]
_Numbers = list[_Number]
_BASE64 = r"^(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$"
_Packed = Annotated[str, Field(strict=True, pattern=_BASE64)]
# Fields of later servers are kept.
_OPEN = ConfigDict(extra="allow")


class _Candidates(TypedDict):
    __pydantic_config__ = _OPEN  # type: ignore[misc]
    item_ids: list[int | str]
    predictions: _Packed
    seen: list[_Place] | None


class _Decision(TypedDict):
    __pydantic_config__ = _OPEN  # type: ignore[misc]
    kind: Literal["decision"]
    request_id: _Key
    ts: _Time
    user_id: _Text
    session_id: NotRequired[_Text | None]
    stage: _Text
    scene: _Text
    model_version: _Text
    action_logp: _Number
    mu: _Numbers
    sigma: _Numbers
    action: _Numbers
    state: _Numbers
    state_source: NotRequired[_Text | None]
    explored: NotRequired[_Flag | None]
    scorer_version: NotRequired[_Text | None]
    vocabulary_hash: NotRequired[_Text | None]
    candidates: NotRequired[_Candidates | None]
    candidates_total: NotRequired[_Place | None]
    shown: NotRequired[list[_Place] | None]


class _Event(TypedDict):
    __pydantic_config__ = _OPEN  # type: ignore[misc]
    kind: Literal["feedback"]
    request_id: _Key
    ts: _Time
    event_id: _Text
    feedback: dict[str, _Number]
    session_end: _Flag


_ROW: TypeAdapter[Any] = TypeAdapter(Annotated[_Decision | _Event, Field(discriminator="kind")])


def parse(line: bytes, now: float) -> tuple[dict[str, Any] | None, str]:
    """A line's row and "", or None and what is wrong with it.

    Args:
        now: seconds since 1970; a row may be stamped `AHEAD_SECONDS` after it.
    """
    try:
        row = orjson.loads(line)
        _ROW.validate_python(row)
    except orjson.JSONDecodeError as error:
        return None, f"no JSON: {error}"
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        # The first part says which kind of row it would be.
        place = ".".join(map(str, first["loc"][1:])) or "row"
        return None, f"{place}: got {shorten(first['input'])}; {first['msg']}"
    if row["ts"] > now + AHEAD_SECONDS:
        return None, f"ts: got {row['ts']}, which is {row['ts'] - now:.0f} s in the future"
    if reason := _misplaced(row):
        return None, reason
    return row, ""


def _misplaced(row: dict[str, Any]) -> str:
    """Which list of a decision points beyond its candidates."""
    candidates = row.get("candidates")
    if candidates is None:
        return ""
    count = len(candidates["item_ids"])
    for name, places in (("shown", row.get("shown")), ("candidates.seen", candidates["seen"])):
        if places and max(places) >= count:
            return f"{name}: got {max(places)}; places of {count} candidates"
    return ""
