import os

os.environ["MLBOOK_SCALE"] = (
    "smoke"  # before mlbook is asked; the tests of scales set it themselves
)
# The kernels' tests are in the interpreter, where there is a GPU too: benchmarks/attention.py
# checks them compiled.
os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_addoption(parser):
    parser.addoption(
        "--pages",
        default="smoke",
        choices=["smoke", "cpu", "gpu"],
        help="the scale of the book whose pages are opened in a browser; it is built if it is not there yet",
    )
