import os

os.environ["MLBOOK_SCALE"] = (
    "smoke"  # before mlbook is asked; the tests of scales set it themselves
)
