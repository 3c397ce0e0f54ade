"""The mixture of experts: against a plain per-row rendering of maths 3.1, and the properties S1 and S3."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from recfuse.config import InvalidFieldError
from recfuse.scenes.config import ModelConfig
from recfuse.scenes.loss import multi_scene_loss
from recfuse.scenes.mixture import MultiSceneModel, extract_scene
from recfuse.scenes.request import RequestNetwork, SourceSizes

PAIR_SCENE = (0, 0, 1, 2, 2, 2)


def build(seed: int = 0, history: int = 4, pooling: str = "attention") -> MultiSceneModel:
    torch.manual_seed(seed)
    config = ModelConfig(embedding_size=3, history_length=history, experts=4, expert_layers=(7, 5), tower_layers=(6,),
                         history_pooling=pooling)  # type: ignore[arg-type]
    return MultiSceneModel(config, table_rows=30, fields=4, numeric=2, item_field=1, pair_scene=PAIR_SCENE)


def batch(seed: int, rows: int, scenes: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    scene = torch.randint(0, 3, (rows,), generator=generator) if scenes is None else scenes
    return (torch.randint(1, 30, (rows, 4), generator=generator, dtype=torch.int32),
            torch.randn(rows, 2, generator=generator),
            torch.randint(0, 30, (rows, 4), generator=generator, dtype=torch.int32), scene)


def by_the_formula(model: MultiSceneModel, ids: Tensor, numbers: Tensor, history: Tensor, pair: int) -> Tensor:
    """Logit of one pair for one row, expert by expert (maths 3.1)."""
    table, count, width = model.embedding, model.config.experts, model.config.expert_layers[0]
    watched = [table[i] for i in history if i != 0]
    query = torch.zeros(3) if model.query is None else model.query.weight @ table[ids[1]]
    shares = torch.softmax(torch.stack([one @ query for one in watched]), 0) if watched else []
    pooled = sum((share * one for share, one in zip(shares, watched, strict=True)), torch.zeros(3))
    x = torch.cat([table[i] for i in ids] + [numbers, pooled, pooled * table[ids[1]]])
    experts = []
    for k in range(count):
        hidden = torch.relu(model.first.weight[k * width:(k + 1) * width] @ x
                            + model.first.bias[k * width:(k + 1) * width])
        experts.append(torch.relu(hidden @ model.experts[0].weight[k] + model.experts[0].bias[k, 0]))
    own = slice(count * width + pair * count, count * width + (pair + 1) * count)
    gate = torch.softmax(model.first.weight[own] @ x + model.first.bias[own], 0)
    mixed = sum(gate[k] * experts[k] for k in range(count))
    hidden = torch.relu(mixed @ model.towers[0].weight[pair] + model.towers[0].bias[pair, 0])
    return (hidden @ model.towers[1].weight[pair] + model.towers[1].bias[pair, 0])[0]


@pytest.mark.parametrize("pooling", ["mean", "attention"])
def test_logits_follow_the_formula(pooling: str) -> None:
    model = build(pooling=pooling)
    with torch.no_grad():
        model.embedding.mul_(20)  # of size 1, so that attention is far from a mean
    ids, numbers, history, scene = batch(1, 12)
    history[0] = 0
    logits = model(ids, numbers, history, scene)
    for row in range(12):
        for pair, owner in enumerate(PAIR_SCENE):
            if owner == scene[row]:
                expected = by_the_formula(model, ids[row], numbers[row], history[row], pair)
                torch.testing.assert_close(logits[row, pair], expected, rtol=1e-4, atol=1e-6)
            else:
                assert logits[row, pair] == 0


@pytest.mark.parametrize("history", [0, 4])
@pytest.mark.parametrize("dense", [None, torch.bfloat16])
def test_folding_small_fields_changes_neither_logits_nor_gradients(history: int, dense: torch.dtype | None) -> None:
    """Fields of 4, 4, 30 and 2 categories, embeddings of 3: the item's own, the second, must stay unfolded."""
    rows = [(1, 4), (5, 4), (9, 30), (39, 2)]

    def built(field_rows: list[tuple[int, int]]) -> MultiSceneModel:
        torch.manual_seed(7)
        config = ModelConfig(embedding_size=3, history_length=history, experts=4, expert_layers=(7, 5))
        return MultiSceneModel(config, table_rows=41, fields=4, numeric=2, item_field=1, pair_scene=PAIR_SCENE,
                               field_rows=field_rows)

    generator = torch.Generator().manual_seed(0)
    ids = torch.stack([torch.randint(first, first + size, (50,), generator=generator, dtype=torch.int32)
                       for first, size in rows], 1)
    inputs = (ids, torch.randn(50, 2, generator=generator),
              torch.randint(0, 9, (50, history), generator=generator, dtype=torch.int32), batch(2, 50)[3])
    folded, plain = built(rows), built([])
    assert folded.folded.fields == [0, 3]
    assert folded.state_dict().keys() == plain.state_dict().keys()
    for model in (folded, plain):
        with torch.autocast("cpu", dtype=dense or torch.bfloat16, enabled=dense is not None):
            model.logits = model(*inputs)
        (model.logits * torch.arange(6.0)).sin().sum().backward()
    close = {"rtol": 1e-4, "atol": 1e-6} if dense is None else {"rtol": .05, "atol": .03}
    torch.testing.assert_close(folded.logits, plain.logits, **close)
    for one, other in zip(folded.parameters(), plain.parameters(), strict=True):
        if dense is not None:
            close = {"rtol": .1, "atol": .1 * float(other.grad.abs().max())}
        torch.testing.assert_close(one.grad, other.grad, **close)
    assert torch.equal(folded.eval()(*inputs), plain.eval()(*inputs))


