"""The room of the chapter on training with Hugging Face's libraries."""

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel

from mlbook.hf_training import data, memory, metrics


def config(**change):
    sizes = {
        "vocab_size": 300,
        "hidden_size": 64,
        "intermediate_size": 160,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": 1,
        "pad_token_id": 0,
    }
    return LlamaConfig(**sizes | change)


# counting


@pytest.mark.parametrize(
    "change",
    ({}, {"tie_word_embeddings": False}, {"num_key_value_heads": 4, "hidden_size": 96}),
)
def test_parameters_by_formula_and_by_count(change):
    model = LlamaForCausalLM(config(**change))
    assert memory.parameters(model.config) == sum(p.numel() for p in model.parameters())


def test_a_llama_model_has_no_head():
    assert not hasattr(LlamaModel(config()), "lm_head")


def test_adapters_by_formula_and_by_count():
    from peft import LoraConfig, get_peft_model

    targets = ("q_proj", "v_proj", "down_proj")
    model = get_peft_model(
        LlamaForCausalLM(config()), LoraConfig(r=5, target_modules=list(targets))
    )
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert memory.lora_parameters(config(), 5, targets) == trained
    with pytest.raises(ValueError, match="unknown targets"):
        memory.lora_parameters(config(), 5, ("c_attn",))
    with pytest.raises(ValueError, match="rank"):
        memory.lora_parameters(config(), 0, targets)


def kept(model, batch, length):
    """Bytes that the forward pass saves, each storage once, weights apart."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    found, alive = {}, []

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            found[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    tokens = torch.randint(300, (batch, length))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        model(input_ids=tokens, labels=tokens)
    return sum(found.values())


@pytest.mark.parametrize(
    ("change", "batch", "length"),
    (
        ({}, 2, 32),
        ({"num_key_value_heads": 4}, 3, 17),
        ({"hidden_size": 96, "num_hidden_layers": 5}, 1, 64),
        ({"intermediate_size": 208, "vocab_size": 900}, 4, 8),
    ),
)
def test_activations_by_formula_and_by_count(change, batch, length):
    model = LlamaForCausalLM(config(**change))
    found = kept(model, batch, length) / 4
    assert memory.activations(model.config, batch, length) == pytest.approx(
        found, rel=1e-3
    )


def test_what_training_needs():
    whole = memory.training(7e9, 7e9)
    assert sum(whole.values()) == 16 * 7e9  # 4 + 4 + 8
    mixed = memory.training(7e9, 7e9, "bfloat16")
    assert sum(mixed.values()) == 16 * 7e9  # 2 + 2 + 8 + 4
    sharded = memory.training(7e9, 7e9, "bfloat16", 8, "everything")
    assert sum(sharded.values()) == 2 * 7e9
    first = memory.training(7e9, 7e9, "bfloat16", 8, "optimizer")
    assert sum(first.values()) == (4 + 12 / 8) * 7e9
    adapters = memory.training(7e9, 1e7, "bfloat16")
    assert sum(adapters.values()) == 14e9 + 14 * 1e7
    for change in (
        {"precision": "int8"},
        {"sharded": "all"},
        {"devices": 0},
        {"trained": 8e9},
    ):
        with pytest.raises(ValueError):
            memory.training(**{"weights": 7e9, "trained": 7e9} | change)


# accuracy


def test_accuracy_is_shifted_and_padding_does_not_count():
    """Five logits predict b, c, d, x, y; labels a, b, c, d, −100: 3 of 3. Unshifted with padding it were 0 of 5."""
    a, b, c, d, x, y = range(6)
    predicted, labels = [[b, c, d, x, y]], [[a, b, c, d, -100]]
    assert metrics.token_accuracy(predicted, labels) == (3, 3)
    assert (np.array(predicted) == np.array(labels)).sum() == 0
    logits = np.eye(6)[predicted]
    assert metrics.token_accuracy(logits, labels) == (3, 3)


def test_the_first_token_is_never_a_target():
    assert metrics.token_accuracy(np.zeros((2, 5)), np.zeros((2, 5)))[1] == 8
    assert metrics.token_accuracy([[1]], [[1]]) == (0, 0)
    with pytest.raises(ValueError, match="batch, length"):
        metrics.token_accuracy([[1, 2]], [[1, 2, 3]])
    with pytest.raises(ValueError, match="batch, length"):
        metrics.token_accuracy([1, 2], [1, 2])


# data


def test_rows_are_made_of_real_sentences_and_held_out_ones_are_others():
    mine, others = data.rows(300), data.rows(300, held_out=True)
    assert {r["task"] for r in mine} == set(data.TASKS)
    assert data.rows(300) == mine != data.rows(300, seed=1)
    given = {r["input"] for r in mine if r["task"] in ("first", "last", "comma")}
    assert not given & {r["input"] for r in others} and len(given) > 100
    for row in mine + others:
        assert data.right(row, row["output"]) in (True, None)
        assert data.right(row, "§") in (False, None)
    with pytest.raises(ValueError):
        data.rows(0)


def test_both_forms_of_the_prompt():
    with_input = {"instruction": "Add {x}.", "input": "1", "output": "2"}
    text = data.prompt(with_input)
    assert text.endswith(
        "### Instruction:\nAdd {x}.\n\n### Input:\n1\n\n### Response:\n"
    )
    assert text.startswith("Below is an instruction that describes a task, paired")
    without = data.prompt(with_input | {"input": ""})
    assert "### Input" not in without and "paired" not in without
    assert data.messages(with_input)[0]["content"] == "Add {x}.\n\n1"
    assert data.messages(with_input | {"input": ""})[0]["content"] == "Add {x}."
