"""A run's device: the choice with its reason, a change of device, memory, and a device that the
host cannot read.
"""

import json

import pytest
import torch

import noprop
import noprop_kernels as nk
from noprop import checkpoint, devices, inference, runs
from noprop.cli import common
from noprop.devices import pick_device
from noprop_kernels.backends import dispatch
from noprop_kernels.backends.cpu import backend as cpu
from support.cli import call, words

CPU = torch.device("cpu")
QUICK = ["--hidden", "8", "--T", "3", "--batch-size", "32", "--epochs", "2", "--head", "paper"]


@pytest.fixture(autouse=True)
def work_in(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for name in ("NOPROP_BACKEND", "TRITON_INTERPRET"):
        monkeypatch.delenv(name, raising=False)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def without_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")


@pytest.fixture
def with_gpus(monkeypatch):
    """Two GPUs, the second too old, as far as questions go."""
    monkeypatch.setattr(dispatch, "triton_version", lambda: "3.7.1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(
        torch.cuda, "get_device_capability", lambda device: (7, 5) if device.index == 1 else (9, 0)
    )
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"Card {device.index}")


def test_auto_is_a_gpu_that_the_kernels_run_on(with_gpus, monkeypatch):
    found = pick_device("auto")
    assert (found.device, found.name) == (torch.device("cuda", 0), "cuda:0 (Card 0)")
    assert found.why == "auto: the triton kernels run on it"
    for backend in ("cpu", "reference"):  # which are not for a GPU
        found = pick_device("auto", backend)
        assert found.device == CPU and f'backend="{backend}"' in found.why
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    found = pick_device("auto")
    assert found.device == CPU and "needs a GPU of compute capability 8.0" in found.why
    monkeypatch.setattr(dispatch, "triton_version", lambda: None)
    assert "auto: Triton is not installed" in pick_device("auto").why


def test_a_gpu_without_samplers_is_left_aside(with_gpus):
    """The kernels of GPUs have none yet."""
    plan = nk.plans.mlp(6, 3, 3, time=True)
    assert pick_device("auto", None, plan).device.type == "cuda"
    found = pick_device("auto", None, plan, sampled=True)
    assert found.device.type == "cpu" and "no kernels for the samplers of CT and FM" in found.aside
    with pytest.raises(ValueError, match="no kernels for the samplers"):
        pick_device("cuda", None, plan, sampled=True)


def test_auto_is_the_cpu_where_there_is_no_gpu(without_gpus, monkeypatch):
    monkeypatch.setattr(dispatch, "triton_version", lambda: None)  # which is no matter here
    found = pick_device("auto")
    assert (found.device, found.name) == (CPU, "cpu")
    assert found.why == "auto: no GPU that PyTorch can use"


def test_auto_takes_a_gpu_for_the_cuda_kernels(with_gpus, monkeypatch):
    monkeypatch.setattr(dispatch.extension, "unavailable", lambda: None)
    monkeypatch.setattr(dispatch.extension, "on_host", lambda: False)
    for backend in (None, "cuda"):
        if backend is None:
            monkeypatch.setattr(dispatch, "triton_version", lambda: None)
        found = pick_device("auto", backend)
        assert found.device == torch.device("cuda", 0)
        assert found.why == "auto: the cuda kernels run on it"
        assert pick_device("cuda", backend).device == torch.device("cuda", 0)
    monkeypatch.setattr(dispatch.extension, "unavailable", lambda: "left out of this build")
    assert pick_device("auto", "cuda") == devices.Device(CPU, "auto: left out of this build")
    with pytest.raises(ValueError, match="cuda: left out of this build"):
        pick_device("cuda", "cuda")


def test_a_device_that_is_asked_for(with_gpus):
    assert pick_device("cpu") == devices.Device(CPU, "asked for")
    assert pick_device("cuda").device == pick_device("cuda:0").device == torch.device("cuda", 0)
    # the reference needs PyTorch alone
    assert pick_device("cuda:1", "reference").device == torch.device("cuda", 1)
    for name, backend, text in [
        ("cuda:1", None, "capability 8.0 or later, found 7.5"),
        ("cuda:2", None, "no GPU cuda:2, there are 2"),
        ("cuda", "cpu", 'runs on the CPU only.*forced by backend="cpu"'),
        ("cuda:", None, "'cuda:' is not available, there is: auto, cpu, cuda, cuda:N"),
        ("mps", None, "'mps' is not available"),
    ]:
        with pytest.raises(ValueError, match=text):
            pick_device(name, backend)


