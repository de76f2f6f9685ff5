"""The ladder of scaling laws: models of six sizes, each trained on five lengths of Wikipedia, each from its own start.

    PYTHONPATH=. python benchmarks/scaling.py --jobs 2

Every training takes the learning rates of `rates`; the one that is best on stretches of held-out text that measure nothing
else is kept. Then the smaller models again, from two more seeds, at the rate that was kept: how much is chance. Through
`joblib`: under `joblib.parallel_config("dask")` or `("ray")` the same trainings run on a cluster.
"""

from joblib import Parallel, delayed
from provenance import arguments, provenance, told

from mlbook.coding import scaling

TOKENS = (250_000, 500_000, 1_000_000, 2_000_000, 4_000_000)
REPEATED = ("11k", "35k", "96k", "218k")


def rates(size: str, tokens: int) -> tuple[float, ...]:
    """Small models train best at high rates, long trainings and large models at low ones."""
    if size in ("11k", "35k"):
        return (4e-3, 8e-3, 16e-3)
    low = (
        (2e-3,)
        if size in ("468k", "1m") or (size, tokens >= 2e6) == ("218k", 1)
        else ()
    )
    high = () if size == "1m" and tokens >= 1e6 else (8e-3,)
    return (*low, 4e-3, *high)


def main():
    parser = arguments(__doc__, minutes=240)
    parser.add_argument("--jobs", type=int, default=2, help="trainings at once")
    options = parser.parse_args()
    pool = Parallel(options.jobs, return_as="generator_unordered")
    record = provenance("joblib") | {"rates": "benchmarks/scaling.py: rates"}

    def ladder():
        cells = [
            (size, tokens, rate)
            for size in scaling.SIZES
            for tokens in TOKENS
            for rate in rates(size, tokens)
        ]

        def cost(cell):  # the longest first
            return -list(scaling.SIZES).index(cell[0]) * cell[1]

        yield from pool(delayed(scaling.train)(*c) for c in sorted(cells, key=cost))

    def seeds():
        kept = scaling.best(record["ladder"])
        yield from pool(
            delayed(scaling.train)(size, tokens, kept[size, tokens]["lr"], seed)
            for size in REPEATED
            for tokens in TOKENS
            for seed in (1, 2)
        )

    path = options.out / "scaling-cpu.json"
    parts = {"ladder": (0.8, ladder), "seeds": (1.0, seeds)}
    told(parts, record, path, options.minutes)


if __name__ == "__main__":
    main()
