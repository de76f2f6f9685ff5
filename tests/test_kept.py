"""What is kept of compiled kernels: used while it is fresh, compiled anew in turn, noticed where it is wrong."""

from types import SimpleNamespace

import kept
import pytest

from book.builder import ci


@pytest.fixture
def ask(tmp_path, monkeypatch):
    """Asks for the reports of one job for a generation; says them, and how often anything was compiled."""
    monkeypatch.setattr(kept, "ROOT", tmp_path)
    monkeypatch.setattr(kept, "FOLDER", tmp_path / "compiled")
    calls = []

    def ask(capability, turn=0, found="r", source="a", keep=False):
        monkeypatch.setattr(ci, "commits", lambda root: turn)
        config = SimpleNamespace(getoption=lambda name: keep)
        calls.clear()

        def compiling(jobs):
            calls.append(jobs)
            return [found]

        said = kept.reports("k", capability, [80, 90], [source], [1], compiling, config)
        return said, len(calls)

    return ask


def test_what_is_fresh_is_compiled_in_turn_only(ask):
    assert ask(90, keep=True) == (["r"], 1)
    assert ask(90, turn=0) == (["r"], 0)
    assert ask(90, turn=1) == (["r"], 1)
    with pytest.raises(AssertionError, match="is not what the kernels compile to"):
        ask(90, turn=1, found="another")


def test_what_is_stale_is_compiled_and_told(ask):
    ask(90, keep=True)
    with pytest.warns(UserWarning, match=r"k-90\.json is stale"):
        assert ask(90, source="b", found="new") == (["new"], 1)
    assert ask(90, source="b", found="new", keep=True) == (["new"], 1)
    assert ask(90, source="b") == (["new"], 0)
