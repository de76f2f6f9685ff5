"""The kernels compiled ahead of time for five generations of GPUs, none of which need be here."""

import itertools
import json
import os
from dataclasses import asdict

import pytest
import torch
from filelock import FileLock

pytest.importorskip("triton", reason="no Triton on this platform")

import kept

from mlbook.flash_attention import SHARED_MEMORY, Job, block_sizes, compile_kernels
from mlbook.flash_attention.compiled import Report

UNITS = {75: None, 80: "mma", 89: "mma", 90: "wgmma", 100: "tcgen05", 120: "mma"}
BACKWARD = ("row_dots", "backward_dk_dv", "backward_dq")


@pytest.fixture(scope="module", params=UNITS)
def compiled(request, tmp_path_factory):
    """Every kernel for one generation, as it is launched: job and report."""
    capability = request.param
    jobs = []
    for dtype, head_dim in itertools.product(("float16", "float32"), (64, 128, 256)):
        for kernel in ("forward", *BACKWARD):
            if dtype == "float16" or kernel == "forward" or head_dim == 256:
                jobs.append(Job(kernel, capability, head_dim, dtype, causal=True))
        device = divmod(capability, 10)
        blocks = block_sizes("decode_split", device, head_dim, getattr(torch, dtype))
        jobs.append(Job("decode_split", capability, head_dim, dtype, blocks=blocks))
        jobs.append(Job("decode_merge", capability, head_dim, dtype))
    jobs.append(Job("forward", capability, 128))
    if capability > 75:
        jobs.append(Job("forward", capability, 128, "bfloat16", causal=True))
    else:  # flash_attention refuses this one
        jobs.remove(Job("backward_dk_dv", 75, 256, "float32", causal=True))
    return capability, list(
        zip(jobs, reports(jobs, request, tmp_path_factory), strict=True)
    )


def compiled_anew(jobs):
    return [asdict(report) for report in compile_kernels([Job(**job) for job in jobs])]


def reports(jobs, request, tmp_path_factory):
    """What `jobs` compile to: compiled once a session at the most, whichever process of pytest-xdist asks first."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # which the processes of this session share
    capability = jobs[0].capability
    here = folder / f"compiled-{capability}.json"
    with FileLock(here.with_suffix(".lock")), pytest.MonkeyPatch.context() as patch:
        if not here.exists():
            patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
            found = kept.reports(
                "attention",
                capability,
                list(UNITS),
                kept.sources(
                    "mlbook.flash_attention.compiled", "mlbook.flash_attention.kernels"
                ),
                [asdict(job) for job in jobs],
                compiled_anew,
                request.config,
            )
            here.write_text(json.dumps(found))
    return [Report(**report) for report in json.loads(here.read_text())]


def test_the_forward_kernel_spills_nothing(compiled):
    capability, pairs = compiled
    allowed = 8 if capability == 120 else 0  # Triton 3.6 takes 8 bytes of stack there
    for job, report in pairs:
        if job.kernel == "forward":
            assert report.spilled <= allowed, job


def test_decoding_spills_two_registers_at_the_most(compiled):
    capability, pairs = compiled
    allowed = 40 if capability == 120 else 8  # bytes of a thread: so much by Triton 3.6
    for job, report in pairs:
        if job.kernel in ("decode_split", "decode_merge"):
            assert report.spilled <= allowed, job


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
