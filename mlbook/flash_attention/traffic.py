"""What attention moves between slow and fast memory: a machine that counts, the
algorithms on it, and the formulas.

The machine (`Chip`) has `sram` elements of fast memory and as much slow memory as one
likes. The algorithms run on NumPy arrays and give right answers; every element they
read or write on the way is counted. n is the length, d the head dimension, one head.
All counts are in elements; multiply by the bytes of one to get bytes.
"""

import numpy as np

LEAST = 16  # rows in a block at the least: what the matrix units take at once


class Chip:
    """A processor with `sram` elements of fast memory, which counts what it loads and
    stores. What an algorithm keeps there at once it declares itself (`hold`)."""

    def __init__(self, sram: int):
        self.sram, self.loads, self.stores = sram, 0, 0

    def hold(self, elements: int) -> None:
        """Declare how much is held at once.

        Raises:
            MemoryError: it does not fit.
        """
        if elements > self.sram:
            raise MemoryError(
                f"{elements:,} elements do not fit a fast memory of {self.sram:,}"
            )

    def load(self, block: np.ndarray) -> np.ndarray:
        self.loads += block.size
        return block.copy()

    def store(self, where: np.ndarray, block: np.ndarray | float) -> None:
        self.stores += where.size
        where[...] = block

    @property
    def total(self) -> int:
        return self.loads + self.stores


def blocks(n: int, size: int) -> list[slice]:
    """0 … n in stretches of `size`, the last one shorter."""
    return [slice(i, min(i + size, n)) for i in range(0, n, size)]


