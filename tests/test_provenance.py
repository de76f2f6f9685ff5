"""Where a measurement was made, on machines that lack git or a driver too."""

import importlib
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def provenance(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("provenance")


def missing(*_, **__):
    raise FileNotFoundError("no such program")


def test_the_card(provenance, monkeypatch):
    properties = SimpleNamespace(multi_processor_count=132, total_memory=80 << 30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    said = SimpleNamespace(stdout="580.159.04, 1980 MHz, 2619 MHz, 700.00 W, 34\n")
    monkeypatch.setattr(provenance.subprocess, "run", lambda *_, **__: said)
    card = provenance.card()
    assert card["driver_version"] == "580.159.04" and card["processors"] == 132
    assert card["temperature.gpu"] == "34"
    monkeypatch.setattr(provenance.subprocess, "run", missing)
    assert "driver_version" not in provenance.card()


def test_this_machine(provenance, monkeypatch):
    found = provenance.provenance("matplotlib")
    assert set(found["versions"]) == {"torch", "numpy", "matplotlib"}
    assert found["date"].count("-") == 2
    monkeypatch.setattr(provenance.subprocess, "run", missing)
    assert provenance.provenance()["commit"] == ""


def test_slug(provenance):
    assert provenance.slug("NVIDIA H100 80GB HBM3") == "nvidia-h100-80gb-hbm3"


def test_a_cut_off_run_leaves_the_last_whole_record(provenance, tmp_path):
    path = tmp_path / "new" / "x.json"
    provenance.write(path, {"rows": [1]})
    with pytest.raises(TypeError):
        provenance.write(path, {"rows": [object()]})
    assert json.loads(path.read_text()) == {"rows": [1]}
    assert [p.name for p in path.parent.iterdir()] == ["x.json"]
