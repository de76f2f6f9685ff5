"""Supervised fine-tuning, the whole of it: a tokenizer, a model and a training that need no network and no GPU.

python -m mlbook.hf_training.run --folder out
accelerate launch --num_processes 2 -m mlbook.hf_training.run --folder out
"""

import argparse
import json
import os
import re
from pathlib import Path

import torch
from torch import Tensor

from mlbook.common import smollm
from mlbook.common.checks import check_count
from mlbook.common.optional import hide_broken
from mlbook.hf_training import data

hide_broken("torchvision")  # before transformers, which would import it
import transformers.utils.logging as noise  # noqa: E402  (datasets first: a circular import)
from datasets import Dataset  # noqa: E402
from datasets.utils.logging import disable_progress_bar  # noqa: E402
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers  # noqa: E402
from transformers import (  # noqa: E402
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    PrinterCallback,
    TrainerCallback,
)
from trl import SFTConfig, SFTTrainer  # noqa: E402

TASKS = ("first", "comma", "letter")
# For `accelerate launch --config_file`: the model shared out over the GPUs of two machines.
FSDP = """compute_environment: LOCAL_MACHINE
distributed_type: FSDP
mixed_precision: bf16
num_machines: 2
num_processes: 16      # of all machines together
machine_rank: 0        # 1 on the other
main_process_ip: 10.0.0.1
main_process_port: 29500
fsdp_config:
  fsdp_version: 2
  fsdp_reshard_after_forward: true
  fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP
  fsdp_transformer_layer_cls_to_wrap: LlamaDecoderLayer
  fsdp_state_dict_type: SHARDED_STATE_DICT
"""
# transformers 5 renamed it on the way
CHECKPOINTING = (
    "activation_checkpointing"
    if hasattr(SFTConfig, "activation_checkpointing")
    else "gradient_checkpointing"
)


def make_tokenizer(texts: list[str], size: int = 1024) -> PreTrainedTokenizerFast:
    """Byte pairs learnt from these texts (Sennrich et al. 2016), <pad> and <eos>."""
    check_count("size", size, least=258)
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<pad>", "<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, pad_token="<pad>", eos_token="<eos>"
    )


def make_model(
    tokenizer, width: int = 128, layers: int = 2, init: float = 0.06
) -> LlamaForCausalLM:
    """A small Llama for this tokenizer's tokens; its weights are random, of standard deviation `init`."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
        initializer_range=init,  # at 0.02, the default, one task is not learnt in time
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def pretrained():
    """SmolLM2-135M-Instruct as a package carries it, and its tokenizer with the chat template it was trained with.

    Raises:
        FileNotFoundError: the package is not installed; the message says how.
    """
    model, bpe = smollm.load()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>"],
        chat_template=data.CHAT_TEMPLATE,
    )
    model.config.pad_token_id = model.generation_config.pad_token_id = (
        tokenizer.pad_token_id
    )
    model.config.eos_token_id = model.generation_config.eos_token_id = (
        tokenizer.eos_token_id
    )
    return model.requires_grad_(True), tokenizer


def pairs(rows: list[dict], chat: bool = False) -> Dataset:
    """Rows as TRL wants them, what is given and what is to be learnt: as texts, or, for a `chat` template, as turns."""
    if chat:
        turns = [data.messages(row) for row in rows]
        return Dataset.from_list(
            [{"prompt": t[:1], "completion": t[1:]} for t in turns]
        )
    return Dataset.from_list(
        [{"prompt": data.prompt(r), "completion": r["output"]} for r in rows]
    )


def asked(tokenizer, row: dict) -> str:
    """The text that a row's answer is to follow: by the tokenizer's chat template where it has one, else Alpaca's."""
    if not tokenizer.chat_template:
        return data.prompt(row)
    return tokenizer.apply_chat_template(
        data.messages(row)[:1], add_generation_prompt=True, tokenize=False
    )


def answers(model, tokenizer, rows: list[dict], longest: int = 12) -> list[str]:
    """What the model says to each row's prompt: the likeliest token at every turn, up to <eos> or so many tokens."""
    texts = [asked(tokenizer, row) for row in rows]
    said = continued(model, tokenizer, texts, longest)
    return tokenizer.batch_decode(said, skip_special_tokens=True)


@torch.no_grad()
def continued(model, tokenizer, texts: list[str], longest: int = 12) -> Tensor:
    """The likeliest tokens after each text, (texts, at most `longest`); what follows an <eos> is padding."""
    # on the left, so that every prompt ends where the answer begins
    given = tokenizer(texts, return_tensors="pt", padding=True, padding_side="left")
    given = given.to(model.device)
    was_training = model.training
    said: Tensor = model.eval().generate(
        input_ids=given["input_ids"],
        attention_mask=given["attention_mask"],
        max_new_tokens=longest,
        do_sample=False,
    )
    model.train(was_training)
    return said[:, given["input_ids"].shape[1] :]