def test_a_plan_that_no_gpu_s_kernels_run(with_gpus, monkeypatch):
    plan = nk.plans.paper_dt((1, 14, 14), 3, 3)
    gap = "has no kernels for Conv2d layers, which cpu and reference can run"
    for backend, gaps in ((None, f"triton: {gap}; cuda: {gap}"), ("triton", f"triton: {gap}")):
        found = pick_device("auto", backend, plan)
        assert (found.device, found.why) == (CPU, f"auto: {gap}")
        assert found.aside == f"the CPU is used, although there is a GPU: {gaps}"
        with pytest.raises(ValueError, match=rf"cuda cannot be used: {gaps}.*; use --device cpu"):
            pick_device("cuda", backend, plan)
    assert pick_device("cuda", "reference", plan).device == torch.device("cuda", 0)
    dense = pick_device("auto", None, nk.plans.mlp(6, 3, 3))
    assert dense.device == torch.device("cuda", 0) and dense.aside is None
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto", None, plan).aside is None


def test_a_radial_head_that_no_gpu_s_kernels_train(with_gpus):
    found = pick_device("auto", None, nk.plans.mlp(6, 3, 3), head="radial")
    assert found.device == CPU and "has no kernels for the radial head" in found.aside
    assert pick_device("auto", None, nk.plans.mlp(6, 3, 3), head="softmax").aside is None


def test_a_gpu_that_is_left_aside_is_told(with_gpus, image_file, monkeypatch):
    monkeypatch.setattr(noprop.Model, "to", lambda self, device: self)  # no GPU is there at all
    options = ("--preset", "paper", "--T", 1, "--epochs", 1)
    told = call("train", "--data", image_file, *options, "--out", "run").stderr
    assert "noprop: the CPU is used, although there is a GPU: triton: has no kernels for C" in told
    for command in (("train", "--resume", "run"), ("eval", "run"), ("predict", "run", image_file)):
        assert "although there is a GPU" in call(*command).stderr
        text = words(call(*command, "--device", "cuda", code=2).stderr)
        assert "--device: cuda cannot be used: triton: has no kernels for Conv2d layers" in text


@pytest.mark.parametrize("command", ["train", "eval"])
@pytest.mark.parametrize("name", ["cuda", "cuda:1"])
def test_a_gpu_that_is_not_there(without_gpus, tmp_path, command, name):
    arguments = ["--out", "run"] if command == "train" else ["run"]
    text = words(call(command, "--device", name, *arguments, code=2).stderr)
    assert f"--device: {name} cannot be used: no GPU that PyTorch can use" in text
    assert "use --device cpu, or auto" in text
    assert [*tmp_path.iterdir()] == []


def test_the_head_line_is_short(without_gpus, toy_file):
    isa = cpu.describe()["isa_used"]
    out = call("train", "--data", toy_file, *QUICK, "--threads", 2, "--out", "run").stdout
    assert f"into run, on cpu ({isa}), 2 threads" in out.splitlines()
    options = ("--device", "cpu", "--backend", "reference", "--threads", 1)
    out = call("eval", "run", *options).stdout
    assert out.splitlines()[0].endswith("on cpu (backend reference), 1 thread")
    out = call("train", "--data", toy_file, *QUICK, "--dry-run", "--out", "other").stdout
    assert f"on cpu ({isa}), " in out
    assert "no GPU that PyTorch can use" not in out


# a change of device


def versions(**changed) -> dict:
    return {
        "device": "cpu", "backend": "cpu", "instruction_set": "avx2", "compiler": "GNU 12",
        "triton": None, "torch": "2",
    } | changed  # fmt: skip


