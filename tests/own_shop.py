"""A shop of one's own, with its truth: ids are strings, it tells no session and no density, predicts `add_to_cart` and
`margin` itself, and counts revenue, clicks and orders. What every weight vector brings is known.

An item on place k of a page is looked at with probability ATTENTION^k, then clicked with probability `p`, and a click
is an order with probability ORDER, which brings its margin. Under the formula log_sum the weights (1, 1) are best.
"""

from __future__ import annotations

import datetime
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from recfuse.fusion.inference import FusionActor
from recfuse.state.candidates import CandidateEncoder
from recfuse.state.encoder import StateEncoder

PREDICTIONS, SCENES, TODAY = ("add_to_cart", "margin"), ("home", "cart"), (0.2, 1.0)
ITEMS, CANDIDATES, PAGE, USERS = 300, 20, 5, 400
ATTENTION, ORDER, OFFSET = 0.8, 0.6, 1e-3
START = datetime.datetime(2026, 10, 1, 8, tzinfo=datetime.UTC)


@dataclass(frozen=True)
class Visit:
    """A request: who, where, and what there is to rank.

    Attributes:
        user, scene: position in USERS, name of the page; items: int64[N], positions in the catalogue.
        chance: float64[N], true probability of a click; margin: float64[N].
        predictions: float64[2, N], what the shop predicts: the chance with an error, and the margin.
    """

    user: int
    scene: str
    items: NDArray[np.int64]
    chance: NDArray[np.float64]
    margin: NDArray[np.float64]
    predictions: NDArray[np.float64]

    @property
    def state(self) -> list[float]:
        """float[2], what the shop's own logs say of a request."""
        return [float(self.scene == "cart"), float(np.log(self.margin).mean())]

    def page(self, weights: Any) -> NDArray[np.int64]:
        """int64[PAGE], the places that the weights rank first."""
        rounded = self.predictions.astype(np.float16).astype(np.float64)
        scores = np.asarray(weights, np.float64) @ np.log(rounded + OFFSET)
        return np.argsort(-scores, kind="stable")[:PAGE]

    def revenue(self, page: NDArray[np.int64]) -> float:
        """The true mean of what a page brings."""
        return float((ATTENTION ** np.arange(len(page)) * self.chance[page] * ORDER * self.margin[page]).sum())

    def answer(self, page: NDArray[np.int64], rng: np.random.Generator) -> dict[str, float]:
        """What a shown page brought."""
        looked = rng.random(len(page)) < ATTENTION ** np.arange(len(page))
        click = looked & (rng.random(len(page)) < self.chance[page])
        order = click & (rng.random(len(page)) < ORDER)
        return {"revenue": float(self.margin[page] @ order), "click": float(click.sum()), "order": float(order.sum())}


