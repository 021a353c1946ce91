"""Rows and labels as people have them: one meaning each, or an error that names the place."""

import numpy as np
import pandas
import pytest
import torch

import noprop
from noprop import labels
from noprop.errors import InputError
from noprop.inputs import InputFormat
from noprop.normalisation import Moments, Normalisation, statistics

NUMBERS = InputFormat((3,), "numbers")
BYTES = InputFormat((2, 2), "bytes")
TABLE = InputFormat((2,), "numbers", ("a", "b"), "label")


@pytest.mark.parametrize(
    "x, shape, kind, channels",
    [
        (torch.zeros(5, 3), (3,), "numbers", 3),
        (np.zeros((5, 3), np.int64), (3,), "numbers", 3),
        (np.zeros((5, 3), bool), (3,), "numbers", 3),
        (np.zeros((5, 3), np.uint8), (3,), "bytes", 1),
        (torch.zeros(5, 8, 6, dtype=torch.uint8), (8, 6), "bytes", 1),
        (np.zeros((5, 8, 6)), (8, 6), "numbers", 1),
        (np.zeros((5, 3, 8, 6), np.uint8), (3, 8, 6), "bytes", 3),
        (np.zeros((5, 64, 4, 4), np.float32), (64, 4, 4), "numbers", 64),
        ([[1, 2], [3, 4.5]], (2,), "numbers", 2),
        (pandas.DataFrame({"a": [1], "b": [2.0]}), (2,), "numbers", 2),
    ],
)
def test_formats(x, shape, kind, channels):
    made = InputFormat.of(x)
    assert (made.shape, made.kind, made.channels) == (shape, kind, channels)
    assert InputFormat.from_json(made.to_json()) == made


@pytest.mark.parametrize(
    "x, text",
    [
        (np.zeros((5, 32, 32, 3)), r"channels seem to be last; use x.transpose\(0, 3, 1, 2\)"),
        (np.zeros((5, 28, 30, 1)), "channels seem to be last"),
        (np.zeros(5), r"got \(5,\); of one feature, use x.reshape\(-1, 1\)"),
        (np.zeros((5, 2, 3, 4, 5)), r"use x.reshape\(len\(x\), -1\)"),
        (np.float64(1), r"got \(\)"),
        (np.zeros((5, 0)), r"got \(5, 0\)"),
        ([[1, 2], [3]], "must be an array of numbers"),
        ([["1", "2"]], "must be numbers, got '1' in row 0, column 0"),
        (np.array([[1, "a"]], object), "must be numbers, got 'a' in row 0, column 1"),
        (torch.zeros(2, 2).to_sparse(), r"use .to_dense\(\)"),
        (torch.zeros(2, 2, device="meta"), "must have values, got a tensor on meta"),
        (pandas.DataFrame(np.eye(2), columns=["a", "a"]), "no column twice, got .'a', 'a'."),
        (pandas.DataFrame(np.eye(2), columns=[1, "1"]), "no column twice, got .'1', '1'."),
        (np.ma.masked_equal([[1, 2]], 2), "no masked entry"),
        (np.zeros((2, 2), "M8[s]"), "must be numbers, got datetime64"),
        (pandas.DataFrame({"a": [1, 2], "b": ["x", "y"]}), "got 'x' in row 0, column 'b'"),
        (pandas.DataFrame({"a": pandas.to_datetime(["2020-01-01"])}), "column 'a'"),
    ],
)
def test_what_is_no_x(x, text):
    with pytest.raises(InputError, match=text):
        InputFormat.of(x)


def test_a_nested_tensor_is_no_x():
    # made here: it imports Triton, which at its import finds out whether it is interpreted
    x = torch.nested.nested_tensor([torch.zeros(2)], layout=torch.jagged)
    with pytest.raises(InputError, match="got a nested tensor"):
        InputFormat.of(x)


@pytest.mark.parametrize(
    "kind", ["f2", "f4", "f8", "g", "i1", "i4", "i8", "u2", "u4", "u8", "?", ">f8", ">i4"]
)
def test_every_type_is_its_value(kind):
    x = np.array([[0, 1, 1], [1, 0, 0]]).astype(kind)
    rows = NUMBERS.rows(x)
    assert rows.tolist() == [[0, 1, 1], [1, 0, 0]]
    assert rows.dtype in (torch.float32, torch.float64)
    rows = NUMBERS.rows(x[::-1])
    assert rows.tolist() == [[1, 0, 0], [0, 1, 1]]
    if kind[0] not in "<>g":
        assert torch.equal(NUMBERS.rows(torch.from_numpy(x)), NUMBERS.rows(x))