def test_another_device_is_one_line_that_names_both():
    gpu = versions(
        device="Card", backend="triton", instruction_set=None, compiler=None, triton="3.7"
    )
    there = "device was cpu (backend cpu), is Card (backend triton): the algorithm is the same"
    back = "device was Card (backend triton), is cpu (backend cpu): the algorithm is the same"
    assert checkpoint.differences(versions(), gpu) == [there]
    assert checkpoint.differences(gpu, versions(torch="3")) == [back, "torch was 2, is 3"]
    assert checkpoint.differences(gpu, gpu | {"triton": "3.8"}) == ["triton was 3.7, is 3.8"]
    old = versions()
    del old["device"], old["triton"]  # as runs were saved at first, all on the CPU
    assert checkpoint.differences(old, versions()) == []
    assert checkpoint.differences(old, gpu) == [there]


def test_a_run_of_another_device_goes_on(toy_file):
    call("train", "--data", toy_file, *QUICK, "--lr-schedule", "constant", "--out", "run")
    content, tensors = checkpoint.load(runs.Path("run"))
    assert content["versions"]["device"] == "cpu"
    content["versions"] |= {"device": "Card", "backend": "triton", "compiler": None}
    checkpoint.save(runs.Path("run"), content, tensors)
    outcome = call("train", "--resume", "run", "--epochs", 3, "--device", "cpu", "--json")
    warnings = [line for line in outcome.stderr.splitlines() if "warning" in line]
    assert warnings == [
        "noprop: warning: device was Card (backend triton), is cpu (backend cpu): the algorithm "
        "is the same; from here on the bits may differ"
    ]
    assert json.loads(outcome.stdout)["device"] == "cpu"


