"""The kernels compiled ahead of time for five generations of GPUs, none of which need be here."""

import pytest

pytest.importorskip("triton", reason="no Triton on this platform")

from mlbook.attention import SHARED_MEMORY, Job, compile_kernels

UNITS = {75: None, 80: "mma", 89: "mma", 90: "wgmma", 100: "tcgen05"}
FORWARD = [
    (64, "float16"),
    (128, "float16"),
    (256, "float16"),
    (128, "bfloat16"),
    (64, "float32"),
    (128, "float32"),
]


@pytest.fixture(scope="module", params=UNITS)
def compiled(request, tmp_path_factory):
    """Every kernel for one generation, compiled anew: job and report."""
    capability = request.param
    jobs = [
        Job("forward", capability, head_dim, dtype, causal=True)
        for head_dim, dtype in FORWARD
        if (dtype, capability) != ("bfloat16", 75)
    ]
    jobs += [Job("forward", capability, 128)]
    jobs += [
        Job(kernel, capability, 128, causal=True)
        for kernel in (
            "row_dots",
            "backward_dk_dv",
            "backward_dq",
            "decode_split",
            "decode_merge",
        )
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        return capability, list(zip(jobs, compile_kernels(jobs), strict=True))


def test_the_forward_kernel_spills_nothing(compiled):
    _, pairs = compiled
    spilled = {
        (job.head_dim, job.dtype): report.spilled
        for job, report in pairs
        if job.kernel == "forward"
    }
    assert not any(spilled.values()), spilled


def test_shared_memory_suffices(compiled):
    capability, pairs = compiled
    for job, report in pairs:
        assert report.shared <= SHARED_MEMORY[capability], job


def test_matrix_units_are_used(compiled):
    capability, pairs = compiled
    unit = UNITS[capability]
    for job, report in pairs:
        if job.kernel in ("row_dots", "decode_merge"):
            continue
        found = {u for u in ("mma", "wgmma", "tcgen05") if report.instructions[u]}
        # float32 is multiplied exactly, by the ordinary units; one query's row block
        # of 16 is too short for the units of Hopper and Blackwell
        allowed = {None: set(), "mma": {"mma"}}.get(unit, {unit, "mma"})
        assert found <= allowed, job
        if unit and job.dtype != "float32":
            assert (
                report.instructions["mma" if job.kernel == "decode_split" else unit] > 0
            ), job


def test_blocks_are_copied_while_others_are_used(compiled):
    capability, pairs = compiled
    way = "tma" if capability >= 90 else "cp.async" if capability >= 80 else None
    for job, report in pairs:
        if way and job.kernel == "forward" and job.dtype != "float32":
            assert report.instructions[way] > 0, job


def test_an_unknown_kernel_is_reported():
    with pytest.raises(RuntimeError, match=r"(?s)were not compiled.*sideways"):
        compile_kernels([Job("sideways", 90, 64)])
