"""A user's own files: each kind, its labels, its errors, and rows of it to be predicted."""

import sys

import numpy as np
import pandas
import pytest
import torch
from PIL import Image

from noprop import data
from noprop.data import read_rows
from noprop.datasets import images, memory, own, table
from noprop.datasets.split import hold_out, hold_out_classes
from noprop.errors import InputError
from noprop.inputs import InputFormat

ROWS = 40


@pytest.fixture
def frame():
    """Two columns of numbers and one of three texts."""
    random = np.random.default_rng(0)
    species = np.array(["setosa", "virginica", "versicolor"])[np.arange(ROWS) % 3]
    return pandas.DataFrame(
        {"length": random.normal(size=ROWS), "petals": random.integers(0, 9, ROWS), "kind": species}
    )


def whole(read):
    """(rows of x, labels' names) of both parts, in the order of x."""
    x = torch.cat([read.x, read.x_test])
    names = np.array(read.class_names)[torch.cat([read.y, read.y_test])]
    order = x[:, 0].argsort()
    return x[order].double().numpy(), names[order.numpy()]


def check_table(read, frame):
    x, names = whole(read)
    order = frame["length"].argsort()
    np.testing.assert_array_equal(x, frame[["length", "petals"]].to_numpy()[order])
    assert names.tolist() == frame["kind"][order].tolist()
    assert read.class_names == ("setosa", "versicolor", "virginica")
    assert read.inputs.columns == ("length", "petals") and read.inputs.label == "kind"


@pytest.mark.parametrize("suffix", ["csv", "tsv", "semicolon", "bom", "index", "parquet"])
def test_tables(tmp_path, frame, suffix):
    path = tmp_path / {"semicolon": "a.csv", "bom": "a.csv", "index": "a.csv"}.get(
        suffix, f"a.{suffix}"
    )
    if suffix == "parquet":
        frame.to_parquet(path)
    else:
        separator = {"tsv": "\t", "semicolon": ";"}.get(suffix, ",")
        encoding = "utf-8-sig" if suffix == "bom" else "utf-8"
        frame.to_csv(path, sep=separator, index=suffix == "index", encoding=encoding)
    check_table(data.load(path), frame)
    check_table(data.load(str(path), label="kind"), frame)
    check_table(data.load(path, label="-1"), frame)


def test_a_table_without_a_header(tmp_path, frame):
    path = tmp_path / "a.csv"
    frame.to_csv(path, index=False, header=False)
    read = data.load(path)
    assert len(read.x) + len(read.x_test) == ROWS and read.inputs.columns is None
    assert whole(read)[1].tolist() == frame["kind"][frame["length"].argsort()].tolist()
    rows = read_rows(path, read.inputs)  # the labels' column is left out here too
    np.testing.assert_array_equal(rows, frame[["length", "petals"]].to_numpy())


@pytest.mark.parametrize(
    "first, second, named",
    [
        ("a,b,c", "1,2,x", True),
        ("5.1,3.5,setosa", "4.9,3.0,setosa", False),
        ("0,1,2,label", "5.1,3.5,1.4,7", True),
        ("0,1,species", "5.1,3.5,setosa", True),
        ("1,2,3", "4,5,6", False),
        ("5,NA,2", "5,3,1", False),
        (",a,b", "0,1,2", True),
    ],
)
def test_headers(first, second, named):
    assert table._is_header(first.split(","), second.split(",")) == named


@pytest.mark.parametrize("labels", ["npy", "csv", "txt"])
def test_rows_and_labels_in_two_files(tmp_path, frame, labels):
    x, y = frame[["length", "petals"]], frame["kind"]
    at = tmp_path / f"y.{labels if labels != 'txt' else 'csv'}"
    np.save(at, y.to_numpy(str)) if labels == "npy" else y.to_csv(
        at, index=False, header=labels == "csv"
    )
    np.save(tmp_path / "x.npy", x.to_numpy())
    for path in (tmp_path / "x.npy", tmp_path / "x.csv"):
        x.to_csv(tmp_path / "x.csv", index=False)
        read = data.load(path, labels=at)
        rows, names = whole(read)
        np.testing.assert_array_equal(rows, x.to_numpy()[frame["length"].argsort()])
        assert names.tolist() == y[frame["length"].argsort()].tolist()
    with pytest.raises(InputError, match="name the file of their labels by --labels"):
        data.load(tmp_path / "x.npy")


