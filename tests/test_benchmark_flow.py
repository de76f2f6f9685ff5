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


def test_a_perfect_model_of_the_blurred_board_cannot_reach_the_limit(benchmark):
    torch.manual_seed(0)
    centre = torch.tensor([[0.5, 0.5]]).double()  # blurred little: its density is 1/8
    t = 1 / (1 + 1e-3)
    density = flow.checkerboard_density(t * centre, t, flow.linear) * t**2
    assert density.item() == pytest.approx(1 / 8, rel=1e-6)
    assert math.log(8) < benchmark.blurred_limit(0.01, 20_000) < 2.11
    assert benchmark.blurred_limit(0.1) == pytest.approx(2.2635, abs=0.004)


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
    monkeypatch.setattr(benchmark, "TUNING_SEEDS", (1,))
    monkeypatch.setattr(
        benchmark, "step_seconds", lambda: dict.fromkeys(benchmark.CONTESTANTS, 1.0)
    )
    monkeypatch.setattr(benchmark, "POINTS", (20, 20))
    out = tmp_path / "x.json"
    monkeypatch.setattr(sys, "argv", ["x", "--steps=2", "--jobs=1", f"--out={out}"])
    benchmark.main()
    record = json.loads(out.read_text())
    assert [row["what"] for row in record["rows"]] == list(benchmark.CONTESTANTS)
    assert record["budget_seconds"] == 2 and record["limit_nats"] == math.log(8)
    assert all(
        row["nll_nats"] > 2 and 0 <= row["share_on_board"] <= 1
        for row in record["rows"]
    )
