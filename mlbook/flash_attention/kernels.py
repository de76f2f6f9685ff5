"""FlashAttention's kernels in Triton: one source for the interpreter and for every GPU.

Scores are kept in base 2 (`scale_log2` = scale · log₂ e), since a GPU has an
instruction for 2ˣ. What lies outside of a tensor is read as zero and never written.
With TMA (Hopper and later) the card's copy engine sees to that: the caller makes it
descriptors of all four dimensions. Without, pointers and masks do.
"""

from mlbook.common.launch import tl, triton

# fmt: off


@triton.jit
def barest(q, k, v, o, n, scale_log2, M: tl.constexpr, N: tl.constexpr,
           DIM: tl.constexpr):
    """FlashAttention without what a library needs: one head of (n, DIM) rows, DIM a
    power of two, n a multiple of M and N, no mask. One program: M rows of o."""
    rows = tl.program_id(0) * M + tl.arange(0, M)
    columns = tl.arange(0, DIM)
    q_block = tl.load(q + rows[:, None] * DIM + columns[None, :])
    m = tl.full([M], float("-inf"), tl.float32)
    l = tl.zeros([M], tl.float32)
    acc = tl.zeros([M, DIM], tl.float32)
    for start in range(0, n, N):
        keys = start + tl.arange(0, N)
        k_block = tl.load(k + keys[:, None] * DIM + columns[None, :])
        v_block = tl.load(v + keys[:, None] * DIM + columns[None, :])
        s = tl.dot(q_block, k_block.T, input_precision="ieee") * scale_log2
        m_new = tl.maximum(m, tl.max(s, 1))
        p = tl.exp2(s - m_new[:, None])
        old = tl.exp2(m - m_new)
        l = l * old + tl.sum(p, 1)
        acc = tl.dot(p.to(v_block.dtype), v_block, acc * old[:, None],
                     input_precision="ieee")
        m = m_new
    tl.store(o + rows[:, None] * DIM + columns[None, :],
             (acc / l[:, None]).to(o.dtype.element_ty))


@triton.jit
def _head(x, strides, batch, head, n,
          ROWS: tl.constexpr, DIM: tl.constexpr, WIDTH: tl.constexpr,
          TMA: tl.constexpr):
    """The (n, DIM) rows of one head, to be read and written ROWS at a time: a
    descriptor, or pointer, n, stride and DIM."""
    if TMA:
        return x
    else:
        base = x + batch.to(tl.int64) * strides[0] + head.to(tl.int64) * strides[1]
        return base, n, strides[2], DIM


