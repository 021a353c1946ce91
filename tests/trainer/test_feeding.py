"""fit with arrays of every kind, files larger than memory, data sets and loaders."""

import subprocess
import sys

import numpy as np
import pandas
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import noprop
from noprop.epochs import Progress


def fitted(model, *data, **options):
    noprop.fit(model, *data, **{"epochs": 2, "batch_size": 32} | options)
    return model


@pytest.mark.parametrize(
    "kind",
    ["numpy", "double", "half", "lists", "pandas", "int32 labels", "one-hot", "column", "pictures"],
)
def test_what_people_have(toy, new_model, assert_same_state, kind):
    x, y = toy[0] / 256, toy[1]  # exact in every type
    want = fitted(new_model(), x, y)
    given = {
        "numpy": (x.numpy(), y.numpy()),
        "double": (x.double(), y),
        "half": (x.half(), y),
        "lists": (x.tolist(), y.tolist()),
        "pandas": (pandas.DataFrame(x.numpy()), pandas.Series(y.numpy())),
        "int32 labels": (x, y.int()),
        "one-hot": (x, torch.nn.functional.one_hot(y)),
        "column": (x, y[:, None].float()),
        "pictures": (x.view(-1, 6, 1, 1), y),
    }[kind]
    model = fitted(new_model(), *given)
    assert_same_state(model, want)
    assert torch.equal(model.predict(given[0]).labels, want.predict(x).labels)
    assert model.classes_ == ("0", "1", "2")


def test_names_of_classes(toy, new_model, assert_same_state):
    x, y = toy
    want = fitted(new_model(), x, y)
    model = fitted(new_model(), x, np.array(["ant", "bee", "cow"])[y.numpy()])
    assert_same_state(model, want)
    assert model.classes_ == ("ant", "bee", "cow")
    fitted(model, x, ["bee"] * 130)
    with pytest.raises(noprop.InputError, match="classes ant, bee, cow, got 'dog' in row 0"):
        fitted(model, x, ["dog"] * 130)


def mapped(tmp_path, array):
    np.save(tmp_path / "x.npy", array)
    return np.load(tmp_path / "x.npy", mmap_mode="r")


@pytest.mark.parametrize("kind", ["u1", "f4", "f8", "i8"])
def test_a_file_gives_the_bits_of_memory(toy, new_model, assert_same_state, tmp_path, kind):
    x, y = toy[0].numpy().astype(kind), toy[1]
    want = fitted(new_model(), x, y)
    model = fitted(new_model(), mapped(tmp_path, x)[:], y)
    assert_same_state(model, want)
    for one, other in zip(model.normalize, want.normalize, strict=True):
        assert torch.equal(one, other)
    assert torch.equal(model.predict(mapped(tmp_path, x)).probs, want.predict(x).probs)


LARGE = """
import sys
import numpy as np, torch, noprop, noprop_kernels as nk
x = np.load(sys.argv[1], mmap_mode="r")
goal = nk.DT(nk.NoiseSchedule.cosine(T=2))
blocks = nk.DenoisingBlocks(nk.plans.mlp(x.shape[1], 2, 2, hidden=8), goal)
model = noprop.Model(blocks, nk.OutputHead(2, 2, goal=goal))
y = torch.arange(len(x)) % 2
noprop.fit(model, x[:1000], y[:1000], epochs=1)
model.normalize = None

def own():
    with open("/proc/self/status") as status:
        return 1024 * next(int(line.split()[1]) for line in status if line.startswith("RssAnon"))

before, seen = own(), []
noprop.fit(model, x, y, epochs=1, stop=lambda: seen.append(own()) or len(seen) > 3)
print(max(seen) - before, x.nbytes)
"""


