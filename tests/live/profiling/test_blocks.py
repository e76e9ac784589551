"""The blocks compute a transformer: compared with plain arithmetic in double precision."""

from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from voltana.live.profiling.cells import Cell  # noqa: E402
from voltana.live.profiling.torch.blocks import EPSILON, Decode, Iteration, Prefill, Shard  # noqa: E402
from voltana.section import parse  # noqa: E402
from voltana.sim.plant import ModelSpec  # noqa: E402

Configuration = Callable[..., dict[str, Any]]


def shard_of(configuration: Configuration, stored: int = 3, kv_tokens: int = 64, **model: Any) -> Shard:
    spec = parse(ModelSpec, configuration(model)["model"], "model")
    return Shard(spec, torch.device("cpu"), stored, kv_tokens, seed=3)


def norm(x: Any, shard: Shard) -> Any:
    return x / (x.pow(2).mean(-1, keepdim=True) + EPSILON).sqrt()


def reference(shard: Shard, ids: Any, layers: int, attend: Callable[..., Any], position: Any) -> Any:
    """Logits of all rows, plainly; `attend(q, k, v, layer)` does the attention of all heads."""
    s = shard.shapes
    x = shard.head.double()[ids]
    half = s.head_dim // 2
    angle = position.double()[:, None, None] / 500_000.0 ** (torch.arange(half).double() / half)
    for index in range(layers):
        layer = shard.layers[index % len(shard.layers)]
        qkv = (norm(x, shard) @ layer.qkv.double().T).unflatten(1, (-1, s.head_dim))
        qk, v = qkv[:, : s.heads + s.kv_heads], qkv[:, s.heads + s.kv_heads :]
        if shard.model.qk_norm:
            qk = norm(qk, shard)
        a, b = qk[..., :half], qk[..., half:]
        qk = torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], -1)
        mixed = attend(qk[:, : s.heads], qk[:, s.heads :], v, layer)
        x = x + mixed.flatten(1) @ layer.out.double().T
        gate, up = (norm(x, shard) @ layer.gate_up.double().T).chunk(2, -1)
        x = x + (gate / (1 + (-gate).exp()) * up) @ layer.down.double().T
    return norm(x, shard) @ shard.head.double().T


def softmax_attention(q: Any, k: Any, v: Any) -> Any:
    """One query over keys and values of one head."""
    weights = torch.softmax(k @ q / q.shape[-1] ** 0.5, 0)
    return weights @ v


def logits(iteration: Iteration, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What the iteration takes the largest of."""
    monkeypatch.setattr(torch.Tensor, "argmax", lambda self, dim: self.clone())
    with torch.inference_mode():
        return iteration()


@pytest.mark.parametrize("model", [{}, {"qk_norm": True}, {"tp": 2}, {"kv_heads": 4}, {"kv_heads": 1}])
def test_decode_is_a_transformer(configuration: Configuration, monkeypatch: pytest.MonkeyPatch, model: Any) -> None:
    shard, cell = shard_of(configuration, **model), Cell("decode", 3, 9)
    s = shard.shapes

    def attend(q: Any, k: Any, v: Any, layer: Any) -> Any:
        cache = layer.kv.view(-1)[: cell.tokens * s.kv_elements].view(2, 3, 9, s.kv_heads, s.head_dim).double().clone()
        cache[0, :, -1], cache[1, :, -1] = k, v
        heads = [
            [softmax_attention(q[r, h], cache[0, r, :, h % s.kv_heads], cache[1, r, :, h % s.kv_heads])
             for h in range(s.heads)]
            for r in range(3)
        ]  # fmt: skip
        return torch.stack([torch.stack(row) for row in heads])

    iteration = Decode(shard, cell, layers=3, rows=3)
    wanted = reference(shard, iteration._ids, 3, attend, torch.full((3,), 8))
    found = logits(iteration, monkeypatch).double()
    assert (found - wanted).norm() / wanted.norm() < 0.03


@pytest.mark.parametrize("model", [{}, {"qk_norm": True}, {"tp": 2}, {"kv_heads": 4}])
def test_prefill_is_a_transformer(configuration: Configuration, monkeypatch: pytest.MonkeyPatch, model: Any) -> None:
    shard, cell = shard_of(configuration, **model), Cell("prefill", 2, 5)
    s = shard.shapes

    def attend(q: Any, k: Any, v: Any, layer: Any) -> Any:
        rows = []
        for row in range(10):
            seen = slice(row - row % 5, row + 1)
            group = s.heads // s.kv_heads
            rows.append(
                torch.stack([
                    softmax_attention(q[row, h], k[seen, h // group], v[seen, h // group]) for h in range(s.heads)
                ])
            )  # fmt: skip
        return torch.stack(rows)

    iteration = Prefill(shard, cell, layers=3)
    wanted = reference(shard, iteration._ids, 3, attend, torch.arange(5).repeat(2))[[4, 9]]
    found = logits(iteration, monkeypatch).double()
    assert found.shape == wanted.shape
    assert (found - wanted).norm() / wanted.norm() < 0.03


def test_padded_rows_do_not_change_the_requests(configuration: Configuration, monkeypatch: pytest.MonkeyPatch) -> None:
    shard = shard_of(configuration)
    padded, alone = (Decode(shard, Cell("decode", 3, 9), 3, rows) for rows in (8, 3))
    alone._ids = padded._ids[:3]
    all_rows = logits(padded, monkeypatch)
    assert all_rows.shape == (8, shard.shapes.vocab) and bool(all_rows.isfinite().all())
    torch.testing.assert_close(all_rows[:3], logits(alone, monkeypatch), rtol=0.05, atol=0.05)


def test_layers_go_round(configuration: Configuration, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two layers held, five run: the same as five, of which every second is the same."""
    shard = shard_of(configuration, stored=2)
    unrolled = shard_of(configuration, stored=2)
    unrolled.layers = [*unrolled.layers, *unrolled.layers, unrolled.layers[0]]
    cell = Cell("prefill", 2, 4)
    first, second = Prefill(shard, cell, 5), Prefill(unrolled, cell, 5)
    assert bool((first._ids == second._ids).all())
    assert bool((logits(first, monkeypatch) == logits(second, monkeypatch)).all())


def test_the_same_seed_gives_the_same_weights(configuration: Configuration) -> None:
    first, second = shard_of(configuration), shard_of(configuration)
    assert bool((first.layers[1].down == second.layers[1].down).all())
    assert not bool((first.layers[0].down == first.layers[1].down).all())


def test_many_layers_stay_finite(configuration: Configuration, monkeypatch: pytest.MonkeyPatch) -> None:
    shard = shard_of(configuration, stored=2)
    found = logits(Decode(shard, Cell("decode", 2, 16), layers=80, rows=2), monkeypatch)
    assert bool(found.isfinite().all()) and 0.1 < float(found.float().std()) < 10.0
