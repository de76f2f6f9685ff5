"""The benchmark of the chessboard: its real NVP, and that a short run writes whole rows."""

import json
import math
import sys
from pathlib import Path

import pytest
import torch

from mlbook import flow_matching as flow

pytest.importorskip("torchcfm", reason="torchcfm is not installed")


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    import flow_checkerboard

    return flow_checkerboard


@pytest.mark.parametrize("frequencies", [(), (0.25, 1.0)])
def test_real_nvp_inverts_itself_and_knows_its_jacobian(benchmark, frequencies):
    torch.manual_seed(0)
    model = benchmark.RealNVP(frequencies, layers=3, width=8).double()
    z = torch.randn(4, 2, dtype=torch.float64)
    jacobian = torch.func.vmap(torch.func.jacrev(lambda z: model(z[None])[0]))(z)
    expected = (
        flow.standard_normal_log_density(z) - torch.linalg.slogdet(jacobian).logabsdet
    )
    torch.testing.assert_close(model.log_prob(model(z)), expected)


def test_every_contestant_has_its_rows(benchmark, monkeypatch, tmp_path):
    monkeypatch.setattr(benchmark, "RATES", (1e-3,))
    monkeypatch.setattr(benchmark, "SEEDS", (0,))
    monkeypatch.setattr(
        benchmark, "step_seconds", lambda: dict.fromkeys(benchmark.CONTESTANTS, 1.0)
    )
    monkeypatch.setattr(benchmark, "POINTS", (20, 20))
    out = tmp_path / "x.json"
    monkeypatch.setattr(sys, "argv", ["x", "--steps", "2", "--out", str(out)])
    benchmark.main()
    record = json.loads(out.read_text())
    assert [row["what"] for row in record["rows"]] == list(benchmark.CONTESTANTS)
    assert record["budget_seconds"] == 2 and record["limit_nats"] == math.log(8)
    assert all(
        row["nll_nats"] > 2 and 0 <= row["share_on_board"] <= 1
        for row in record["rows"]
    )
