"""How much memory a training needs: parameters, gradients, optimizer, activations, by formula."""

import torch

from mlbook.common.checks import check_count

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def parameters(config) -> int:
    """Numbers in a Llama with a head for language: embeddings, and for each layer attention, a SwiGLU network, two norms.

    Args:
        config: a `transformers.LlamaConfig`.
    Raises:
        ValueError: it is no Llama (nor Mistral, which counts alike), or its matrices have biases.
    """
    if config.model_type not in ("llama", "mistral"):
        raise ValueError(
            f"a Llama's parameters are counted, not those of {config.model_type}"
        )
    for name in ("attention_bias", "mlp_bias"):
        if getattr(config, name, False):
            raise ValueError(f"{name}: biases are not counted")
    d, n = config.hidden_size, config.num_hidden_layers
    tables = 1 if config.tie_word_embeddings else 2
    return tables * config.vocab_size * d + matrices(config) + n * 2 * d + d


def matrices(config) -> int:
    """Numbers in the matrices of all layers: what adapters are added to, and what is kept in four bits beneath them."""
    d, f, q, kv, _ = _sizes(config)
    return config.num_hidden_layers * (2 * d * q + 2 * d * kv + 3 * d * f)


def lora_parameters(config, rank: int, targets: tuple[str, ...]) -> int:
    """Numbers that adapters of this rank add: rank · (inputs + outputs) of every matrix that gets one (Hu et al. 2021).

    Args:
        targets: among "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj".
    Raises:
        ValueError: `rank` is no whole number of at least 1, or a target is unknown or there twice.
    """
    d, f, q, kv, _ = _sizes(config)
    sides = {
        "q_proj": (d, q),
        "k_proj": (d, kv),
        "v_proj": (d, kv),
        "o_proj": (q, d),
        "gate_proj": (d, f),
        "up_proj": (d, f),
        "down_proj": (f, d),
    }
    if unknown := set(targets) - set(sides):
        raise ValueError(
            f"unknown targets {sorted(unknown)}; known: {', '.join(sides)}"
        )
    if len(set(targets)) < len(targets):
        raise ValueError(f"a matrix gets one adapter; got {', '.join(targets)}")
    both = sum(sum(sides[name]) for name in targets)
    return check_count("rank", rank) * config.num_hidden_layers * both


def activations(config, batch: int, length: int, checkpointed: bool = False) -> int:
    """Numbers of four bytes that a forward pass in float32 keeps for the backward pass, of `batch` texts of `length` tokens.

    For each token and layer 6d + 2d_q + 2d_kv + 4f + heads + 2: inputs and outputs of two norms, queries, keys, values, what comes
    out of attention before and after its projection, four in the network, a number for each norm and head; then the last
    norm, the logits, and the labels. With checkpoints a layer keeps its input alone (and one of them, while its turn in
    the backward pass lasts, everything). Exact for `transformers` 5.24 with PyTorch's attention that does not keep its matrix.
    """
    batch, length = check_count("batch", batch), check_count("length", length)
    d, f, q, kv, head = _sizes(config)
    heads = config.num_attention_heads
    layer = 6 * d + 2 * q + 2 * kv + 4 * f + heads + 2
    rest = 3 * d + config.vocab_size + 5  # two integers of eight bytes among them
    each = config.num_hidden_layers * (d if checkpointed else layer) + rest
    turn = layer - d if checkpointed else 0
    return batch * length * (each + turn) + 2 * length * head


def saved(model, batch: int, length: int) -> int:
    """The same by count: bytes that a forward pass on random tokens keeps, weights apart, each storage once.

    Under autocast the narrow copies of weights are kept and counted, too: 2 bytes for each number in a matrix.
    """
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    found, alive = {}, []

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            found[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)  # so that no storage is used again and counted as one
        return tensor

    tokens = torch.randint(model.config.vocab_size, (batch, length))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        model(input_ids=tokens, labels=tokens, use_cache=False)
    return sum(found.values())


def training(
    weights: float,
    trained: float,
    precision: str = "float32",
    devices: int = 1,
    sharded: str = "nothing",
    four_bits: float = 0,
) -> dict[str, float]:
    """Bytes on each device, activations apart: weights, gradients, AdamW's two moments, and a copy in float32 where the
    weights are narrower (Rajbhandari et al. 2020, section 3.1; Micikevicius et al. 2018).

    Args:
        weights, trained: how many numbers the model has, and how many of them are trained.
        precision: of weights and gradients: "float32", or "bfloat16" or "float16" with a float32 copy of what is trained.
        sharded: what `devices` divide among them: "nothing" (data parallel), "optimizer" (ZeRO-1, the copy included),
            "gradients" (ZeRO-2: these, too), or "everything" (ZeRO-3, FSDP).
        four_bits: how many of the weights are kept, untrained, in 4 bits and 0.127 more for their scales (Dettmers et al. 2023).
    Raises:
        ValueError: an unknown precision or sharding, more trained or in four bits than there are, or no device.
    """
    stages = ("nothing", "optimizer", "gradients", "everything")
    if precision not in BYTES or sharded not in stages:
        raise ValueError(
            f"precision is one of {', '.join(BYTES)}, sharded one of {', '.join(stages)}; got {precision!r}, {sharded!r}"
        )
    if not 0 <= trained <= weights:
        raise ValueError(f"{trained} of {weights} numbers cannot be trained")
    if not 0 <= four_bits <= weights - trained:
        raise ValueError(
            f"of {weights} numbers {weights - trained} are not trained; {four_bits} cannot be kept in four bits"
        )
    weights, trained = float(weights), float(trained)
    size, stage = BYTES[precision], stages.index(sharded)
    devices = check_count("devices", devices)
    share = lambda least: devices if stage >= least else 1  # noqa: E731
    return {
        "weights": (size * (weights - four_bits) + 4.127 / 8 * four_bits) / share(3),
        "gradients": size * trained / share(2),
        "moments": 8 * trained / share(1),
        "float32 copy": (4 if size < 4 else 0) * trained / share(1),
    }


def _sizes(config) -> tuple[int, int, int, int, int]:
    # said for itself, or, by old files, not at all
    head = getattr(config, "head_dim", None) or (
        config.hidden_size // config.num_attention_heads
    )
    q, kv = head * config.num_attention_heads, head * config.num_key_value_heads
    return config.hidden_size, config.intermediate_size, q, kv, head
