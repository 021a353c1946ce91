"""Published data files: their addresses and checksums, and the download into a folder."""

import hashlib
import http.client
import tarfile
import tempfile
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ..errors import InputError
from ..files import atomic_file

Say = Callable[[str], None]


@dataclass(frozen=True)
class Source:
    """A published file: its name, the addresses that serve it (tried in order) and its MD5 sum."""

    name: str
    urls: tuple[str, ...]
    md5: str


def _idx(mirrors: Sequence[str], sums: dict[str, str]) -> tuple[Source, ...]:
    return tuple(
        Source(name, tuple(mirror + name for mirror in mirrors), md5) for name, md5 in sums.items()
    )


MNIST = _idx(
    (
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
    ),
    {
        "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
        "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
        "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
        "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
    },
)
FASHION_MNIST = _idx(
    ("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",),
    {
        "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
        "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
        "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
        "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
    },
)
CIFAR10 = Source(
    "cifar-10-python.tar.gz",
    ("https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",),
    "c58f30108f718f92721af3b95e74349a",
)
CIFAR100 = Source(
    "cifar-100-python.tar.gz",
    ("https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",),
    "eb9058c3a382ffc7106e4002c42a8d85",
)


def fetch_files(sources: Sequence[Source], folder: Path, say: Say) -> None:
    """Downloads each source into `folder`; a file appears only once its checksum is right.

    Raises:
        InputError: no address serves it, or its checksum is wrong.
    """
    for source in sources:
        with tempfile.TemporaryFile() as file:
            _download(source, file, folder, [source.name], say)
            with atomic_file(folder / source.name) as target:
                _copy(file, target)


def fetch_archive(source: Source, folder: Path, names: Sequence[str], say: Say) -> None:
    """Downloads an archive, and writes those of its files that are in `names` into `folder`.

    Raises:
        InputError: no address serves it, its checksum is wrong, or a file is not in it.
    """
    with tempfile.TemporaryFile() as file:
        _download(source, file, folder, names, say)
        with tarfile.open(fileobj=file, mode="r:gz") as archive:
            members = {Path(member.name).name: member for member in archive if member.isfile()}
            for name in names:
                content = archive.extractfile(members[name]) if name in members else None
                if content is None:
                    raise InputError(f"{source.name} has no file {name}")
                with atomic_file(folder / name) as target:
                    _copy(content, target)


def _copy(source, target: BinaryIO) -> None:
    while chunk := source.read(1 << 20):
        target.write(chunk)


def _download(source: Source, file: BinaryIO, folder: Path, names: Sequence[str], say: Say) -> None:
    """Writes a verified source into `file`, and rewinds it; errors name `folder` and `names`."""
    reasons = []
    for url in source.urls:
        say(f"downloading {url}")
        file.seek(0)
        file.truncate()
        digest = hashlib.md5(usedforsecurity=False)
        try:
            with urllib.request.urlopen(url, timeout=30) as response:
                while chunk := response.read(1 << 20):
                    digest.update(chunk)
                    file.write(chunk)
        except (OSError, http.client.HTTPException) as error:
            reasons.append(f"{url}: {getattr(error, 'reason', None) or error}")
            continue
        if digest.hexdigest() != source.md5:
            reasons.append(f"{url}: MD5 sum {digest.hexdigest()}, must be {source.md5}")
            continue
        file.seek(0)
        return
    raise InputError(
        f"{folder} lacks {', '.join(names)}, and {source.name} could not be downloaded "
        f"({'; '.join(reasons)}). Put the published files into that folder by hand, or name "
        "another folder with --data-dir or NOPROP_DATA."
    )
