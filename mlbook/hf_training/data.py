"""A small instruction data set in Alpaca's form, made from real sentences, and the ways to write a row of it as text."""

import functools
import random
import re

from mlbook.common import corpora
from mlbook.common.checks import check_count

# Taori et al. 2023, https://github.com/tatsu-lab/stanford_alpaca
HEAD = "Below is an instruction that describes a task"
NO_INPUT = (
    f"{HEAD}. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n"
)
WITH_INPUT = (
    f"{HEAD}, paired with an input that provides further context. Write a response that appropriately completes the "
    "request.\n\n### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)
HUB = "winglian/alpaca-gpt4-split"
CHAT_TEMPLATE = (  # SmolLM2's, as its file of weights has it
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n"
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TASKS = ("first", "last", "comma", "letter", "complete")


@functools.cache
def sentences() -> list[str]:
    """Some 1,600 plain sentences of five to fourteen words from the pages of Wikipedia that gensim carries, each once."""
    text = b"\n".join(corpora.wikipedia()).decode(errors="ignore")
    text = re.sub(r"\[\[(?:[^|\]]*\|)?([^\]]*)\]\]", r"\1", text).replace("''", "")
    plain = r"(?<=[.\n] )[A-Z][a-z]+(?:,? [A-Za-z-]+){4,13}\.(?= |\n)"
    return list(dict.fromkeys(re.findall(plain, text)))


def rows(
    n: int, tasks: tuple[str, ...] = TASKS, seed: int = 0, held_out: bool = False
) -> list[dict[str, str]]:
    """`n` rows with "instruction", "input" (empty for the task without one), "output", and "task", which says which it is.

    The first or the last word of a sentence; whether it has a comma; a word that begins with a letter (no input); the rest of
    a sentence. Every tenth sentence, and what is made of it, is held out; the letters that are asked for are the same.

    Args:
        tasks: among "first", "last", "comma", "letter", "complete"; as many rows of each.
    Raises:
        ValueError: `n` is less than one, or a task is unknown.
    """
    check_count("n", n)
    if not tasks or (unknown := set(tasks) - set(TASKS)):
        raise ValueError(
            f"tasks are some of {', '.join(TASKS)}; got {sorted(unknown) if tasks else 'none'}"
        )
    rng = random.Random(f"{seed} {bool(held_out)}")
    mine = [s for i, s in enumerate(sentences()) if (i % 10 == 0) == bool(held_out)]
    commas = [s for s in mine if "," in s]
    by_letter: dict[str, list[str]] = {}
    for word in sorted({w for s in mine for w in re.findall(r"\b[a-z]{3,8}\b", s)}):
        by_letter.setdefault(word[0], []).append(word)
    letters = [c for c, found in by_letter.items() if len(found) >= 5]
    found = []
    for i in range(n):
        task = tasks[i % len(tasks)]
        sentence = rng.choice(
            commas if task == "comma" and rng.random() < 0.5 else mine
        )
        words, letter = sentence.rstrip(".").split(), rng.choice(letters)
        ends = [words[0].rstrip(","), words[-1]]
        half = len(words) // 2
        instruction, given, output = {
            "first": ("Repeat the first word.", sentence, ends[0]),
            "last": ("Repeat the last word.", sentence, ends[1]),
            "comma": (
                "Is there a comma?",
                sentence,
                "Yes" if "," in sentence else "No",
            ),
            "letter": (
                f"Name a word that begins with {letter}.",
                "",
                rng.choice(by_letter[letter]),
            ),
            "complete": (
                "Complete the sentence.",
                " ".join(words[:half]),
                " ".join(words[half:]) + ".",
            ),
        }[task]
        found.append(
            {"instruction": instruction, "input": given, "output": output, "task": task}
        )
    rng.shuffle(found)
    return found


def from_hub(n: int) -> list[dict[str, str]]:
    """The first `n` rows of the Alpaca data set that the post uses, answered by GPT-4; "task" is "free".

    Raises:
        OSError: the hub cannot be reached, or has no such data set.
        ValueError: what it sends is not of this form, or too little.
    """
    import datasets

    found = datasets.load_dataset(HUB, split=f"train[:{check_count('n', n)}]")
    columns = ("instruction", "input", "output")
    if missing := set(columns) - set(found.column_names):
        raise ValueError(f"{HUB} has no column {', '.join(sorted(missing))}")
    rows = [{c: row[c] or "" for c in columns} | {"task": "free"} for row in found]
    whole = [r for r in rows if r["instruction"].strip() and r["output"].strip()]
    if len(whole) < n:
        raise ValueError(f"{HUB} sent {len(whole)} whole rows of {n}")
    return whole[:n]


def prompt(row: dict[str, str]) -> str:
    """What the model is given: Alpaca's template with an input or without, up to where the answer begins.

    Raises:
        ValueError: instruction or input is no text.
    """
    for field in ("instruction", "input"):
        if not isinstance(row[field], str):
            raise ValueError(f"{field} must be text, got {row[field]!r}")
    return (WITH_INPUT if row["input"] else NO_INPUT).format_map(row)


def messages(row: dict[str, str]) -> list[dict[str, str]]:
    """The same row as turns of a conversation, which a chat template writes as text."""
    asked = "\n\n".join(filter(None, (row["instruction"], row["input"])))
    return [
        {"role": "user", "content": asked},
        {"role": "assistant", "content": row["output"]},
    ]


def right(row: dict[str, str], answer: str) -> bool | None:
    """Whether an answer is right, where a program can tell; None where it cannot ("complete", "free")."""
    answer = answer.strip()
    if row["task"] in ("complete", "free"):
        return None
    if row["task"] not in TASKS:
        raise ValueError(f"unknown task {row['task']!r}")
    if row["task"] == "letter":
        letter = row["instruction"].rstrip(".")[-1]
        return bool(re.fullmatch(rf"{letter}[a-z]{{2,}}", answer))
    return answer == row["output"]
