"""Three questions that `preferring.py` leaves, on the same words: what could the differences between ways to use preferences be?

    PYTHONPATH=. python benchmarks/preferring_controls.py --jobs 2

rounds: pairs in sixteen rounds, as DPO on its own pairs has them, but of the reference: is it the rounds, or whose pairs they
are? noise-free: the chance of each label in place of the label, at other settings than that which is best for labels. more:
more labels than anybody has, at a smaller learning rate. All on the seeds that count, with nothing picked.
"""

import importlib

import torch
from joblib import Parallel, delayed
from preferring import BETA, LABELS, SEEDS
from provenance import arguments, provenance, told

import mlbook
from mlbook.preferences import methods, pairs, words


def train(part, labels, setting, seed):
    """One policy, and how good it is."""
    preferring = importlib.import_module("preferring")
    reference, ref, reward = preferring.task()
    lr, epochs, rounds = setting
    if part == "rounds":
        how = {"seed": seed, "own": False}
        policy = methods.online(
            *(reference, reward, labels, rounds, BETA, lr, epochs), **how
        )
    else:
        data = pairs.draw(ref, reward, labels, torch.Generator().manual_seed(seed))
        how = {"chances": reward} if part == "noise-free" else {}
        policy = methods.offline(reference, data, BETA, lr, epochs, seed, **how)
    row = {"labels": labels, "setting": list(setting), "seed": seed}
    return row | preferring.judged(words.table(policy))


def main():
    parser = arguments(__doc__, minutes=60)
    parser.add_argument("--jobs", type=int, default=2, help="trainings at once")
    options = parser.parse_args()
    module = importlib.import_module("preferring_controls")
    pool = Parallel(options.jobs, return_as="generator_unordered")
    measured = mlbook.recorded("preferring")["preferring-cpu"]["methods"]

    def picked(labels):
        """The setting that was best for DPO on its own pairs."""
        return next(
            tuple(r["setting"])
            for r in measured
            if (r["method"], r["labels"], r["seed"]) == ("online", labels, SEEDS[0])
        )

    cells = {
        "rounds": [(n, picked(n), seed) for n in LABELS for seed in SEEDS],
        "noise-free": [
            (LABELS[-1], setting, seed)
            for setting in ((2e-4, 4, 0), (1e-3, 4, 0), (5e-4, 8, 0))
            for seed in SEEDS[:3]
        ],
        "more": [
            (n, (2e-4, 1, 0), seed) for n in (65_536, 262_144) for seed in SEEDS[:3]
        ],
    }
    parts = {
        part: (
            1,
            lambda part=part: pool(
                delayed(module.train)(part, *c) for c in cells[part]
            ),
        )
        for part in cells
    }
    told(
        parts,
        provenance("joblib"),
        options.out / "preferring-controls-cpu.json",
        options.minutes,
    )


if __name__ == "__main__":
    main()
