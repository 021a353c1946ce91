"""A user's own .npz and .npy files: names, claims, damage."""

import zipfile

import numpy as np
import pytest
import torch

from noprop import data
from noprop.datasets import memory, own
from noprop.errors import InputError


@pytest.mark.parametrize(
    "names",
    [
        {"X": "x", "Y": "y"},
        {"X_train": "x", "y_train": "y", "X_test": "x_test", "y_test": "y_test"},
        {
            "train_images": "x",
            "train_labels": "y",
            "test_images": "x_test",
            "test_labels": "y_test",
        },
        {"data": "x", "target": "y"},
        {"features": "x", "labels": "y", "more": "x"},
    ],
)
def test_names_in_npz(tmp_path, names):
    x, y = np.random.default_rng(0).normal(size=(9, 5)), np.arange(9) % 3
    made = {"x": x, "y": y, "x_test": x[:2], "y_test": y[:2]}
    np.savez(tmp_path / "a.npz", **{name: made[role] for name, role in names.items()})
    read = data.load(tmp_path / "a.npz")
    assert read.x.dtype == torch.float64 and read.classes == 3
    assert len(read.x) == (9 if "x_test" in names.values() else 6)


def test_which_array_of_an_npz_is_not_guessed(tmp_path):
    x, y = np.random.default_rng(0).normal(size=(9, 5)), np.arange(9) % 3
    np.savez(tmp_path / "a.npz", x=x, y=y, labels=y + 1)
    with pytest.raises(InputError, match=r"y may be any of \['y', 'labels'\]; keep one, or name"):
        data.load(tmp_path / "a.npz")
    assert data.load(tmp_path / "a.npz", label="labels").class_names == ("1", "2", "3")
    np.savez(tmp_path / "a.npz", images_of_cats=x)
    with pytest.raises(InputError, match=r"must hold x and y .*, got \['images_of_cats'\]"):
        data.load(tmp_path / "a.npz")


def test_an_array_without_rows_is_told(tmp_path):
    for shape in ((), (0, 3)):
        np.save(tmp_path / "a.npy", np.zeros(shape))
        with pytest.raises(InputError, match="holds no rows"):
            own.load(tmp_path / "a.npy", labels_file=tmp_path / "a.npy")


def npy(shape, dtype="'<f8'", content=b""):
    """An .npy file whose header claims what it likes."""
    header = f"{{'descr': {dtype}, 'fortran_order': False, 'shape': {shape}}}".encode()
    return (
        b"\x93NUMPY\x01\x00" + len(header + b"\n").to_bytes(2, "little") + header + b"\n" + content
    )


@pytest.mark.parametrize(
    "content, error",
    [
        (npy("(1000000, 1000000)"), "must hold 8,000,000,000,000 bytes for its shape"),
        (npy("(2, 2)", content=bytes(31)), "must hold 32 bytes"),
        (npy("(2, 2)", content=bytes(33)), "must hold 32 bytes"),
        (npy("(2, -2)"), "must be a plain array"),
        (npy("(2, 2)", "'|O'"), "holds Python objects, which are not read"),
        (npy("(2, 2)", "[('a', '<i4')]"), "must be a plain array"),
        (npy("(" * 300), "cannot be read"),
        (npy("((((("), "cannot be read"),
        (npy("(2, 2)", "'\x00'"), "cannot be read"),
        (npy("(10**30, 0)"), "cannot be read"),
        (npy("(1" + "0" * 400 + ",)"), "must hold|cannot be read"),
        (b"\x93NUMPY\x01\x00\xff\xff{", "cannot be read"),
        (b"\x93NUMPY\x09\x00\x01\x00{", "unknown format"),
        (b"x,y\n1,2\n", "is no array of numpy"),
        (b"", "is no array of numpy"),
    ],
)
@pytest.mark.parametrize("packed", [True, False], ids=["npz", "npy"])
def test_arrays_that_claim_too_much(tmp_path, content, error, packed):
    path = tmp_path / ("a.npz" if packed else "a.npy")
    if packed:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("x.npy", content)
            archive.writestr("y.npy", content)
    else:
        path.write_bytes(content)
    with pytest.raises(InputError, match=error) as caught:
        data.load(path, labels=None if packed else path)
    assert str(path) in str(caught.value) and "allow_pickle" not in str(caught.value)


def test_a_text_is_no_npz_and_nobody_is_told_to_unpickle_it(tmp_path):
    path = tmp_path / "a.npz"
    for content in (b"x,y\n1,2\n", b"\x80\x04."):
        path.write_bytes(content)
        with pytest.raises(InputError, match="is no .npz file: numpy.savez writes one"):
            data.load(path)


def test_a_packed_bomb_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    path = tmp_path / "a.npz"
    zeros = np.zeros((2000, 1000), np.uint8)
    np.savez_compressed(path, x=zeros, y=np.arange(2000) % 2)
    assert path.stat().st_size < 20_000
    monkeypatch.setattr(memory, "available", lambda: 1_000_000)
    with pytest.raises(InputError, match="x would take 2,000,000 bytes, of memory 1,000,000"):
        data.load(path)


def test_flipped_bits_of_an_npz_are_one_line(tmp_path):
    path = tmp_path / "a.npz"
    x, y = np.random.default_rng(0).normal(size=(9, 5)), np.arange(9) % 3
    refused = 0
    for save in (np.savez, np.savez_compressed):
        save(path, x=x, y=y)
        whole = path.read_bytes()
        for at in range(0, len(whole), 7):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :])
            try:
                data.load(path)
            except InputError as error:
                assert str(path) in str(error) and "\n" not in str(error)
                refused += 1
    assert refused > 100
