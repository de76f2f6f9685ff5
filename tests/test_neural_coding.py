"""A language model as a coder: lengths in parallel and step by step, round trips, what a message rests on, and SmolLM2."""

import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mlbook.coding import arithmetic, neural
from mlbook.coding.neural import LanguageModel, code_lengths
from mlbook.common import lm, optional, smollm

optional.hide_broken("torchvision")
transformers = pytest.importorskip("transformers", reason="no transformers here")

some = settings(max_examples=25, deadline=None, derandomize=True)
VOCABULARY = 60


@pytest.fixture(scope="module")
def tiny():
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        initializer_range=0.5,  # far from all tokens alike
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return transformers.LlamaForCausalLM(config).eval()


def random_tokens(n, size=VOCABULARY, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(size, (n,), generator=generator).tolist()


# --- Lengths -------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [0, 1, 2, 7, 8, 14, 20, 21])
@pytest.mark.parametrize("first", [0, 5])
def test_lengths_in_parallel_are_those_of_the_walk(tiny, n, first):
    tokens = random_tokens(n)
    for window in (7, 100):
        bits, ranks = code_lengths(tiny, tokens, window, first)
        assert bits.shape == ranks.shape == (n,)
        assert bits.dtype == torch.float64 and ranks.dtype == torch.int64
        walk = arithmetic.code_length(tokens, LanguageModel(tiny, first, window))
        assert bits.sum().item() == pytest.approx(walk, rel=1e-4)


def test_every_step_of_the_walk_has_its_length_and_rank(tiny):
    tokens = random_tokens(16)
    state = LanguageModel(tiny, window=5).start()
    for token, b, rank in zip(tokens, *code_lengths(tiny, tokens, 5), strict=True):
        p = state.predict()
        assert p.shape == (VOCABULARY,) and p.sum() == pytest.approx(1)
        assert b.item() == pytest.approx(-math.log2(p[token]), rel=1e-4)
        assert rank == sum(p > p[token])
        state.update(token)


def test_each_window_begins_from_nothing(tiny):
    tokens = random_tokens(12)
    apart = [code_lengths(tiny, part) for part in (tokens[:5], tokens[5:10])]
    together = code_lengths(tiny, tokens, window=5)
    for parts, whole in zip(zip(*apart, strict=True), together, strict=True):
        torch.testing.assert_close(torch.cat(parts), whole[:10])
    assert not torch.allclose(code_lengths(tiny, tokens)[0][5:], together[0][5:])


@torch.no_grad()
def test_rank_0_is_the_likeliest_token(tiny):
    tokens = []
    for _ in range(9):
        logits = tiny(torch.tensor([[0, *tokens]])).logits
        tokens.append(logits[0, -1].argmax().item())
    assert code_lengths(tiny, tokens)[1].tolist() == [0] * 9
    logits[0, -1, tokens[-1]] = -math.inf
    tokens[-1] = logits[0, -1].argmax().item()
    assert code_lengths(tiny, tokens)[1].tolist() == [0] * 8 + [1]


def fixed(*logits):
    """A model that always says the same, and says it bare."""
    row = torch.tensor([[logits]])

    class Fixed(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.row = torch.nn.Parameter(row, requires_grad=False)

        def forward(self, tokens):
            return self.row.expand(1, tokens.shape[1], -1)

    return Fixed().eval()


def test_tokens_that_are_as_likely_do_not_count_in_a_rank():
    bits, ranks = code_lengths(fixed(*[0.0] * 8), range(8), window=3)
    assert ranks.tolist() == [0] * 8 and bits.tolist() == pytest.approx([3] * 8)
    assert code_lengths(fixed(1.0, 2, 2, 3), range(4))[1].tolist() == [3, 1, 1, 0]


def test_a_model_without_transformers():
    torch.manual_seed(0)
    model = lm.Transformer(VOCABULARY, 16, 2, 2).eval()
    text = random_tokens(12)
    nll = model.nll(torch.tensor([text])).double()[0] / math.log(2)
    bits, _ = code_lengths(model, text[1:], first=text[0])
    torch.testing.assert_close(bits, nll.detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("window", [4, 100])
@torch.no_grad()
def test_only_some_tokens_share_all_probability(tiny, window):
    only = [50, 3, 17, 4]
    places = random_tokens(11, len(only))
    bits, ranks = code_lengths(tiny, places, window, 9, only)
    for i, place in enumerate(places):
        seen = [only[k] for k in places[i - i % window : i]]
        p = tiny(torch.tensor([[9, *seen]])).logits[0, -1].double().softmax(0)[only]
        p /= p.sum()
        assert bits[i].item() == pytest.approx(-p[place].log2().item(), rel=1e-4)
        assert ranks[i] == (p > p[place]).sum()


def test_all_tokens_by_name_are_all_tokens(tiny):
    tokens, only = random_tokens(9), range(VOCABULARY)
    for a, b in zip(
        code_lengths(tiny, tokens), code_lengths(tiny, tokens, only=only), strict=True
    ):
        torch.testing.assert_close(a, b)
    one = code_lengths(tiny, [0, 0, 0], only=[7])
    assert one[0].tolist() == [0, 0, 0] and one[1].tolist() == [0, 0, 0]


@pytest.mark.parametrize("wrong", [60, -1, -60, 2**40])
@pytest.mark.parametrize("place", [0, 3, 8])
def test_tokens_that_the_model_does_not_have_are_refused(tiny, wrong, place):
    tokens = random_tokens(9)
    tokens[place] = wrong
    for form in (tokens, tuple(tokens), torch.tensor(tokens)):
        with pytest.raises(ValueError, match=rf"symbol {place} (is|must be) .*{wrong}"):
            code_lengths(tiny, form, window=4)


@pytest.mark.parametrize("wrong", [[1.5], [2.0], [3, 4.0], [True], [math.nan], [[1]]])
def test_what_is_no_token_is_refused(tiny, wrong):
    for form in (wrong, torch.tensor(wrong)):
        with pytest.raises(ValueError, match="symbol 0 must be a whole number"):
            code_lengths(tiny, form)


@pytest.mark.parametrize("wrong", [2, -1, 0.5])
def test_places_that_only_does_not_have_are_refused(tiny, wrong):
    for places in ([wrong], [wrong, 0, 0]):
        with pytest.raises(ValueError, match="symbol 0 (is|must be a whole)"):
            code_lengths(tiny, places, only=[5, 3])
    with pytest.raises(ValueError, match="symbol 1 is 60; the model has 0 to 59"):
        code_lengths(tiny, [0], only=[5, 60])
    with pytest.raises(ValueError, match=r"symbol 1 must be .* got -1"):
        code_lengths(tiny, [0], only=[5, -1])


@pytest.mark.parametrize("window", [0, -1, 2.0, True])
def test_windows_hold_a_token(tiny, window):
    for use in (
        lambda w: code_lengths(tiny, [1], w),
        lambda w: LanguageModel(tiny, 0, w),
    ):
        with pytest.raises(ValueError, match="window must be a whole number"):
            use(window)


# --- Bytes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "window"), [(0, 3), (1, 3), (1, 1), (17, 1), (17, 5), (15, 5), (17, 99)]
)
def test_what_is_encoded_is_decoded(tiny, n, window):
    tokens, coder = random_tokens(n), LanguageModel(tiny, 2, window)
    data = arithmetic.encode(tokens, coder)
    assert arithmetic.decode(data, coder, n) == tokens
    bits = code_lengths(tiny, tokens, window, 2)[0].sum().item()
    assert bits - 0.1 <= 8 * len(data) <= bits + 32


def test_two_walks_do_not_disturb_each_other(tiny):
    coder = LanguageModel(tiny, window=4)
    one, other = coder.start(), coder.start()
    expected = one.predict()
    for token in random_tokens(6):
        one.predict()
        one.update(token)
    assert (other.predict() == expected).all()


def test_asking_twice_or_not_at_all_changes_nothing(tiny):
    asked, silent = (
        LanguageModel(tiny, window=4).start(),
        LanguageModel(tiny, window=4).start(),
    )
    for token in random_tokens(9):
        asked.predict()
        asked.predict()
        asked.update(token)
        silent.update(token)
    assert (asked.predict() == silent.predict()).all()


def test_a_model_in_training_mode_is_refused(tiny):
    tiny.train()
    try:
        for use in (LanguageModel, lambda model: code_lengths(model, [1, 2])):
            with pytest.raises(ValueError, match="in training mode"):
                use(tiny)
    finally:
        tiny.eval()


@pytest.mark.parametrize("logits", [(math.nan, 1.0), (-math.inf, -math.inf)])
def test_a_model_that_says_nothing_is_refused(logits):
    with pytest.raises(ValueError, match="NaN for token 0"):
        code_lengths(fixed(*logits), [1, 0])


def test_another_window_or_beginning_does_not_decode(tiny):
    tokens = random_tokens(20)
    data = arithmetic.encode(tokens, LanguageModel(tiny, window=8))
    for other in (LanguageModel(tiny, window=9), LanguageModel(tiny, 1, window=8)):
        with pytest.raises(ValueError, match="the model is not the one that encoded"):
            arithmetic.decode(data, other, 20)


# --- What the numbers rest on --------------------------------------------------------------------

HERE = {"model": "a", "software": "b", "processor": "c", "threads": "1"}


@some
@given(st.binary(max_size=40), st.integers(0, 2**32 - 1))
@example(b"", 0)
@example(neural.MAGIC, 2**32 - 1)
def test_what_is_sealed_is_opened(payload, length):
    data = neural.seal(payload, length, HERE)
    assert len(data) == neural.HEADER + len(payload) == 20 + len(payload)
    assert neural.open_sealed(data, dict(reversed(HERE.items()))) == (payload, length)


@pytest.mark.parametrize("field", HERE)
def test_each_surrounding_that_differs_is_named(field):
    data = neural.seal(b"payload", 7, HERE)
    called = "number of threads" if field == "threads" else field
    message = f"made with another {called}; here it is 77, and"
    with pytest.raises(ValueError, match=message):
        neural.open_sealed(data, HERE | {field: "77"})


def test_every_number_of_threads_is_another():
    sealed = [neural.seal(b"", 0, HERE | {"threads": str(n)}) for n in range(1, 1025)]
    assert len(set(sealed)) == 1024


def test_every_bit_of_the_beginning_counts():
    """The length, too: a longer one would send the decoder on its way."""
    data = neural.seal(b"payload", 7, HERE)
    for bit in range(8 * neural.HEADER):
        wrong = bytearray(data)
        wrong[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ValueError, match=r"do not begin as|message is damaged"):
            neural.open_sealed(bytes(wrong), HERE)


def test_what_is_no_message_is_refused():
    data = neural.seal(b"", 0, HERE)
    for wrong in (*(data[:n] for n in range(20)), b"LMC2" + data[4:], b"\0" + data):
        with pytest.raises(ValueError, match="do not begin as a message of a language"):
            neural.open_sealed(wrong, HERE)
    assert neural.open_sealed(data, HERE) == (b"", 0)


def test_lengths_that_the_header_cannot_hold_are_refused():
    with pytest.raises(ValueError, match=r"less than 2\*\*32, got 4294967296"):
        neural.seal(b"", 2**32, HERE)
    for wrong in (-1, 1.0, True):
        with pytest.raises(ValueError, match="length must be a whole number"):
            neural.seal(b"", wrong, HERE)


def test_the_fingerprint_tells_weights_and_threads_apart(tmp_path, monkeypatch):
    for name in "ab":
        (tmp_path / name).write_text(name)
    a, b = (neural.fingerprint(tmp_path / name) for name in "ab")
    assert a.keys() == neural.FIELDS.keys() and a == neural.fingerprint(tmp_path / "a")
    assert [name for name in a if a[name] != b[name]] == ["model"]
    monkeypatch.setattr(torch, "get_num_threads", lambda: 99)
    c = neural.fingerprint(tmp_path / "a")
    assert [name for name in a if a[name] != c[name]] == ["threads"]
    assert torch.__version__ in a["software"] and all(a.values())


# --- SmolLM2 -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def smollm2():
    pytest.importorskip("gguf", reason="no gguf here")
    try:
        return smollm.load()
    except FileNotFoundError as error:
        pytest.skip(str(error))


def test_smollm2_has_its_parameters(smollm2):
    model, tokenizer = smollm2
    assert sum(p.numel() for p in model.parameters()) == 134_515_008
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert tokenizer.get_vocab_size() == model.config.vocab_size == 49_152


@torch.no_grad()
def test_smollm2_knows_the_capital_of_france(smollm2):
    model, tokenizer = smollm2
    asked = tokenizer.encode("The capital of France is").ids
    answer = model(torch.tensor([asked])).logits[0, -1].argmax().item()
    assert tokenizer.decode([answer]) == " Paris"
    bits, ranks = code_lengths(model, [*asked, answer])
    assert ranks[-1] == 0 and bits[-1] < 2


def test_smollm2_compresses_a_text(smollm2, monkeypatch):
    model, tokenizer = smollm2
    text = "The capital of France is Paris"
    coder, where = LanguageModel(model), neural.fingerprint(smollm.path())
    data = neural.compress(text, coder, tokenizer, where)
    assert len(data) - neural.HEADER < 8 < len(text)
    assert neural.decompress(data, coder, tokenizer, where) == text
    with pytest.raises(ValueError, match="made with another processor"):
        neural.decompress(data, coder, tokenizer, where | {"processor": "another"})


@settings(some, max_examples=300)
@given(text=st.text())  # which has no surrogates, since UTF-8 has none
@example(text="".join(map(chr, range(0x2100))))
@example(text="\x04\x06\x13\x14\x16\x1d")  # the six of ASCII without a token
@example(text="\U00040000\U0007ffff\U00080000\U000bffff\U0010ffff")
@example(text="<|endoftext|><|im_start|><repo_name>")
@example(text=" \n\r\n  \t 12 345 don't e\u0301 e\u0301é 한국어 🎉👩‍🔬")
def test_the_tokenizer_gives_back_every_text(smollm2, text):
    _, tokenizer = smollm2
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_every_byte_of_utf_8_has_a_token(smollm2):
    _, tokenizer = smollm2
    for first in range(0, 0x110000, 0x10000):
        points = range(first, first + 0x10000, 251)
        text = "".join(chr(c) for c in points if not 0xD800 <= c < 0xE000)
        assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_known_facts_of_the_tokenizer(smollm2):
    _, tokenizer = smollm2

    def tokens(text):
        return tokenizer.encode(text).tokens

    assert tokens("2024 don't") == ["2", "0", "2", "4", "Ġdon", "'t"]
    assert tokens("The capital") == ["The", "Ġcapital"]
    assert tokens("") == [] and tokens("a\n") == ["a", "Ċ"]
    assert len(tokens("<|im_start|>")) > 1, "marks in a text are text"
    assert tokenizer.token_to_id("<|endoftext|>") == 0
    assert [tokenizer.token_to_id(f"<|im_{s}|>") for s in ("start", "end")] == [1, 2]
    assert tokenizer.encode("Hello world").ids == [19556, 905]