def test_large_integers_are_not_rounded():
    x = torch.tensor([[2**24 + 1, 1_700_000_001, 2**40 + 1]])
    for kind in (torch.int64, torch.float64):
        assert NUMBERS.rows(x.to(kind)).long().tolist() == x.tolist()


def test_one_meaning_of_bytes():
    x = torch.tensor([[[0, 255], [7, 2]]])
    for kind in (torch.int64, torch.float32, torch.float64, torch.int16, torch.uint8):
        rows = BYTES.rows(x.to(kind))
        assert rows.dtype == torch.uint8 and rows.tolist() == [[0, 255, 7, 2]]
    assert BYTES.rows(x.flatten(1)).tolist() == BYTES.rows(x[:, None]).tolist() == [[0, 255, 7, 2]]
    for bad, text in (
        (x + 1, r"got 256 in row 5, place \(0, 1\)"),
        (x - 1, r"got -1 in row 5, place \(0, 0\)"),
        (x / 255, r"got 0.027.* in row 5, place \(1, 0\); if it is of \[0, 1\], multiply by 255"),
        (x.double() * torch.nan, "got nan in row 5"),
        ((x > 5).float(), "torch.float32 of 0 and 1 alone"),
        (x > 5, "torch.bool of 0 and 1 alone"),
    ):
        with pytest.raises(InputError, match=text):
            BYTES.rows(bad, first_row=5)
    with pytest.raises(InputError, match="got uint8, which stands for bytes"):
        NUMBERS.rows(torch.zeros(2, 3, dtype=torch.uint8))


@pytest.mark.parametrize(
    "inputs, x, text",
    [
        (NUMBERS, np.zeros((2, 4)), r"x must be \(rows, 3\), got \(2, 4\)"),
        (NUMBERS, np.zeros(3), r"got \(3,\); of one row, use x\[None\]"),
        (BYTES, np.zeros((2, 2)), r"got \(2, 2\); of one row, use x\[None\]"),
        (InputFormat((3, 8, 6), "bytes"), np.zeros((5, 8, 6, 3), np.uint8), "channels come first"),
        (NUMBERS, [[0, 1, np.nan]], "x must be finite, got nan in row 0, column 2"),
        (NUMBERS, [[0, 1, 2], [0, -np.inf, 1]], "x must be finite, got -inf in row 1, column 1"),
        (TABLE, pandas.DataFrame({"a": [1]}), "x must have the column 'b', got .'a'."),
        (TABLE, pandas.DataFrame({"a": [1], "b": [1], "c": [1]}), "has a column 'c' that the mod"),
        (TABLE, pandas.DataFrame({"a": [1, None], "b": [1, 2]}), "got nan in row 1, column 'a'"),
        (TABLE, pandas.DataFrame({"a": [1], "b": ["u"]}), "got 'u' in row 0, column 'b'"),
    ],
)
def test_what_does_not_fit(inputs, x, text):
    with pytest.raises(InputError, match=text):
        inputs.rows(x)


def test_tables_of_pandas():
    frame = pandas.DataFrame({"b": [1, 2], "a": [True, False]})
    assert TABLE.rows(frame).tolist() == [[1, 1], [0, 2]]
    frame = pandas.DataFrame({"b": [1, 2], "a": pandas.array([3, 4], "Int64")})
    assert TABLE.rows(frame).tolist() == [[3, 1], [4, 2]]
    frame = pandas.DataFrame({"a": [2**40 + 1, 5], "b": [1, 2]}, dtype="int64")
    assert TABLE.rows(frame)[0].long().tolist() == [2**40 + 1, 1]
    assert NUMBERS.rows(pandas.DataFrame(np.arange(3, dtype="u1")[None])).tolist() == [[0, 1, 2]]


