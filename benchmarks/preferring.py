"""Ways to use preferences, on the words of `mlbook.preferences.words`: what each makes of the same number of labels.

    PYTHONPATH=. python benchmarks/preferring.py --jobs 2

Every method has twelve settings. The one with the best mean objective on two seeds that count for nothing else is kept, and
measured on five others; rewards and divergences are exact. Then what goes wrong, what the network can do at all, and the
same comparison for each β of a sweep, with four settings. A run that was cut off goes on where it stopped. Through `joblib`:
under `joblib.parallel_config("dask")` or `("ray")` the same trainings run on a cluster.
"""

import functools
import importlib
import itertools
import json

import torch
from joblib import Parallel, delayed
from provenance import arguments, provenance, told

from mlbook.preferences import exact, methods, pairs, words

BETA = 0.3
LABELS = (1024, 4096, 16384)
BETAS = (2.0, 1.0, 0.5, 0.3, 0.2, 0.1)
TUNING, SEEDS = (100, 101), (0, 1, 2, 3, 4)
LOW, HIGH = (2e-4, 5e-4, 1e-3, 2e-3), (5e-4, 1e-3, 2e-3, 4e-3)
# Of each method: learning rates, and two numbers of its own. RSO's reward model has, at every number of labels, the setting
# that is best at the largest, where a policy is tilted by it without training ("tilt").
SETTINGS = {
    "offline": [(lr, epochs, 0) for lr in LOW for epochs in (1, 2, 4)],
    "online": [(lr, epochs, 16) for lr in LOW for epochs in (1, 2, 4)],
    "rso": [(lr, at, 4) for lr in LOW for at in (0.3, 1.0, 3.0)],
    "tilt": [(lr, epochs, 0) for lr in HIGH for epochs in (1, 2, 4)],
    "cringe": list(itertools.product(LOW[:3], (0, 5), (1, 5))),
    "iterative cringe": list(itertools.product(LOW[:3], (0, 5), (1, 5))),
}
SWEEP = {
    "offline": [(lr, epochs, 0) for lr in (5e-4, 2e-3) for epochs in (1, 4)],
    "online": [(lr, epochs, 16) for lr in (5e-4, 2e-3) for epochs in (1, 4)],
}


@functools.cache
def task():
    """The reference, its table, and the reward: once for each process."""
    torch.set_num_threads(1)
    reference = words.reference()
    table = words.table(reference)
    return reference, table, words.vowels().expand(len(table), -1)


def train(method, labels, beta, setting, seed):
    """One policy, and how good it is."""
    reference, ref, reward = task()
    lr, second, third = setting
    generator = torch.Generator().manual_seed(seed)
    if method == "online":
        policy = methods.online(
            reference, reward, labels, third, beta, lr, second, seed
        )
    elif method == "iterative cringe":
        policy = methods.online(
            *(reference, reward, labels, 16, beta, lr, 1, seed, "cringe"),
            margin=second,
            temperature=third,
        )
    else:
        data = pairs.draw(ref, reward, labels, generator)
        if method == "offline":
            policy = methods.offline(reference, data, beta, lr, second, seed)
        elif method == "cringe":
            policy = methods.offline(
                *(reference, data, beta, lr, 1, seed, "cringe"),
                margin=second,
                temperature=third,
            )
        elif method == "rso":
            scorer = methods.reward_model(reference, data, 2e-3, 4, seed)
            made = methods.rejection_sampled(
                scorer, ref, second, third * labels, generator
            )
            policy = methods.offline(reference, made, beta, lr, 1, seed)
        elif method == "tilt":
            scorer = methods.reward_model(reference, data, lr, second, seed)
    if method == "tilt":
        found = exact.optimal_policy(ref, methods.scores(scorer), beta)
    else:
        found = words.table(policy)
    return {
        "method": method,
        "labels": labels,
        "beta": beta,
        "setting": list(setting),
        "seed": seed,
    } | judged(found, beta)


def judged(policy, beta=BETA):
    """How good a policy is, exactly."""
    _, ref, reward = task()
    return {
        "objective": exact.objective(policy, ref, reward, beta).mean().item(),
        "reward": (policy.exp() * reward).sum(1).mean().item(),
        "kl": exact.kl(policy, ref).mean().item(),
        "length": (policy.exp() * words.lengths()).sum(1).mean().item(),
    }


