"""Several short texts in one row of a batch: which go together, and what may attend to what."""

from bisect import bisect_left, insort

import torch
from torch import Tensor

from mlbook.common.checks import check_count


def best_fit(lengths: list[int], size: int) -> list[list[int]]:
    """Texts by falling length, each into the fullest row that has room for it.

    Args:
        lengths: in tokens, of at least one; longer ones than `size` are cut to it, and the rest is lost, as in TRL.
        size: of a row, in tokens.
    Returns:
        for each row the indices of its texts. At most 11/9 of the best packing's rows, and four (Johnson et al. 1974).
    Raises:
        ValueError: a length or `size` below one.
    """
    check_count("size", size)
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []  # of every row: tokens left, its index
    lengths = [check_count("a length", n) for n in lengths]
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        length = min(lengths[i], size)
        place = bisect_left(room, (length, -1))
        left, row = room.pop(place) if place < len(room) else (size, len(rows))
        if row == len(rows):
            rows.append([])
        rows[row].append(i)
        insort(room, (left - length, row))
    return rows


def wrapped(lengths: list[int], size: int) -> list[list[tuple[int, int, int]]]:
    """All texts end to end, cut every `size` tokens: for each row its pieces (text, first token, one past the last).

    Raises:
        ValueError: a length or `size` below one.
    """
    size = check_count("size", size)
    rows, left = [], 0
    for i, length in enumerate(lengths):
        start, length = 0, check_count("a length", length)
        while start < length:
            if not left:
                rows.append([])
                left = size
            stop = min(length, start + left)
            rows[-1].append((i, start, stop))
            start, left = stop, left - (stop - start)
    return rows


def positions(lengths: list[int]) -> Tensor:
    """Positions of the texts that a row holds, each counted from 0: (sum of lengths,), integers."""
    return torch.cat([torch.arange(check_count("a length", n)) for n in lengths])


def attends(lengths: list[int], apart: bool = True) -> Tensor:
    """Which token (row) may look at which (column): (n, n), True where it may; never forwards, nor, if kept `apart`, into
    another text of the same row."""
    text = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    earlier = torch.ones(len(text), len(text), dtype=torch.bool).tril()
    return earlier & (text[:, None] == text) if apart else earlier


def padding(lengths: list[int], batch: int) -> float:
    """Share of a batch's cells that hold padding, if `batch` texts in the given order are filled up to their longest.

    Raises:
        ValueError: no length, or one, or `batch`, below one.
    """
    check_count("batch", batch)
    lengths = [check_count("a length", n) for n in lengths]
    groups = [lengths[i : i + batch] for i in range(0, len(lengths), batch)]
    check_count("number of texts", len(lengths))
    return 1 - sum(lengths) / sum(len(g) * max(g) for g in groups)