@triton.jit
def _places(rows, start, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """Pointers to rows start … start + ROWS, and which of them are in the tensor."""
    row = start + tl.arange(0, ROWS)
    column = tl.arange(0, WIDTH)
    at = rows[0] + row.to(tl.int64)[:, None] * rows[2] + column[None, :]
    return at, (row < rows[1])[:, None] & (column < rows[3])[None, :]


@triton.jit
def _load(rows, batch, head, start,
          ROWS: tl.constexpr, WIDTH: tl.constexpr, TMA: tl.constexpr):
    """Rows start … start + ROWS of a head; zeros past its end and beyond head_dim."""
    if TMA:
        return rows.load([batch, head, start, 0]).reshape(ROWS, WIDTH)
    else:
        at, inside = _places(rows, start, ROWS, WIDTH)
        return tl.load(at, mask=inside, other=0.0)


@triton.jit
def _store(rows, batch, head, start, x,
           ROWS: tl.constexpr, WIDTH: tl.constexpr, TMA: tl.constexpr):
    if TMA:
        rows.store([batch, head, start, 0], x.to(rows.dtype).reshape(1, 1, ROWS, WIDTH))
    else:
        at, inside = _places(rows, start, ROWS, WIDTH)
        tl.store(at, x.to(rows[0].dtype.element_ty), mask=inside)


@triton.jit
def _visible(start, rows, n_k, shift, CAUSAL: tl.constexpr, N: tl.constexpr):
    """Which of the keys start … start + N each of the rows may see."""
    columns = start + tl.arange(0, N)
    seen = (columns < n_k)[None, :]
    if CAUSAL:
        seen = seen & (columns[None, :] <= rows[:, None] + shift)
    return seen


@triton.jit
def _attend(acc, m, l, q, k, v, batch, head, first, last, rows, n_k, shift, scale_log2,
            CAUSAL: tl.constexpr, MASKED: tl.constexpr, N: tl.constexpr,
            WIDTH: tl.constexpr, TMA: tl.constexpr):
    """Go on from the state (m, l, acc) over the keys first … last."""
    for start in tl.range(first, last, N):
        k_block = _load(k, batch, head, start, N, WIDTH, TMA)
        s = tl.dot(q, k_block.T, input_precision="ieee")
        if MASKED:
            s = tl.where(_visible(start, rows, n_k, shift, CAUSAL, N), s, float("-inf"))
        m_new = tl.maximum(m, tl.max(s, 1) * scale_log2)
        base = m_new
        if MASKED:  # a row that has seen nothing: −∞ − (−∞) would be NaN
            base = tl.where(m_new == float("-inf"), 0.0, m_new)
        p = tl.exp2(s * scale_log2 - base[:, None])
        old = tl.exp2(m - base)
        l = l * old + tl.sum(p, 1)
        acc = acc * old[:, None]
        v_block = _load(v, batch, head, start, N, WIDTH, TMA)
        acc = tl.dot(p.to(v_block.dtype), v_block, acc, input_precision="ieee")
        m = m_new
    return acc, m, l


@triton.jit
def forward(q, k, v, o, q_strides, k_strides, v_strides, o_strides, lse, n_q, n_k,
            heads, group, scale_log2, CAUSAL: tl.constexpr, M: tl.constexpr,
            N: tl.constexpr, DIM: tl.constexpr, WIDTH: tl.constexpr,
            TMA: tl.constexpr):
    """One program: M rows of the output of one head, and their log-sum-exp in base
    2."""
    blocks = tl.cdiv(n_q, M)
    block = tl.program_id(0) % blocks
    if CAUSAL:  # the longest first, so that those that finish last are short
        block = blocks - 1 - block
    vector = tl.program_id(0) // blocks
    batch, head = vector // heads, vector % heads
    kv_head = head // group
    start = block * M
    rows = start + tl.arange(0, M)
    shift = n_k - n_q  # query i may see the keys up to i + shift
    q = _head(q, q_strides, batch, head, n_q, M, DIM, WIDTH, TMA)
    k = _head(k, k_strides, batch, kv_head, n_k, N, DIM, WIDTH, TMA)
    v = _head(v, v_strides, batch, kv_head, n_k, N, DIM, WIDTH, TMA)
    o = _head(o, o_strides, batch, head, n_q, M, DIM, WIDTH, TMA)

    end = n_k
    free = n_k // N * N  # the keys before this one need no mask
    if CAUSAL:
        end = tl.maximum(tl.minimum(n_k, start + M + shift), 0)
        free = tl.maximum(tl.minimum(n_k, start + shift + 1), 0) // N * N

    q_block = _load(q, batch, head, start, M, WIDTH, TMA)
    m = tl.full([M], float("-inf"), tl.float32)
    l = tl.zeros([M], tl.float32)
    acc = tl.zeros([M, WIDTH], tl.float32)
    acc, m, l = _attend(acc, m, l, q_block, k, v, batch, kv_head, 0, free, rows, n_k,
                        shift, scale_log2, CAUSAL, False, N, WIDTH, TMA)
    acc, m, l = _attend(acc, m, l, q_block, k, v, batch, kv_head, free, end, rows, n_k,
                        shift, scale_log2, CAUSAL, True, N, WIDTH, TMA)

    empty = l == 0
    l = tl.where(empty, 1.0, l)
    _store(o, batch, head, start, acc / l[:, None], M, WIDTH, TMA)
    # +∞ where nothing was seen: such a row's 2^(s − lse) is 0 in the backward pass.
    tl.store(lse + vector.to(tl.int64) * n_q + rows,
             tl.where(empty, float("inf"), m + tl.log2(l)), mask=rows < n_q)


@triton.jit
def row_dots(o, do, o_strides, do_strides, delta, n_q, heads,
             M: tl.constexpr, DIM: tl.constexpr, WIDTH: tl.constexpr,
             TMA: tl.constexpr):
    """delta_i = dO_i · O_i, which is dP_i · P_i."""
    blocks = tl.cdiv(n_q, M)
    start = tl.program_id(0) % blocks * M
    vector = tl.program_id(0) // blocks
    batch, head = vector // heads, vector % heads
    o = _head(o, o_strides, batch, head, n_q, M, DIM, WIDTH, TMA)
    do = _head(do, do_strides, batch, head, n_q, M, DIM, WIDTH, TMA)
    dots = tl.sum(_load(o, batch, head, start, M, WIDTH, TMA).to(tl.float32)
                  * _load(do, batch, head, start, M, WIDTH, TMA).to(tl.float32), 1)
    rows = start + tl.arange(0, M)
    tl.store(delta + vector.to(tl.int64) * n_q + rows, dots, mask=rows < n_q)


@triton.jit
def _add_to_dk_dv(dk, dv, k, v, q, do, lse, delta, batch, head, first, last, columns,
                  n_q, shift, scale_log2, MASKED: tl.constexpr, M: tl.constexpr,
                  WIDTH: tl.constexpr, TMA: tl.constexpr):
    """Add what the queries first … last of a head give; scores stand as (keys,
    queries)."""
    for start in tl.range(first, last, M):
        rows = start + tl.arange(0, M)
        q_block = _load(q, batch, head, start, M, WIDTH, TMA)
        do_block = _load(do, batch, head, start, M, WIDTH, TMA)
        lse_block = tl.load(lse + rows, mask=rows < n_q, other=float("inf"))
        delta_block = tl.load(delta + rows, mask=rows < n_q, other=0.0)
        s = tl.dot(k, q_block.T, input_precision="ieee")
        p = tl.exp2(s * scale_log2 - lse_block[None, :])
        if MASKED:
            p = tl.where(columns[:, None] <= rows[None, :] + shift, p, 0.0)
        dv = tl.dot(p.to(do_block.dtype), do_block, dv, input_precision="ieee")
        dp = tl.dot(v, do_block.T, input_precision="ieee")
        ds = p * (dp - delta_block[None, :])
        dk = tl.dot(ds.to(q_block.dtype), q_block, dk, input_precision="ieee")
    return dk, dv


@triton.jit
def backward_dk_dv(q, k, v, do, dk, dv, q_strides, k_strides, v_strides, do_strides,
                   dk_strides, dv_strides, lse, delta, n_q, n_k, heads, group, scale,
                   scale_log2, CAUSAL: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
                   DIM: tl.constexpr, WIDTH: tl.constexpr, TMA: tl.constexpr):
    """One program: N rows of dK and dV of one key/value head, from all queries of its
    heads."""
    blocks = tl.cdiv(n_k, N)
    start = tl.program_id(0) % blocks * N
    kv_heads = heads // group
    batch = tl.program_id(0) // blocks // kv_heads
    kv_head = tl.program_id(0) // blocks % kv_heads
    columns = start + tl.arange(0, N)
    shift = n_k - n_q
    k = _head(k, k_strides, batch, kv_head, n_k, N, DIM, WIDTH, TMA)
    v = _head(v, v_strides, batch, kv_head, n_k, N, DIM, WIDTH, TMA)
    dk = _head(dk, dk_strides, batch, kv_head, n_k, N, DIM, WIDTH, TMA)
    dv = _head(dv, dv_strides, batch, kv_head, n_k, N, DIM, WIDTH, TMA)

    first = 0  # queries before this one see no key of the block
    free = 0  # queries from here on see all of them
    if CAUSAL:
        first = tl.minimum(tl.maximum(start - shift, 0), n_q) // M * M
        free = tl.cdiv(tl.minimum(tl.maximum(start + N - 1 - shift, 0), n_q), M) * M

    k_block = _load(k, batch, kv_head, start, N, WIDTH, TMA)
    v_block = _load(v, batch, kv_head, start, N, WIDTH, TMA)
    dk_block = tl.zeros([N, WIDTH], tl.float32)
    dv_block = tl.zeros([N, WIDTH], tl.float32)
    for member in tl.range(0, group):
        head = kv_head * group + member
        vector = (batch * heads + head).to(tl.int64) * n_q
        q_head = _head(q, q_strides, batch, head, n_q, M, DIM, WIDTH, TMA)
        do_head = _head(do, do_strides, batch, head, n_q, M, DIM, WIDTH, TMA)
        if CAUSAL:
            dk_block, dv_block = _add_to_dk_dv(dk_block, dv_block, k_block, v_block,
                                               q_head, do_head, lse + vector,
                                               delta + vector, batch, head, first, free,
                                               columns, n_q, shift, scale_log2, True, M,
                                               WIDTH, TMA)
        dk_block, dv_block = _add_to_dk_dv(
            dk_block, dv_block, k_block, v_block, q_head, do_head, lse + vector,
            delta + vector, batch, head, free, n_q, columns, n_q, shift, scale_log2,
            False, M, WIDTH, TMA)
    _store(dk, batch, kv_head, start, dk_block * scale, N, WIDTH, TMA)
    _store(dv, batch, kv_head, start, dv_block, N, WIDTH, TMA)


@triton.jit
def _add_to_dq(dq, q, do, lse, delta, k, v, batch, head, first, last, rows,
               n_k, shift, scale_log2, CAUSAL: tl.constexpr, MASKED: tl.constexpr,
               N: tl.constexpr, WIDTH: tl.constexpr, TMA: tl.constexpr):
    for start in tl.range(first, last, N):
        k_block = _load(k, batch, head, start, N, WIDTH, TMA)
        v_block = _load(v, batch, head, start, N, WIDTH, TMA)
        s = tl.dot(q, k_block.T, input_precision="ieee")
        p = tl.exp2(s * scale_log2 - lse[:, None])
        if MASKED:
            p = tl.where(_visible(start, rows, n_k, shift, CAUSAL, N), p, 0.0)
        dp = tl.dot(do, v_block.T, input_precision="ieee")
        ds = p * (dp - delta[:, None])
        dq = tl.dot(ds.to(k_block.dtype), k_block, dq, input_precision="ieee")
    return dq


@triton.jit
def backward_dq(q, k, v, do, dq, q_strides, k_strides, v_strides, do_strides,
                dq_strides, lse, delta, n_q, n_k, heads, group, scale, scale_log2,
                CAUSAL: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
                DIM: tl.constexpr, WIDTH: tl.constexpr, TMA: tl.constexpr):
    """One program: M rows of dQ of one head, from the keys they see."""
    blocks = tl.cdiv(n_q, M)
    block = tl.program_id(0) % blocks
    if CAUSAL:
        block = blocks - 1 - block
    vector = tl.program_id(0) // blocks
    batch, head = vector // heads, vector % heads
    kv_head = head // group
    start = block * M
    rows = start + tl.arange(0, M)
    shift = n_k - n_q
    q = _head(q, q_strides, batch, head, n_q, M, DIM, WIDTH, TMA)
    do = _head(do, do_strides, batch, head, n_q, M, DIM, WIDTH, TMA)
    dq = _head(dq, dq_strides, batch, head, n_q, M, DIM, WIDTH, TMA)
    k = _head(k, k_strides, batch, kv_head, n_k, N, DIM, WIDTH, TMA)
    v = _head(v, v_strides, batch, kv_head, n_k, N, DIM, WIDTH, TMA)

    end = n_k
    free = n_k // N * N
    if CAUSAL:
        end = tl.maximum(tl.minimum(n_k, start + M + shift), 0)
        free = tl.maximum(tl.minimum(n_k, start + shift + 1), 0) // N * N

    q_block = _load(q, batch, head, start, M, WIDTH, TMA)
    do_block = _load(do, batch, head, start, M, WIDTH, TMA)
    at = vector.to(tl.int64) * n_q + rows
    lse_block = tl.load(lse + at, mask=rows < n_q, other=float("inf"))
    delta_block = tl.load(delta + at, mask=rows < n_q, other=0.0)
    dq_block = tl.zeros([M, WIDTH], tl.float32)
    dq_block = _add_to_dq(dq_block, q_block, do_block, lse_block, delta_block, k, v,
                          batch, kv_head, 0, free, rows, n_k, shift, scale_log2, CAUSAL,
                          False, N, WIDTH, TMA)
    dq_block = _add_to_dq(dq_block, q_block, do_block, lse_block, delta_block, k, v,
                          batch, kv_head, free, end, rows, n_k, shift, scale_log2,
                          CAUSAL, True, N, WIDTH, TMA)
    _store(dq, batch, head, start, dq_block * scale, M, WIDTH, TMA)


@triton.jit
def decode_split(q, k, v, q_strides, k_strides, v_strides, lengths, m_out, l_out, o_out,
                 splits, heads, tiles, capacity, rows, scale_log2, M: tl.constexpr,
                 N: tl.constexpr, DIM: tl.constexpr, WIDTH: tl.constexpr,
                 TMA: tl.constexpr):
    """One program: the state after one stretch of the cache, for `rows` queries that
    share a head of keys and values.

    q is (batch, heads, rows, DIM), rows ≤ M; `tiles` neighbours of its heads share one.
    The states go to m_out and l_out (batch, heads, splits, M) and o_out (batch, heads,
    splits, M, WIDTH), float32.
    """
    split = tl.program_id(0) % splits
    vector = tl.program_id(0) // splits
    batch, head = vector // heads, vector % heads
    kv_head = head // tiles
    # What a length beyond the cache would mean is for the caller to say; not to read it
    # is for us.
    length = tl.minimum(tl.load(lengths + batch).to(tl.int32), capacity)
    stretch = tl.cdiv(tl.cdiv(length, splits), N) * N
    first = split * stretch
    last = tl.minimum(first + stretch, length)
    q = _head(q, q_strides, batch, head, rows, M, DIM, WIDTH, TMA)
    k = _head(k, k_strides, batch, kv_head, capacity, N, DIM, WIDTH, TMA)
    v = _head(v, v_strides, batch, kv_head, capacity, N, DIM, WIDTH, TMA)

    q_block = _load(q, batch, head, 0, M, WIDTH, TMA)
    m = tl.full([M], float("-inf"), tl.float32)
    l = tl.zeros([M], tl.float32)
    acc = tl.zeros([M, WIDTH], tl.float32)
    for start in tl.range(first, last, N):
        filled = start + tl.arange(0, N) < length
        k_block = _load(k, batch, kv_head, start, N, WIDTH, TMA)
        v_block = _load(v, batch, kv_head, start, N, WIDTH, TMA)
        s = tl.dot(q_block, k_block.T, input_precision="ieee") * scale_log2
        s = tl.where(filled[None, :], s, float("-inf"))
        # Past its length the cache may hold anything, and 0 · NaN is NaN.
        v_block = tl.where(filled[:, None], v_block, 0.0).to(v_block.dtype)
        m_new = tl.maximum(m, tl.max(s, 1))
        p = tl.exp2(s - m_new[:, None])
        old = tl.exp2(m - m_new)
        l = l * old + tl.sum(p, 1)
        acc = tl.dot(p.to(v_block.dtype), v_block, acc * old[:, None],
                     input_precision="ieee")
        m = m_new

    row = tl.arange(0, M)
    used = row < rows
    at = tl.program_id(0).to(tl.int64) * M + row
    tl.store(m_out + at, m, mask=used)
    tl.store(l_out + at, l, mask=used)
    tl.store(o_out + at[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :], acc,
             mask=used[:, None])


@triton.jit
def decode_merge(m_in, l_in, o_in, out, splits, rows, M: tl.constexpr,
                 DIM: tl.constexpr, WIDTH: tl.constexpr, COLUMNS: tl.constexpr,
                 SPLITS: tl.constexpr):
    """One program: merge the states of all splits, SPLITS at a time, in some columns of
    one query head's row of `out` (batch · heads, DIM)."""
    row = tl.program_id(0)
    vector, member = row // rows, row % rows
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    m = tl.full([1], float("-inf"), tl.float32)
    l = tl.zeros([1], tl.float32)
    acc = tl.zeros([COLUMNS], tl.float32)
    for start in tl.range(0, splits, SPLITS):
        split = start + tl.arange(0, SPLITS)
        at = (vector.to(tl.int64) * splits + split) * M + member
        m_split = tl.load(m_in + at, mask=split < splits, other=float("-inf"))
        l_split = tl.load(l_in + at, mask=split < splits, other=0.0)
        o_split = tl.load(o_in + at[:, None] * WIDTH + columns[None, :],
                          mask=(split < splits)[:, None], other=0.0)
        m_new = tl.maximum(m, tl.max(m_split, 0))
        base = tl.where(m_new == float("-inf"), 0.0, m_new)
        old, weight = tl.exp2(m - base), tl.exp2(m_split - base)
        l = l * old + tl.sum(weight * l_split, 0)
        acc = acc * old + tl.sum(weight[:, None] * o_split, 0)
        m = m_new
    merged = acc / tl.where(l == 0, 1.0, l)
    tl.store(out + row.to(tl.int64) * DIM + columns,
             merged.to(out.dtype.element_ty), mask=columns < DIM)
