"""The small transformer: causality, caches, its twin in transformers, and its errors."""

import copy
import functools

import pytest
import torch
import torch.nn.functional as F

from mlbook.common import lm, optional, training
from mlbook.long_context import infini, rope

SIZE = dict(vocabulary=50, dim=32, layers=2, heads=4, max_length=40, base=20.0)


def model(position="rope", **options):
    torch.manual_seed(0)
    return lm.Transformer(**SIZE | options, position=position).eval()


def tokens(n=20, batch=2, seed=0):
    return torch.randint(50, (batch, n), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("position", lm.POSITIONS)
@torch.no_grad()
def test_causal(position):
    net, x = model(position), tokens()
    y = x.clone()
    y[:, 12] = (y[:, 12] + 1) % 50
    assert torch.equal(net(x)[:, :12], net(y)[:, :12])
    assert not torch.allclose(net(x)[:, 12:], net(y)[:, 12:], atol=1e-3)


@pytest.mark.parametrize(
    ("position", "sees_order"), [("none", False), ("rope", True), ("alibi", True)]
)
@torch.no_grad()
def test_one_layer_sees_order_only_through_its_positions(position, sees_order):
    net, x = model(position, layers=1), tokens(batch=1)
    y = torch.cat((x[:, :10].flip(1), x[:, 10:]), dim=1)
    same = torch.allclose(net(x)[:, -1], net(y)[:, -1], atol=1e-5)
    assert same != sees_order


@torch.no_grad()
def test_rotated_attention_does_not_see_where_the_text_starts():
    layer, x = model().blocks[0].attention, torch.randn(1, 9, 32)
    outputs = [
        layer(x, rope.rotation(torch.arange(9) + start, rope.inv_freq(8)), None, None)
        for start in (0, 1000)
    ]
    torch.testing.assert_close(*outputs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("position", lm.POSITIONS)
@pytest.mark.parametrize("sizes", [[20], [1] * 20, [7, 1, 5, 7]])
@torch.no_grad()
def test_cache_in_any_pieces(position, sizes):
    net, x, cache = model(position), tokens(), lm.Cache()
    pieces = torch.cat([net(part, cache) for part in x.split(sizes, dim=1)], dim=1)
    torch.testing.assert_close(pieces, net(x), rtol=0, atol=2e-5)
    assert cache.length == 20


@torch.no_grad()
def test_generate():
    net, x = model(), tokens(5)
    greedy = x
    for _ in range(6):
        greedy = torch.cat((greedy, net(greedy)[:, -1:].argmax(-1)), dim=1)
    assert torch.equal(net.generate(x, 6, temperature=0), greedy)
    draws = [
        net.generate(x, 6, generator=torch.Generator().manual_seed(1)) for _ in "ab"
    ]
    assert torch.equal(*draws) and draws[0].shape == (2, 11)


@torch.no_grad()
def test_nll():
    net, x = model(), tokens()
    logp = net(x).log_softmax(-1)[:, :-1]
    expected = -logp.gather(-1, x[:, 1:, None])[..., 0]
    torch.testing.assert_close(net.nll(x), expected)


def test_errors():
    with pytest.raises(ValueError, match="'sine'; it must be one of rope"):
        model("sine")
    with pytest.raises(ValueError, match="3 heads do not divide dim = 32"):
        model(heads=3)
    with pytest.raises(ValueError, match="max_length"):
        model("learned", max_length=None)
    with pytest.raises(IndexError, match="position 40 has no row in a table of 40"):
        model("learned")(tokens(41))
    with pytest.raises(ValueError, match=r"got -0\.5"):
        model().generate(tokens(3), 1, temperature=-0.5)
    with pytest.raises(ValueError, match="'alibi'"):
        lm.to_llama(model("alibi"))
    layer = functools.partial(infini.InfiniAttention, segment=4)
    with pytest.raises(ValueError, match="InfiniAttention"):
        lm.to_llama(model(attention=layer))


def test_set_rope_leaves_a_copy_alone():
    net = model()
    other = copy.deepcopy(net)
    other.set_rope(500.0, rope.YaRN(4.0, 32))
    assert net.base == 20.0 and net.factor == 1.0
    assert torch.equal(net.freqs, rope.inv_freq(8, 20.0))
    assert not torch.equal(net.freqs, other.freqs) and other.factor > 1


@pytest.mark.parametrize(
    "scaling",
    [
        None,
        rope.Linear(4.0),
        rope.NTK(4.0),
        rope.DynamicNTK(2.0, 16, 30),
        rope.YaRN(4.0, 16),
        rope.Llama3(8.0, 16),
    ],
    ids=str,
)
def test_to_llama_computes_the_same(scaling, capfd):
    optional.hide_broken("torchvision")
    pytest.importorskip("transformers")
    net, x = model(scaling=scaling), tokens(30)
    llama = lm.to_llama(net)
    ours, theirs = net(x), llama(input_ids=x).logits
    # angles of 30 radians in float32, then two layers
    assert (ours - theirs).abs().max() < 1e-4 * theirs.abs().max()
    for logits in (ours, theirs):
        F.cross_entropy(logits[:, :-1].flatten(0, 1), x[:, 1:].flatten()).backward()
    mine, other = net.embedding.weight.grad, llama.model.embed_tokens.weight.grad
    assert (mine - other).abs().max() < 1e-3 * other.abs().max()
    assert capfd.readouterr().err == ""


def test_training_lowers_the_loss():
    net, x = model().train(), torch.arange(20).repeat(4, 2)
    before = net.nll(x).mean().item()
    after, _, _ = training.fit(net, lambda m: m.nll(x).mean(), 30, lr=3e-3, warmup=5)
    assert after.nll(x).mean().item() < before / 2


def test_parameter_count():
    dim, hidden = 32, 16 * 6  # 8/3 of 32 is 85.3, to a multiple of 16
    block = 4 * dim**2 + 3 * dim * hidden + 2 * dim
    assert sum(p.numel() for p in model().parameters()) == 50 * dim + 2 * block + dim


@torch.no_grad()
def test_tokens_are_drawn_at_the_temperature():
    net, x = model(), tokens(5, batch=40)
    p = (net(x)[:, -1] / 0.3).softmax(-1)
    expected = torch.multinomial(p, 1, generator=torch.Generator().manual_seed(2))
    drawn = net.generate(x, 1, 0.3, generator=torch.Generator().manual_seed(2))
    assert torch.equal(drawn[:, -1:], expected)


@pytest.mark.parametrize("position", ["sinusoidal", "learned", "none"])
@torch.no_grad()
def test_what_is_added_to_the_embeddings(position):
    net, x = model(position, layers=0), tokens()
    e = net.embedding.weight
    inputs = {
        "sinusoidal": lambda: e[x] * 32**0.5 + rope.sinusoidal(20, 32),
        "learned": lambda: e[x] + net.table.weight[:20],
        "none": lambda: e[x],
    }[position]()
    normed = inputs / (inputs.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(net(x), normed @ e.T)


def test_initial_spread():
    net = model(layers=8)
    for block in net.blocks:
        for weight, variance in (
            (block.attention.q.weight, 1 / 32),
            (block.attention.out.weight, 1 / (2 * 8 * 32)),
            (block.down.weight, 1 / (2 * 8 * 32)),
        ):
            # the mean of n ≥ 1024 squares is off by √(2/n) < 5 % of it, six of those
            assert weight.square().mean().item() == pytest.approx(variance, rel=0.3)
