"""The package's core: scales, seeds, claims, sources."""

import math
import random

import numpy as np
import pytest
import torch

import mlbook
from mlbook import claims, source
from mlbook.claims import ClaimFailed, claim


@pytest.fixture
def displayed(monkeypatch):
    """What a module displays, as a list of MIME bundles."""
    shown = []

    def keep(obj, raw=False):
        shown.append(obj)

    monkeypatch.setattr(claims, "display", keep)
    monkeypatch.setattr(source, "display", keep)
    return shown


@pytest.mark.parametrize("name", ["smoke", "cpu", "gpu"])
def test_scale_picks_by_environment(monkeypatch, name):
    monkeypatch.setenv("MLBOOK_SCALE", name)
    assert mlbook.scale(smoke="smoke", cpu="cpu", gpu="gpu") == name


def test_scale_defaults_to_the_machine(monkeypatch):
    monkeypatch.delenv("MLBOOK_SCALE")
    assert mlbook.scale_name() == ("gpu" if torch.cuda.is_available() else "cpu")


def test_scale_rejects_an_unknown_name(monkeypatch):
    monkeypatch.setenv("MLBOOK_SCALE", "huge")
    with pytest.raises(ValueError, match="'huge'.*smoke, cpu, gpu"):
        mlbook.scale(smoke=1, cpu=2, gpu=3)


