import os

os.environ["MLBOOK_SCALE"] = (
    "smoke"  # before mlbook is asked; the tests of scales set it themselves
)
# The kernels' tests are in the interpreter, where there is a GPU too: benchmarks/attention.py
# checks them compiled.
os.environ.setdefault("TRITON_INTERPRET", "1")
