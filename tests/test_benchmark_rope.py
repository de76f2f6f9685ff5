"""The benchmark of rotations, at sizes that take a second."""

import argparse
import importlib
import json
import sys
from pathlib import Path

import pytest
import torch

from mlbook import torch_compile as compiling
from mlbook.common import optional

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch):
    optional.hide_broken("torchvision")
    pytest.importorskip("transformers", reason="transformers is not installed")
    monkeypatch.syspath_prepend(BENCHMARKS)
    monkeypatch.delitem(sys.modules, "rope", raising=False)
    return importlib.import_module("rope")


def test_every_way_is_checked_and_written(benchmark, tmp_path):
    sizes = benchmark.Sizes(
        shape=(1, 2, 32, 16),
        model=dict(dim=32, layers=1, heads=2),
        batch=(2, 16),
        steps=4,
        samples=3,
    )
    options = argparse.Namespace(minutes=60, out=tmp_path, commit="abc")
    record = benchmark.measure(sizes, options, torch.device("cpu"))
    written = json.loads((tmp_path / "rope-cpu.json").read_text())
    assert written == record and "broken" not in record
    ways = {row["way"] for row in record["rotations"]}
    assert ways == {"copy", "transformers", "rope.rotate", "apply_rope"}
    rows = record["rotations"] + record["training"]
    assert all(row["passed"] for row in rows)
    both = {"mlbook.common.lm", "transformers"}
    compiled = {f"{w}, compiled" for w in both if compiling.can_compile()}
    assert {row["way"] for row in record["training"]} == both | compiled
    assert len({row["parameters"] for row in record["training"]}) == 1


def test_a_wrong_rotation_is_noticed(benchmark, monkeypatch):
    monkeypatch.setattr(benchmark, "apply_rotary_pos_emb", lambda q, k, *_: (q, k))
    sizes = benchmark.Sizes(shape=(1, 2, 32, 16), samples=3)
    rows = list(benchmark.rotations(sizes, torch.device("cpu")))
    assert [row["passed"] for row in rows] == [True, False, True, True]