def test_device_without_cuda(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert mlbook.device() == torch.device("cpu")
    monkeypatch.setenv("MLBOOK_SCALE", "gpu")
    with pytest.raises(RuntimeError, match="no CUDA device"):
        mlbook.device()


def test_seed_covers_all_three_generators():
    def draw():
        return random.random(), np.random.rand(), torch.rand(1).item()

    mlbook.seed(3)
    first = draw()
    mlbook.seed(3)
    assert draw() == first


def test_a_claim_that_holds_is_displayed_with_its_record(displayed):
    claim("a.b", "x < y", measured=1.0, below=2.0, source="S & T", unit="nats")
    (bundle,) = displayed
    record = bundle[claims.MIME]
    assert record["holds"] and record["shown"] == "1 < 2 nats"
    assert record["verdict"] == "confirmed" and record["place"] == "here"
    assert "<strong>1</strong> &lt; 2 nats</code>" in bundle["text/html"]
    assert (
        'id="claim-a.b"' in bundle["text/html"]
        and "x &lt; y" in bundle["text/html"]
        and "S &amp; T" in bundle["text/html"]
    )


@pytest.mark.parametrize("measured", [2.0, 3.0, math.nan, math.inf])
def test_a_claim_that_fails_raises_and_is_still_displayed(displayed, measured):
    with pytest.raises(ClaimFailed, match=r"a\.b"):
        claim("a.b", "small", measured=measured, below=2.0)
    assert [bundle[claims.MIME]["verdict"] for bundle in displayed] == ["failed"]


def test_a_fact_is_its_own_bound(displayed):
    claim("a.b", "true", measured=True)
    with pytest.raises(ClaimFailed):
        claim("a.b", "false", measured=False)
    with pytest.raises(ValueError, match="takes none"):
        claim("a.b", "mixed", measured=True, below=1.0)


def test_claims_that_need_larger_scales_are_not_asserted_at_smoke(
    displayed, monkeypatch
):
    claim("a.b", "trained", measured=9.0, below=1.0, at_smoke=False)
    assert "not asserted at this scale" in displayed[0]["text/plain"]
    assert displayed[0][claims.MIME]["verdict"] == "open", (
        "nothing is confirmed by failing"
    )
    monkeypatch.setenv("MLBOOK_SCALE", "cpu")
    with pytest.raises(ClaimFailed):
        claim("a.b", "trained", measured=9.0, below=1.0, at_smoke=False)


def test_a_recorded_claim_keeps_its_verdict_and_says_where(displayed):
    record = {"device": "an <A100>", "date": "2026-05-01", "claims": []}
    claim("a.b", "s", measured=1.0, below=2.0, verdict="refuted", recorded=record)
    (bundle,) = displayed
    found = bundle[claims.MIME]
    assert found["verdict"] == "refuted"
    assert found["place"] == "recorded on an <A100>, 2026-05-01"
    assert "recorded on an &lt;A100&gt;, 2026-05-01" in bundle["text/html"]
    with pytest.raises(ClaimFailed):  # a small scale here is no excuse there
        claim("a.b", "s", measured=3.0, below=2.0, at_smoke=False, recorded=record)
    with pytest.raises(ValueError, match="device and date.*'claims'"):
        claim("a.b", "s", measured=1.0, below=2.0, recorded={"claims": []})


@pytest.mark.parametrize(
    "bad", ["", "flow", "Flow.x", "flow.x y", "flow..x", 'flow.x"']
)
def test_a_claims_id_is_checked(bad):
    with pytest.raises(ValueError, match="id reads"):
        claim(bad, "s", measured=1.0, below=2.0)


def test_a_claim_needs_a_bound_and_a_known_verdict():
    with pytest.raises(ValueError, match="needs a bound"):
        claim("a.b", "s", measured=1.0)
    for verdict in ("maybe", "recorded"):
        with pytest.raises(ValueError, match=f"'{verdict}'"):
            claim("a.b", "s", measured=1.0, below=2.0, verdict=verdict)


def test_show_gives_the_source_and_its_lines(displayed):
    mlbook.show(mlbook.scale)
    text = displayed[0].data
    assert (
        text.startswith("```python\ndef scale(*, smoke, cpu, gpu):")
        and "/mlbook/__init__.py#L" in text
    )


class Shown:
    """What it is for × one.

    Attributes:
        x: a number
    """

    def method(self, x):
        r"""Says \"hi\" to
        the reader.

        Args:
            x: `who`, "quoted"

        More of the story.
        Raises:
            ValueError: never."""
        return x

    def brief(self):
        '''One line.

        Returns:
            """nothing"""
        '''

    def plain(self):
        """Args: no section in a first line."""
        return """
    Args:
        of no docstring
    """


def test_show_folds_arguments_and_errors_beneath(displayed):
    mlbook.show(Shown)
    _, code, rest, details, _ = displayed[0].data.split("```")
    namespace = {}
    exec(code.removeprefix("python\n"), namespace)
    shown = namespace["Shown"]
    assert shown.__doc__ == "What it is for × one."
    assert shown.method.__doc__.split("\n") == [
        'Says \\"hi\\" to',
        "        the reader.",
        "",
        "        More of the story.",
    ]
    assert shown.brief.__doc__ == "One line."
    assert shown.plain.__doc__ == Shown.plain.__doc__
    assert shown().plain() == Shown().plain()
    assert "<details" in rest and "Arguments and errors" in rest
    assert details.split("\n")[1:-1] == [
        "Shown",
        "    Attributes:",
        "        x: a number",
        "",
        "method",
        "    Args:",
        '        x: `who`, "quoted"',
        "    Raises:",
        "        ValueError: never.",
        "",
        "brief",
        "    Returns:",
        '        """nothing"""',
    ]


def test_show_dedents_methods_and_leaves_short_docstrings(displayed):
    mlbook.show(Shown.plain)
    assert displayed[0].data.startswith(
        '```python\ndef plain(self):\n    """Args: no section'
    )
    assert "<details" not in displayed[0].data


def test_show_takes_kernels_and_code_with_fences(displayed):
    class Kernel:  # like Triton's
        @staticmethod
        def fn():
            """```python"""

    mlbook.show(Kernel)
    assert displayed[0].data.startswith("````python\n@staticmethod\ndef fn():")


@pytest.mark.parametrize("thing", [len, 3, "text"])
def test_show_refuses_what_has_no_source(thing):
    with pytest.raises(TypeError, match="Python source"):
        mlbook.show(thing)


def test_data_records_the_file_it_read(displayed, tmp_path):
    file = tmp_path / "prices.csv"
    file.write_text("1,2")
    mlbook.data("prices", "made here", file)
    assert (
        displayed[0][source.DATA_MIME]["path"] == str(file)
        and len(displayed[0][source.DATA_MIME]["sha256"]) == 64
    )
    with pytest.raises(FileNotFoundError):
        mlbook.data("prices", "made here", tmp_path / "absent.csv")


def test_a_timing_is_shown_and_decides_nothing(displayed, monkeypatch):
    for scale in ("smoke", "cpu"):
        monkeypatch.setenv("MLBOOK_SCALE", scale)
        claim("a.fast", "It is fast", measured=0.5, above=1.0, timed=True)
        claim("a.fast", "It is fast", measured=2.0, above=1.0, timed=True)
        slow, fast = (shown[claims.MIME] for shown in displayed[-2:])
        assert (slow["verdict"], fast["verdict"]) == ("open", "confirmed")
        assert not slow["asserted"]
        assert "a timing, not asserted" in displayed[-1]["text/plain"]
