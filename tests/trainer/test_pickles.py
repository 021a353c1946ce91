"""Pickle files are data: Python 2's arrays are read, whatever would call code is refused."""

import io
import os
import pickle
import pickletools
import subprocess
import sys

import numpy as np
import pytest

from noprop.datasets.pickles import read_dict
from noprop.errors import InputError


def text(value: str) -> bytes:
    """A Python 2 string: the opcode that Python 3 no longer writes."""
    return b"U" + bytes([len(value)]) + value.encode("latin1")


def integer(value: int) -> bytes:
    return b"J" + value.to_bytes(4, "little", signed=True)


def python2_array(array: np.ndarray, code: str, *, shape=None) -> bytes:
    """The opcodes that numpy under Python 2 wrote."""
    raw = array.tobytes()
    shape = array.shape if shape is None else shape
    return (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n"
        + (integer(0) + b"\x85" + text("b") + b"tR")
        + (b"(" + integer(1) + b"(" + b"".join(map(integer, shape)) + b"t")
        + (b"cnumpy\ndtype\n(" + text(code) + integer(0) + integer(1) + b"tR")
        + (b"(" + integer(3) + text("|") + b"NNN" + integer(-1) * 2 + integer(0) + b"tb")
        + (b"\x89T" + len(raw).to_bytes(4, "little") + raw + b"tb")
    )


def python2_dict(**items: bytes) -> bytes:
    content = b"".join(text(key) + value for key, value in items.items())
    return b"\x80\x02}(" + content + b"u."


def write(tmp_path, content: bytes):
    path = tmp_path / "batch"
    path.write_bytes(content)
    return path


def test_python2_layout(tmp_path):
    data = np.arange(6, dtype=np.uint8).reshape(2, 3)
    labels = b"](" + integer(7) + integer(1) + b"e"
    content = python2_dict(data=python2_array(data, "u1"), labels=labels, name=text("a\xe9"))
    pickletools.dis(content, out=io.StringIO())  # well-formed
    read = read_dict(write(tmp_path, content))
    assert read["data"].dtype == np.uint8
    assert np.array_equal(read["data"], data)
    assert read["labels"] == [7, 1]
    assert read["name"] == "a\xe9"


@pytest.mark.parametrize("dtype", ["u1", "<i4", ">f8", "?"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_of_today(tmp_path, dtype, order):
    data = np.asarray([[0, 1, 2], [3, 4, 5]], dtype=dtype, order=order)
    content = {"data": data, "bytes": b"\x00\xff", "nested": [(1, 2.5), {"a": None}]}
    read = read_dict(write(tmp_path, pickle.dumps(content, protocol=2)))
    assert read["data"].dtype == data.dtype
    assert np.array_equal(read["data"], data)
    assert read["bytes"] == content["bytes"] and read["nested"] == content["nested"]


class Call:
    def __init__(self, function, *args):
        self.function, self.args = function, args

    def __reduce__(self):
        return self.function, self.args


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_code_is_refused_and_does_not_run(tmp_path, protocol):
    victim = tmp_path / "victim"
    content = {"data": Call(os.mkdir, str(victim))}
    with pytest.raises(InputError, match="posix.mkdir|nt.mkdir"):
        read_dict(write(tmp_path, pickle.dumps(content, protocol=protocol)))
    assert not victim.exists()


@pytest.mark.parametrize(
    "value",
    [
        eval,
        np.array([object], dtype=object),
        np.float64(1.0),
        np.array([(1, 2)], dtype="i4,i4"),
        np.array(["text"]),
    ],
    ids=["builtin", "objects", "scalar", "record", "text"],
)
def test_other_types_are_refused(tmp_path, value):
    with pytest.raises(InputError, match="no usable pickle"):
        read_dict(write(tmp_path, pickle.dumps({"data": value}, protocol=2)))


@pytest.mark.parametrize("shape", [(2, 4), (-2, -3), (7,), (2**31 - 1, 2**31 - 1)])
def test_a_lying_shape_is_refused(tmp_path, shape):
    array = python2_array(np.zeros((2, 3), np.uint8), "u1", shape=shape)
    with pytest.raises(InputError, match="an array of shape"):
        read_dict(write(tmp_path, python2_dict(data=array)))


@pytest.mark.parametrize("content", [b"", b"no pickle", pickle.dumps([1, 2]), pickle.dumps(3)])
def test_no_dictionary(tmp_path, content):
    with pytest.raises(InputError, match="pickle file|must hold a dictionary"):
        read_dict(write(tmp_path, content))


def test_every_cut_is_refused(tmp_path):
    content = python2_dict(data=python2_array(np.zeros((2, 3), np.uint8), "u1"), name=text("x"))
    for length in range(len(content)):
        with pytest.raises(InputError):
            read_dict(write(tmp_path, content[:length]))


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x02}r\xff\xff\xff\x7f.",  # eight bytes that number an object 2^31
        b"}p999999999\n.",
        b"\x80\x04}\x94\x8d" + (1 << 62).to_bytes(8, "little") + b".",  # a text of 2^62 bytes
        b"\x80\x05\x96" + (1 << 40).to_bytes(8, "little") + b".",
        b"\x80\x04\x95" + (1 << 60).to_bytes(8, "little") + b"}.",
        b"(" * 100_000 + b"t" * 100_000 + b".",
        b"]" + b"q\x00h\x00a" * 9,
    ],
)
def test_a_bomb_is_refused_in_little_memory(tmp_path, content):
    path, limit = write(tmp_path, content), 64 << 20
    code = (
        "import pathlib, resource, sys\n"
        "from noprop.datasets.pickles import read_dict\n"
        "size = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, 2 * (size + int(sys.argv[2]),))\n"
        "try:\n"
        "    read_dict(pathlib.Path(sys.argv[1]))\n"
        "except ValueError as error:\n"
        "    print(error)\n"
    )
    command = [sys.executable, "-c", code, str(path), str(limit)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "is no usable pickle file" in done.stdout or "must hold a dictionary" in done.stdout


def test_a_text_that_is_made_again_and_again_is_refused(tmp_path):
    long = b"\x80\x02c_codecs\nencode\nq\x00X" + (10_000).to_bytes(4, "little") + b"x" * 10_000
    again = b"0]" + b"h\x00h\x01U\x06latin1\x86Ra" * 1000 + b"."
    with pytest.raises(InputError, match="makes more of its text than the file is long"):
        read_dict(write(tmp_path, long + b"q\x01" + again))


def test_missing_file(tmp_path):
    with pytest.raises(InputError, match="No such file"):
        read_dict(tmp_path / "nothing")