@pytest.mark.parametrize(
    "record",
    [
        {},
        {"shape": [3], "kind": "words", "columns": None, "label": None},
        {"shape": [0], "kind": "bytes", "columns": None, "label": None},
        {"shape": [2], "kind": "bytes", "columns": ["a"], "label": None},
        {"shape": 2, "kind": "bytes", "columns": None, "label": None},
        {"shape": [2], "kind": "bytes", "columns": None, "label": 3},
    ],
)
def test_a_record_that_is_none(record):
    with pytest.raises(InputError, match="a saved model's inputs"):
        InputFormat.from_json(record)


@pytest.mark.parametrize(
    "y, index, names",
    [
        ([1, 2, 3, 1], [0, 1, 2, 0], ("1", "2", "3")),
        (np.array([30, 10, 20], np.uint64), [2, 0, 1], ("10", "20", "30")),
        (torch.tensor([1.0, 0.0]), [1, 0], ("0", "1")),
        ([10**9, 0, 2 * 10**6], [2, 0, 1], ("0", "2000000", "1000000000")),
        (["b", "a", "b"], [1, 0, 1], ("a", "b")),
        (np.array([b"b", b"a"]), [1, 0], ("a", "b")),
        ([True, False, True], [1, 0, 1], ("False", "True")),
        (torch.tensor([True, True]), [1, 1], ("False", "True")),
        (np.array([[2], [1]]), [1, 0], ("1", "2")),
        (torch.eye(3)[[2, 0]], [2, 0], ("0", "1", "2")),
        (pandas.DataFrame({"cat": [1, 0], "dog": [0, 1]}), [0, 1], ("cat", "dog")),
        (pandas.Series(["b", "a"]), [1, 0], ("a", "b")),
        (pandas.Series(["b", "a"], dtype="category"), [1, 0], ("a", "b")),
        (pandas.Series([3, 1], dtype="Int64"), [1, 0], ("1", "3")),
        (np.array([3, 1.0], object), [1, 0], ("1", "3")),
    ],
)
def test_labels(y, index, names):
    assert (labels.encode(y)[0].tolist(), labels.encode(y)[1]) == (index, names)
    again = ("other", *names)
    assert labels.encode(y, again)[0].tolist() == [i + 1 for i in index]
    assert labels.encode(y)[0].dtype == torch.int64


@pytest.mark.parametrize(
    "y, text",
    [
        ([1, np.nan], "got nan in row 1"),
        ([1, np.inf], "got inf in row 1"),
        ([0.0, 0.5], "got 0.5 in row 1; numbers to be predicted are no classes"),
        (["a", None], "must have a label in every row, got none in row 1"),
        (["a", " "], "got none in row 1"),
        (pandas.Series(["a", None]), "got none in row 1"),
        (pandas.Series([1, pandas.NA], dtype="Int64"), "got none in row 1"),
        (["a", 1], "must be of one kind, got 'a' in row 0 and 1 in row 1"),
        ([[0, 1], [1, 1]], "one 1 and zeros in a row, got 1, 1 in row 1"),
        ([[0, 1], [0, 0]], "got 0, 0 in row 1"),
        ([[0.3, 0.7]], "got 0.3, 0.7 in row 0"),
        ([["a", "b"]], "one 1 and zeros in a row"),
        (np.zeros((2, 2, 2)), r"must be \(rows,\) labels, .*got \(2, 2, 2\)"),
        ([[1], [1, 2]], "must be an array of labels"),
        (np.array([1, 2j]), "must be whole numbers, texts or bools, got complex128"),
        ([{}], "got dict in row 0"),
        (torch.zeros(2, dtype=torch.int64, device="meta"), "must be dense and have values"),
        (torch.ones(2, dtype=torch.int64).to_sparse(), "must be dense and have values"),
    ],
)
def test_what_is_no_label(y, text):
    with pytest.raises(InputError, match=text):
        labels.encode(y)


@pytest.mark.parametrize(
    "y, names",
    [
        ([10**20, 1, 10**20], ("1", "1" + "0" * 20)),
        (["é".encode(), b"a", "é".encode()], ("a", "é")),
        (np.array(["é".encode(), b"a"]), ("a", "é")),
        (np.array([b"\xe9", b"a"]), ("a", "é")),
    ],
)
def test_labels_of_any_length_and_bytes(y, names):
    assert labels.encode(y)[1] == names


