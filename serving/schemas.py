"""Requests and answers over HTTP (design 3.4): the types that decode a body once and describe it in /docs."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from recfuse.serving.formats import OrPacked

# Strict, so that neither "0.5" nor true passes for a number. Lists stop at their first bad value.
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Numbers = Annotated[list[Number], Field(fail_fast=True), OrPacked("<f8")]
Id = Annotated[str, Field(strict=True, min_length=1, max_length=256)]
# Signed and unsigned, up to 64 bits.
Integer = Annotated[int, Field(strict=True, ge=-(2**63), le=2**64 - 1)]
Value = Annotated[str, Field(strict=True)] | Annotated[bool, Field(strict=True)] | Integer | Number | None
Values = Annotated[list[Value], Field(fail_fast=True), OrPacked("<f8")]
ItemIds = Annotated[list[Integer | Id], Field(min_length=1, fail_fast=True), OrPacked("<i8")]
History = Annotated[list[Integer | Id], Field(fail_fast=True), OrPacked("<i8")]
Flags = Annotated[list[Annotated[bool, Field(strict=True)]], Field(fail_fast=True)]
UserId = Id | Integer
Order = Literal["descending", "ascending"]
TopN = Annotated[int, Field(strict=True, ge=1)]
Seed = Annotated[int, Field(strict=True, ge=0, le=2**63 - 1)]
TaskFusion = Literal["mean", "power", "rank"]
_SEEN = "one boolean a candidate: what the session has shown already is not shown again"


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PredictedCandidates(_Message):
    """Candidates with their predicted interactions, as columns of one length."""

    item_id: ItemIds = Field(description="the caller's ids, returned as they came")
    predictions: dict[str, Numbers] = Field(description="prediction name → one number a candidate")
    seen: Flags | None = Field(None, description=_SEEN)


class FusionRequest(_Message):
    """Ranks candidates by a fusion of their predictions."""

    user_id: UserId
    state: Numbers | None = Field(None, description=(
        "encoded state, `context_size` numbers of GET /v1/models: what it says of the candidates is encoded here; or "
        "send `context`, or neither for the stored one"))
    context: dict[str, Value] | None = Field(None, description="features of the state by name")
    candidates: PredictedCandidates
    scene: Id | None = Field(None, description="where the request is asked (home, cart); goes to the decision log")
    session_id: Id | None = Field(None, description="goes to the decision log; without it sessions are cut at pauses")
    explore: bool | None = Field(None, strict=True, description="sample the policy (true) or take its mean (false)")
    top_n: TopN | None = Field(None, description="how many items to return; all without it")
    order: Order = "descending"
    seed: Seed | None = Field(None, description="the same seed samples the same action")


class User(BaseModel):
    """Who asks: an id, and the features by name that the client knows; what it does not send comes from the store."""

    model_config = ConfigDict(extra="allow", frozen=True)
    __pydantic_extra__: dict[str, Value]

    user_id: UserId
    history: History | None = Field(None, description="watched item ids, oldest first")


class Candidates(BaseModel):
    """Candidates by id, and columns of features by name; what the client does not send comes from the catalogue."""

    model_config = ConfigDict(extra="allow", frozen=True)
    __pydantic_extra__: dict[str, Values]

    item_id: ItemIds = Field(description="integers of up to 64 bits or strings; 7 and \"7\" are one id")


class OpenCandidates(Candidates):
    """The same, which of them are not to be shown again, and what the client predicts of them itself."""

    predictions: dict[str, Numbers] | None = Field(None, description=(
        "prediction name → one number a candidate; they go before the scorer's, and need no scorer"))
    seen: Flags | None = Field(None, description=_SEEN)


class ScenesRequest(_Message):
    """Ranks candidates within a scene by the operator's task weights."""

    user: User
    candidates: Candidates
    weights: dict[str, Number] | None = Field(None, description="task → weight ≥ 0, in place of the operator's")
    fusion: TaskFusion = Field("mean", description="weighted mean, power product, or fusion of ranks")
    top_n: TopN | None = Field(10, description="how many items to return; all where null")


class RecommendRequest(_Message):
    """Predicts with the scorer, then ranks by the fusion policy."""

    user: User
    scene: Id
    stage: Id = "fine"
    candidates: OpenCandidates
    state: Numbers | None = None
    context: dict[str, Value] | None = None
    session_id: Id | None = None
    explore: bool | None = Field(None, strict=True)
    top_n: TopN | None = 10
    order: Order = "descending"
    seed: Seed | None = None
    explain: bool = Field(False, strict=True, description="return the predictions that led to each score")


class FeedbackRequest(_Message):
    """What the user did with an answer. Several events of one request add up; the same event counts once."""

    request_id: Id
    feedback: dict[str, Number] = Field(description="behaviour → value, by the names of the vocabulary")
    event_id: Id | None = Field(None, description="makes equal bodies different events; without it they are one")
    user_id: UserId | None = Field(None, description="with it, `items` and `features` update the stored user state")
    items: History | None = Field(None, description="watched item ids, oldest first")
    features: dict[str, Value] | None = Field(None, description="features of the user that changed")
    session_end: bool = Field(False, strict=True)


class ScoredItem(BaseModel):
    item_id: int | str
    score: float


class FusionAnswer(BaseModel):
    request_id: str
    model_version: str
    state_source: Literal["request", "context", "store", "default", "degraded"] = Field(
        description="where the state came from; `degraded`: the store of user states does not answer")
    mu: dict[str, float] = Field(description="fusion parameter → mean of the policy's Gaussian at this state")
    sigma: dict[str, float] = Field(description="fusion parameter → standard deviation of that Gaussian")
    action: dict[str, float] = Field(description=(
        "fusion parameter → its weight in this ranking: drawn from the Gaussian where the request explores, else the "
        "mean"))
    action_logp: float = Field(description="log density of the action under the Gaussian")
    items: list[ScoredItem]


class SceneItem(BaseModel):
    item_id: int | str
    score: float
    probabilities: dict[str, float]
    catalogue: dict[str, Any] | None = Field(description="price now and before, image, parameters; null if unknown")


class SceneAnswer(BaseModel):
    request_id: str
    model_version: str
    weights: dict[str, float]
    unknown: dict[str, int]
    items: list[SceneItem]


class RecommendedItem(BaseModel):
    item_id: int | str
    score: float
    catalogue: dict[str, Any] | None
    predictions: dict[str, float] | None = Field(None, description="with `explain`")


class RecommendAnswer(FusionAnswer):
    scenes_version: str | None = Field(description="null where no scorer is served")
    unknown: dict[str, int]
    items: list[RecommendedItem]  # type: ignore[assignment]


class FeedbackAnswer(BaseModel):
    request_id: str
    accepted: bool
    state_source: Literal["store", "default", "degraded"] | None = Field(None, description=(
        "`store` where the user's state is updated, `degraded` where it may not be, `default` where none is kept; null "
        "where nothing was to be updated"))


class ErrorDetail(BaseModel):
    field: str | None
    value: Any
    allowed: str
    reason: str


class ErrorAnswer(BaseModel):
    error: ErrorDetail