def test_nothing_is_folded_where_every_field_is_large() -> None:
    model = MultiSceneModel(ModelConfig(embedding_size=3), table_rows=21, fields=2, numeric=0, item_field=1,
                            pair_scene=(0,), field_rows=[(1, 10), (11, 10)])
    assert model.folded is None


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**31), st.integers(0, 2))
def test_s1_other_scenes_get_exactly_no_gradient(seed: int, scene: int) -> None:
    """Property S1: rows of one scene leave gates and towers of every other scene alone."""
    model = build(seed)
    inputs = batch(seed, 8, torch.full((8,), scene))
    logits = model(*inputs)
    mask = torch.tensor(PAIR_SCENE)[None, :].expand(8, -1) == scene
    multi_scene_loss(logits, torch.ones_like(logits), mask, torch.ones(6), torch.ones(6)).backward()
    gates = model.first.weight.grad[4 * 7:].view(6, 4, -1)
    towers = [layer.weight.grad for layer in model.towers] + [layer.bias.grad for layer in model.towers]
    for pair, owner in enumerate(PAIR_SCENE):
        if owner != scene:
            assert (gates[pair] == 0).all()
            assert all((grad[pair] == 0).all() for grad in towers)
        else:
            assert (model.towers[-1].bias.grad[pair] != 0).all()


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**31), st.integers(0, 2), st.integers(0, 4))
def test_s3_extracted_model_scores_as_the_whole(seed: int, scene: int, history: int) -> None:
    """Property S3, for every scene, with and without histories."""
    model = build(seed, history).eval()
    ids, numbers, items, scenes = batch(seed + 1, 9, torch.full((9,), scene))
    items = items[:, :history]
    whole = model(ids, numbers, items, scenes)[:, [owner == scene for owner in PAIR_SCENE]]
    alone = extract_scene(model, scene)(ids, numbers, items, torch.zeros(9, dtype=torch.int64))
    torch.testing.assert_close(alone, whole, rtol=0, atol=1e-6)