def test_a_run_goes_where_it_is_asked_to(toy_file, tmp_path, monkeypatch):
    """Nothing runs on "meta", which is an error before anything is written."""
    call("train", "--data", toy_file, *QUICK, "--out", "run")
    before = {path: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    meta = devices.Device(torch.device("meta"), "asked for")
    monkeypatch.setattr(common, "pick_device", lambda *_, **__: meta)
    for command in (
        ("train", "--data", toy_file, *QUICK, "--out", "other"),
        ("train", "--resume", "run"),
        ("eval", "run"),
    ):
        text = call(*command, code=1).stderr
        assert "noprop: error: no backend can run this plan on meta" in text
    assert not (tmp_path / "other").exists()
    assert {path: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


# memory


def test_no_memory_in_the_middle_leaves_a_run_that_goes_on(toy_file, monkeypatch):
    """The call that failed changed nothing, so that the run ends with an unbroken one's bits."""
    monkeypatch.setattr("noprop.loop.CALL_SECONDS", 0.0)
    train_steps, left = noprop.model.nk.OutputHead.train_steps, iter(range(7))

    def refuse(self, *args, **options):
        if next(left, None) is None:
            raise MemoryError("train: no memory on cuda:0, nothing was changed")
        return train_steps(self, *args, **options)

    monkeypatch.setattr(noprop.model.nk.OutputHead, "train_steps", refuse)
    outcome = call("train", "--data", toy_file, *QUICK, "--out", "run", code=1).stderr
    assert "noprop: error: train: no memory on cuda:0, nothing was changed" in outcome
    assert "--batch-size" in outcome and "--blocks-per-launch" in outcome and "--resume" in outcome
    progress = checkpoint.load_content(runs.Path("run"))["training"]["progress"]
    assert (progress["block_steps"], progress["head_steps"]) == (5, 7)
    monkeypatch.setattr(noprop.model.nk.OutputHead, "train_steps", train_steps)
    call("train", "--resume", "run", "--blocks-per-launch", 2)
    call("train", "--data", toy_file, *QUICK, "--out", "straight")
    sums = [
        checkpoint.load_content(runs.Path(name))["tensors"]["sha256"]
        for name in ("run", "straight")
    ]
    assert sums[0] == sums[1]


def test_no_memory_for_the_data(new_model, toy, assert_same_state, monkeypatch):
    to = torch.Tensor.to

    def refuse(self, where, *args, **options):
        if isinstance(where, torch.device):
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return to(self, where, *args, **options)

    model = new_model()
    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "to", refuse)
        with pytest.raises(MemoryError, match="fit: no memory on cpu for the 1,820 bytes of the d"):
            noprop.fit(model, *toy)
    assert_same_state(model, new_model())


def test_blocks_per_launch_reaches_the_blocks(toy_file, monkeypatch):
    seen = []
    train = runs.Run.train

    def watch(self, *args, **options):
        seen.append(self.model.blocks.blocks_per_launch)
        return train(self, *args, **options)

    monkeypatch.setattr(runs.Run, "train", watch)
    for option in ([], ["--blocks-per-launch", 2]):
        call("train", "--data", toy_file, *QUICK, *option, "--out", f"run{len(option)}")
    assert seen == [None, 2]


# a device that the host cannot read: tensors on "meta" have a place and no contents, so that a
# tensor left on the CPU and a look at contents are errors


class NoKernels:
    """Takes every call and keeps the last."""

    def train(self, call) -> None:
        self.call = call

    def predict(self, call) -> None:
        self.call = call


@pytest.fixture
def stub(monkeypatch) -> NoKernels:
    stub = NoKernels()
    monkeypatch.setattr(dispatch, "choose", lambda *_, **__: stub)
    return stub


def tensors_of(record, path="call"):
    """(path, tensor) of everything in a call but `index`, which stays on the CPU."""
    if isinstance(record, torch.Tensor):
        yield path, record
    elif isinstance(record, dict):
        for name, value in record.items():
            yield from tensors_of(value, f"{path}.{name}")
    elif hasattr(record, "__dataclass_fields__"):
        for name in record.__dataclass_fields__:
            if name != "index":
                yield from tensors_of(getattr(record, name), f"{path}.{name}")


def test_training_leaves_the_device_once_a_call_for_its_losses(stub, toy, new_model, monkeypatch):
    model = new_model().to("meta")
    reads = []

    def losses_of(train_steps):
        def call(*args, **options):
            losses = train_steps(*args, **options)
            for path, tensor in tensors_of(stub.call):
                assert tensor.device.type == "meta", path
            assert losses.device.type == "meta"
            reads.append(losses.shape)
            return torch.zeros(losses.shape)  # what the loop reads

        return call

    for part in (model.blocks, model.head):
        monkeypatch.setattr(part, "train_steps", losses_of(part.train_steps))
    calls = []
    progress = noprop.fit(
        model, *toy, epochs=2, batch_size=32, on_call=lambda *outcome: calls.append(outcome)
    )
    assert progress.epoch == 2 and len(reads) == len(calls)


def test_single_steps_leave_nothing_behind(stub, new_model):
    model = new_model().to("meta")
    x, y = torch.empty(5, 6, device="meta"), torch.empty(5, dtype=torch.int64, device="meta")
    for step in (
        lambda: model.blocks.train_step(x, y, lr=0.1, input_grad=True, levels_grad=True),
        lambda: model.blocks.train_step(x, y, blocks=[1, 3], lr=torch.tensor([0.1, 0.2])),
        lambda: model.head.train_step(y, 2),
        lambda: model.blocks.gradients(x, y, step=3),
    ):
        step()
        for path, tensor in tensors_of(stub.call):
            assert tensor.device.type == "meta", path


def test_rows_of_an_answer_go_to_the_device_part_by_part(stub, toy, new_model, monkeypatch):
    model = new_model().to("meta")
    model.normalize = (torch.zeros(1), torch.ones(1))
    monkeypatch.setattr(inference, "ROWS_AT_ONCE", 50)
    monkeypatch.setattr(model.head, "forward", lambda z: torch.empty(1, len(z), 3, device="meta"))
    rows = []
    predict = model.blocks.predict

    def watch(x, **options):
        rows.append((len(x), x.device.type))
        return predict(x, **options)

    monkeypatch.setattr(model.blocks, "predict", watch)
    assert model.predict_paper(toy[0], samples=2).shape == (2, 130, 3)
    assert rows == [(50, "meta"), (50, "meta"), (30, "meta")]
    for path, tensor in tensors_of(stub.call):
        assert tensor.device.type == "meta", path
