"""The room of the chapter on training with Hugging Face's libraries."""

import html
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel, Qwen3Config

from mlbook.hf_training import calculator, data, memory, metrics, packing, run

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


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
    (
        {},
        {"tie_word_embeddings": False},
        {"num_key_value_heads": 4, "hidden_size": 96},
        {"head_dim": 40},
    ),
)
def test_parameters_by_formula_and_by_count(change):
    model = LlamaForCausalLM(config(**change))
    assert memory.parameters(model.config) == sum(p.numel() for p in model.parameters())


def test_a_llama_model_has_no_head():
    assert not hasattr(LlamaModel(config()), "lm_head")


@pytest.mark.parametrize("change", ({}, {"head_dim": 40}))
def test_adapters_by_formula_and_by_count(change):
    from peft import LoraConfig, get_peft_model

    targets = ("q_proj", "v_proj", "o_proj", "down_proj")
    model = get_peft_model(
        LlamaForCausalLM(config(**change)),
        LoraConfig(r=5, target_modules=list(targets)),
    )
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert memory.lora_parameters(config(**change), 5, targets) == trained
    with pytest.raises(ValueError, match="unknown targets"):
        memory.lora_parameters(config(), 5, ("c_attn",))
    with pytest.raises(ValueError, match="rank"):
        memory.lora_parameters(config(), 0, targets)


@pytest.mark.parametrize(
    ("change", "batch", "length"),
    (
        ({}, 2, 32),
        ({"num_key_value_heads": 4}, 3, 17),
        ({"hidden_size": 96, "num_hidden_layers": 5}, 1, 64),
        ({"intermediate_size": 208, "vocab_size": 900}, 4, 8),
        ({"head_dim": 40}, 2, 24),
    ),
)
def test_activations_by_formula_and_by_count(change, batch, length):
    model = LlamaForCausalLM(config(**change))
    found = memory.saved(model, batch, length) / 4
    # but for the loss, and two integers with a batch of one
    assert abs(memory.activations(model.config, batch, length) - found) <= 3


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_with_checkpoints_a_layer_keeps_its_input():
    """By count, and by formula without what one layer needs in its turn, which a forward pass does not show."""
    model = LlamaForCausalLM(config()).train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    # the turning of positions is held for the second run, not saved by autograd
    found = memory.saved(model, 2, 24) / 4 + 2 * 24 * model.config.head_dim
    one, two = (memory.activations(config(num_hidden_layers=n), 2, 24) for n in (1, 2))
    turn = two - one - 2 * 24 * config().hidden_size
    assert abs(memory.activations(config(), 2, 24, True) - turn - found) <= 3


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
        {"four_bits": 1},
        {"trained": 1e9, "four_bits": 7e9},
        {"trained": 1e9, "four_bits": -1},
    ):
        with pytest.raises(ValueError):
            memory.training(**{"weights": 7e9, "trained": 7e9} | change)
    packed = memory.training(7e9 + 1e7, 1e7, "bfloat16", four_bits=6e9)
    assert packed["weights"] == pytest.approx(2 * (1e9 + 1e7) + 6e9 * 4.127 / 8)


def test_the_calculator_shows_what_the_formulas_give():
    """Every frame of it, and the one that stands there before anybody moves a slider."""
    names = {"small": config(), "wide": config(hidden_size=128)}
    page = calculator.page(names, "alt", "caption", (1, 1, 3))
    held = json.loads(html.unescape(re.search('data-all="([^"]*)"', page)[1]))
    for i, c in enumerate(names.values()):
        for j, precision in enumerate(calculator.PRECISIONS):
            for k, devices in enumerate(calculator.DEVICES):
                bars, _ = held["frames"][i][j][k]
                for (widths, text), stage in zip(bars, calculator.STAGES, strict=True):
                    needed = calculator.needed(c, precision, devices, stage, 2_048)
                    assert text == f"{sum(needed.values()) / 1e9:,.1f} GB"
                    assert len(widths) == len(needed) == len(calculator.PARTS)
    shown = [float(w) for w in re.findall(r'width="([\d.]+)" height="26"', page)]
    assert shown == [w for widths, _ in held["frames"][1][1][3][0] for w in widths]
    for precision, bits in (
        ("adapters on bfloat16", 16),
        ("adapters on 4 bits", 4.127),
    ):
        kept = calculator.needed(config(), precision, 1, "nothing", 8)["weights"]
        matrices = memory.matrices(config())
        rest = memory.parameters(config()) - matrices
        added = memory.lora_parameters(config(), 16, calculator.MATRICES)
        assert kept == pytest.approx(2 * (rest + added) + matrices * bits / 8)


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


# packing


def test_best_fit_holds_every_text_once_and_no_row_overflows():
    lengths = [int(n) for n in np.random.default_rng(0).integers(1, 130, 500)]
    rows = packing.best_fit(lengths, 100)
    assert sorted(i for row in rows for i in row) == list(range(500))
    assert all(sum(min(lengths[i], 100) for i in row) <= 100 for row in rows)
    assert packing.best_fit([4, 2, 3, 1], 4) == [[0], [2, 3], [1]]
    assert packing.best_fit([], 4) == []
    for lengths, size in (([0], 4), ([-1], 4), ([2.0], 4), ([2], 0)):
        with pytest.raises(ValueError):
            packing.best_fit(lengths, size)


