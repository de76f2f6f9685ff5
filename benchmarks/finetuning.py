"""What the chapter on training with Hugging Face's libraries shows as recorded: kills, processes, seeds, a pretrained model.

    PYTHONPATH=. python benchmarks/finetuning.py [--parts kills processes seeds start precision smollm ...]

kills: a training that SIGKILL ends, between two saves and at five files of a save, then resumed. processes: one process
and two, at one global batch. seeds: the chapter's live training, five times. start: three sizes of initial weights with five
learning rates each. precision: the live training in float32, in mixed precision and with weights in bfloat16; rounded: in
mixed precision with weights rounded after each step, to the nearest or by chance. smollm: SmolLM2 learns the tasks by
adapters of low rank; smollm_again: with two other seeds; few_shot: it learns nothing, and is shown four answers in each
prompt.
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


def done(folder: Path) -> dict:
    """What a finished training says of itself, and as "curve" the losses and norms that it logged, by step."""
    said = json.loads((folder / "done.json").read_text())
    keys = ("step", "loss", "grad_norm")
    curve = [{k: row[k] for k in keys} for row in said["log"] if "loss" in row]
    return said | {"curve": curve}


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
        found["whole"] = done(whole)["curve"]
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
            moment |= {k: done(folder)[k] for k in ("curve", "begun")}
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
        ran = subprocess.run(
            [sys.executable, "-c", code, "--folder", f"{copy}/{folder.name}", *sizes],
            capture_output=True,
            text=True,
        )
        if not ran.returncode:
            both = Path(copy, folder.name), folder.parent / "whole"
            return f"resumes, {apart(*(done(f)['curve'] for f in both)):g} apart"
        return ran.stderr.strip().splitlines()[-1].split(":")[0]


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
            ran = done(folder)
            found[name] = {"log": ran["curve"], "processes": ran["processes"]}
            found[name]["apart"] = apart(found["one"]["log"], found[name]["log"])
            print(name, found[name]["processes"], found[name]["apart"], flush=True)
    return found


def trained(
    seed: int = 0, init: float = 0.06, narrow: bool = False, also=(), **change
) -> dict:
    """The chapter's live training: its losses, and how many of 300 held-out rows it answers rightly, by task.

    `narrow`: the weights themselves are bfloat16. `also`: callbacks.
    """
    train = data.rows(6_000, run.TASKS)
    held_out = data.rows(300, run.TASKS, held_out=True)
    tokenizer = run.make_tokenizer([data.prompt(r) + r["output"] for r in train])
    torch.manual_seed(seed)
    model = run.make_model(tokenizer, init=init)
    if narrow:
        model = model.to(torch.bfloat16)
    with tempfile.TemporaryDirectory() as folder:
        args = run.settings(folder, seed=seed, eval_steps=100, **change)
        trainer = run.make_trainer(
            model, tokenizer, args, train, held_out, callbacks=list(also)
        )
        trainer.train()
    answers = run.answers(trainer.model, tokenizer, held_out)
    curve = {r["step"]: r["eval_loss"] for r in trainer.state.log_history if "eval_loss" in r}  # fmt: skip
    return {
        "curve": list(curve.items()),
        "eval_loss": list(curve.values())[-1],
        "right": right(held_out, answers),
    }


def judged(rows: list[dict], answers: list[str]) -> list[dict]:
    """The rows with what was answered, and whether it is right."""
    both = zip(rows, answers, strict=True)
    return [row | {"answer": a, "right": data.right(row, a)} for row, a in both]


def right(rows: list[dict], answers: list[str]) -> dict[str, list[int]]:
    """For each task how many answers are right, and of how many."""
    found: dict[str, list[int]] = {}
    for row in judged(rows, answers):
        score = found.setdefault(row["task"], [0, 0])
        score[0] += bool(row["right"])
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


class Still(run.TrainerCallback):
    """Which share of the weights a step leaves as they were, every `every` steps: the optimizer asked for a change, and
    rounding took it away."""

    def __init__(self, every: int):
        self.every, self.seen = every, []

    def on_pre_optimizer_step(self, args, state, control, model, **_):
        if (state.global_step + 1) % self.every == 0:
            self.before = [p.detach().clone() for p in model.parameters()]

    def on_step_end(self, args, state, control, model, **_):
        if state.global_step % self.every == 0:
            pairs = zip(model.parameters(), self.before, strict=True)
            same = sum((p == q).sum().item() for p, q in pairs)
            numbers = sum(p.numel() for p in model.parameters())
            self.seen.append((state.global_step, same / numbers))


class Rounded(run.TrainerCallback):
    """Rounds every weight to bfloat16 after each step; the optimizer's moments stay in float32.

    `by_chance`: up with the probability that keeps the mean, by way of noise in the 16 bits that are cut off.
    """

    def __init__(self, by_chance: bool = False):
        self.by_chance = by_chance

    def on_step_end(self, args, state, control, model, **_):
        with torch.no_grad():
            for p in model.parameters():
                if self.by_chance:
                    bits = p.view(torch.int32)
                    bits += torch.randint_like(bits, 2**16)
                    bits &= -(2**16)
                else:
                    p.copy_(p.to(torch.bfloat16))


PRECISIONS = {
    "float32": {"bf16": False},
    "mixed": {"bf16": True},
    "bfloat16": {"bf16": False, "narrow": True},
}


def rounded() -> list[dict]:
    """Mixed precision, of whose weights in float32 no more is kept from step to step than bfloat16 can say: the nearest, or
    one of the two neighbours by chance, so that no step is lost on average."""
    return precision(
        {
            "rounded": {"bf16": True, "also": [Rounded()]},
            "by chance": {"bf16": True, "also": [Rounded(by_chance=True)]},
        }
    )


def precision(kinds: dict = PRECISIONS) -> list[dict]:
    """The live training in each of these ways, for three seeds at each of three rates."""
    found = []
    for name, change in kinds.items():
        for lr in (3e-4, 1e-3, 3e-3):
            for seed in range(3):
                still, begin = Still(20), time.monotonic()
                watched = {"also": [*change.get("also", ()), still]}
                ran = trained(seed, learning_rate=lr, **change | watched)
                found.append(ran | {"kind": name, "lr": lr, "seed": seed})
                found[-1] |= {"still": still.seen, "seconds": time.monotonic() - begin}
                print(name, lr, seed, ran["eval_loss"], still.seen[-2:], flush=True)
    return found


def smollm_again() -> list[dict]:
    """The same with other seeds, of adapters and of the order of rows: how many answers are right at the end."""
    found = []
    for seed in (1, 2):
        ran = smollm(seed=seed)
        last = [a for a in ran["answers"] if a["step"] == ran["steps"]]
        found.append({"seed": seed, "right": right(last, [a["answer"] for a in last])})
    return found


def few_shot(shots: int = 4) -> dict:
    """SmolLM2 as it is, with `shots` questions of the same kind and their answers as earlier turns of the conversation."""
    train = data.rows(400, SMOLLM_TASKS)
    held_out = data.rows(80, SMOLLM_TASKS, held_out=True)
    model, tokenizer = run.pretrained()
    said = []
    for row in held_out:
        alike = [r for r in train if r["task"] == row["task"]][:shots]
        turns = [turn for r in alike for turn in data.messages(r)]
        text = tokenizer.apply_chat_template(
            turns + data.messages(row)[:1], add_generation_prompt=True, tokenize=False
        )
        new = run.continued(model, tokenizer, [text], longest=24)
        said += tokenizer.batch_decode(new, skip_special_tokens=True)
    score = right(held_out, said)
    print(score, flush=True)
    return {"shots": shots, "right": score, "answers": judged(held_out, said)}


def smollm(steps: int = 100, seed: int = 0) -> dict:
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
        found["answers"] += [a | {"step": when} for a in judged(held_out, said)]
        print(when, right(held_out, said), flush=True)

    ask(0)
    torch.manual_seed(seed)
    with tempfile.TemporaryDirectory() as folder:
        args = run.settings(
            folder,
            seed=seed,
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


PARTS = {
    part.__name__: part
    for part in (
        kills,
        processes,
        seeds,
        start,
        precision,
        rounded,
        smollm,
        smollm_again,
        few_shot,
    )
}


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