class Shop:
    """Its catalogue and its people."""

    def __init__(self, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.margin = rng.lognormal(1.0, 0.8, ITEMS)
        self.appeal = rng.normal(-0.5, 1.2, ITEMS) - 0.4 * np.log(self.margin)  # what is dear is bought less
        self.taste = rng.normal(0.0, 0.5, USERS)

    def visits(self, count: int, seed: int) -> list[Visit]:
        """Requests in pairs, `home` and then `cart`, each pair of another user."""
        rng = np.random.default_rng([seed, 1])
        result = []
        for number in range(count):
            user = (number // 2) % USERS
            items = rng.choice(ITEMS, CANDIDATES, replace=False)
            odds = self.appeal[items] + self.taste[user]
            chance = 1 / (1 + np.exp(-odds))
            predicted = 1 / (1 + np.exp(-odds - 0.3 * rng.standard_normal(CANDIDATES)))
            margin = self.margin[items]
            result.append(Visit(user, SCENES[number % 2], items, chance, margin, np.stack([predicted, margin])))
        return result

    def truth(self, weights: Any, visits: list[Visit]) -> float:
        """The mean revenue of a request under weights."""
        return float(np.mean([visit.revenue(visit.page(weights)) for visit in visits]))

    def truth_of_policy(self, actor: FusionActor, visits: list[Visit], own_states: bool = False) -> float:
        """The same under the means of a policy, whose states are the shop's own or those that serving computes."""
        states = np.array([visit.state for visit in visits], np.float32) if own_states else self._served(actor, visits)
        weights = actor.act(states, explore=False).action
        return float(np.mean([visit.revenue(visit.page(each)) for visit, each in zip(visits, weights, strict=True)]))

    @staticmethod
    def _served(actor: FusionActor, visits: list[Visit]) -> NDArray[np.float32]:
        encoder, candidates = StateEncoder(actor.vocabulary), CandidateEncoder(actor.vocabulary)
        return np.stack([np.concatenate([
            encoder.encode_one({"scene": visit.scene}),
            candidates.encode(visit.predictions.astype(np.float16).astype(np.float32)[None])[0]]) for visit in visits])

    def write_candidates(self, path: Path, requests: int = 300) -> None:
        """A table of one row a candidate."""
        visits = self.visits(requests, seed=7)
        pq.write_table(pa.table({
            "request_id": [f"r{k}" for k in range(requests) for _ in range(CANDIDATES)],
            "sku": [f"sku-{item}" for visit in visits for item in visit.items],
            **{name: np.concatenate([visit.predictions[k] for visit in visits]) for k, name in enumerate(PREDICTIONS)},
        }), path)

    def write_log(self, directory: Path, requests: int = 600, sigma: float = 0.3, month: int = 10) -> None:
        """Session logs as the shop writes them: no session_id, no action_logp, no vocabulary."""
        directory.mkdir(parents=True, exist_ok=True)
        rng, rows = np.random.default_rng(month), []
        for number, visit in enumerate(self.visits(requests, seed=month)):
            action = (np.array(TODAY) + sigma * rng.standard_normal(2)).astype(np.float32)
            page = visit.page(action)
            rows.append({
                "request_id": f"req-{month}-{number:06d}", "user_id": f"user-{visit.user}", "stage": "fine",
                "ts": START.replace(month=month) + datetime.timedelta(minutes=5 * (number % 2) + 45 * (number // 2)),
                "scene": visit.scene, "state": visit.state,
                "mu": list(TODAY), "sigma": [sigma] * 2, "action": action.tolist(),
                "feedback": visit.answer(page, rng),
                "candidates": {"item_ids": [f"sku-{item}" for item in visit.items],
                               "predictions": visit.predictions.astype(np.float16).astype(np.float32).ravel().tolist()},
                "shown": page.tolist()})
        pq.write_table(pa.Table.from_pylist(rows), directory / "part-0.parquet")

    def write_exposures(self, directory: Path, requests: int = 1_500) -> None:
        """What was shown and clicked, in the native layout, with a label of the shop's own, `add_to_cart`."""
        directory.mkdir(parents=True, exist_ok=True)
        rng, rows = np.random.default_rng(4), []
        for number, visit in enumerate(self.visits(requests, seed=4)):
            rows += [{"user_id": f"user-{visit.user}", "item_id": f"sku-{visit.items[place]}", "scene": visit.scene,
                      "ts": START + datetime.timedelta(minutes=number),
                      "add_to_cart": int(rng.random() < visit.chance[place])} for place in visit.page(TODAY)]
        pq.write_table(pa.Table.from_pylist(rows), directory / "rows.parquet")
        pq.write_table(pa.table({"user_id": [f"user-{user}" for user in range(USERS)],
                                 "segment": ["new", "known"] * (USERS // 2)}), directory / "users.parquet")
        pq.write_table(pa.table({"item_id": [f"sku-{item}" for item in range(ITEMS)],
                                 "price": self.margin.astype(np.float32)}), directory / "items.parquet")


def play(url: str, visits: list[Visit], seed: int, workers: int = 4) -> int:
    """Plays visits over HTTP: a ranking, then what it brought. Returns how many were answered."""
    def pair(number: int) -> int:
        rng = np.random.default_rng([seed, number])
        for visit in visits[number:number + 2]:
            predictions = {name: visit.predictions[k].tolist() for k, name in enumerate(PREDICTIONS)}
            skus = [f"sku-{item}" for item in visit.items]
            answer = client.post("/v1/recommend", json={
                "user": {"user_id": f"user-{visit.user}"}, "scene": visit.scene, "top_n": PAGE,
                "candidates": {"item_id": skus, "predictions": predictions}}).raise_for_status().json()
            page = np.array([skus.index(item["item_id"]) for item in answer["items"]])
            np.testing.assert_array_equal(page, visit.page(np.array(list(answer["action"].values()), np.float32)))
            client.post("/v1/feedback", json={
                "request_id": answer["request_id"], "feedback": visit.answer(page, rng),
                "session_end": visit.scene == "cart"}).raise_for_status()
        return len(visits[number:number + 2])

    with httpx.Client(base_url=url, timeout=30) as client, ThreadPoolExecutor(workers) as pool:
        return sum(pool.map(pair, range(0, len(visits), 2)))


def played_with_scorer(url: str, visits: list[Visit]) -> float:
    """The true mean revenue of the pages that a server without exploration answers, whose scorer predicts
    `add_to_cart`: the client sends the ids of the exposures, and margins."""
    revenue = []
    with httpx.Client(base_url=url, timeout=30) as client:
        for visit in visits:
            items = [f"sku-{item}" for item in visit.items]
            answer = client.post("/v1/recommend", json={
                "user": {"user_id": f"user-{visit.user}"}, "scene": visit.scene, "top_n": PAGE, "explore": False,
                "candidates": {"item_id": items, "predictions": {"margin": visit.margin.tolist()}},
            }).raise_for_status().json()
            revenue.append(visit.revenue(np.array([items.index(item["item_id"]) for item in answer["items"]])))
    return float(np.mean(revenue))
