"""`python install.py -r requirements.txt …`: pip install, with a line now and then in place of hundreds, or of none.

It runs before anything is installed, so it imports the standard library alone.
"""

import itertools
import re
import subprocess
import sys
import sysconfig
import threading
import time
from pathlib import Path

EVERY = 10.0  # seconds


def main(arguments: list[str], every: float = EVERY, say=print) -> int:
    """Run `pip install` with `arguments`; return its exit status, with all it printed where that is not 0.

    Args:
        every: seconds between two lines.
        say: takes a line.
    """
    lists = [
        Path(value) for option, value in itertools.pairwise(arguments) if option == "-r"
    ]
    wanted = sum(
        bool(re.match(r"\w", line))
        for path in lists
        for line in path.read_text().splitlines()
    )
    say(f"Installing {wanted} packages into {sys.prefix}")
    site = Path(sysconfig.get_path("purelib"))
    before = len(list(site.glob("*.dist-info")))
    start = time.monotonic()
    options = ["--disable-pip-version-check", "--progress-bar", "off"]
    pip = subprocess.Popen(
        [sys.executable, "-m", "pip", "install", *options, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    printed: list[str] = []
    done = threading.Event()

    def tell():
        while not done.wait(every):
            found = sum(line.startswith("Collecting ") for line in printed)
            there = len(list(site.glob("*.dist-info"))) - before
            say(
                f"  {time.monotonic() - start:.0f} s: {found} of {wanted} found, {there} installed"
            )

    teller = threading.Thread(target=tell, daemon=True)
    teller.start()
    for line in pip.stdout:
        printed.append(line)
    status = pip.wait()
    done.set()
    teller.join()
    if status:
        say("".join(printed))
    else:
        say(f"  installed in {time.monotonic() - start:.0f} s")
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], say=lambda line: print(line, flush=True)))
