"""What the chapter on training with Hugging Face's libraries shows as recorded: kills, processes, seeds, a pretrained model.

    PYTHONPATH=. python benchmarks/finetuning.py [--parts kills processes seeds start smollm]

kills: a training that SIGKILL ends, between two steps and at five files of a save, then resumed. processes: one process
and two, at one global batch. seeds: the chapter's live training, five times. start: three
sizes of initial weights with five learning rates each. smollm: SmolLM2 learns the tasks by adapters of low rank.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from provenance import arguments, provenance, write

from mlbook.hf_training import data, run

NAME = "finetuning-cpu"
STEPS, SAVE, VICTIM = 60, 20, 40  # which save is struck
SMOLLM_TASKS = ("first", "last", "comma", "letter")
# Dies in the save at step VICTIM, when half of the file that it is told is written.
STRUCK = f"""
import os, signal, sys
from pathlib import Path
import torch
from mlbook.hf_training import run
import transformers.modeling_utils
from transformers.trainer_callback import TrainerState

name = sys.argv.pop(1)

def strike(owner, function):
    original = getattr(owner, function)
    def write(*args, **kwargs):
        original(*args, **kwargs)
        path = Path(str(args[1]))
        if path.name == name and path.parent.name == "checkpoint-{VICTIM}":
            path.write_bytes(path.read_bytes()[:path.stat().st_size // 2])
            os.kill(os.getpid(), signal.SIGKILL)
    setattr(owner, function, write)

strike(torch, "save")
strike(transformers.modeling_utils, "safe_save_file")
strike(TrainerState, "save_to_json")
run.main()
"""
ACCELERATE = """compute_environment: LOCAL_MACHINE
distributed_type: MULTI_GPU
use_cpu: true
num_machines: 1
num_processes: 2
mixed_precision: "no"
"""
FILES = (
    "model.safetensors",
    "optimizer.pt",
    "scheduler.pt",
    "rng_state.pth",
    "trainer_state.json",
)


def program(*more: str) -> list[str]:
    return [sys.executable, "-m", "mlbook.hf_training.run", *more]


def called(command: list[str], **environment: str) -> int:
    """The exit status; what the command prints goes nowhere, unless it fails in a way that nobody asked for."""
    done = subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True
    )
    if done.returncode not in (0, -signal.SIGKILL):
        raise SystemExit(f"{command}: {done.returncode}\n{done.stderr[-3000:]}")
    return done.returncode


def log(folder: Path) -> list[dict]:
    """The losses and norms that a finished training logged, by step."""
    rows = json.loads((folder / "done.json").read_text())["log"]
    return [
        {k: row[k] for k in ("step", "loss", "grad_norm")}
        for row in rows
        if "loss" in row
    ]


def apart(one: list[dict], other: list[dict]) -> float:
    """The largest difference of two curves of losses, step by step."""
    assert [r["step"] for r in one] == [r["step"] for r in other]
    return max(abs(a["loss"] - b["loss"]) for a, b in zip(one, other, strict=True))


def kills() -> dict:
    """Every moment at which the kill came, what it left, and how far the resumed curve is from the whole one."""
    found = {"steps": STEPS, "save": SAVE, "victim": VICTIM, "moments": []}
    sizes = ("--steps", str(STEPS), "--save", str(SAVE))
    with tempfile.TemporaryDirectory() as parent:
        whole = Path(parent, "whole")
        called(program("--folder", str(whole), *sizes))
        found["whole"] = log(whole)
        for name in (None, *FILES):
            folder = Path(parent, str(name))
            if name:
                command = [sys.executable, "-c", STRUCK, name]
                assert called([*command, "--folder", str(folder), *sizes]) < 0
            else:
                _between_steps(folder, sizes)
            newest = folder / f"checkpoint-{VICTIM}"
            moment = {"file": name, "left": sorted(p.name for p in newest.iterdir())}
            moment["from"] = int(run.last_whole(folder).split("-")[-1])
            moment["library"] = _resumed_by_name(folder, sizes)
            called(program("--folder", str(folder), *sizes))
            moment["curve"] = log(folder)
            done = json.loads((folder / "done.json").read_text())
            moment["begun"] = done["begun"]
            moment["apart"] = apart(found["whole"], moment["curve"])
            found["moments"].append(moment)
            print(name, moment["from"], moment["library"], moment["apart"], flush=True)
    return found


def _between_steps(folder: Path, sizes) -> None:
    process = subprocess.Popen(
        program("--folder", str(folder), *sizes), stderr=subprocess.DEVNULL
    )
    while not (folder / f"checkpoint-{VICTIM}/trainer_state.json").exists():
        time.sleep(0.01)
    time.sleep(0.5)  # some steps into the next twenty
    process.kill()
    assert process.wait() == -signal.SIGKILL and not (folder / "done.json").exists()


def _resumed_by_name(folder: Path, sizes) -> str:
    """What `resume_from_checkpoint=True` makes of the folder: "resumes", or the error's name."""
    code = (
        "from mlbook.hf_training import run\n"
        "run.last_whole = lambda folder: True\nrun.main()"
    )
    with tempfile.TemporaryDirectory() as copy:
        subprocess.run(["cp", "-r", str(folder), copy], check=True)
        done = subprocess.run(
            [sys.executable, "-c", code, "--folder", f"{copy}/{folder.name}", *sizes],
            capture_output=True,
            text=True,
        )
        if not done.returncode:
            return f"resumes, {apart(log(Path(copy, folder.name)), log(folder.parent / 'whole')):g} apart"
        return done.stderr.strip().splitlines()[-1].split(":")[0]


def processes() -> dict:
    """The same sixteen rows a step by one process and by two; and what a command that reads as if it started two does.

    Sharing the model out is not among them: accelerate does so on GPUs only.
    """
    found = {}
    with tempfile.TemporaryDirectory() as parent:
        two = Path(parent, "two.yaml")
        two.write_text(ACCELERATE)
        launch = [str(Path(sys.executable).with_name("accelerate")), "launch"]
        module = ["-m", "mlbook.hf_training.run", "--steps", str(STEPS)]
        for name, start, batch in (
            ("one", [sys.executable], 16),
            ("two", [*launch, "--config_file", str(two)], 8),
            ("--cpu --num_processes 2", [*launch, "--cpu", "--num_processes", "2"], 8),
        ):
            folder = Path(parent, name)
            command = [*start, *module, "--batch", str(batch), "--folder", str(folder)]
            called(command, OMP_NUM_THREADS="1")
            done = json.loads((folder / "done.json").read_text())
            found[name] = {"log": log(folder), "processes": done["processes"]}
            found[name]["apart"] = apart(found["one"]["log"], found[name]["log"])
            print(name, found[name]["processes"], found[name]["apart"], flush=True)
    return found


def trained(seed: int = 0, init: float | None = None, **change) -> dict:
    """The chapter's live training: losses by step, and how many of 300 held-out rows it answers rightly, by task."""
    train = data.rows(6_000, run.TASKS)
    held_out = data.rows(300, run.TASKS, held_out=True)
    tokenizer = run.make_tokenizer([data.prompt(r) + r["output"] for r in train])
    torch.manual_seed(seed)
    model = run.make_model(tokenizer)
    if init:
        model.config.initializer_range = init
        torch.manual_seed(seed)
        model = type(model)(model.config)
    with tempfile.TemporaryDirectory() as folder:
        args = run.settings(folder, seed=seed, eval_steps=100, **change)
        trainer = run.make_trainer(model, tokenizer, args, train, held_out)
        trainer.train()
    answers = run.answers(trainer.model, tokenizer, held_out)
    losses = [r["eval_loss"] for r in trainer.state.log_history if "eval_loss" in r]
    return {"eval_loss": losses[-1], "right": right(held_out, answers)}


def right(rows: list[dict], answers: list[str]) -> dict[str, list[int]]:
    """For each task how many answers are right, and of how many."""
    found: dict[str, list[int]] = {}
    for row, answer in zip(rows, answers, strict=True):
        score = found.setdefault(row["task"], [0, 0])
        score[0] += bool(data.right(row, answer))
        score[1] += 1
    return found


def seeds() -> list[dict]:
    return [trained(seed) | {"seed": seed} for seed in range(5)]


def start() -> list[dict]:
    found = []
    for init in (0.02, 0.06, 0.18):
        for lr in (3e-4, 1e-3, 3e-3, 1e-2, 3e-2):
            found.append(
                trained(init=init, learning_rate=lr) | {"init": init, "lr": lr}
            )
            print(init, lr, found[-1], flush=True)
    return found


def smollm(steps: int = 100) -> dict:
    """SmolLM2 with adapters of rank 8 on every matrix of every layer, 8 rows a step."""
    from peft import LoraConfig

    train = data.rows(8 * steps, SMOLLM_TASKS)
    held_out = data.rows(80, SMOLLM_TASKS, held_out=True)
    model, tokenizer = run.pretrained()
    found = {"steps": steps, "batch": 8, "tasks": SMOLLM_TASKS, "answers": []}

    def ask(when: int) -> None:
        said = []
        for i in range(0, len(held_out), 16):
            said += run.answers(model, tokenizer, held_out[i : i + 16], longest=24)
        for row, answer in zip(held_out, said, strict=True):
            told = {"step": when, "answer": answer, "right": data.right(row, answer)}
            found["answers"].append(row | told)
        print(when, right(held_out, said), flush=True)

    ask(0)
    with tempfile.TemporaryDirectory() as folder:
        args = run.settings(
            folder,
            max_steps=steps,
            per_device_train_batch_size=8,
            learning_rate=1e-3,
            warmup_steps=5,
            eval_strategy="no",
            logging_steps=1,
        )
        lora = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear")
        trainer = run.make_trainer(
            model, tokenizer, args, train, held_out, peft_config=lora
        )
        found["trained"] = trainer.model.num_parameters(only_trainable=True)
        found["parameters"] = trainer.model.num_parameters()
        begin = time.monotonic()
        trainer.train()
        found["seconds"] = round(time.monotonic() - begin)
    found["losses"] = [r["loss"] for r in trainer.state.log_history if "loss" in r]
    model = trainer.model
    ask(steps)
    return found


PARTS = {f.__name__: f for f in (kills, processes, seeds, start, smollm)}


def main() -> None:
    parser = arguments(__doc__, minutes=60)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    options = parser.parse_args()
    run.quiet()
    path = options.out / f"{NAME}.json"
    record = json.loads(path.read_text()) if path.exists() else {}
    for part in options.parts:
        begin = time.monotonic()
        found = PARTS[part]()
        about = provenance("transformers", "trl", "peft", "accelerate", "datasets")
        record |= about | {part: found}
        record.setdefault("seconds", {})[part] = round(time.monotonic() - begin)
        write(path, record)


if __name__ == "__main__":
    main()
