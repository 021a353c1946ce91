"""Each data format, whole and corrupt; statistics; splits; and the published files."""

import gzip
import os
import pickle
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch

from noprop import data
from noprop.datasets.dataset import Dataset
from noprop.datasets.split import hold_out
from noprop.errors import InputError
from noprop.normalisation import statistics

IDX_FOLDERS = {"mnist": "MNIST/raw", "fashion-mnist": "FashionMNIST/raw"}


def idx_bytes(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def write_idx(root: Path, name: str, *, packed: bool) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    folder = root / IDX_FOLDERS[name]
    folder.mkdir(parents=True)
    arrays = {}
    for prefix, rows in (("train", 5), ("t10k", 3)):
        arrays[f"{prefix}-images-idx3"] = random.integers(0, 256, (rows, 4, 7), np.uint8)
        arrays[f"{prefix}-labels-idx1"] = random.integers(0, 10, rows, np.uint8)
    for kind, array in arrays.items():
        content = idx_bytes(array)
        if packed:
            (folder / f"{kind}-ubyte.gz").write_bytes(gzip.compress(content))
        else:
            (folder / f"{kind}-ubyte").write_bytes(content)
    return arrays


def write_cifar(root: Path, name: str) -> list[dict]:
    random = np.random.default_rng(0)
    folder, files, key, classes = {
        "cifar10": (
            "cifar-10-batches-py",
            [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"],
            "labels",
            10,
        ),
        "cifar100": ("cifar-100-python", ["train", "test"], "fine_labels", 100),
    }[name]
    (root / folder).mkdir(parents=True)
    batches = []
    for i, file in enumerate(files):
        x = random.integers(0, 256, (i + 2, 3072), np.uint8)
        batch = {"data": x, key: random.integers(0, classes, i + 2).tolist()}
        (root / folder / file).write_bytes(pickle.dumps(batch, protocol=2))
        batches.append(batch)
    return batches


@pytest.mark.parametrize("packed", [True, False], ids=["gz", "plain"])
@pytest.mark.parametrize("name", IDX_FOLDERS)
def test_idx(tmp_path, name, packed):
    arrays = write_idx(tmp_path, name, packed=packed)
    read = data.load(name, tmp_path)
    assert np.array_equal(read.x, arrays["train-images-idx3"].reshape(5, 28))
    assert np.array_equal(read.y, arrays["train-labels-idx1"])
    assert np.array_equal(read.x_test, arrays["t10k-images-idx3"].reshape(3, 28))
    assert np.array_equal(read.y_test, arrays["t10k-labels-idx1"])
    assert (read.x.dtype, read.y.dtype) == (torch.uint8, torch.int64)
    assert (read.classes, read.channels, read.name) == (10, 1, name)


@pytest.mark.parametrize(
    "name, place",
    [
        ("mnist", "MNIST/{}"),
        ("mnist", "mnist/{}"),
        ("mnist", "{}"),
        ("mnist", "MNIST/raw/{}/{}"),
        ("mnist", "{dot}/{}"),
        ("mnist", "{dot}"),
        ("mnist", "{dot}.gz"),
        ("mnist", "MNIST/raw/{dot}"),
        ("mnist", "MNIST/raw/{}.gz/{}"),
        ("fashion-mnist", "FashionMNIST/{}"),
        ("fashion-mnist", "fashion-mnist/{}.gz"),
        ("fashion-mnist", "FashionMNIST/raw/{dot}/{dot}"),
    ],
)
def test_idx_under_other_names(tmp_path, name, place):
    arrays = write_idx(tmp_path / "made", name, packed=False)
    for path in sorted((tmp_path / "made").rglob("*ubyte")):
        dot = path.name.replace("-idx", ".idx")
        to = tmp_path / "here" / place.format(path.name, path.name, dot=dot)
        to.parent.mkdir(parents=True, exist_ok=True)
        content = path.read_bytes()
        to.write_bytes(gzip.compress(content) if to.suffix == ".gz" else content)
    read = data.load(name, tmp_path / "here")
    assert np.array_equal(read.x, arrays["train-images-idx3"].reshape(5, 28))
    assert np.array_equal(read.y_test, arrays["t10k-labels-idx1"])


def test_a_packed_file_is_unpacked_no_further_than_its_header_says(tmp_path):
    write_idx(tmp_path, "mnist", packed=True)
    path = tmp_path / "MNIST/raw/train-images-idx3-ubyte.gz"
    whole = gzip.decompress(path.read_bytes())
    path.write_bytes(gzip.compress(whole + bytes(50_000_000)))
    tracemalloc.start()
    with pytest.raises(InputError, match="must hold 140 bytes for its shape .*, got more"):
        data.load("mnist", tmp_path)
    assert tracemalloc.get_traced_memory()[1] < 10_000_000
    tracemalloc.stop()
    huge = struct.pack(">HBB3I", 0, 8, 3, 2**32 - 1, 2**32 - 1, 1)
    path.write_bytes(gzip.compress(huge))
    with pytest.raises(InputError, match="would take 18,446,744,065,119,617,025 bytes"):
        data.load("mnist", tmp_path)


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar(tmp_path, name):
    batches = write_cifar(tmp_path, name)
    read = data.load(name, tmp_path)
    key = "labels" if name == "cifar10" else "fine_labels"
    assert np.array_equal(read.x, np.concatenate([batch["data"] for batch in batches[:-1]]))
    assert read.y.tolist() == sum((batch[key] for batch in batches[:-1]), [])
    assert np.array_equal(read.x_test, batches[-1]["data"])
    assert read.y_test.tolist() == batches[-1][key]
    assert (read.classes, read.channels) == ({"cifar10": 10, "cifar100": 100}[name], 3)


def corrupt_idx(content: bytes, how: str) -> bytes:
    return {
        "empty": b"",
        "cut": content[:-1],
        "longer": content + b"\0",
        "magic": b"\1" + content[1:],
        "type": content[:2] + b"\x0d" + content[3:],
        "shape": content[:7] + b"\x09" + content[8:],
    }[how]


@pytest.mark.parametrize("how", ["empty", "cut", "longer", "magic", "type", "shape"])
@pytest.mark.parametrize("packed", [True, False], ids=["gz", "plain"])
@pytest.mark.parametrize("kind", ["train-images-idx3", "t10k-labels-idx1"])
def test_corrupt_idx(tmp_path, kind, packed, how):
    arrays = write_idx(tmp_path, "mnist", packed=packed)
    content = corrupt_idx(idx_bytes(arrays[kind]), how)
    path = tmp_path / "MNIST/raw" / f"{kind}-ubyte{'.gz' if packed else ''}"
    path.write_bytes(gzip.compress(content) if packed else content)
    with pytest.raises(InputError, match=path.name):
        data.load("mnist", tmp_path)


@pytest.mark.parametrize("how", ["cut", "flip", "no gzip"])
def test_corrupt_gzip(tmp_path, how):
    write_idx(tmp_path, "mnist", packed=True)
    path = tmp_path / "MNIST/raw/train-images-idx3-ubyte.gz"
    content = bytearray(path.read_bytes())
    if how == "cut":
        del content[-9:]
    elif how == "flip":
        content[len(content) // 2] ^= 1
    else:
        content = bytearray(b"something else")
    path.write_bytes(content)
    with pytest.raises(InputError, match=path.name):
        data.load("mnist", tmp_path)


def test_labels_must_fit_the_images(tmp_path):
    write_idx(tmp_path, "mnist", packed=False)
    labels = tmp_path / "MNIST/raw/train-labels-idx1-ubyte"
    labels.write_bytes(idx_bytes(np.zeros(4, np.uint8)))
    with pytest.raises(InputError, match="5 training rows with 4 labels"):
        data.load("mnist", tmp_path)
    labels.write_bytes(idx_bytes(np.array([0, 1, 2, 3, 10], np.uint8)))
    with pytest.raises(InputError, match=r"labels must be in 0\.\.9, got 0\.\.10"):
        data.load("mnist", tmp_path)


@pytest.mark.parametrize(
    "batch",
    [
        {},
        {"data": np.zeros((2, 3072), np.uint8)},
        {"data": np.zeros((2, 3072), np.int16), "labels": [0, 1]},
        {"data": np.zeros((2, 3071), np.uint8), "labels": [0, 1]},
        {"data": np.zeros((2, 3072), np.uint8), "labels": [0]},
        {"data": np.zeros((2, 3072), np.uint8), "labels": [0, "1"]},
        {"data": np.zeros((2, 3072), np.uint8), "labels": [0, 10]},
        {"data": [0, 1], "labels": [0, 1]},
    ],
)
def test_corrupt_cifar(tmp_path, batch):
    write_cifar(tmp_path, "cifar10")
    (tmp_path / "cifar-10-batches-py/data_batch_3").write_bytes(pickle.dumps(batch, protocol=2))
    with pytest.raises(InputError, match="data_batch_3|labels must be in"):
        data.load("cifar10", tmp_path)


@pytest.mark.parametrize(
    "shape, dtype, channels",
    [
        ((9, 5), np.uint8, 1),
        ((9, 5), np.float64, 5),
        ((9, 4, 6), np.float32, 1),
        ((9, 2, 4, 6), np.uint8, 2),
    ],
)
def test_npz(tmp_path, shape, dtype, channels):
    x = np.random.default_rng(0).integers(0, 200, shape).astype(dtype)
    y = np.arange(9) % 4
    path = tmp_path / "mine.npz"
    np.savez_compressed(path, x=x, y=y.astype(np.int16), x_test=x[:2], y_test=y[:2])
    read = data.load(str(path))
    assert (read.name, read.classes, read.channels) == ("mine", 4, channels)
    assert read.x.dtype == torch.from_numpy(x).dtype
    assert np.array_equal(read.x, x.reshape(9, -1)) and np.array_equal(read.y, y)
    assert np.array_equal(read.x_test, x[:2].reshape(2, -1))
    assert np.array_equal(read.y_test, y[:2])


def test_npz_without_a_test_is_split_always_alike(tmp_path):
    path = tmp_path / "mine.npz"
    x = np.arange(20, dtype=np.uint8).reshape(20, 1)
    np.savez(path, x=x, y=np.arange(20) % 2)
    read = data.load(str(path))
    assert len(read.x) == 16 and len(read.x_test) == 4
    assert sorted(torch.cat([read.x, read.x_test]).flatten().tolist()) == list(range(20))
    kept, held = hold_out(20, 0.2)
    assert torch.equal(read.x[:, 0].long(), kept) and torch.equal(read.x_test[:, 0].long(), held)


GOOD = {"x": np.zeros((4, 2), np.uint8), "y": np.array([0, 1, 0, 1])}


@pytest.mark.parametrize(
    "change, text",
    [
        ({"x": None}, "must hold x and y"),
        ({"x_test": np.zeros((1, 2), np.uint8)}, "x_test with y_test or neither"),
        ({"x": np.array([["1", "a"]] * 4)}, "x must be numbers, got .1. in row 0, column 0"),
        ({"x": np.zeros((4, 2), np.complex64)}, "x must be numbers, got complex64"),
        ({"x": np.zeros((4, 2, 2, 2, 2))}, r"x must be \(rows, F\), .* use x.reshape"),
        (
            {"x": np.zeros((4, 32, 30, 3))},
            r"channels seem to be last; use x.transpose\(0, 3, 1, 2\)",
        ),
        ({"x": np.zeros(4, np.uint8)}, r"x must be \(rows, F\)"),
        ({"x": np.zeros((4, 0), np.uint8)}, r"x must be \(rows, F\)"),
        ({"x": np.zeros((5, 2), np.uint8)}, "5 rows with 4 labels"),
        ({"x": np.zeros((0, 2), np.uint8), "y": np.zeros(0, int)}, "holds no rows"),
        ({"y": np.array([[1, 0]] * 3 + [[1, 1]])}, "one 1 and zeros in a row, got 1, 1 in row 3"),
        ({"y": np.zeros(4)}, "all labels are .0.; there must be 2 classes at least"),
        ({"y": np.array([0, np.nan, 1, 1])}, "y must be whole numbers, .* got nan in row 1"),
        ({"y": np.array([0, 0.5, 1, 1])}, "got 0.5 in row 1; numbers to be predicted are no class"),
        ({"x": np.array([[0, 0], [0, np.nan]] * 2)}, "finite, got nan in row 1, column 1"),
        ({"y": np.array([None] * 4)}, "y holds Python objects, which are not read"),
        ({"y_test": np.array([0, 7]), "x_test": np.zeros((2, 2), np.uint8)}, "got .7. in row 1"),
        (
            {"x_test": np.zeros((1, 3), np.uint8), "y_test": np.zeros(1, int)},
            r"x_test must be \(rows, 2\), got \(1, 3\)",
        ),
    ],
)
def test_bad_npz(tmp_path, change, text):
    path = tmp_path / "mine.npz"
    arrays = {name: value for name, value in (GOOD | change).items() if value is not None}
    np.savez(path, **arrays)
    with pytest.raises(InputError, match=text):
        data.load(str(path))


def test_unreadable_npz(tmp_path):
    path = tmp_path / "mine.npz"
    with pytest.raises(InputError, match="No such file"):
        data.load(str(path))
    np.savez(path, **GOOD)
    whole = path.read_bytes()
    for content in (b"", b"text", whole[:60], whole[: len(whole) // 2], whole[:-30]):
        path.write_bytes(content)
        with pytest.raises(InputError, match="mine.npz"):
            data.load(str(path))


def test_digits():
    read = data.load("digits")
    assert (len(read.x), len(read.x_test), read.features) == (1438, 359, 64)
    assert (int(read.x.max()), read.classes, read.channels) == (16, 10, 1)
    kept, held = hold_out(1797, 0.2)
    assert len(set(kept.tolist()) | set(held.tolist())) == 1797
    pixels, labels = pytest.importorskip("sklearn.datasets").load_digits(return_X_y=True)
    for x, y, rows in ((read.x, read.y, kept), (read.x_test, read.y_test, held)):
        assert (x.dtype, y.dtype) == (torch.uint8, torch.int64)
        assert np.array_equal(x, pixels[rows]) and np.array_equal(y, labels[rows])


def test_unknown_name_and_missing_folder(tmp_path):
    with pytest.raises(InputError, match="must be one of digits"):
        data.load("imagenet", tmp_path)
    with pytest.raises(InputError, match="nowhere does not exist"):
        data.load("mnist", tmp_path / "nowhere")


def test_default_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("NOPROP_DATA", str(tmp_path / "here"))
    assert data.default_folder() == tmp_path / "here"
    monkeypatch.delenv("NOPROP_DATA")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert data.default_folder() == tmp_path / "cache" / "noprop"


@pytest.mark.parametrize("channels", [1, 2, 6])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_statistics(dtype, channels):
    x = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (50, 6), np.uint8)).to(dtype)
    mean, std = statistics(x, channels)
    unit = x.double() / (255 if dtype == torch.uint8 else 1)
    runs = unit.view(50, channels, -1).transpose(1, 2).reshape(-1, channels)
    assert torch.allclose(mean.double(), runs.mean(0), rtol=1e-6)
    assert torch.allclose(std.double(), runs.std(0, correction=0), rtol=1e-6)


def test_a_constant_channel_has_deviation_one():
    for x in (torch.full((4, 3), 7, dtype=torch.uint8), torch.full((4, 3), 7.0)):
        assert statistics(x, 3)[1].tolist() == [1, 1, 1]


def test_hold_out():
    for rows, fraction, count in ((10, 0.3, 3), (10, 0.01, 1), (2, 0.9, 1), (1797, 0.2, 359)):
        kept, held = hold_out(rows, fraction)
        assert len(held) == count and len(kept) == rows - count
        assert sorted(torch.cat([kept, held]).tolist()) == list(range(rows))
        assert torch.equal(kept, kept.sort().values)


def test_fingerprint_sees_every_part():
    x, y = torch.zeros(4, 2, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64)
    base = Dataset("a", x, y, x, y, classes=2).fingerprint()
    assert Dataset("b", x.clone(), y, x, y, classes=2).fingerprint() == base
    other_x, other_y = x.clone(), y.clone()
    other_x[3, 1], other_y[0] = 1, 1
    assert Dataset("a", other_x, y, x, y, classes=2).fingerprint() != base
    assert Dataset("a", x, other_y, x, y, classes=2).fingerprint() != base
    assert Dataset("a", x, y, x, y, 2, class_names=("p", "q")).fingerprint() != base


def test_runs_that_were_begun_on_float32_know_their_data():
    x, y = torch.rand(4, 2, dtype=torch.float64), torch.zeros(4, dtype=torch.int64)
    before = Dataset("a", x.float(), y, x.float(), y, classes=2).fingerprint()
    now = Dataset("a", x, y, x, y, classes=2)
    assert now.matches(before) and now.matches(now.fingerprint()) and now.fingerprint() != before
    assert not now.matches(Dataset("a", x + 1, y, x, y, classes=2).fingerprint())


PUBLISHED = {
    "mnist": ("MNIST/raw", 60000, 784, [5, 0, 4, 1, 9], [0.1307], [0.3081]),
    "cifar10": (
        "cifar-10-batches-py",
        50000,
        3072,
        [6, 9, 9, 4, 1],
        [0.4914, 0.4822, 0.4465],
        [0.2470, 0.2435, 0.2616],
    ),
    "cifar100": (
        "cifar-100-python",
        50000,
        3072,
        [19, 29, 0, 11, 1],
        [0.5071, 0.4866, 0.4409],
        [0.2673, 0.2564, 0.2762],
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_files(name):
    folder, rows, features, first, mean, std = PUBLISHED[name]
    root = os.environ.get("NOPROP_DATA")
    if not root or not (Path(root) / folder).is_dir():
        pytest.skip(f"NOPROP_DATA does not name a folder with {folder}")
    read = data.load(name, Path(root))
    assert read.x.shape == (rows, features) and read.x_test.shape == (10000, features)
    assert read.y[:5].tolist() == first
    measured = statistics(read.x, read.channels)
    assert torch.allclose(measured[0].float(), torch.tensor(mean), atol=1e-4)
    assert torch.allclose(measured[1].float(), torch.tensor(std), atol=1e-4)