class Samples(TrainerCallback):
    """At each evaluation, what the model says to the same few prompts.

    Attributes:
        table: rows with "step", "instruction", "input", "answer", and "right": True, False, or None where none can tell.
    """

    def __init__(self, tokenizer, rows: list[dict], log=None):
        self.tokenizer, self.rows, self.log, self.table = tokenizer, rows, log, []
        self.begun = None

    def on_train_begin(self, args, state, control, **_):
        self.begun = state.global_step  # not 0 where a checkpoint was loaded

    def on_evaluate(self, args, state, control, model, **_):
        new = [
            {
                "step": state.global_step,
                "instruction": row["instruction"],
                "input": row["input"],
                "answer": answer,
                "right": data.right(row, answer),
            }
            for row, answer in zip(
                self.rows, answers(model, self.tokenizer, self.rows), strict=True
            )
        ]
        self.table += new
        if self.log:
            self.log(new)


def settings(folder: str | Path, **change) -> SFTConfig:
    """What the chapter trains with, where nothing else is said."""
    ours = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 16,
        "max_steps": 400,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 20,
        "eval_strategy": "steps",
        "eval_steps": 50,
        "logging_steps": 10,
        "save_strategy": "no",
        "bf16": torch.cuda.is_available(),  # TRL's default is True, on a CPU too
        CHECKPOINTING: False,  # TRL's default is True
        "use_cpu": not torch.cuda.is_available(),
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": torch.cuda.is_available(),
    }
    if "gradient_checkpointing" in change:  # one of two names for one thing
        ours.pop(CHECKPOINTING)
    return SFTConfig(**ours | change)


def quiet() -> None:
    """No bars and no greetings: a page has no room for them."""
    noise.set_verbosity_error()
    noise.disable_progress_bar()
    disable_progress_bar()


def make_trainer(model, tokenizer, args: SFTConfig, train, held_out, **more):
    """TRL's trainer on rows of `data.rows`, without its printing."""
    trainer = SFTTrainer(
        model=model,
        args=args,
        train_dataset=pairs(train, bool(tokenizer.chat_template)),
        eval_dataset=pairs(held_out, bool(tokenizer.chat_template)),
        processing_class=tokenizer,
        **more,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def last_whole(folder: str | Path) -> str | None:
    """The newest checkpoint that was written to its end, or None.

    The trainer writes its own state last. What a kill of its one process left
    unfinished is passed over; `resume_from_checkpoint=True` would take it.
    """
    found = {
        int(p.parent.name.removeprefix("checkpoint-")): p.parent
        for p in Path(folder).glob("checkpoint-*/trainer_state.json")
        if re.fullmatch(r"checkpoint-\d+", p.parent.name) and _is_state(p)
    }
    return str(found[max(found)]) if found else None


def _is_state(path: Path) -> bool:
    try:
        return "global_step" in json.loads(path.read_text())
    except (ValueError, OSError, TypeError):
        return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--folder", required=True)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--batch", type=int, default=16, help="of each process")
    parser.add_argument(
        "--save", type=int, default=0, help="a checkpoint every so often"
    )
    options = parser.parse_args()
    quiet()
    torch.set_num_threads(
        max(1, torch.get_num_threads() // int(os.environ.get("WORLD_SIZE", 1)))
    )
    train, held_out = data.rows(6_000, TASKS), data.rows(60, TASKS, held_out=True)
    tokenizer = make_tokenizer([data.prompt(r) + r["output"] for r in train])
    args = settings(
        options.folder,
        max_steps=options.steps,
        per_device_train_batch_size=options.batch,
        **(
            {"save_strategy": "steps", "save_steps": options.save}
            if options.save
            else {}
        ),
    )
    samples = Samples(tokenizer, held_out)
    torch.manual_seed(0)
    model = make_model(tokenizer)
    trainer = make_trainer(model, tokenizer, args, train, held_out, callbacks=[samples])
    trainer.train(resume_from_checkpoint=last_whole(options.folder))
    if trainer.is_world_process_zero():
        done = {
            "log": trainer.state.log_history,
            "samples": samples.table,
            "processes": trainer.accelerator.num_processes,
            "begun": samples.begun,
        }
        Path(options.folder, "done.json").write_text(json.dumps(done))


if __name__ == "__main__":
    main()
