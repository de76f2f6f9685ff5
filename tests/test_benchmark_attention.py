"""The attention benchmark where there is no GPU: its arithmetic, and every part of it on stand-ins at tiny sizes."""

import contextlib
import importlib
import itertools
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
import torch

import mlbook  # noqa: F401 (before Triton: it says that there is no GPU)

pytest.importorskip("triton", reason="no Triton on this platform")
BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
CPU = torch.device("cpu")


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("attention")


@pytest.fixture
def tiny(bench):
    return bench.Sizes(
        head_dims=(16, 32),
        lengths=(16, 32),
        tokens=32,
        hidden=32,
        post=(16, 32),
        post_heads=2,
        decode=((1, 4, 2), (1, 2, 2), (2, 4, 2)),
        contexts=(32, 48),
        rotated=1 << 16,
        square=32,
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
def test_without_a_gpu_it_checks_and_writes_nothing(tmp_path):
    run = subprocess.run(
        [
            sys.executable,
            BENCHMARKS / "attention.py",
            "--quick",
            "--out",
            tmp_path / "out",
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    passed, sentence = run.stdout.splitlines()
    assert passed.split()[0] == passed.split()[2] != "0"
    assert "needs a CUDA GPU" in sentence
    assert not (tmp_path / "out").exists()


def test_bytes(bench):
    # one head, 2 rows of 4 half-precision numbers: 16 bytes a tensor, 8 for a float32 a row
    assert bench.attention_bytes(1, 1, 2, 4) == 4 * 16 + 8
    assert bench.attention_bytes(1, 1, 2, 4, "backward") == 8 * 16 + 8
    assert bench.attention_bytes(3, 5, 2, 4, "both") == 15 * (12 * 16 + 16)
    assert bench.decode_bytes(1, 8, 32768, 128) == 2 * 8 * 32768 * 128 * 2 == 2**27


def test_the_two_numbers(bench):
    best = {"float16": 1e12, "copy": 1e9}
    times = {"ours": {"ms": 4.0}, "out": -1, "not there": "RuntimeError: no"}
    row = bench.row({"dtype": "float16"}, times, flops=2e9, moved=3e6, best=best)
    assert row["least_ms"] == {"flops": pytest.approx(2), "bytes": pytest.approx(3)}
    assert row["times"]["ours"]["tflops"] == pytest.approx(0.5)
    assert row["times"]["ours"]["share_of_copy"] == pytest.approx(0.75)
    assert row["times"]["out"] == -1


def test_the_papers_settings(bench):
    found = list(bench.settings("forward", bench.FULL))
    assert len(found) == 2 * 2 * 6 + 4
    for what, (batch, heads, n, d) in found:
        assert batch * n == 16384 and heads * d == 2048
        assert (n, d) == (what["n"], what["head_dim"])
    shapes = [shape for _, shape in bench.settings("both", bench.FULL)]
    assert shapes[0] == (1, 48, 512, 64) and shapes[-1] == (1, 48, 65536, 128)


def test_rivals_take_turns(bench):
    order = []
    work = {name: (lambda name=name: order.append(name)) for name in "ab"}
    work["c"] = lambda: (_ for _ in ()).throw(
        RuntimeError("No available kernel.\nsorry")
    )
    work["d"] = lambda: (_ for _ in ()).throw(torch.OutOfMemoryError("of 80 GB"))
    times = bench.race(work, CPU, most=5)
    assert order == ["a", "a", "b", "b"] + ["a", "b"] * 4
    assert times["a"]["turns"] == 5 and times["d"] == -1
    assert times["c"].startswith("RuntimeError: No available kernel.")
    spread = bench.spread([0.004, 0.002, 0.001, 0.003, 0.100], calls=2)
    assert spread == {"ms": 1.5, "quartiles_ms": [1.0, 2.0], "turns": 5}


def test_errors_are_shares_of_what_is_allowed(bench):
    exact = torch.zeros(3, dtype=torch.float64)
    plain = torch.tensor([0.0, 0.25, 0.0])
    assert bench.share(2, plain, plain, exact) == pytest.approx(0.5, rel=1e-5)
    assert math.isnan(bench.share(2, plain * math.nan, plain, exact))


def test_a_wrong_kernel_is_noticed(bench, monkeypatch):
    case = bench.Case("float32", 16, True, 2, 1, 20, 33)
    decoding = bench.DecodeCase("float32", 16, 4, 2, 1, 40, 2)
    assert [found["passed"] for found in bench.check([case, decoding], CPU)] == [
        True
    ] * 2
    right, decode = bench.flash_attention, bench.flash_decode
    monkeypatch.setattr(bench, "flash_attention", lambda *x: right(*x) * 1.001)
    monkeypatch.setattr(bench, "flash_decode", lambda *x: decode(*x) * math.nan)
    found = bench.check([case, decoding], CPU)
    assert [row["passed"] for row in found] == [False] * 2


def test_summary(bench):
    def row(ours, flash, **what):
        times = {"ours": ours, "SDPA, flash": flash, "SDPA, cuDNN": "RuntimeError: no"}
        return {"dtype": "float16", "times": times} | what

    def ms(value, tflops=0.0, share=0.0):
        return {"ms": value, "tflops": tflops, "share_of_copy": share}

    longest = {"head_dim": 128, "causal": False, "n": 16384}
    record = {
        "checks": [{"passed": True}, {"passed": True}],
        "forward": [
            row(ms(1.0, 480.0), ms(1.2), **longest),
            row(ms(1.0), ms(1.1), n=1),
        ],
        "backward": [row(ms(1.0), -1, n=1)],
        "decode": [
            row(ms(1.0, share=0.85), ms(2.0), **bench.DECODE),
            {"times": {"4": ms(9.0)}, "sweep": "splits", **bench.DECODE},
        ],
    }
    checks, forward, tutorial, cudnn, backward, decode = bench.summary(record)
    assert checks["met"] and tutorial["met"] and decode["met"]
    assert forward["worst"] == 1.1 and forward["best"] == 1.2
    assert forward["met"] is False and forward["met_in"] == 1
    assert cudnn["met"] is None and backward["met"] is None
    assert [row["met"] for row in bench.summary({})] == [None] * 6


def stand_ins(bench, monkeypatch):
    monkeypatch.setattr(bench, "card", lambda: {"driver_version": "none"})
    monkeypatch.setattr(bench, "provenance", lambda *_: {"device": "Tiny 1"})
    race = bench.race
    once = lambda work, device, *_, **o: race(work, device, **o | {"most": 1})  # noqa: E731
    monkeypatch.setattr(bench, "race", once)
    monkeypatch.setattr(bench, "SWEEP", (1, 3))


def options(path, **changed):
    usual = {"quick": True, "tune": False, "minutes": 5, "out": path, "commit": "abc"}
    return SimpleNamespace(**usual | changed)


def dies(job, device):
    """A job for a process: some end it, some are late, some are well."""
    if job == "dies":
        os._exit(1)
    if job == "late":
        time.sleep(60)
    if job == "GPU":
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
    return job


def test_a_worker_that_dies_takes_nobody_with_it(bench):
    jobs = ["well", "dies", "well", "GPU"]
    found = bench.in_processes(dies, jobs, CPU, seconds=60, workers=1)
    assert found[0] == found[2] == "well"
    assert all(isinstance(found[i], bench.BrokenProcessPool) for i in (1, 3))


def test_a_late_one_is_not_waited_for(bench):
    start = time.monotonic()
    well, late = bench.in_processes(dies, ["well", "late"], CPU, seconds=15, workers=2)
    assert well == "well" and isinstance(late, TimeoutError)
    assert time.monotonic() - start < 40


def test_what_is_late_is_not_wrong(bench, monkeypatch):
    late = [TimeoutError(), [{"case": 1, "passed": True}]]
    monkeypatch.setattr(bench, "in_processes", lambda *_: late)
    monkeypatch.setattr(bench, "cases", lambda *_: [["a"], ["b"]])
    found = list(bench.checks(bench.QUICK, True, CPU))
    assert [row["passed"] for row in found] == [None, True]
    checks, *_ = bench.summary({"checks": found})
    assert checks["worst"] == 1 and checks["met"]


def test_a_ceiling_that_cannot_be_measured(bench, tiny):
    best = {}
    refused = {"float16": {"ms": 1.0}, "bfloat16": "TypeError: no", "copy": -1}
    with mock.patch.object(bench, "race", lambda *_: refused):
        rows = list(bench.ceilings(tiny, CPU, best))
    assert [row["a_second"] for row in rows] == [2 * 32**3 * 1e3, None, None]
    row = bench.row({"dtype": "float16"}, {"ours": {"ms": 1.0}}, 1e9, 1e6, best)
    assert row["least_ms"]["flops"] > 0 and math.isnan(row["least_ms"]["bytes"])
    assert row["times"]["ours"]["tflops"] == pytest.approx(1)


def test_a_card_before_ampere(bench, monkeypatch):
    an_h100(monkeypatch, bench)
    monkeypatch.setattr(bench.flash, "capability", lambda _: (7, 5))
    groups = bench.cases(bench.FULL, False, SimpleNamespace(type="cuda"))
    found = [case for group in groups for case in group]
    assert {case.dtype for case in found} == {"float16", "float32"}
    whats = bench.settings("forward", bench.FULL, bfloat16=False)
    assert {what["dtype"] for what, _ in whats} == {"float16"}


def test_every_part_on_a_cpu(bench, tiny, tmp_path, monkeypatch, capsys):
    stand_ins(bench, monkeypatch)
    group = [[bench.Case("float32", 16, True, 2, 1, 20, 33)]]
    monkeypatch.setattr(bench, "cases", lambda *_: group)
    record = bench.measure(tiny, options(tmp_path), CPU)
    assert json.loads((tmp_path / "attention-tiny-1.json").read_text()) == record
    assert "broken" not in record and record["commit"] == "abc"
    assert len(record["forward"]) == 12 and len(record["backward"]) == 8
    assert len(record["post"]) == 4 and len(record["decode"]) == 6 + 2
    for part in ("forward", "backward", "post", "decode"):
        for row in record[part]:
            if "sweep" not in row:
                assert row["times"]["ours"]["ms"] > 0, row
                assert row["least_ms"]["flops"] > 0 and row["least_ms"]["bytes"] > 0
                assert isinstance(row["times"]["SDPA, cuDNN"], str)
    assert {row["times"]["naive"]["turns"] for row in record["post"]} == {1}
    assert all(row["times"]["two products"]["ms"] > 0 for row in record["decode"][:6])
    assert "forward" in capsys.readouterr().out


def test_the_chapters_report_shows_every_part(bench, tiny, tmp_path, monkeypatch):
    from mlbook.flash_attention import measure

    stand_ins(bench, monkeypatch)
    made = {"device": "Tiny 1", "date": "2026-01-02", "cuda": "13.0"}
    made |= {"versions": {"torch": "2.11"}, "commit": "old"}
    monkeypatch.setattr(bench, "provenance", lambda *_: dict(made))
    monkeypatch.setattr(bench, "cases", lambda *_: [])
    bench.measure(tiny, options(tmp_path), CPU)
    record = json.loads((tmp_path / "attention-tiny-1.json").read_text())
    text = measure.report(record)
    assert "Recorded on Tiny 1, 2026-01-02, commit abc: torch 2.11, CUDA 13.0" in text
    for setting in (
        "Forward, TFLOP/s: dtype float16, head_dim 16, causal False",
        "Backward, TFLOP/s: dtype float16, head_dim 32, causal True",
        "The post's setting, both passes, TFLOP/s: dtype float16, head_dim 16",
        "Decoding, share of the copy's bandwidth: dtype float16, head_dim 128, batch 2",
        "forward, times SDPA flash",
    ):
        assert setting in text
    first = record["forward"][0]["times"]["ours"]["tflops"]
    assert measure._rate({"tflops": 480.4}, "tflops") == "480"
    assert measure._rate({"tflops": first}, "tflops") == f"{first:.0f}"
    assert [measure._rate(x, "tflops") for x in (-1, "no", None)] == ["-1", "–", "–"]
    assert measure.report(record | {"decode": [], "summary": []}).count("Decoding") == 0


def test_a_broken_part_and_a_late_one(bench, capsys):
    def late():
        yield {"passed": True}
        yield {"passed": True}

    def broken():
        yield {"row": 1}
        raise RuntimeError("ouch")

    record, saved = {}, []
    parts = {"checks": (0.0, late), "b": (1, broken), "c": (1, late)}
    bench.run(parts, record, lambda r: saved.append(json.dumps(r)), 1, lambda *_: None)
    assert len(record["checks"]) == 1 and record["stopped_for_time"] == ["checks"]
    assert record["b"] == [{"row": 1}] and "ouch" in record["broken"]["b"]
    assert len(record["c"]) == 2 and json.loads(saved[-1]) == record


def test_candidates(bench, tiny, tmp_path, monkeypatch):
    for kernel, d in bench.TUNED:
        found = bench.candidates(kernel, d)
        assert len(found) == len(set(found)) > 1
    stand_ins(bench, monkeypatch)
    pairs = [("forward", 16), ("backward_dq", 16), ("decode_split", 16)]
    blocks = bench.Blocks(16, 32, 4, 1, False)
    monkeypatch.setattr(bench, "TUNED", pairs)
    monkeypatch.setattr(bench, "candidates", lambda *_: [blocks])
    monkeypatch.setattr(bench, "try_blocks", lambda job, device: 2.0 if job[0] == "backward_dq" else 0.5)  # fmt: skip
    record = bench.measure(tiny, options(tmp_path, tune=True), CPU)
    assert "broken" not in record
    forward, dq, decode = record["tuning"]
    assert (
        str(tuple(blocks)) in forward["times"] and str(tuple(blocks)) in decode["best"]
    )
    assert dq["times"] == {} and len(dq["refused"]) == 2
    assert (tmp_path / "tuning-attention-tiny-1.json").exists()


def test_a_candidate_is_launched_and_checked(bench):
    usual = bench.flash.block_sizes
    with bench.launched_with("forward", bench.Blocks(16, 16, 4, 1, True)):
        assert bench.flash.block_sizes("forward", None, 64, torch.half).m == 16
        assert bench.flash.block_sizes("backward_dq", None, 64, torch.half).m == 128
    assert bench.flash.block_sizes is usual
    job = "decode_split", 128, bench.Blocks(16, 64, 4, 1, False)
    assert bench.try_blocks(job, CPU) <= 1


def test_other_processes(bench):
    good = [bench.Case("float32", 16, False, 2, 2, 9, 9)]
    found = list(bench.in_processes(bench.check, [good, "nonsense"], CPU, workers=2))
    assert found[0][0]["passed"] and isinstance(found[1], Exception)


def test_the_clock_of_a_gpu(bench, monkeypatch):
    log, device = [], SimpleNamespace(type="cuda")

    def event(enable_timing):
        record = lambda: log.append("event")  # noqa: E731
        return SimpleNamespace(record=record, elapsed_time=lambda end: 3.0)

    @contextlib.contextmanager
    def capture(graph):
        log.append("capture")
        yield

    graph = SimpleNamespace(replay=lambda: log.append("replay"))
    scratch = SimpleNamespace(zero_=lambda: log.append("flush"))
    monkeypatch.setattr(torch.cuda, "Event", event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: log.append("wait"))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: graph)
    monkeypatch.setattr(torch.cuda, "graph", capture)
    monkeypatch.setattr(bench, "scratch", lambda _: scratch)
    clean = SimpleNamespace(sum=lambda: log.append("read"))
    monkeypatch.setattr(bench, "clean", lambda _: clean)
    work = lambda: log.append("work")  # noqa: E731
    assert bench.span(work, device) == 3e-3
    assert log == ["flush"] * 8 + ["read", "event", "work", "event", "wait"]
    log.clear()
    bench.captured(work, device)()
    assert log == ["work", "wait", "capture", "work", "replay"]


def an_h100(monkeypatch, bench):
    properties = SimpleNamespace(multi_processor_count=132, total_memory=80 << 30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(bench.flash, "capability", lambda _: (9, 0))


def test_the_checks_of_a_gpu(bench, monkeypatch):
    an_h100(monkeypatch, bench)
    groups = bench.cases(bench.FULL, False, SimpleNamespace(type="cuda"))
    found = [case for group in groups for case in group]
    assert len(found) == len(set(found))
    attention = [case for case in found if isinstance(case, bench.Case)]
    for wanted in itertools.product(
        ("float16", "bfloat16", "float32"),
        (16, 40, 64, 80, 128, 192, 256),
        (False, True),
    ):
        these = [case for case in attention if case[:3] == wanted]
        assert any(c.n_q > c.n_k for c in these) and any(c.n_q < c.n_k for c in these)
        assert any(c.inside for c in these) and any(c.heads > c.kv_heads for c in these)
    # what decoding is timed with is among them: 33 stretches at 32k for 8 heads, 8 for 32
    splits = {(c.kv_heads, c.splits) for c in found if isinstance(c, bench.DecodeCase)}
    assert {(8, 33), (32, 8), (8, 256)} <= splits
    assert len(bench.cases(bench.QUICK, True, SimpleNamespace(type="cuda"))) < 100


@pytest.mark.parametrize("passed", [True, False])
def test_exit_status(bench, tmp_path, monkeypatch, passed):
    asked = []

    def measure(sizes, options, device):
        asked.append((sizes, options, device))
        return {"checks": [{"passed": True}, {"passed": passed}]}

    monkeypatch.setattr(bench, "measure", measure)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(sys, "argv", ["attention.py", "--out", str(tmp_path)])
    assert bench.main() == (0 if passed else 1)
    ((sizes, options, device),) = asked
    assert sizes == bench.FULL and device.type == "cuda" and options.out == tmp_path
    assert options.minutes == 8 and not options.tune
