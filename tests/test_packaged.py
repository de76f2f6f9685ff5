"""Files that other packages carry: which one is found, what is said where none is, and Wikipedia's pages."""

import bz2
import hashlib
import json
import re

import pytest

from mlbook.coding import records
from mlbook.common import corpora, packaged, smollm


@pytest.fixture
def install(monkeypatch, tmp_path):
    """A function that puts a package with files there, as pip would."""
    monkeypatch.syspath_prepend(tmp_path)

    def install(name, *files):
        info = tmp_path / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Name: {name}\nVersion: 1.0\n")
        (info / "RECORD").write_text("".join(f"{file},,\n" for file in files))
        for file in files:
            (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / file).write_text(f"{file} of {name}")

    return install


def test_a_file_is_found_by_the_end_of_its_path(install):
    install("photographs", "photos/data/camera.png", "photos/data/cat.png")
    for end in ("camera.png", "data/camera.png", "photos/data/camera.png"):
        for package in ("photographs", "photographs==9.9"):
            path = packaged.file(end, package)
            assert path.read_text() == "photos/data/camera.png of photographs"
            assert path.is_absolute()


def test_parts_of_a_path_match_whole(install):
    install("photographs", "photos/data/camera.png")
    for end in ("a.png", "a/camera.png", "camera", "photos", "photos/data", ""):
        with pytest.raises(FileNotFoundError, match=re.escape(f"{end} comes with")):
            packaged.file(end, "photographs")


def test_the_second_package_is_taken_where_the_first_lacks_the_file(install):
    install("empty")
    install("first", "first/a.wav", "first/both.wav")
    install("second", "second/b.wav", "second/both.wav")

    def found(name, *packages):
        return packaged.file(name, *packages).read_text()

    assert found("b.wav", "first==1.0", "second") == "second/b.wav of second"
    assert found("b.wav", "not-there", "empty", "second") == "second/b.wav of second"
    assert found("both.wav", "first", "second") == "first/both.wav of first"
    assert found("both.wav", "second", "first") == "second/both.wav of second"


@pytest.mark.parametrize("name", ["not-there", "empty", "unrecorded"])
def test_what_is_not_there_says_what_to_install(install, tmp_path, name):
    install("empty")
    install("unrecorded")
    (tmp_path / "unrecorded-1.0.dist-info" / "RECORD").unlink()
    message = f"a.png comes with a package .*: pip install --no-deps {name}==2.0$"
    with pytest.raises(FileNotFoundError, match=message):
        packaged.file("a.png", f"{name}==2.0", "not-there-either")


def test_a_file_that_was_removed_is_not_found(install, tmp_path):
    install("removed", "data/b.png")
    (tmp_path / "data/b.png").unlink()
    with pytest.raises(FileNotFoundError, match="pip install --no-deps removed"):
        packaged.file("b.png", "removed")


def test_what_was_recorded_is_found_in_an_installed_package(install):
    install("mlbook", "share/mlbook/results/a-cpu.json", "data/results/b-cpu.json")
    with pytest.raises(json.JSONDecodeError):  # found, and no JSON
        records.carried("a-cpu")
    with pytest.raises(FileNotFoundError, match=r"c-cpu\.json comes with a package"):
        records.carried("c-cpu")


def test_a_damaged_file_is_refused(tmp_path):
    (tmp_path / "a").write_bytes(b"as it was")
    digest = hashlib.sha256(b"as it was").hexdigest()
    assert packaged.check(tmp_path / "a", digest) == b"as it was"
    (tmp_path / "a").write_bytes(b"as it is!")
    with pytest.raises(ValueError, match="a is damaged or of another version"):
        packaged.check(tmp_path / "a", digest)


@pytest.mark.parametrize("load", [corpora.wikipedia.__wrapped__, smollm.load])
def test_damaged_data_are_not_used(load, monkeypatch, tmp_path):
    pytest.importorskip("gguf", reason="no gguf here")
    damaged = tmp_path / "damaged"
    damaged.write_bytes(b"half of it")
    monkeypatch.setattr(packaged, "file", lambda *_: damaged)
    with pytest.raises(ValueError, match="is damaged or of another version"):
        load()


@pytest.fixture(scope="module")
def wikipedia():
    try:
        return corpora.wikipedia()
    except FileNotFoundError as error:
        pytest.skip(str(error))


def pages(text):
    return [b"  <page>\n" + page for page in text.split(b"  <page>\n")[1:]]


def test_every_eighth_page_of_wikipedia_is_held_out_and_none_is_lost(wikipedia):
    training, held_out = map(pages, wikipedia)
    assert len(training) + len(held_out) == 206 and len(held_out) == 26
    assert not set(training) & set(held_out)
    packed = packaged.file(corpora.WIKIPEDIA, "gensim").read_bytes()
    given = pages(bz2.decompress(packed))
    assert given[::8] == held_out
    assert [page for i, page in enumerate(given) if i % 8] == training
    assert len(set(given)) == 206
    assert b"".join(training) == wikipedia[0] and b"".join(held_out) == wikipedia[1]


def test_pages_of_wikipedia_are_whole(wikipedia):
    for part in wikipedia:
        assert b"<title>" in part[:40] and part.decode().count("<title>") == len(
            pages(part)
        )
    assert b"<title>AccessibleComputing</title>" in wikipedia[1][:60]
    assert b"<title>Anarchism</title>" in wikipedia[0][:60]
    assert sum(map(len, wikipedia)) == 6_086_831