def test_best_fit_needs_as_many_rows_as_trl():
    from datasets import Dataset
    from trl import pack_dataset

    lengths = np.random.default_rng(1).integers(1, 60, 400).tolist()
    texts = Dataset.from_dict({"input_ids": [list(range(n)) for n in lengths]})
    theirs = pack_dataset(texts, 100, "bfd")
    ours = packing.best_fit(lengths, 100)
    assert len(theirs) == len(ours)
    filled = sorted(sum(lengths[i] for i in row) for row in ours)
    assert filled == sorted(map(len, theirs["input_ids"]))
    cut = packing.wrapped(lengths, 100)
    assert len(pack_dataset(texts, 100, "wrapped")) == len(cut)
    assert sum(stop - start for row in cut for _, start, stop in row) == sum(lengths)
    assert packing.wrapped([3, 3], 4) == [[(0, 0, 3), (1, 0, 1)], [(1, 1, 3)]]
    with pytest.raises(ValueError):
        packing.wrapped([0], 4)


def test_texts_of_a_row_do_not_see_each_other():
    """Positions that begin anew keep them apart, if no cache is asked for (the default asks for one)."""
    model = LlamaForCausalLM(config()).eval()
    lengths = [5, 1, 7]
    tokens = torch.randint(2, 300, (1, sum(lengths)))
    place = packing.positions(lengths)
    with torch.no_grad():
        about = {"position_ids": place[None], "use_cache": False}
        packed = model(input_ids=tokens, **about).logits[0]
        alone = [model(input_ids=t).logits[0] for t in tokens.split(lengths, 1)]
    assert torch.allclose(packed, torch.cat(alone), atol=1e-5)
    seen = packing.attends(lengths)
    cells = [  # row looks at column: one text, and not forwards
        [p <= q and sum(p >= e for e in (5, 6)) == sum(q >= e for e in (5, 6)) for p in range(13)]
        for q in range(13)
    ]  # fmt: skip
    assert seen.tolist() == cells
    assert seen.sum() == sum(n * (n + 1) // 2 for n in lengths)
    assert packing.attends(lengths, apart=False).sum() == 13 * 14 // 2
    assert place.tolist() == [0, 1, 2, 3, 4, 0, 0, 1, 2, 3, 4, 5, 6]


def test_padding():
    assert packing.padding([3, 1, 2, 2], 2) == pytest.approx(2 / 10)
    assert packing.padding([5, 5, 5], 2) == 0
    assert packing.padding(np.array([200, 100], np.uint8), 2) == 0.25
    assert packing.wrapped(np.array([100, 250], np.uint8), 200)[1] == [(1, 100, 250)]
    with pytest.raises(ValueError):
        packing.padding([], 2)
    with pytest.raises(ValueError):
        packing.padding([1], 0)
    with pytest.raises(ValueError):
        packing.padding([-3, 5], 2)
    with pytest.raises(ValueError):
        packing.positions([2.5])
    assert packing.wrapped([], 4) == packing.best_fit([], 4) == []


@pytest.mark.parametrize(
    "call",
    (
        lambda: metrics.token_accuracy(np.full((1, 3, 4), np.nan), np.zeros((1, 3))),
        lambda: memory.parameters(config(attention_bias=True)),
        lambda: memory.lora_parameters(config(), 4, ("q_proj", "q_proj")),
        lambda: memory.parameters(Qwen3Config()),
        lambda: data.right({"task": "sing", "output": "la"}, "la"),
        lambda: data.prompt({"instruction": None, "input": ""}),
        lambda: run.make_tokenizer(["some text"], 10),
    ),
)
def test_odd_inputs_are_refused(call):
    with pytest.raises(ValueError):
        call()


def test_numbers_of_any_type_give_the_same():
    assert memory.training(np.int32(2_000_000_000), 0)["weights"] == 8e9
    assert data.rows(30, held_out=1) == data.rows(30, held_out=True)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_either_name_of_checkpointing_is_heard(tmp_path):
    for name in ("gradient_checkpointing", run.CHECKPOINTING):
        args = run.settings(tmp_path, **{name: True})
        assert getattr(args, run.CHECKPOINTING)


# the program


def test_a_checkpoint_that_was_not_finished_is_passed_over(tmp_path):
    assert run.last_whole(tmp_path) is None
    whole = '{"global_step": 1}'
    for step, state in (
        (5, whole),
        (10, whole),
        (15, '{"half'),
        (20, None),
        (25, "null"),
        ("30-old", whole),
        ("best", whole),
    ):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        if state:
            (folder / "trainer_state.json").write_text(state)
    assert run.last_whole(tmp_path) == str(tmp_path / "checkpoint-10")


def test_smollm_speaks_by_its_own_template():
    import gguf

    from mlbook.common import smollm

    about = gguf.GGUFReader(smollm.path()).fields["tokenizer.chat_template"]
    assert about.contents() == data.CHAT_TEMPLATE


def test_a_row_becomes_labels_that_end_with_eos(tmp_path):
    """TRL: the prompt does not count, the answer and its <eos> do, padding does not."""
    run.quiet()
    train = data.rows(40, run.TASKS)
    tokenizer = run.make_tokenizer([data.prompt(r) + r["output"] for r in train], 400)
    torch.manual_seed(0)
    model = run.make_model(tokenizer, width=32, layers=1)
    samples = run.Samples(tokenizer, train[:3])
    args = run.settings(tmp_path, max_steps=4, eval_steps=2, warmup_steps=1)
    trainer = run.make_trainer(
        model, tokenizer, args, train, train[:7], callbacks=[samples]
    )
    batch = next(iter(trainer.get_train_dataloader()))
    for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
        counted = labels[labels != -100]
        assert counted[-1] == tokenizer.eos_token_id
        text = tokenizer.decode(ids[labels == -100], skip_special_tokens=True)
        assert text.endswith("### Response:\n")
    trainer.train()
    assert [row["step"] for row in samples.table] == [2, 2, 2, 4, 4, 4]
    assert all("### " not in row["answer"] or row["answer"] for row in samples.table)


class Hub:
    """What `datasets.load_dataset` does on a bad day, and on a good one."""

    def __init__(self, monkeypatch, outcome):
        import datasets

        def load(*args, **kwargs):
            if isinstance(outcome, Exception):
                raise outcome
            return datasets.Dataset.from_list(outcome)

        monkeypatch.setattr(datasets, "load_dataset", load)


def test_the_hub_on_a_good_day(monkeypatch):
    row = {"instruction": "Add.", "input": None, "output": "2", "more": 1}
    Hub(monkeypatch, [row, row | {"input": "1"}])
    found = data.from_hub(2)
    assert [r["input"] for r in found] == ["", "1"]
    assert set(found[0]) == {"instruction", "input", "output", "task"}
    assert data.right(found[0], "2") is None


@pytest.mark.parametrize(
    "outcome",
    (
        ConnectionError("Couldn't reach the Hub"),
        FileNotFoundError("dataset does not exist"),
        TimeoutError("read timed out"),
        [],
        [{"text": "other columns"}],
        [{"instruction": "a", "input": "", "output": "b"}],
        [{"instruction": "a", "input": "", "output": None}] * 3,
    ),
)
def test_the_hub_on_a_bad_day(monkeypatch, outcome):
    Hub(monkeypatch, outcome)
    with pytest.raises((OSError, ValueError)):
        data.from_hub(3)


# what the benchmark records, at a small size: a kill, two processes


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setenv("PYTHONPATH", str(BENCHMARKS.parent))
    import finetuning

    monkeypatch.setattr(finetuning, "STEPS", 4)
    return finetuning


def test_a_training_goes_on_after_a_kill_in_the_middle_of_a_save(bench, tmp_path):
    """Killed while its optimizer is written, it begins again at the checkpoint before, and nothing shows in the losses."""
    sizes = ("--steps", "4", "--save", "2", "--batch", "4")
    whole, folder = tmp_path / "whole", tmp_path / "struck"
    assert bench.called(bench.program("--folder", str(whole), *sizes)) == 0
    code = bench.STRUCK.replace(f"checkpoint-{bench.VICTIM}", "checkpoint-4")
    struck = [bench.sys.executable, "-c", code, "optimizer.pt"]
    assert bench.called([*struck, "--folder", str(folder), *sizes]) == -9
    assert (folder / "checkpoint-4/optimizer.pt").exists()
    assert run.last_whole(folder) == str(folder / "checkpoint-2")
    assert bench.called(bench.program("--folder", str(folder), *sizes)) == 0
    last = [bench.Path(f, "checkpoint-4/model.safetensors") for f in (whole, folder)]
    assert last[0].read_bytes() == last[1].read_bytes()


def test_two_processes_do_what_one_does(bench, tmp_path):
    """Half the batch each, under `accelerate launch`: the same weights after four steps, but for the order of sums."""
    config = tmp_path / "two.yaml"
    config.write_text(bench.ACCELERATE)
    accelerate = bench.Path(bench.sys.executable).with_name("accelerate")
    launch = [str(accelerate), "launch", "--config_file", str(config)]
    module = ["-m", "mlbook.hf_training.run", "--steps", "4", "--save", "4"]
    found = []
    for start, batch, processes in (([bench.sys.executable], 8, 1), (launch, 4, 2)):
        folder = tmp_path / str(processes)
        more = ["--batch", str(batch), "--folder", str(folder)]
        bench.called([*start, *module, *more], OMP_NUM_THREADS="1")
        done = bench.json.loads((folder / "done.json").read_text())
        assert done["processes"] == processes
        found.append(load_file(folder / "checkpoint-4/model.safetensors"))
    for name, weights in found[0].items():
        assert torch.allclose(weights, found[1][name], atol=1e-4), name
