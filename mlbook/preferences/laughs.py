"""A decision process so small that it can be drawn: laughs of up to three syllables, each "ha" or "ho".

Seven beginnings are its states, and `ha`, `ho` and `end` what can be done in each; a laugh of three syllables is over. A
listener gives one point for every syllable and takes it back where it repeats the one before.
"""

import itertools

import torch
from torch import Tensor

SYLLABLES = ("ha", "ho")
END, LONGEST = len(SYLLABLES), 3
STATES = [
    s for n in range(LONGEST) for s in itertools.product(range(END), repeat=n)
]  # beginnings
RESPONSES = [
    s for n in range(LONGEST + 1) for s in itertools.product(range(END), repeat=n)
]
NAMES = ["".join(SYLLABLES[i] for i in laugh) or "(none)" for laugh in RESPONSES]


def reference() -> Tensor:
    """log π_ref(a|s) of somebody who likes to repeat himself: (7, 3)."""
    after = {None: (0.6, 0.2, 0.2), 0: (0.6, 0.1, 0.3), 1: (0.2, 0.5, 0.3)}
    rows = [after[s[-1] if s else None] for s in STATES]
    return torch.tensor(rows, dtype=torch.float64).log()


def token_reward() -> Tensor:
    """The listener's points for each syllable: (7, 3)."""
    rows = [[float(not s or a != s[-1]) for a in range(END)] + [0.0] for s in STATES]
    return torch.tensor(rows, dtype=torch.float64)


def transitions(slips: float = 0.0) -> Tensor:
    """P(s′|s, a): (7, 3, 7); rows of what ends the laugh are zero.

    Args:
        slips: the chance that the other syllable comes out.
    """
    P = torch.zeros(len(STATES), END + 1, len(STATES), dtype=torch.float64)
    for i, s in enumerate(STATES):
        for a, b in itertools.product(range(END), repeat=2):
            if (*s, b) in STATES:
                P[i, a, STATES.index((*s, b))] = 1 - slips if a == b else slips
    return P


def along(values: Tensor) -> Tensor:
    """The sum of `values` (7, 3) over the steps of each of the fifteen laughs: (15,)."""
    return torch.stack([sum(values[i, a] for i, a in steps(r)) for r in RESPONSES])


def steps(laugh: tuple[int, ...]) -> list[tuple[int, int]]:
    """(state, action) by (state, action), the end of a short one included."""
    actions = laugh if len(laugh) == LONGEST else (*laugh, END)
    return [(STATES.index(laugh[:t]), a) for t, a in enumerate(actions)]