def test_labels_that_no_file_can_hold():
    with pytest.raises(InputError, match=r"must be of texts that UTF-8 can hold, got '\\ud800'"):
        labels.encode(["\ud800", "b"])


def test_labels_of_known_classes():
    assert labels.encode(["b"], ("a", "b"))[0].tolist() == [1]
    with pytest.raises(InputError, match="must be one of the classes a, b, got 'c' in row 1"):
        labels.encode(["b", "c"], ("a", "b"))
    assert labels.for_model([0, 2], 3)[1] == ("0", "1", "2")
    assert labels.for_model([0, 2], 3)[0].tolist() == [0, 2]
    assert labels.for_model([1, 2, 3], 3)[0].tolist() == [0, 1, 2]
    with pytest.raises(InputError, match="must be of 3 classes, as the model is, got 2: 5, 7"):
        labels.for_model([5, 7], 3)
    with pytest.raises(InputError, match="must be of 2 classes, as the model is, got 3: 1, 2, 3"):
        labels.for_model([1, 2, 3], 2)


@pytest.mark.parametrize("kind", [torch.float64, torch.int64])
def test_clocks_and_large_integers_keep_their_differences(kind):
    """Columns of 1.7e9 that differ by seconds, and around 2^24 by one."""
    steps = torch.arange(100).view(50, 2)
    x = (torch.tensor([1_700_000_000, 2**24 - 20]) + steps).to(kind)
    features = statistics(x, 2).apply(x)
    assert torch.equal(features, features[:, :1].expand_as(features))
    exact = (steps[:, 0].double() - 49) / steps[:, 0].double().std(correction=0)
    assert (features[:, 0].double() - exact).abs().max() < 1e-7


def test_constant_columns_are_nothing():
    x = torch.tensor([[0.1, 7.0, 1e-40, 1e-300, -0.3], [0.1, 7.0, 3e-40, 0, -0.1 - 0.2]] * 20)
    x = x.double()
    normalisation = statistics(x, 5)
    assert normalisation.std.tolist() == [1] * 5
    assert normalisation.apply(x).abs().max() < 1e-30 + 1e-16
    given = Normalisation.of(([0.0] * 3, [1e-40, 1e-310, 1.0]))
    assert given.apply(torch.ones(1, 3)).isfinite().sum() >= 2
    with pytest.raises(InputError, match="column 1 of x is too large to be normalised"):
        statistics(torch.tensor([[1, 1e300], [0, -1e300]], dtype=torch.float64), 2)


def test_moments_of_parts_are_those_of_the_whole():
    x = torch.from_numpy(np.random.default_rng(0).normal(1e6, 1, (1000, 6)))
    for channels in (1, 2, 6):
        moments = Moments(channels)
        for part in x.split(77):
            moments.add(part)
        for one, other in zip(moments.result(), statistics(x, channels), strict=True):
            assert torch.allclose(one, other, rtol=1e-14)
        runs = x.view(1000, channels, -1).transpose(1, 2).reshape(-1, channels)
        assert torch.allclose(moments.result().mean, runs.mean(0), rtol=1e-15)
        assert torch.allclose(moments.result().std, runs.std(0, correction=0), rtol=1e-9)


def test_training_and_prediction_see_the_same_bits(toy, new_model):
    x, y = toy
    mean, std = statistics(x.double() / 255, 6)
    normalize = Normalisation(mean, std)
    one, other = new_model(), new_model()
    rows = torch.arange(130)[None]
    features = normalize.apply(x)
    gathered = one.blocks.train_steps(x, y, rows, normalize=normalize)
    assert torch.equal(gathered, other.blocks.train_steps(features, y, rows))
    for a, b in zip(one.blocks.parameters(), other.blocks.parameters(), strict=True):
        assert torch.equal(a, b)
    assert (features.double() - (x / 255 - mean) / std).abs().max() < 1e-5


def test_a_module_normalises_as_predict(new_model):
    x = torch.cat([1_700_000_000 + torch.arange(90)[:, None], torch.rand(90, 5) * 9], 1).double()
    model = new_model()
    noprop.fit(model, x, torch.arange(90) // 30, epochs=3, batch_size=32)
    probs = torch.cat([model.predict(row[None]).probs for row in x])
    torch.testing.assert_close(model.to_module()(x)[1], probs, rtol=1e-4, atol=1e-6)
