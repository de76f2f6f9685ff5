"""Packages that are there and broken look as if they were not there; texts to train on are what they say."""

import http.client
import importlib.util
import io
import subprocess
import sys
import zipfile

import pytest
import torch

from mlbook.common import corpora, optional, training


@pytest.fixture
def packages(tmp_path, monkeypatch):
    for name, source in {
        "whole_package": "answer = 42",
        "broken_package": "import sys\nfrom . import part\nraise RuntimeError('no operator')",
    }.items():
        folder = tmp_path / name
        folder.mkdir()
        (folder / "__init__.py").write_text(source)
        (folder / "part.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name in [m for m in sys.modules if m.startswith(("whole_", "broken_"))]:
        del sys.modules[name]


def test_hide_broken(packages):
    names = ("whole_package", "broken_package", "no_such_package")
    assert optional.hide_broken(*names) == ["broken_package"]
    assert importlib.util.find_spec("broken_package") is None
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("broken_package")
    assert importlib.import_module("whole_package").answer == 42
    assert "broken_package.part" not in sys.modules
    assert optional.hide_broken(*names) == []  # a second call finds it gone


def test_a_readers_own_notebook_imports():
    code = """
from transformers import LlamaConfig
import torchcfm.conditional_flow_matching, torchcfm.models.models, torchcfm.optimal_transport
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)


def test_python_reference():
    text, held_out = corpora.python_reference()
    assert text.dtype == torch.int64 and 0 <= text.min() and text.max() < 256
    assert 250_000 < len(text) and len(text) / 20 < len(held_out) < len(text) / 3
    again, _ = corpora.python_reference()
    assert torch.equal(text, again)


def test_windows_reach_both_ends():
    rng = torch.Generator().manual_seed(0)
    x = corpora.windows(torch.arange(7), 300, 5, rng)
    assert set(x[:, 0].tolist()) == {0, 1, 2}
    assert torch.equal(x - x[:, :1], torch.arange(5).expand(300, 5))
    with pytest.raises(ValueError, match="7 tokens has no stretch of 8"):
        corpora.windows(torch.arange(7), 1, 8, rng)


def test_enwik8_takes_nothing_else(tmp_path):
    with pytest.raises(ValueError, match="got 5"):
        corpora.enwik8(tmp_path, length=5)
    (tmp_path / "enwik8.zip").write_text("not an archive")
    with pytest.raises(ValueError, match="is not the archive of enwik8"):
        corpora.enwik8(tmp_path)
    with zipfile.ZipFile(tmp_path / "enwik8.zip", "w") as archive:
        archive.writestr("enwik8", "something else")
    with pytest.raises(ValueError, match="a1fa5ffddb56f4953e226637dabbb36a"):
        corpora.enwik8(tmp_path)
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("enwik8", bytes(1000))
    data = bytearray(packed.getvalue())
    data[36] = 0xFF  # in the stream itself
    (tmp_path / "enwik8.zip").write_bytes(data)
    with pytest.raises(ValueError, match="is not the archive of enwik8"):
        corpora.enwik8(tmp_path)


def test_enwik8_cut_off_on_its_way_is_an_error_of_the_network(tmp_path, monkeypatch):
    def cut(*_, **__):
        raise http.client.IncompleteRead(b"half", 9)

    monkeypatch.setattr("urllib.request.urlopen", cut)
    with pytest.raises(OSError, match="cannot be fetched: IncompleteRead"):
        corpora.enwik8(tmp_path)
    assert not list(tmp_path.iterdir())


def test_side_by_side_keeps_order_and_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        seen = training.side_by_side(lambda a: (a, torch.get_num_threads()), range(5))
        assert seen == [(a, 1) for a in range(5)]
        assert torch.get_num_threads() == 2
        with pytest.raises(ZeroDivisionError):
            training.side_by_side(lambda a: 1 / a, [1, 0])
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
