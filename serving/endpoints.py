"""The table of endpoints: the one place that names a path. The gateway, FastAPI, the handles of deployments, the
examples of the document and /docs all read it.

An endpoint is answered by `steps`, methods of the backends "fusion" and "scenes" (serving.replicas): the first takes
the values of the path and the body, the next what the one before returned, unless that is a refusal already. An
endpoint without steps is answered in the ingress itself, by the handler of its name (serving.api).

A request passes these files of serving/ on its way from the ASGI entry to its answer, seven at most
(tests/unit/serving/test_endpoints.py watches it):

    fusion rank   gateway, formats, meters, fusion, decision_log
    scenes rank   gateway, formats, meters, scenes, catalogue, fusion (limits and defaults)
    recommend     gateway, formats, meters, scenes, catalogue, fusion, decision_log
    feedback      gateway, formats, meters, scenes, checks, fusion, decision_log
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import BaseModel

from recfuse.serving.schemas import (
    FeedbackAnswer,
    FeedbackRequest,
    FusionAnswer,
    FusionRequest,
    RecommendAnswer,
    RecommendRequest,
    SceneAnswer,
    ScenesRequest,
)

USER = 7
ITEMS = (1, 2, 3)  # Unknown ids are served too.


@dataclass(frozen=True)
class Offer:
    """What the models that serve now can answer: what examples are made of.

    Attributes:
        stages, scenes: the values that a path may have.
        stage, scene: those of the examples; the scene is one that both models know, where there is one.
        state: {"state": zeros} where requests must bring the context part of their state, else {}.
        fusion_parameters, behaviours: names of the policy's vocabulary.
        scorer: whether one is served.
    """

    stages: tuple[str, ...]
    scenes: tuple[str, ...]
    stage: str
    scene: str
    state: Mapping[str, Any]
    fusion_parameters: tuple[str, ...]
    behaviours: tuple[str, ...]
    scorer: bool

    @classmethod
    def of(cls, models: Mapping[str, Any]) -> Offer:
        """From the answer of `GET /v1/models`."""
        fusion, tasks = models["fusion"], models["scenes"]["tasks"]
        scenes = tuple(tasks) or tuple(fusion["scenes"]) or ("default",)
        shared = [scene for scene in scenes if not fusion["scenes"] or scene in fusion["scenes"]]
        return cls(tuple(fusion["stages"]), scenes, fusion["stages"][0], next(iter(shared or scenes)),
                   {} if fusion["state_features"] else {"state": [0.0] * fusion["context_size"]},
                   tuple(fusion["fusion_parameters"]), tuple(fusion["behaviours"]), bool(tasks))

    def values(self, name: str) -> tuple[str, ...]:
        """What the parameter `name` of a path may be."""
        return {"stage": self.stages, "scene": self.scenes}[name]


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """A row of the table.

    Attributes:
        name: of the handler; OpenAPI's operation id begins with it.
        method, path: with the names of its parameters in braces.
        summary: one sentence for the document.
        steps: backend and method, as "fusion.rank".
        request, answer: types of the bodies; None for those of the ingress's own.
        status: of a good answer.
        example: a body that the models which serve now answer.
        admission: `guarded`, after a token and only while there is room; or `open`, always.
        documented: whether it is in the OpenAPI document.
    """

    name: str
    method: Literal["GET", "POST"]
    path: str
    summary: str
    steps: tuple[str, ...] = ()
    request: type[BaseModel] | None = None
    answer: type[BaseModel] | None = None
    status: int = 200
    example: Callable[[Offer], dict[str, Any] | None] = field(default=lambda _: None)
    admission: Literal["guarded", "open"] = "guarded"
    documented: bool = True

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of the path's parameters, in their order."""
        return tuple(re.findall(r"{(\w+)}", self.path))

    def path_of(self, **values: str) -> str:
        """The path to call with these values of its parameters."""
        return self.path.format(**values)

    def example_path(self, offer: Offer) -> str:
        """The path of the example."""
        return self.path_of(stage=offer.stage, scene=offer.scene)


def _scene_example(_: Offer) -> dict[str, Any]:
    return {"user": {"user_id": USER}, "candidates": {"item_id": list(ITEMS)}, "top_n": 2}


def _recommend_example(offer: Offer) -> dict[str, Any]:
    example = {**_scene_example(offer), "scene": offer.scene, "stage": offer.stage, **offer.state, "explain": True}
    return example if offer.scorer else {**example, "candidates": _predicted(offer)}


def _predicted(offer: Offer) -> dict[str, Any]:
    predictions = {name: [round(0.1 * (1 + (i + k) % 5), 1) for i in range(len(ITEMS))]
                   for k, name in enumerate(offer.fusion_parameters)}
    return {"item_id": list(ITEMS), "predictions": predictions}


def _fusion_example(offer: Offer) -> dict[str, Any]:
    return {"user_id": USER, **offer.state, "candidates": _predicted(offer), "top_n": 2}


def _feedback_example(offer: Offer) -> dict[str, Any]:
    return {"request_id": "0f8fad5bd9cb469fa165708677289502", "feedback": dict.fromkeys(offer.behaviours, 1.0),
            "session_end": False}


RANK_FUSION = Endpoint(
    name="rank_fusion", method="POST", path="/v1/fusion/{stage}/rank", steps=("fusion.rank",),
    summary="Ranks candidates by a fusion of their predictions that the policy chooses for this state.",
    request=FusionRequest, answer=FusionAnswer, example=_fusion_example)
RANK_SCENE = Endpoint(
    name="rank_scene", method="POST", path="/v1/scenes/{scene}/rank", steps=("scenes.rank",),
    summary="Predicts every task of a scene and ranks by the operator's weights, or those of the request.",
    request=ScenesRequest, answer=SceneAnswer, example=_scene_example)
RECOMMEND = Endpoint(
    name="recommend", method="POST", path="/v1/recommend", steps=("scenes.predict", "fusion.decide"),
    summary="The scorer predicts, or the client does, and the fusion policy ranks.",
    request=RecommendRequest, answer=RecommendAnswer, example=_recommend_example)
FEEDBACK = Endpoint(
    name="feedback", method="POST", path="/v1/feedback", steps=("scenes.check", "fusion.feedback"), status=202,
    summary="Tells what the user did with an answer; from this the next policy learns.",
    request=FeedbackRequest, answer=FeedbackAnswer, example=_feedback_example)
MODELS = Endpoint(
    name="models", method="GET", path="/v1/models",
    summary="Which bundles serve, what they can do, and why a newer one was refused.")
HEALTH = Endpoint(
    name="healthz", method="GET", path="/healthz", summary="Whether the models are loaded: 200, else 503.",
    admission="open")
READINESS = Endpoint(
    name="readyz", method="GET", path="/readyz", admission="open",
    summary="Which versions serve, and what is wrong beside them, the way of the decision log too; 503 while the "
            "models load.")
DOCUMENT = Endpoint(
    name="openapi", method="GET", path="/openapi.json", summary="The OpenAPI document, with examples.",
    documented=False)
DOCS = Endpoint(
    name="docs", method="GET", path="/docs", summary="The document as a page.", documented=False)

ENDPOINTS = (RANK_FUSION, RANK_SCENE, RECOMMEND, FEEDBACK, MODELS, HEALTH, READINESS, DOCUMENT, DOCS)
OPEN_PATHS = frozenset(endpoint.path for endpoint in ENDPOINTS if endpoint.admission == "open")
