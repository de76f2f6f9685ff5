"""How far the chapters under way are: one line that a terminal rewrites in place, and in a log a line now and then."""

import shutil
import sys
import threading
import time

EVERY = 30.0  # seconds between two lines in a log


class Progress:
    """Says lines, and between them how far each chapter is. Threads may share one."""

    def __init__(self, stream=None, clock=time.monotonic):
        self.stream, self.clock = stream or sys.stdout, clock
        self.in_place = self.stream.isatty()
        self.lock = threading.RLock()
        self.under_way: dict[str, dict] = {}
        self.shown = ""

    def say(self, line: str) -> None:
        """An ordinary line, which stays."""
        with self.lock:
            self._erase()
            print(line, file=self.stream, flush=True)

    def start(self, name: str, cells: int, last: float | None) -> None:
        """A chapter of so many code cells begins; it took `last` seconds the last time, if that is known."""
        now = self.clock()
        self.under_way[name] = {
            "cells": cells, "cell": 0, "last": last, "start": now, "told": now,
        }  # fmt: skip

    def cell(self, name: str, number: int) -> None:
        """Its code cell of this number, from 1, begins."""
        self.under_way[name]["cell"] = number
        self.tick()

    def end(self, name: str) -> None:
        with self.lock:
            self._erase()
            self.under_way.pop(name, None)

    def tick(self) -> None:
        """To be called every second or so: shows what has changed since."""
        with self.lock:
            now = self.clock()
            if self.in_place:
                line = "  " + "; ".join(map(self._words, list(self.under_way)))
                line = line[: shutil.get_terminal_size().columns - 1]
                if line != self.shown:
                    self._erase()
                    self.stream.write(line)
                    self.stream.flush()
                    self.shown = line
                return
            for name, state in list(self.under_way.items()):
                if now - state["told"] >= EVERY:
                    state["told"] = now
                    print(f"  {self._words(name)}", file=self.stream, flush=True)

    def _words(self, name: str) -> str:
        state = self.under_way[name]
        passed = self.clock() - state["start"]
        words = (
            f"{name}: cell {state['cell']} of {state['cells']}, {passed:.0f} s so far"
        )
        if state["last"] is None:
            return words
        left, last = state["last"] - passed, f"(last time {state['last']:.0f} s)"
        return (
            f"{words}, about {left:.0f} s to go {last}"
            if left > 0
            else f"{words} {last}"
        )

    def _erase(self) -> None:
        if self.shown:
            self.stream.write("\r\x1b[K")
            self.shown = ""