def matmul(chip: Chip, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a @ b in the cheaper of two orders, the other factor streamed past what is held.

    Either a tile of the result is held while columns of a and rows of b pass by, or a
    panel of whole rows of a is held while columns of b pass by.
    """
    held, (rows, columns) = matmul_tile(*a.shape, b.shape[1], chip.sram)
    out = np.empty((a.shape[0], b.shape[1]))
    for r in blocks(a.shape[0], rows):
        if held == "a":
            chip.hold(rows * a.shape[1] + a.shape[1] + rows)
            chip.store(out[r], chip.load(a[r]) @ chip.load(b))
        else:
            chip.hold(rows * columns + rows + columns)
            for c in blocks(b.shape[1], columns):
                chip.store(out[r, c], chip.load(a[r]) @ chip.load(b[:, c]))
    return out


def matmul_tile(m: int, k: int, n: int, sram: int) -> tuple[str, tuple[int, int]]:
    """What to hold for an (m, k) by (k, n) product, "a" or "out", and its (rows,
    columns)."""
    options = []
    rows = (sram - k) // (k + 1)
    if rows >= 1:
        options.append((matmul_count(m, k, n, "a", rows, n), "a", (min(rows, m), n)))
    widths = {min(n, int((sram + 1) ** 0.5) - 1), n} | {-(-n // i) for i in range(1, 9)}
    for columns in widths:
        rows = (sram - columns) // (columns + 1)
        if rows >= 1:
            count = matmul_count(m, k, n, "out", min(rows, m), columns)
            options.append((count, "out", (min(rows, m), columns)))
    return min(options)[1:]


def matmul_count(m: int, k: int, n: int, held: str, rows: int, columns: int) -> int:
    """Elements that `matmul` moves."""
    down, across = -(-m // rows), 1 if held == "a" else -(-n // columns)
    return m * k * across + k * n * down + m * n


def standard_forward(chip, q, k, v):
    """S = q kᵀ, P = softmax(S), O = P v, one after the other; returns O and P, which
    the backward pass needs."""
    s = matmul(chip, q, k.T)
    p = np.empty_like(s)
    chip.hold(2 * len(k))
    for i in range(len(s)):  # a row fits: it is read once, whatever the passes over it
        row = chip.load(s[i])
        row = np.exp(row - row.max())
        chip.store(p[i], row / row.sum())
    return matmul(chip, p, v), p


def flash_forward_2022(chip, q, k, v):
    """Algorithm 1 of Dao et al. 2022: keys outside, queries inside; O, m and l travel
    for every block of keys."""
    (n, d), size_q, size_k = q.shape, LEAST, _most(chip.sram, q.shape[1], "2022")
    chip.hold(_held("2022", size_q, size_k, d))
    o, m, l = np.empty((n, d)), np.empty(n), np.empty(n)
    chip.store(o, 0), chip.store(m, -np.inf), chip.store(l, 0)
    for c in blocks(n, size_k):
        kc, vc = chip.load(k[c]), chip.load(v[c])
        for r in blocks(n, size_q):
            s = chip.load(q[r]) @ kc.T
            o_r, m_r, l_r = chip.load(o[r]), chip.load(m[r]), chip.load(l[r])
            m_new = np.maximum(m_r, s.max(1))
            p, old = np.exp(s - m_new[:, None]), np.exp(m_r - m_new)
            l_new = old * l_r + p.sum(1)
            o_new = ((old * l_r)[:, None] * o_r + p @ vc) / l_new[:, None]
            chip.store(o[r], o_new), chip.store(m[r], m_new), chip.store(l[r], l_new)
    return o, m + np.log(l)


def two_pass_forward(chip, q, k, v):
    """Online softmax, then the output: no matrix is stored, and the scores are computed
    twice."""
    (n, d), size_q, size_k = q.shape, _most(chip.sram, q.shape[1], "forward"), LEAST
    chip.hold(_held("forward", size_q, size_k, d))
    o, lse = np.empty((n, d)), np.empty(n)
    for r in blocks(n, size_q):
        qr = chip.load(q[r])
        m, l, acc = np.full(len(qr), -np.inf), np.zeros(len(qr)), np.zeros_like(qr)
        for c in blocks(n, size_k):
            s = qr @ chip.load(k[c]).T
            m_new = np.maximum(m, s.max(1))
            l = np.exp(m - m_new) * l + np.exp(s - m_new[:, None]).sum(1)
            m = m_new
        for c in blocks(n, size_k):
            p = np.exp(qr @ chip.load(k[c]).T - m[:, None]) / l[:, None]
            acc += p @ chip.load(v[c])
        chip.store(o[r], acc), chip.store(lse[r], m + np.log(l))
    return o, lse


def flash_forward(chip, q, k, v):
    """Algorithm 1 of Dao 2023, that of our kernel: queries outside, keys inside; O is
    written once."""
    (n, d), size_q, size_k = q.shape, _most(chip.sram, q.shape[1], "forward"), LEAST
    chip.hold(_held("forward", size_q, size_k, d))
    o, lse = np.empty((n, d)), np.empty(n)
    for r in blocks(n, size_q):
        qr = chip.load(q[r])
        m, l, acc = np.full(len(qr), -np.inf), np.zeros(len(qr)), np.zeros_like(qr)
        for c in blocks(n, size_k):
            s = qr @ chip.load(k[c]).T
            m_new = np.maximum(m, s.max(1))
            p, old = np.exp(s - m_new[:, None]), np.exp(m - m_new)
            l, acc = old * l + p.sum(1), old[:, None] * acc + p @ chip.load(v[c])
            m = m_new
        chip.store(o[r], acc / l[:, None]), chip.store(lse[r], m + np.log(l))
    return o, lse


def standard_backward(chip, q, k, v, do, p):
    """dV = Pᵀ dO, dP = dO Vᵀ, dS from P and dP, dQ = dS k, dK = dSᵀ q, one after the
    other."""
    dv = matmul(chip, p.T, do)
    dp = matmul(chip, do, v.T)
    ds = np.empty_like(p)
    chip.hold(3 * len(k))
    for i in range(len(p)):
        p_row, dp_row = chip.load(p[i]), chip.load(dp[i])
        chip.store(ds[i], p_row * (dp_row - p_row @ dp_row))
    return matmul(chip, ds, k), matmul(chip, ds.T, q), dv


def flash_backward(chip, q, k, v, do, o, lse):
    """Our three kernels: row dots, then dK and dV by blocks of keys, then dQ by blocks
    of queries."""
    n, d = q.shape
    delta, dq, dk, dv = (
        np.empty(n),
        np.empty((n, d)),
        np.empty((n, d)),
        np.empty((n, d)),
    )
    for r in blocks(n, LEAST):
        chip.hold(2 * LEAST * d)
        chip.store(delta[r], (chip.load(o[r]) * chip.load(do[r])).sum(1))

    size_k = _most(chip.sram, d, "dk_dv")
    chip.hold(_held("dk_dv", LEAST, size_k, d))
    for c in blocks(n, size_k):
        kc, vc = chip.load(k[c]), chip.load(v[c])
        dkc, dvc = np.zeros_like(kc), np.zeros_like(vc)
        for r in blocks(n, LEAST):
            qr, dor = chip.load(q[r]), chip.load(do[r])
            p = np.exp(qr @ kc.T - chip.load(lse[r])[:, None])
            ds = p * (dor @ vc.T - chip.load(delta[r])[:, None])
            dkc, dvc = dkc + ds.T @ qr, dvc + p.T @ dor
        chip.store(dk[c], dkc), chip.store(dv[c], dvc)

    size_q = _most(chip.sram, d, "dq")
    chip.hold(_held("dq", size_q, LEAST, d))
    for r in blocks(n, size_q):
        qr, dor, dqr = (
            chip.load(q[r]),
            chip.load(do[r]),
            np.zeros((r.stop - r.start, d)),
        )
        lse_r, delta_r = chip.load(lse[r])[:, None], chip.load(delta[r])[:, None]
        for c in blocks(n, LEAST):
            kc, vc = chip.load(k[c]), chip.load(v[c])
            p = np.exp(qr @ kc.T - lse_r)
            dqr = dqr + p * (dor @ vc.T - delta_r) @ kc
        chip.store(dq[r], dqr)
    return dq, dk, dv


def _held(algorithm: str, size_q: int, size_k: int, d: int) -> int:
    """Elements in fast memory at once: blocks with d columns, (size_q, size_k)
    matrices, vectors of size_q."""
    of_q, of_k, square, vectors = {
        "2022": (2, 2, 1, 4),  # q, o; k, v; s; m and l, old and new
        "forward": (2, 2, 1, 2),  # q, o; k, v; s; m, l
        "dk_dv": (2, 4, 2, 2),  # q, do; k, v, dk, dv; p, dp; lse, delta
        "dq": (3, 2, 2, 2),  # q, do, dq; k, v; p, dp; lse, delta
    }[algorithm]
    return (
        (of_q * size_q + of_k * size_k) * d
        + square * size_q * size_k
        + vectors * size_q
    )


def _most(sram: int, d: int, algorithm: str) -> int:
    """The most rows of the outer loop's blocks that fit, with LEAST rows of the inner
    loop's.

    Raises:
        MemoryError: not even LEAST fit.
    """
    by_query = algorithm in ("forward", "dq")

    def size(rows):
        return _held(algorithm, *((rows, LEAST) if by_query else (LEAST, rows)), d)

    each = size(2) - size(1)
    rows = (sram - (size(1) - each)) // each
    if rows < LEAST:
        raise MemoryError(
            f"blocks of {LEAST} rows and head dimension {d} need {size(LEAST):,} elements, there are {sram:,}"
        )
    return rows


ALGORITHMS = ("standard", "two-pass", "flash-2022", "flash")
BOTH_WAYS = ("standard", "flash")  # those with a backward pass


def io_count(
    algorithm: str, n: int, d: int, sram: int, backward: bool = False
) -> tuple[int, int]:
    """Run an algorithm on the counting machine, on random numbers.

    Args:
        algorithm: "standard" or "flash", or, forward only, "two-pass" or "flash-2022".
        n, d: length and head dimension; sram: elements of fast memory.
        backward: count the backward pass (the forward pass is run, and not counted).
    Returns:
        elements loaded, elements stored.
    Raises:
        ValueError: no such algorithm, or sizes below 1.
        MemoryError: the blocks do not fit.
    """
    _check(algorithm, n, d, sram, backward)
    q, k, v, do = np.random.default_rng(0).standard_normal((4, n, d)) / d**0.25
    chip = Chip(sram)
    run = {
        "standard": standard_forward,
        "two-pass": two_pass_forward,
        "flash-2022": flash_forward_2022,
        "flash": flash_forward,
    }[algorithm]
    o, kept = run(chip, q, k, v)
    if backward:
        chip = Chip(sram)
        if algorithm == "standard":
            standard_backward(chip, q, k, v, do, kept)
        else:
            flash_backward(chip, q, k, v, do, o, kept)
    return chip.loads, chip.stores


def io_formula(
    algorithm: str, n: int, d: int, sram: int, backward: bool = False
) -> int:
    """The same total in closed form; arguments and errors as `io_count`."""
    _check(algorithm, n, d, sram, backward)

    def product(a, b, c):
        held, (rows, columns) = matmul_tile(a, b, c, sram)
        return matmul_count(a, b, c, held, rows, columns)

    def times(kind):
        return -(-n // _most(sram, d, kind))

    if algorithm == "standard":
        if not backward:
            return product(n, d, n) + 2 * n * n + product(n, n, d)
        return 3 * product(n, n, d) + product(n, d, n) + 3 * n * n
    if algorithm == "flash-2022":
        return 2 * n * d + (n * d + 2 * n) + times("2022") * (3 * n * d + 4 * n)
    if not backward:
        streams = 3 if algorithm == "two-pass" else 2  # k, k and v; k and v
        return 2 * n * d + n + times("forward") * streams * n * d
    dots = 2 * n * d + n
    dk_dv = 4 * n * d + times("dk_dv") * (2 * n * d + 2 * n)
    dq = 3 * n * d + 2 * n + times("dq") * 2 * n * d
    return dots + dk_dv + dq


def _check(algorithm, n, d, sram, backward):
    known = BOTH_WAYS if backward else ALGORITHMS
    if algorithm not in known:
        way = "backward" if backward else "forward"
        raise ValueError(
            f"algorithm must be one of {', '.join(known)} ({way}), got {algorithm!r}"
        )
    for name, value in (("n", n), ("d", d), ("sram", sram)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    needed = (3 if backward else 2) * n
    if algorithm == "standard" and sram < needed:
        raise MemoryError(
            f"a row of the matrix must fit: {needed:,} elements, there are {sram:,}"
        )