@pytest.mark.parametrize(
    "text, error",
    [
        ("a,b,label\n1,2,p\n3,x,q\n", "line 3, column 'b': 'x' is no number"),
        ("a,b,kind\n1,2,p\n3,,q\n", "line 3, column 'b': there is no number"),
        ("a,b,kind\n1,2,p\n\n3,4,q\n", "line 3, column 'a': there is no number|no label"),
        ("a,b,kind\n1,2,p\n3,inf,q\n", "line 3, column 'b': inf is not finite"),
        ("a,b,kind\n1,2,p\n3,4,\n", "line 3, column 'kind': there is no label"),
        ("a,b,kind\n1,2,p\n3,4,q,5\n", "Expected 3 fields in line 3, saw 4"),
        ("a,a,kind\n1,2,p\n3,4,q\n", "column 'a' twice"),
        ("a,b,c\n1,2,3\n3,4,5\n", "say which column holds the labels, by --label NAME or INDEX"),
        ("a,b,label\n1,2,0.5\n3,4,1\n", "numbers to be predicted are no classes"),
        ("a,kind\n1,p\n", "all labels are 'p'"),
        ("a,kind\n1,p\n2,q\n", "a test needs at least 3 rows of one class"),
        ("kind\np\nq\n", "has no column beside 'kind'"),
        ("", "its first line is empty"),
        ("a,b,kind\n", "holds no rows"),
        ("a,b,kind\n1,\xff,p\n", "cannot be read: 'utf-8' codec.* save it as UTF-8"),
        ("a,kind\n" + "1,2,p\n2,3,q\n" * 9, "a line has more cells than the first one"),
        ("# by R\n" + "a,kind\n1,p\n2,q\n" * 9, "a line has more cells than the first one"),
        ("a|kind\n1|p\n2|q\n", "separated by commas, semicolons or tabs"),
        ("7,2019\n" + "1,p\n2,q\n" * 9, "2019 is a number, the labels below are texts"),
        ("a," * 200_000 + "a\n1\n", "has 200,001 columns"),
        ("a" * (1 << 24) + "bc", "its first line is longer than"),
        ("1," * 10 + '"' + "x" * 200_000 + '"\n', "field larger than field limit"),
    ],
)
def test_bad_tables(tmp_path, text, error):
    path = tmp_path / "a.csv"
    path.write_bytes(text.encode("latin1"))
    with pytest.raises(InputError, match=error) as caught:
        data.load(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("index", [range(ROWS)[::-1], [*range(20)] * 2], ids=["shuffled", "joined"])
@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_an_index_of_pandas_is_no_feature(tmp_path, frame, suffix, index):
    path = tmp_path / f"a.{suffix}"
    frame.index = pandas.Index(index)
    (frame.to_csv if suffix == "csv" else frame.to_parquet)(path)
    check_table(data.load(path), frame.reset_index(drop=True))


def test_labels_with_spaces_around_them_are_the_same(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("a,kind\n" + "1,big p \n2, big p\n3,q\n" * 9)
    assert data.load(path).class_names == ("big p", "q")


@pytest.mark.parametrize("header", ["a,kind\n", ""])
def test_leading_zeros_are_part_of_a_label(tmp_path, header):
    path = tmp_path / "a.csv"
    path.write_text(header + "1.5, 007\n2,7 \n3,010\n" * 9)
    assert data.load(path, label="-1").class_names == ("007", "010", "7")
    path.write_text(header + "1.5,-1\n2,0\n3,10\n" * 9 + "\n")
    assert data.load(path, label="1").class_names == ("-1", "0", "10")


@pytest.mark.parametrize("label", ["--1", "\u00b2", "1e0", "nothing"])
def test_a_label_that_is_no_column(tmp_path, frame, label):
    frame.to_csv(tmp_path / "a.csv", index=False)
    with pytest.raises(InputError, match=f"has no column {label!r}"):
        data.load(tmp_path / "a.csv", label=label)
    np.savez(tmp_path / "a.npz", x=np.eye(9), y=np.arange(9) % 2)
    with pytest.raises(InputError, match=f"has no array {label!r}, its arrays are"):
        data.load(tmp_path / "a.npz", label=label)


def test_cells_that_are_lists_are_no_numbers(tmp_path):
    frame = pandas.DataFrame({"a": [[1.0, 2.0]] * 9, "kind": list("pqr") * 3})
    frame.to_parquet(tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"row 0, column 'a': array\(\[1., 2.\]\) is no number"):
        data.load(tmp_path / "a.parquet", label="kind")


def test_identifiers_are_no_classes_and_a_stray_number_is_one(tmp_path):
    pandas.DataFrame({"a": np.arange(60), "label": np.arange(60)}).to_csv(tmp_path / "a.csv")
    with pytest.raises(InputError, match="60 rows have 60 different labels"):
        data.load(tmp_path / "a.csv")
    y = np.arange(60) % 3
    y[7] = 2_000_000
    np.savez(tmp_path / "a.npz", x=np.arange(60.0)[:, None], y=y)
    read = data.load(tmp_path / "a.npz")
    assert read.classes == 4 and read.class_names == ("0", "1", "2", "2000000")
    assert "2000000 (1)" in read.describe()
    assert (read.y == 3).sum() == 1  # a class of one row is learned, not tested


def test_the_columns_of_rows_are_found_by_name(tmp_path, frame):
    frame.to_csv(tmp_path / "a.csv", index=False)
    inputs = data.load(tmp_path / "a.csv").inputs
    want, said = frame[["length", "petals"]].to_numpy(), []
    for i, columns in enumerate((["petals", "kind", "length"], ["length", "petals"])):
        frame[columns].to_csv(tmp_path / f"{i}.csv", index=False)
        rows = read_rows(tmp_path / f"{i}.csv", inputs, said.append)
        np.testing.assert_array_equal(rows, want)
    assert len(said) == 1 and "'kind', which held the labels in training, is left out" in said[0]
    np.save(tmp_path / "a.npy", want)
    np.savez(tmp_path / "a.npz", X=want, other=want[:3])
    for name in ("a.npy", "a.npz"):
        np.testing.assert_array_equal(read_rows(tmp_path / name, inputs), want)
    frame[["length"]].to_csv(tmp_path / "less.csv", index=False)
    with pytest.raises(InputError, match="less.csv must have the column 'petals', as in training"):
        read_rows(tmp_path / "less.csv", inputs)
    frame.assign(colour="red").to_csv(tmp_path / "more.csv", index=False)
    with pytest.raises(InputError, match="more.csv has a column 'colour' that training had not"):
        read_rows(tmp_path / "more.csv", inputs)
    frame.assign(petals="five").to_csv(tmp_path / "text.csv", index=False)
    with pytest.raises(InputError, match="text.csv: line 2, column 'petals': 'five' is no number"):
        read_rows(tmp_path / "text.csv", inputs)


def picture(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.mark.parametrize("colour", [True, False])
@pytest.mark.parametrize("split", [True, False])
def test_a_folder_of_pictures(tmp_path, colour, split):
    random = np.random.default_rng(0)
    made = {}
    for part, count in (("train", 5), ("test", 2)) if split else (("", 5),):
        for name in ("cat", "dog"):
            for i in range(count):
                pixels = random.integers(0, 256, (6, 4, 3)[: 3 if colour else 2], np.uint8)
                picture(tmp_path / part / name / f"{i}.png", pixels)
                made.setdefault(part, []).append((name, pixels))
    (tmp_path / "readme.txt").write_text("no picture")
    read = data.load(str(tmp_path))
    assert read.class_names == ("cat", "dog") and read.inputs.kind == "bytes"
    assert read.inputs.shape == ((3, 6, 4) if colour else (6, 4))
    assert read.channels == (3 if colour else 1)
    if split:
        want = np.stack([p for _, p in made["train"]])
        want = want.transpose(0, 3, 1, 2) if colour else want
        np.testing.assert_array_equal(read.x, want.reshape(10, -1))
        assert read.y.tolist() == [0] * 5 + [1] * 5 and read.y_test.tolist() == [0, 0, 1, 1]
    else:
        assert len(read.x) == 8 and len(read.x_test) == 2
    first = next(tmp_path.rglob("cat/0.png"))
    rows = read_rows(first, read.inputs)
    assert rows.shape == (1, read.features) and rows.dtype == torch.uint8
    assert len(read_rows(tmp_path, read.inputs)) == (14 if split else 10)


@pytest.mark.parametrize(
    "train, test", [("Train", "Test"), ("Training", "Testing"), ("train", "valid")]
)
def test_folders_of_a_split_are_no_classes(tmp_path, train, test):
    for part in (train, test):
        for name in ("cat", "dog"):
            for i in range(3):
                picture(tmp_path / part / name / f"{i}.png", np.zeros((2, 2), np.uint8))
    read = data.load(str(tmp_path))
    assert read.class_names == ("cat", "dog") and len(read.x) == len(read.x_test) == 6


def test_a_class_may_be_named_train(tmp_path):
    for name in ("train", "bus"):
        for i in range(4):
            picture(tmp_path / name / f"{i}.png", np.zeros((2, 2), np.uint8))
    picture(tmp_path / "__MACOSX" / "train" / "._0.png", np.zeros((2, 2), np.uint8))
    assert data.load(str(tmp_path)).class_names == ("bus", "train")


def test_bad_pictures(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="must have a folder of pictures for each class"):
        data.load(tmp_path)
    pixels = np.zeros((6, 4, 3), np.uint8)
    for i in range(3):
        picture(tmp_path / "a" / f"{i}.png", pixels + i)
    (tmp_path / "b").mkdir()
    with pytest.raises(InputError, match="b holds no picture"):
        data.load(tmp_path)
    picture(tmp_path / "b" / "0.png", pixels[:5])
    with pytest.raises(InputError, match=r"b/0.png must have 4 x 6 pixels, as 0.png, got 4 x 5"):
        data.load(tmp_path)
    whole = (tmp_path / "a" / "0.png").read_bytes()
    for content in (b"", b"no picture", whole[:40], whole[:-30]):
        (tmp_path / "b" / "0.png").write_bytes(content)
        with pytest.raises(InputError, match="0.png cannot be read"):
            data.load(tmp_path)
    Image.fromarray(np.zeros((6, 4), np.uint16)).save(tmp_path / "b" / "0.png")
    with pytest.raises(InputError, match="0.png must have 8 bits for each colour, got I;16"):
        data.load(tmp_path)
    picture(tmp_path / "b" / "0.png", pixels)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    with pytest.raises(InputError, match="0.png cannot be read: Image size .24 pixels. exceeds"):
        data.load(tmp_path)
    monkeypatch.undo()
    monkeypatch.setattr(memory, "available", lambda: 100)
    with pytest.raises(InputError, match="4 pictures would take 288 bytes, of memory 100 are left"):
        data.load(tmp_path)


def test_damaged_parquet_is_one_line(tmp_path, frame):
    path = tmp_path / "a.parquet"
    frame.to_parquet(path)
    whole = path.read_bytes()
    for content in (b"", b"PAR1", whole[:50], whole[:-9]):
        path.write_bytes(content)
        with pytest.raises(InputError, match="a.parquet"):
            data.load(path)


def test_a_missing_package_names_its_extra(tmp_path, frame, monkeypatch):
    frame.to_csv(tmp_path / "a.csv", index=False)
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match=r"pandas is not installed: pip install .*\[data\]"):
        data.load(tmp_path / "a.csv")
    monkeypatch.setitem(sys.modules, "PIL", None)
    picture_file = tmp_path / "p" / "a" / "0.png"
    picture_file.parent.mkdir(parents=True)
    picture_file.write_bytes(b"")
    with pytest.raises(ImportError, match=r"PIL is not installed: pip install .*\[data\]"):
        images.read([picture_file])


def test_unknown_kinds_and_options(tmp_path):
    with pytest.raises(InputError, match="nothing.npz cannot be read: No such file"):
        data.load(tmp_path / "nothing.npz")
    (tmp_path / "a.xlsx").write_text("")
    with pytest.raises(InputError, match="must be a folder, or end in .npz, .npy, .csv"):
        data.load(tmp_path / "a.xlsx")
    with pytest.raises(InputError, match="digits brings its labels"):
        data.load("digits", label="y")


def test_a_home_folder_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    np.savez(tmp_path / "a.npz", x=np.arange(9.0)[:, None], y=np.arange(9) % 2)
    assert data.load("~/a.npz").name == "a"
    monkeypatch.setenv("NOPROP_DATA", "~/data")
    assert data.default_folder() == tmp_path / "data"


def test_hold_out_keeps_every_class():
    y = torch.tensor([0] * 30 + [1] * 30)
    for ours, plain in zip(hold_out_classes(y, 0.2, "a"), hold_out(60, 0.2), strict=True):
        assert torch.equal(ours, plain)  # where nothing is left out, the plain split
    _, held = hold_out(60, 0.2)
    y = torch.zeros(60, dtype=torch.int64)
    y[held[:4]] = 1  # all rows of a class are held out
    kept, ours = hold_out_classes(y, 0.2, "a")
    assert y[kept].unique().tolist() == y[ours].unique().tolist() == [0, 1]
    assert sorted(torch.cat([kept, ours]).tolist()) == list(range(60))
    assert (y[ours] == 1).sum() == 1 and (y[ours] == 0).sum() == 11


def test_the_first_line(tmp_path, frame):
    frame.to_csv(tmp_path / "flowers.csv", index=False)
    assert data.load(tmp_path / "flowers.csv").describe() == (
        "flowers: 32 training rows of 2 features, 3 classes: setosa (12), versicolor (11), "
        "virginica (9); each column less its mean, divided by its deviation; 8 test rows held out "
        "here, a fifth of the rows"
    )
    assert "8 x 8 bytes" in data.load("digits").describe()


def test_inputs_of_pictures_are_no_numbers(tmp_path):
    picture(tmp_path / "0.png", np.zeros((2, 2), np.uint8))
    with pytest.raises(InputError, match="trained on 4 numbers, no pictures"):
        read_rows(tmp_path / "0.png", InputFormat((4,), "numbers"))
    assert own.is_own("a/b") and not own.is_own("imagenet")
