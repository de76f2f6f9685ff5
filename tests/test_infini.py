"""Infini-attention: the memory is attention with a product as its weight, and nothing looks ahead."""

import functools
import math

import pytest
import torch

from mlbook.common import lm
from mlbook.long_context import infini, rope


def keys_and_values(n=24, d=8):
    torch.manual_seed(0)
    return torch.randn(3, 2, n, d, dtype=torch.float64)


def test_an_empty_memory_says_nothing():
    q, k, v = keys_and_values()
    assert torch.equal(infini.Memory.empty(k, v).read(q), torch.zeros_like(v))


@pytest.mark.parametrize("segment", [1, 5, 24])
def test_memory_is_attention_with_positive_products(segment):
    q, k, v = keys_and_values()
    memory = infini.Memory.empty(k, v)
    for k_s, v_s in zip(k.split(segment, 1), v.split(segment, 1), strict=True):
        memory = memory.write(k_s, v_s)
    weights = infini.sigma(q) @ infini.sigma(k).transpose(-1, -2)
    expected = weights @ v / weights.sum(-1, keepdim=True)
    torch.testing.assert_close(memory.read(q), expected, rtol=0, atol=1e-12)


def test_delta_writes_nothing_that_is_already_there():
    _, k, v = keys_and_values(1)
    once = infini.Memory.empty(k, v).write(k, v, delta=True)
    twice = once.write(k, v, delta=True)
    torch.testing.assert_close(twice.matrix, once.matrix, rtol=0, atol=1e-14)
    torch.testing.assert_close(once.read(k), v, rtol=0, atol=1e-14)


@pytest.mark.parametrize("delta", [False, True])
def test_memory_size_is_that_of_the_paper(delta):
    k, v = torch.zeros(2, 8, 5, 128)  # 8 heads
    memory = infini.Memory.empty(k, v).write(k, v, delta)
    assert 12 * (memory.matrix.numel() + memory.norm.numel()) == 1_585_152


@torch.no_grad()
def test_one_segment_is_gated_attention():
    torch.manual_seed(0)
    ours, plain = infini.InfiniAttention(32, 4, segment=16), lm.Attention(32, 4)
    plain.load_state_dict(ours.state_dict(), strict=False)
    ours.gate.fill_(-1.0)
    x, turn = torch.randn(2, 11, 32), rope.rotation(torch.arange(11), rope.inv_freq(8))
    share = 1 - torch.tensor(-1.0).sigmoid()
    expected = share * plain(x, turn, None, None)
    torch.testing.assert_close(
        ours(x, turn, None, None), expected, atol=1e-6, rtol=1e-5
    )


@pytest.mark.parametrize("delta", [False, True])
@pytest.mark.parametrize("length", [16, 19])  # the last segment may be shorter
def test_causal_and_far_seeing(delta, length):
    torch.manual_seed(0)
    layer = functools.partial(infini.InfiniAttention, segment=4, delta=delta)
    net = lm.Transformer(50, 32, 2, 4, base=20.0, attention=layer)
    x = torch.randint(50, (1, length))
    y = x.clone()
    y[0, 6] = (y[0, 6] + 1) % 50
    a, b = net(x), net(y)
    assert torch.equal(a[:, :6], b[:, :6])
    assert not torch.allclose(a[:, -1], b[:, -1], atol=1e-5)  # segments later
    a.sum().backward()
    assert all(block.attention.gate.grad.abs().sum() > 0 for block in net.blocks)


@pytest.mark.parametrize("options", [{"segment": 0}, {"segment": -4}])
def test_errors(options):
    with pytest.raises(ValueError, match=f"got {options['segment']}"):
        infini.InfiniAttention(32, 4, **options)


def test_infini_attention_needs_rotations_and_no_cache():
    layer = functools.partial(infini.InfiniAttention, segment=4)
    net = lm.Transformer(50, 32, 1, 4, position="alibi", attention=layer)
    with pytest.raises(ValueError, match="rope"):
        net(torch.zeros(1, 4, dtype=torch.long))
    net = lm.Transformer(50, 32, 1, 4, attention=layer)
    with pytest.raises(ValueError, match="cache"):
        net(torch.zeros(1, 4, dtype=torch.long), lm.Cache())


def test_a_memory_of_one_key_answers_every_query():
    _, k, v = keys_and_values(1)
    memory = infini.Memory.empty(k, v).write(k - 3, v)
    for q in (k - 3, k, k + 3):  # σ(q) · σ(k) from 0.001 up
        torch.testing.assert_close(memory.read(q), v, rtol=0, atol=1e-13)


@pytest.mark.parametrize("delta", [False, True])
@torch.no_grad()
def test_a_layer_by_hand(delta):
    torch.manual_seed(0)
    layer = infini.InfiniAttention(16, 2, segment=4, delta=delta).double()
    layer.gate.copy_(torch.tensor([-1.0, 0.5])[:, None, None])
    x, freqs = torch.randn(1, 11, 16, dtype=torch.float64), rope.inv_freq(8)
    rotation = rope.rotation(torch.arange(11), freqs, dtype=torch.float64)
    heads = []
    for h, gate in enumerate((-1.0, 0.5)):
        q, k, v = (
            project(x)[0, :, 8 * h : 8 * h + 8]
            for project in (layer.q, layer.k, layer.v)
        )
        matrix, norm, rows = torch.zeros(8, 8).double(), torch.zeros(8).double(), []
        for start in range(0, 11, 4):
            inside = range(start, min(start + 4, 11))
            for i in inside:
                seen, at = slice(start, i + 1), torch.arange(i + 1 - start)
                turned_q = rope.apply_rope(q[i : i + 1], at[-1:], freqs)[0]
                scores = rope.apply_rope(k[seen], at, freqs) @ turned_q / 8**0.5
                local = scores.softmax(0) @ v[seen]
                s = torch.where(q[i] > 0, q[i] + 1, q[i].exp())
                past = s @ matrix / (s @ norm) if start else torch.zeros(8).double()
                share = 1 / (1 + math.exp(-gate))
                rows.append((1 - share) * local + share * past)
            old, old_norm = matrix, norm
            for i in inside:
                s = torch.where(k[i] > 0, k[i] + 1, k[i].exp())
                known = s @ old / (s @ old_norm) if delta and start else 0
                matrix, norm = matrix + s[:, None] * (v[i] - known), norm + s
        heads.append(torch.stack(rows))
    expected = layer.out(torch.cat(heads, dim=-1))[None]
    torch.testing.assert_close(
        layer(x, rotation, None, None), expected, rtol=0, atol=1e-12
    )
