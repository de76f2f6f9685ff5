import os

from book.builder import threads

os.environ["MLBOOK_SCALE"] = (
    "smoke"  # before mlbook is asked; the tests of scales set it themselves
)
# The kernels' tests are in the interpreter, where there is a GPU too: benchmarks/attention.py
# checks them compiled.
os.environ.setdefault("TRITON_INTERPRET", "1")
# Before torch is imported; the notebooks' kernels inherit it. Processes of pytest-xdist share the cores.
os.environ |= threads.settings(
    threads.share(int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1)))
)


def pytest_addoption(parser):
    parser.addoption(
        "--pages",
        default="smoke",
        choices=["smoke", "cpu", "gpu", "ci"],
        help="which pages are opened in a browser: the book at a scale, built if it is not there yet, or what CI built",
    )
    parser.addoption(
        "--keep-compiled",
        action="store_true",
        help="write to tests/compiled what kernels compile to, where that is stale",
    )
