"""DPO on a pretrained model: SmolLM2-135M is taught, by adapters of low rank, to answer in plain words.

    PYTHONPATH=. python benchmarks/preferring_smollm.py

Questions about the subjects of Wikipedia's pages; six answers of the model's own to each; preferences of the Bradley–Terry
model whose reward is less, the longer the words are (said openly: a program prefers, not a person). Some dozens of steps, then
new answers to questions about subjects that were held out, before and after.
"""

import itertools
import json
import re
import time

import torch
from provenance import arguments, provenance, write

from mlbook.common import corpora, smollm
from mlbook.preferences.losses import dpo_loss, sequence_logps

SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
QUESTION = "Who or what is {}? Answer in two sentences."
START, STOP = 1, 2
SCALE = 4.0  # of the reward, for each letter of mean length
BETA, LR, BATCH, LONGEST = 0.1, 2e-4, 8, 48
EACH = 6  # answers to each question, which makes fifteen pairs: enough for every pair to be seen once
# Of policy and reference alike: at 1 so small a model often writes nonsense.
TEMPERATURE = 0.7


def subjects(pages: bytes) -> list[str]:
    """Titles of pages that are no redirects and read as English."""
    found = re.findall(
        rb"<title>([^<]*)</title>(.*?)</page>", pages + b"</page>", re.DOTALL
    )
    titles = [
        t.decode() for t, body in found if b"#redirect" not in body.lower()[:3000]
    ]
    return [t for t in titles if re.fullmatch(r"[A-Z][a-zA-Z .,'-]{2,40}", t)]


def prompt(tokenizer, subject: str) -> list[int]:
    """The chat template of SmolLM2, up to where the assistant begins."""
    turns = (("system", SYSTEM), ("user", QUESTION.format(subject)))
    ids = []
    for who, text in turns:
        ids += [START, *tokenizer.encode(f"{who}\n{text}").ids, STOP]
        ids += tokenizer.encode("\n").ids
    return [*ids, START, *tokenizer.encode("assistant\n").ids]


def reward(text: str) -> float:
    """Plain words: minus the mean number of letters a word. What an answer lacks to eight words counts as words of six letters,
    so that saying nothing does not pay."""
    found = re.findall(r"[A-Za-z]+", text)
    lacking = max(0, 8 - len(found))
    return -SCALE * (sum(map(len, found)) + 6 * lacking) / (len(found) + lacking)


@torch.no_grad()
def answers(model, tokenizer, prompts, each, seed):
    """`each` samples for every prompt: token lists (STOP included where it came) by prompt."""
    torch.manual_seed(seed)
    rows = [p for p in prompts for _ in range(each)]
    found = []
    for some in _batched(rows, 32):
        longest = max(map(len, some))
        ids = torch.tensor([[STOP] * (longest - len(p)) + p for p in some])
        mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in some])
        out = model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=LONGEST,
            do_sample=True,
            top_k=0,
            top_p=1.0,
            temperature=TEMPERATURE,
            pad_token_id=STOP,
            eos_token_id=STOP,
        )[:, longest:]
        for row in out.tolist():
            found.append(row[: row.index(STOP) + 1] if STOP in row else row)
    return [found[i * each : (i + 1) * each] for i in range(len(prompts))]


def text(tokenizer, answer: list[int]) -> str:
    """Without the end token, whose letters would count as words."""
    return tokenizer.decode([t for t in answer if t != STOP])


def _batched(rows, n):
    return (rows[i : i + n] for i in range(0, len(rows), n))


def logps(model, prompts, completions):
    """log π of completions, after their prompts: padded at the right."""
    rows = [p + c for p, c in zip(prompts, completions, strict=True)]
    length = max(map(len, rows))
    ids = torch.tensor([r + [STOP] * (length - len(r)) for r in rows])
    mask = torch.zeros_like(ids)
    for i, (p, r) in enumerate(zip(prompts, rows, strict=True)):
        mask[i, len(p) : len(r)] = 1
    attend = torch.arange(length) < torch.tensor(list(map(len, rows)))[:, None]
    logits = model(input_ids=ids, attention_mask=attend.long()).logits
    return sequence_logps(logits / TEMPERATURE, ids, mask)


