"""The benchmark of compiled functions and graphs where there is no GPU: on a tape, at tiny sizes."""

import importlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from mlbook import torch_compile as compiling
from mlbook.common import timing

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
CPU = torch.device("cpu")


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    monkeypatch.delitem(sys.modules, "compiling", raising=False)
    return importlib.import_module("compiling")


def test_every_part_on_a_cpu(bench, tmp_path, monkeypatch):
    if not compiling.can_compile():
        pytest.skip("no C++ compiler")
    made = {"device": "Tiny 1", "date": "2026-01-02", "cuda": "13.0", "commit": "old"}
    made["versions"] = {"torch": "2.11"}
    monkeypatch.setattr(bench, "provenance", lambda *_: dict(made))
    monkeypatch.setattr(bench, "card", lambda: {"driver_version": "1.2"})
    timed = timing.timed
    quick = lambda *a, **k: timed(*a, samples=3, sample_seconds=1e-4)  # noqa: E731
    monkeypatch.setattr(timing, "timed", quick)
    monkeypatch.setattr(torch, "compile", lambda f, **_: f)  # others test the compiler
    sizes = bench.Sizes(lengths=(4, 64), post=64, layers=1, tokens=8)
    options = SimpleNamespace(out=tmp_path, minutes=5, commit="abc")
    record = bench.measure(sizes, options, CPU)
    assert json.loads((tmp_path / "compile-tiny-1.json").read_text()) == json.loads(
        json.dumps(record)
    )
    assert "broken" not in record, record["broken"]
    assert len(record["launches"]) == 6 and len(record["curves"]) == 4
    assert len(record["post"]) == 4 + 2 * 3 * 2 and len(record["decoding"]) == 4
    assert all(row["passed"] for row in record["curves"] + record["decoding"])
    assert not torch.compiler.config.force_cudagraph_gc
    text = compiling.report(record)
    for words in (
        "Recorded on Tiny 1, 2026-01-02, commit abc: torch 2.11, CUDA 13.0, driver 1.2",
        "a graph of thirty",
        "waves, microseconds of a call",
        "max-autotune-no-cudagraphs  100 calls after 3, collecting False",
        "decoding, reduce-overhead",
    ):
        assert words in text


def test_a_wrong_way_is_noticed(bench, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda f, **_: lambda x: f(x) * 1.001)
    sizes = bench.Sizes(lengths=(4,))
    assert not any(row["passed"] for row in bench.curves(sizes, CPU))


def test_without_a_gpu_nothing_is_written(bench, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["compiling.py", "--out", str(tmp_path / "out")])
    assert bench.main() == 2 and not (tmp_path / "out").exists()
    assert "nothing was timed" in capsys.readouterr().out
