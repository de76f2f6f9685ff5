"""The ladder of scaling laws: models of six sizes, each trained on five lengths of Wikipedia, each from its own start.

    PYTHONPATH=. python benchmarks/scaling.py --jobs 2

Every cell begins with the learning rates of `RATES` and goes on by factors of two, up or down, until the one that is best on
stretches of held-out text that measure nothing else stands between two worse ones; that one is kept. Then the smaller models
again, from two more seeds, at the rate that was kept: how much is chance. A run that was cut off goes on where it stopped.
Through `joblib`: under `joblib.parallel_config("dask")` or `("ray")` the same trainings run on a cluster.
"""

import json

from joblib import Parallel, delayed
from provenance import arguments, provenance, told

from mlbook.coding import scaling

TOKENS = (250_000, 500_000, 1_000_000, 2_000_000, 4_000_000)
RATES = {  # · 10⁻³: for each size, at each length; lower ones for larger models and longer trainings
    "11k": 5 * [(16, 32)],
    "35k": [(16, 32), (16, 32), (8, 16), (8, 16), (8, 16)],
    "96k": [(8, 16), (8, 16), (8, 16), (4, 8), (4, 8)],
    "218k": [(4, 8), (4, 8), (4, 8), (4, 8), (2, 4)],
    "468k": [(4, 8), (4, 8), (2, 4), (2, 4), (2, 4, 8)],
    "1m": [(2, 4), (2, 4), (2, 4), (1, 2), (2, 4)],
}
SEEDS = {"11k": 5, "35k": 5, "96k": 3, "218k": 3}  # how many lengths again


def beyond(rows):
    """Of each size and length whose best rate is the least or the greatest tried, the training at the next one."""
    more = []
    for (size, tokens), kept in scaling.best(rows).items():
        tried = {r["lr"] for r in rows if (r["size"], r["tokens"]) == (size, tokens)}
        if kept["lr"] == min(tried):
            more.append((size, tokens, kept["lr"] / 2, 0))
        elif kept["lr"] == max(tried):
            more.append((size, tokens, kept["lr"] * 2, 0))
    return more


def main():
    parser = arguments(__doc__, minutes=240)
    parser.add_argument("--jobs", type=int, default=2, help="trainings at once")
    options = parser.parse_args()
    pool = Parallel(options.jobs, return_as="generator_unordered")
    record = provenance("joblib")

    path = options.out / "scaling-cpu.json"
    rows = json.loads(path.read_text()) if path.exists() else {}
    keys = "size", "tokens", "lr", "seed"
    there = {
        tuple(r[k] for k in keys): r
        for p in ("ladder", "seeds")
        for r in rows.get(p, [])
    }

    def trainings(cells):
        """Those that an earlier run left in the file, and then the others, the longest first."""
        yield from (there[c] for c in cells if c in there)
        left = [c for c in cells if c not in there]
        left.sort(key=lambda c: -list(scaling.SIZES).index(c[0]) * c[1])
        yield from pool(delayed(scaling.train)(*c) for c in left)

    def ladder():
        rows = []
        cells = [
            (size, tokens, rate / 1000, 0)
            for size, rates in RATES.items()
            for tokens, some in zip(TOKENS, rates, strict=True)
            for rate in some
        ]
        while cells:
            for row in trainings(cells):
                rows.append(row)
                yield row
            cells = beyond(rows)

    def seeds():
        kept = scaling.best(record["ladder"])
        yield from trainings(
            [
                (size, tokens, kept[size, tokens]["lr"], seed)
                for size, many in SEEDS.items()
                for tokens in TOKENS[:many]
                for seed in (1, 2)
            ]
        )

    parts = {"ladder": (0.8, ladder), "seeds": (1.0, seeds)}
    told(parts, record, path, options.minutes)


if __name__ == "__main__":
    main()
