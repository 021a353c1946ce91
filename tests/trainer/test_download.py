"""Downloads: a file appears only with the right sum; errors say what to put where."""

import gzip
import hashlib
import io
import pickle
import struct
import tarfile

import numpy as np
import pytest

from noprop import data
from noprop.datasets import download
from noprop.datasets.download import Source
from noprop.errors import InputError

UNREACHABLE = "http://127.0.0.1:9/"  # the discard port: refused at once


def served(folder, name: str, content: bytes, *mirrors: str) -> Source:
    """A source whose last address is a file."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(content)
    urls = (*(mirror + name for mirror in mirrors), (folder / name).as_uri())
    return Source(name, urls, hashlib.md5(content).hexdigest())


def tree(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def idx_sources(folder, *mirrors: str) -> tuple[Source, ...]:
    sources = []
    for prefix, rows in (("train", 4), ("t10k", 2)):
        for kind, shape in (("images-idx3", (rows, 2, 2)), ("labels-idx1", (rows,))):
            content = struct.pack(f">HBB{len(shape)}I", 0, 8, len(shape), *shape)
            content = gzip.compress(content + bytes(int(np.prod(shape))))
            sources.append(served(folder, f"{prefix}-{kind}-ubyte.gz", content, *mirrors))
    return tuple(sources)


def test_missing_files_are_fetched_from_the_first_address_that_serves(tmp_path, monkeypatch):
    sources = idx_sources(tmp_path / "web", UNREACHABLE)
    monkeypatch.setattr(data, "MNIST", sources)
    (tmp_path / "data").mkdir()
    said = []
    read = data.load("mnist", tmp_path / "data", said.append)
    assert len(read.x) == 4 and len(said) == 8
    assert tree(tmp_path / "data" / "MNIST" / "raw") == sorted(source.name for source in sources)
    said.clear()
    data.load("mnist", tmp_path / "data", said.append)
    assert said == []


def test_a_wrong_sum_is_an_error_and_leaves_nothing(tmp_path, monkeypatch):
    sources = idx_sources(tmp_path / "web")
    bad = tmp_path / "web" / sources[0].name
    bad.write_bytes(bad.read_bytes() + b" ")
    monkeypatch.setattr(data, "MNIST", sources)
    (tmp_path / "data").mkdir()
    with pytest.raises(InputError, match=f"MD5 sum [0-9a-f]+, must be {sources[0].md5}"):
        data.load("mnist", tmp_path / "data")
    assert tree(tmp_path / "data") == []


def test_a_wrong_address_leaves_nothing_in_the_next_ones_file(tmp_path):
    source = served(tmp_path / "web", "file", b"right")
    wrong = tmp_path / "wrong"
    wrong.write_bytes(b"wrong and longer")
    source = Source(source.name, (wrong.as_uri(), *source.urls), source.md5)
    download.fetch_files([source], tmp_path / "data", lambda line: None)
    assert (tmp_path / "data" / "file").read_bytes() == b"right"


def test_without_a_network_the_error_names_files_and_folder(tmp_path, monkeypatch):
    source = Source("cifar-10-python.tar.gz", (f"{UNREACHABLE}cifar-10-python.tar.gz",), "0" * 32)
    monkeypatch.setattr(data, "CIFAR10", source)
    with pytest.raises(InputError) as caught:
        data.load("cifar10", tmp_path)
    text = str(caught.value)
    assert "data_batch_1, data_batch_2" in text and "test_batch" in text
    assert str(tmp_path / "cifar-10-batches-py") in text and source.urls[0] in text
    assert "--data-dir" in text
    assert tree(tmp_path) == []


def archive(names, folder="cifar-100-python") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as file:
        for name in names:
            batch = {"data": np.zeros((2, 3072), np.uint8), "fine_labels": [0, 99]}
            content = pickle.dumps(batch, protocol=2)
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def test_an_archive_gives_the_wanted_files_alone(tmp_path, monkeypatch):
    content = archive(["train", "test", "meta", "../../outside"])
    source = served(tmp_path / "web", "cifar-100-python.tar.gz", content)
    monkeypatch.setattr(data, "CIFAR100", source)
    (tmp_path / "data").mkdir()
    read = data.load("cifar100", tmp_path / "data")
    assert (len(read.x), len(read.x_test)) == (2, 2)
    assert tree(tmp_path / "data") == [
        "cifar-100-python",
        "cifar-100-python/test",
        "cifar-100-python/train",
    ]


def test_an_archive_without_a_file(tmp_path):
    source = served(tmp_path / "web", "a.tar.gz", archive(["train"]))
    with pytest.raises(InputError, match="a.tar.gz has no file test"):
        download.fetch_archive(source, tmp_path / "data", ["test"], lambda line: None)


def test_published_sources_are_complete():
    for sources in (download.MNIST, download.FASHION_MNIST):
        assert len(sources) == 4
    every = (*download.MNIST, *download.FASHION_MNIST, download.CIFAR10, download.CIFAR100)
    assert len({source.md5 for source in every}) == len(every)
    for source in every:
        assert len(source.md5) == 32 and source.urls
        assert all(url.endswith("/" + source.name) for url in source.urls)