def fail(kind, setting, seed):
    """What goes wrong, or is mended: how long answers become, and what happens to the likelihood of those in the pairs.

    "fair" labels count vowels, "biased" ones half a point more for each letter, which "explained" takes out again; "overdone"
    is "fair" with twice the passes at four times the rate.
    """
    reference, ref, reward = task()
    lr, epochs, _ = setting
    extra = 0.5 * words.lengths().double()
    truth = reward + extra if kind in ("biased", "explained") else reward
    data = pairs.draw(ref, truth, LABELS[-1], torch.Generator().manual_seed(seed))
    if kind == "overdone":
        lr, epochs = 4 * lr, 2 * epochs
    how = {"bonus": extra} if kind == "explained" else {}
    policy = methods.offline(reference, data, BETA, lr, epochs, seed, **how)
    found, best = words.table(policy), exact.optimal_policy(ref, truth, BETA)
    prompts, chosen, rejected = data.T
    seen = torch.zeros(ref.shape, dtype=torch.bool)
    seen[prompts, chosen] = seen[prompts, rejected] = True
    row = {"kind": kind, "setting": [lr, epochs, 0], "seed": seed}
    for name, p in (("", found), ("optimum_", best)):
        values = judged(p) | {
            "chosen": (p - ref)[prompts, chosen].mean().item(),
            "rejected": (p - ref)[prompts, rejected].mean().item(),
            "unseen": 1 - (p.exp() * seen).sum(1).mean().item(),
        }
        row |= {name + key: value for key, value in values.items()}
    return row


def enough(kind, labels, lr, seed):
    """What the network can do at all: "preferences", DPO with more labels than anybody has; "samples", the likelihood of as
    many answers of the exact optimum itself; "noise-free", DPO with the chances of both labels in place of one."""
    reference, ref, reward = task()
    generator = torch.Generator().manual_seed(seed)
    best = exact.optimal_policy(ref, reward, BETA)
    epochs, how = 1, {}
    if (
        kind == "noise-free"
    ):  # the pairs of `train`, in its best setting, and endless labels for each
        data, loss, epochs = pairs.draw(ref, reward, labels, generator), "dpo", 4
        how = {"chances": reward}
    elif kind == "preferences":
        data, loss = pairs.draw(ref, reward, labels, generator), "dpo"
    else:  # answers as they come: the better of two would come from another policy
        prompts = torch.randint(len(best), (labels,), generator=generator)
        one = pairs.answers(best, prompts, 1, generator)
        data, loss = torch.column_stack((prompts, one, one)), "likelihood"
    policy = methods.offline(reference, data, BETA, lr, epochs, seed, loss, **how)
    row = {"kind": kind, "labels": labels, "lr": lr, "seed": seed}
    return row | judged(words.table(policy))


def main():
    parser = arguments(__doc__, minutes=240)
    parser.add_argument("--jobs", type=int, default=2, help="trainings at once")
    options = parser.parse_args()
    # By its name, so that the workers keep what `task` has cached.
    module = importlib.import_module("preferring")
    pool = Parallel(options.jobs, return_as="generator_unordered")
    record = provenance("joblib")
    _, ref, reward = task()
    for name, policy in (
        ("reference", ref),
        ("optimum", exact.optimal_policy(ref, reward, BETA)),
    ):
        record[name] = judged(policy)
    path = options.out / "preferring-cpu.json"
    rows = json.loads(path.read_text()) if path.exists() else {}

    def key(row):
        rest = (row[k] for k in ("method", "labels", "beta"))
        return (*rest, tuple(row["setting"]), row["seed"])

    there = {key(r): r for part in ("methods", "sweep") for r in rows.get(part, [])}

    def trained(cells):
        yield from (there[c] for c in cells if c in there)
        yield from pool(delayed(module.train)(*c) for c in cells if c not in there)

    def tuned(groups):
        """Each (method, labels, beta) with its settings: all on the seeds for tuning, the best of them on the others."""
        cells = [
            (*group, setting, seed)
            for group, settings in groups.items()
            for setting in settings
            for seed in TUNING
        ]
        sums: dict = {}
        for row in trained(cells):
            group = row["method"], row["labels"], row["beta"]
            of = sums.setdefault(group, {})
            setting = tuple(row["setting"])
            of[setting] = of.get(setting, 0) + row["objective"]
            yield row
        best = {group: max(of, key=of.get) for group, of in sums.items()}
        yield from trained([(*g, best[g], seed) for g in groups for seed in SEEDS])

    groups = {(m, n, BETA): s for n in LABELS for m, s in SETTINGS.items()}
    sweep = {(m, LABELS[-1], beta): s for beta in BETAS for m, s in SWEEP.items()}

    def limits():
        cells = [
            (kind, labels, lr, seed)
            for kind in ("preferences", "samples")
            for labels in (65_536, 262_144)
            for lr in (5e-4, 1e-3)
            for seed in SEEDS[:3]
        ] + [("noise-free", LABELS[-1], 5e-4, seed) for seed in SEEDS[:3]]
        yield from pool(delayed(module.enough)(*c) for c in cells)

    def failures():
        first = "offline", LABELS[-1], BETA
        setting = next(
            r["setting"]
            for r in record["methods"]
            if (r["method"], r["labels"], r["beta"]) == first and r["seed"] == SEEDS[0]
        )
        kinds = "fair", "biased", "explained", "overdone"
        cells = itertools.product(kinds, [setting], SEEDS)
        yield from pool(delayed(module.fail)(*c) for c in cells)

    parts = {
        "methods": (0.7, lambda: tuned(groups)),
        "failures": (0.75, failures),
        "limits": (0.85, limits),
        "sweep": (1, lambda: tuned(sweep)),
    }
    told(parts, record, path, options.minutes)


if __name__ == "__main__":
    main()