def test_rows_answer_alike_in_any_company() -> None:
    model = build()
    inputs = batch(3, 10)
    alone = torch.cat([model(*(part[i:i + 1] for part in inputs)) for i in range(10)])
    torch.testing.assert_close(model(*inputs), alone)


def test_empty_history_is_pooled_to_zero_and_unknown_scene_is_named() -> None:
    model = build()
    x = model.features(*batch(0, 2)[:2], torch.zeros(2, 4, dtype=torch.int32))
    assert (x[:, -6:] == 0).all()
    with pytest.raises(InvalidFieldError, match=r"scene: got 7; allowed: one of \[0, 1, 2\]"):
        extract_scene(model, 7)


@pytest.mark.parametrize(("field", "value"), [
    ("experts", 0), ("embedding_size", 0), ("history_length", -1), ("expert_layers", ()), ("tower_layers", (0,)),
])
def test_bad_sizes_are_named(field: str, value: object) -> None:
    with pytest.raises(InvalidFieldError, match=rf"^{field}(\.0)?: got "):
        ModelConfig(**{field: value})


@pytest.mark.parametrize("pooling", ["mean", "attention"])
@pytest.mark.parametrize("length", [0, 4])
def test_request_is_forward_with_the_common_part_done_once(pooling: str, length: int) -> None:
    """Property of the first layer: W [u, i, c] = W_u u + W_i i + W_c c. Fields: two of the user, two of items, one."""
    torch.manual_seed(0)
    config = ModelConfig(embedding_size=4, history_length=length, history_pooling=pooling, experts=3,  # type: ignore[arg-type]
                         expert_layers=(8, 6), tower_layers=(5,))
    model = MultiSceneModel(config, table_rows=30, fields=5, numeric=3, item_field=2, pair_scene=[0, 1, 1, 2]).double()
    count = 7
    user, context = torch.randint(1, 30, (1, 2)), torch.randint(1, 30, (1, 1))
    items, history = torch.randint(1, 30, (count, 2)), torch.tensor([[0, 3, 9, 9]])[:, :length]
    u, i, c = torch.randn(1, 1).double(), torch.randn(count, 1).double(), torch.randn(1, 1).double()
    ids = torch.cat([user.expand(count, -1), items, context.expand(count, -1)], 1)
    numbers = torch.cat([u.expand(count, -1), i, c.expand(count, -1)], 1)
    whole = model(ids, numbers, history.expand(count, -1), torch.full((count,), 1))[:, 1:3]
    network = RequestNetwork(model, SourceSizes(2, 1), SourceSizes(2, 1), SourceSizes(1, 1))
    once = network.logits((user, u), (items, i), (context, c), history, 1)
    torch.testing.assert_close(once.double(), whole.double(), rtol=0, atol=1e-6)


def test_attention_by_hand() -> None:
    """Query = the item's embedding (1, 0); watched (2, 0) and (0, 2): weights e² and 1, over e² + 1."""
    config = ModelConfig(embedding_size=2, history_length=3, history_pooling="attention", experts=1,
                         expert_layers=(2,), tower_layers=())
    model = MultiSceneModel(config, table_rows=4, fields=1, numeric=0, item_field=0, pair_scene=[0])
    with torch.no_grad():
        model.embedding.copy_(torch.tensor([[0.0, 0], [1, 0], [2, 0], [0, 2]]))
        model.query.weight.copy_(torch.eye(2))
    x = model.features(torch.tensor([[1], [1]]), torch.zeros(2, 0), torch.tensor([[0, 2, 3], [0, 0, 0]]))
    share = math.e**2 / (math.e**2 + 1)
    expected = torch.tensor([2 * share, 2 * (1 - share)])
    torch.testing.assert_close(x[0, 2:4], expected)
    torch.testing.assert_close(x[0, 4:6], expected * torch.tensor([1.0, 0.0]))
    torch.testing.assert_close(x[1, 2:], torch.zeros(4))