def test_a_large_file_is_not_copied(tmp_path):
    x = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.float32, (200_000, 400))
    x[:, :3] = 1
    x.flush()
    done = subprocess.run(
        [sys.executable, "-c", LARGE, str(tmp_path / "x.npy")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    grown, size = map(int, done.stdout.split())
    assert size == 320_000_000 and grown < size / 4


class Rows(Dataset):
    def __init__(self, x, y):
        self.x, self.y, self.reads = x, y, 0

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        self.reads += 1
        return self.x[i], self.y[i]


class Flow(IterableDataset):
    def __init__(self, x, y):
        self.x, self.y, self.passes = x, y, 0

    def __iter__(self):
        self.passes += 1
        return iter(zip(self.x, self.y, strict=True))


def test_a_data_set_gives_the_bits_of_its_arrays(toy, new_model, assert_same_state):
    x, y = toy
    want = fitted(new_model(), x, y)
    blocks = {k: v for k, v in want.tensors().items() if k.startswith("blocks.")}
    source = Rows(x.view(-1, 2, 3), y)
    model = fitted(new_model(), source)
    assert all(torch.equal(model.tensors()[name], value) for name, value in blocks.items())
    assert model.inputs.shape == (2, 3) and source.reads == 3 * 130  # one look, two epochs
    known = new_model()
    known.inputs, known.normalize, known.classes_ = model.inputs, model.normalize, model.classes_
    source.reads = 0
    fitted(known, source)
    assert_same_state(known, model)
    assert source.reads == 2 * 130


@pytest.mark.parametrize("kind", ["loader", "flow", "ragged", "workers"])
def test_a_loader_trains_every_block_on_its_batches(toy, new_model, kind):
    x, y = toy
    source = {
        "loader": DataLoader(TensorDataset(x, y), 32),
        "flow": Flow(x, y),
        "ragged": DataLoader(
            TensorDataset(x, y),
            batch_sampler=[range(i, min(i + 13, 130)) for i in range(0, 130, 13)],
        ),
        "workers": DataLoader(TensorDataset(x, y), 32, num_workers=1),
    }[kind]
    model, twin = new_model(), new_model()
    noprop.fit(model, source, epochs=2, batch_size=32)
    twin.normalize = model.normalize
    for _ in range(2):
        for batch in torch.arange(130).split(32):
            twin.blocks.train_steps(x, y, batch[None], normalize=twin.normalize)
    for name, value in twin.blocks.state_dict().items():
        assert torch.equal(model.blocks.state_dict()[name], value), name
    assert model.head.updates.tolist() == [2 * 3 * 5]
    if kind == "flow":
        assert source.passes == 3


def test_going_on_with_a_loader_is_told(toy, new_model, monkeypatch):
    monkeypatch.setattr("noprop.loop.CALL_SECONDS", 0.0)
    source = DataLoader(TensorDataset(*toy), 32, shuffle=True)
    model, left = new_model(), iter(range(3))
    progress = noprop.fit(model, source, epochs=1, stop=lambda: next(left, None) is None)
    assert isinstance(progress, Progress) and progress.block_steps == 3
    with pytest.warns(UserWarning, match="does not give the bits of never having stopped"):
        noprop.fit(model, source, epochs=1, progress=progress)
    assert progress.epoch == 1 and model.blocks.updates.tolist() == [5] * 3
    with pytest.warns(UserWarning, match="does not give the bits of never having stopped"):
        noprop.fit(model, source, epochs=2, progress=progress)


def test_going_on_with_a_data_set_gives_the_same_bits(
    toy, new_model, assert_same_state, monkeypatch
):
    monkeypatch.setattr("noprop.loop.CALL_SECONDS", 0.0)
    source = Rows(*toy)
    want = fitted(new_model(), source)
    for calls in (3, 5, 9, 22):
        model, left = new_model(), iter(range(calls))
        progress = noprop.fit(
            model, source, epochs=2, batch_size=32, stop=lambda left=left: next(left, None) is None
        )
        fitted(model, source, progress=progress)
        assert_same_state(model, want)


@pytest.mark.parametrize(
    "source, text",
    [
        (DataLoader(TensorDataset(torch.zeros(4, 6)), 2), r"pairs \(x, y\)"),
        (DataLoader(TensorDataset(torch.zeros(4, 5), torch.arange(4) % 3), 2), "have 6 features"),
        (DataLoader(TensorDataset(torch.zeros(4, 6), torch.rand(4)), 2), "whole numbers"),
        (DataLoader(TensorDataset(torch.zeros(4, 6) / 0, torch.arange(4) % 3), 2), "finite"),
        (Flow([], []), "at least 1 row"),
        (Rows([], []), "at least 1 row"),
    ],
)
def test_bad_sources(new_model, source, text):
    model = new_model()
    with pytest.raises(noprop.InputError, match=text):
        fitted(model, source)
    assert model.normalize is None


def test_a_loader_that_gives_less_the_second_time(toy, new_model):
    class Shrinking(Flow):
        def __iter__(self):
            self.passes += 1
            return iter(list(zip(self.x, self.y, strict=True))[: 140 - 10 * self.passes])

    with pytest.raises(noprop.InputError, match="must give 130 rows in every epoch, .* got 120"):
        fitted(new_model(), Shrinking(*toy))


def test_labels_with_a_data_set_are_refused(toy, new_model):
    with pytest.raises(noprop.InputError, match="y must be None"):
        fitted(new_model(), Rows(*toy), toy[1])
    with pytest.raises(noprop.InputError, match="y must be the labels of x, got None"):
        fitted(new_model(), toy[0])


def test_an_encoder_reads_rows_as_they_come(toy, new_model, tmp_path):
    models = []
    for x in (toy[0].numpy(), mapped(tmp_path, toy[0].numpy())):
        torch.manual_seed(0)
        base = new_model()
        models.append(noprop.Model(base.blocks, base.head, torch.nn.Linear(6, 6)))
        fitted(models[-1], x, toy[1])
    for name, value in models[0].tensors().items():
        assert torch.allclose(models[1].tensors()[name], value, atol=1e-3), name