def main():
    parser = arguments(__doc__, minutes=120)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    from peft import LoraConfig, get_peft_model

    start = time.monotonic()
    base, tokenizer = smollm.load()
    train_pages, test_pages = corpora.wikipedia()
    train, test = subjects(train_pages), subjects(test_pages)
    if len(test) < 24:  # every eighth page is held out: take some more
        train, test = train[len(train) // 4 :], test + train[: len(train) // 4]
    record = provenance("transformers", "peft") | {
        "subjects": {"train": train, "test": test},
        "beta": BETA,
        "lr": LR,
        "batch": BATCH,
        "scale": SCALE,
        "temperature": TEMPERATURE,
        "steps": [],
    }

    def ask(some):
        return [prompt(tokenizer, s) for s in some]

    g = torch.Generator().manual_seed(options.seed)

    def paired(subjects, found):
        rows = []
        for p, four in zip(ask(subjects), found, strict=True):
            scores = [reward(text(tokenizer, a)) for a in four]
            for i, j in itertools.combinations(range(len(four)), 2):
                chance = torch.sigmoid(torch.tensor(scores[i] - scores[j]))
                if torch.rand((), generator=g) > chance:
                    i, j = j, i
                rows.append((p, four[i], four[j]))
        return rows

    drawn = answers(base, tokenizer, ask(train), EACH, options.seed)
    pairs = paired(train, drawn)
    held = answers(base, tokenizer, ask(test), 4, options.seed + 1)
    held_pairs = paired(test, held)
    record["pairs"], record["held_out_pairs"] = len(pairs), len(held_pairs)
    spread = torch.tensor([reward(text(tokenizer, a)) for four in drawn for a in four])
    record["reward_sd"] = spread.std().item()
    print(
        "sampled", time.monotonic() - start, len(pairs), record["reward_sd"], flush=True
    )

    model = get_peft_model(
        base.requires_grad_(False),
        LoraConfig(
            r=8,
            lora_alpha=16,
            target_modules=[
                "q_proj",
                "k_proj",
                "v_proj",
                "o_proj",
                "gate_proj",
                "up_proj",
                "down_proj",
            ],
        ),
    )
    record["trained"] = sum(p.numel() for p in model.parameters() if p.requires_grad)
    record["parameters"] = model.num_parameters() - record["trained"]

    def both(batch, adapted=True):
        prompts, chosen, rejected = zip(*batch, strict=True)
        args = prompts * 2, chosen + rejected
        if adapted:
            return logps(model, *args).chunk(2)
        with torch.no_grad(), model.disable_adapter():
            return logps(model, *args).chunk(2)

    def accuracy(rows):
        margins = []
        with torch.no_grad():
            for some in _batched(rows, 16):
                policy, ref = both(some), both(some, adapted=False)
                margin = (policy[0] - ref[0]) - (policy[1] - ref[1])
                margins += margin.tolist()
        return {"right": sum(m > 0 for m in margins), "pairs": len(rows)}

    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad])
    order = torch.randperm(len(pairs), generator=g).tolist()
    options.steps = min(options.steps, len(pairs) // BATCH)
    order = order[: options.steps * BATCH]
    for step, some in enumerate(_batched(order, BATCH)):
        batch = [pairs[i] for i in some]
        ref = both(batch, adapted=False)
        policy = both(batch)
        each, better, worse = dpo_loss(*policy, *ref, BETA)
        optimizer.param_groups[0]["lr"] = (
            LR * min(1, (step + 1) / 5) * (1 - step / options.steps)
        )
        optimizer.zero_grad()
        each.mean().backward()
        optimizer.step()
        row = {
            "loss": each.mean().item(),
            "chosen": (policy[0] - ref[0]).mean().item(),
            "rejected": (policy[1] - ref[1]).mean().item(),
            "right": (better > worse).double().mean().item(),
        }
        record["steps"].append(row)
        print(
            step,
            {k: round(v, 3) for k, v in row.items()},
            round(time.monotonic() - start),
            flush=True,
        )
    model.eval()
    record["accuracy"] = accuracy(held_pairs)
    after = answers(model, tokenizer, ask(test), 4, options.seed + 2)
    with model.disable_adapter():
        before = answers(model, tokenizer, ask(test), 4, options.seed + 2)
    record["answers"] = [
        {
            "subject": s,
            "before": [text(tokenizer, a) for a in b],
            "after": [text(tokenizer, a) for a in c],
            "cut_before": sum(STOP not in a for a in b),
            "cut_after": sum(STOP not in a for a in c),
            "reward_before": [reward(text(tokenizer, a)) for a in b],
            "reward_after": [reward(text(tokenizer, a)) for a in c],
        }
        for s, b, c in zip(test, before, after, strict=True)
    ]
    with torch.no_grad():
        flat = [(p, a) for p, four in zip(ask(test), after, strict=True) for a in four]
        ratios = []
        for some in _batched(flat, 16):
            prompts, done = map(list, zip(*some, strict=True))
            policy = logps(model, prompts, done)
            with model.disable_adapter():
                ratios += (policy - logps(model, prompts, done)).tolist()
    record["log_ratios"] = ratios
    record["seconds"] = round(time.monotonic() - start)
    write(options.out / f"preferring-smollm-{options.seed}-cpu.json", record)
    print(json.dumps({k: record[k] for k in ("accuracy", "seconds")}))


if __name__ == "__main__":
    main()
