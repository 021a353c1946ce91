"""The GPU benchmark, as far as a CPU can take it: its rivals are right, its lines say what ran."""

import importlib.util
import json
from dataclasses import replace
from functools import partial

import pytest
import torch

if not importlib.util.find_spec("bench"):
    pytest.skip("the benchmarks lie in the repository's root", allow_module_level=True)

import noprop_kernels as nk
from bench.contenders.contender import Contender
from bench.contenders.rivals import RIVALS, on_gpu
from bench.contenders.rivals.on_gpu import GPU_RIVALS
from bench.contenders.rivals.sequential import Sequential
from bench.contenders.rivals.stacked import StackedSGD
from bench.gpu_check import sanitize
from bench.machine import gpu, host
from bench.memory import gpu as gpu_memory
from bench.problem import twin
from bench.problem.problem import make_problem
from bench.problem.sizes import GPU_SHAPES, Shape
from bench.report import lines as result_lines
from bench.report import page, suite_rows
from bench.suites import check, run
from noprop_kernels.backends.cuda import extension

SHAPE = Shape("made-up", B=12, F=13, H=7, D=4, M=5, T=3, rows=40)  # embeddings are not one-hot
PLAIN = ("sequential", "stacked_shared", "stacked_expanded", "baddbmm_sgd", "end_to_end")
HAS_FLEX_GEMM = importlib.util.find_spec("torch._higher_order_ops.flex_gemm") is not None


def quick(entry):
    """Without minutes of g++: aot_eager traces the same functions, and takes no options."""
    if not entry.compiles:
        return entry.make
    return partial(entry.make, backend="aot_eager", options=None)


MADE = {
    entry.name: quick(entry)
    for entry in GPU_RIVALS
    if entry.name.startswith((*PLAIN, "step_compiled"))
    or (entry.name == "flex_gemm" and HAS_FLEX_GEMM)
}


@pytest.fixture(scope="module")
def problem():
    return make_problem(SHAPE, seed=1, lr=1e-2, weight_decay=0.5)


@pytest.mark.parametrize("name", MADE)
def test_rival_with_embeddings_takes_the_twins_steps(problem, name):
    contender = MADE[name](problem, 1)
    indices, eps = problem.indices(4, seed=2), problem.eps(4, seed=3)
    # a graph: plainly, captured, replayed twice
    losses = [contender.steps(indices[k : k + 1], eps[k : k + 1]) for k in range(4)]
    want_losses, want_weights = twin.run(problem, contender.maths, indices, eps)
    torch.testing.assert_close(torch.cat(losses).double(), want_losses, rtol=1e-5, atol=1e-7)
    for key, want in want_weights.items():
        got = contender.weights()[key].double()
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5, msg=key)


def test_a_graph_has_its_own_rows_noise_and_rates(problem):
    """Replays read what was copied, so that the caller's tensors may go."""
    contender = MADE["step_compiled_graphed"](problem, 1)
    indices, eps = problem.indices(6, seed=2), problem.eps(6, seed=3)
    seen = []
    inner = contender.inner.steps
    contender.inner.steps = lambda *given: seen.append(given) or inner(*given)
    for k in range(0, 6, 2):
        contender.steps(indices[k : k + 2].clone(), eps[k : k + 2].clone())
    (_, *captured), (_, *replayed) = seen[1:]
    assert all(a is b for a, b in zip(captured, replayed, strict=True))
    assert torch.equal(seen[2][0], indices[4:]) and torch.equal(seen[2][1], eps[4:])
    assert contender.inner.updates == 6


def test_every_gpu_rival_has_a_name_of_its_own():
    names = [entry.name for entry in (*run.ON_GPU.entries, gpu_memory.ENTRIES[1])]
    assert len(names) == len(set(names))
    assert {entry.name for entry in RIVALS if entry.name in PLAIN} <= set(names)


@pytest.mark.parametrize("name", on_gpu.OPTIONS)
def test_the_compiler_knows_its_options(problem, name):
    entry = next(entry for entry in GPU_RIVALS if entry.name == f"step_compiled_{name}")
    entry.make(problem, 1)
    with pytest.raises(RuntimeError, match="Unexpected optimization option no_such"):
        entry.make(problem, 1, options={"no_such": True})


def test_flex_gemm_says_which_torch_it_needs(problem):
    entry = next(entry for entry in GPU_RIVALS if entry.name == "flex_gemm")
    if HAS_FLEX_GEMM:
        pytest.skip("this torch has flex_gemm")
    with pytest.raises(ImportError, match="needs torch 2.14 or later, found"):
        entry.make(problem, 1)


def test_tf32_is_to_nearest_and_ties_away():
    ulp = 2.0**-10
    for value, want in (
        (1 + ulp / 2, 1 + ulp),
        (1 + ulp / 2 - 2**-20, 1.0),
        (-1 - ulp / 2, -1 - ulp),
    ):
        got = twin.rounded_to(torch.tensor([value], dtype=torch.float64), "tf32")
        assert got.dtype == torch.float64 and got.item() == want


@pytest.mark.parametrize("precision", ["tf32", "bfloat16"])
def test_rounded_twin_is_the_reference_at_its_precision(precision):
    low = make_problem(replace(SHAPE, D=5, F=200), seed=1, lr=1e-2, precision=precision)
    s = low.shape
    blocks = nk.DenoisingBlocks(
        nk.plans.mlp(s.F, s.D, s.M, hidden=s.H),
        nk.DT(nk.NoiseSchedule.cosine(T=s.T)),
        optimizer=nk.AdamW(lr=low.lr, weight_decay=low.weight_decay),
        precision=precision,
        backend="reference",
    )
    with torch.no_grad():
        for name, value in low.weights.items():
            dict(blocks.named_parameters())[name].copy_(value)
    from bench.contenders.ours import Ours

    indices = low.indices(2, seed=1)
    _, eps = Ours(replace(low, precision="float32"), 1).check_eps(2, seed=0)
    got = blocks.train_steps(low.X, low.Y, indices)
    exact, _ = twin.run(low, "adamw", indices, eps)
    rounded, _ = twin.run(low, "adamw", indices, eps, rounded=True)
    assert (got[0] - rounded[0]).abs().max() < 0.1 * (exact[0] - rounded[0]).abs().max()
    torch.testing.assert_close(got.double(), rounded, rtol=1e-4, atol=0)


def test_rounding_of_sgd_is_judged_by_sgd(problem):
    low = replace(problem, precision="tf32")
    assert len(check.check_steps(StackedSGD(low, 1, shared=True))) == check.CHECK_STEPS

    class Far(StackedSGD):
        def weights(self):
            return {name: value * 1.01 for name, value in super().weights().items()}

    with pytest.raises(twin.Mismatch):
        check.check_steps(Far(low, 1, shared=True))


def test_large_shapes_count_the_product_with_the_embedding():
    large = GPU_SHAPES["large"]
    layers = 4 * (2048 + 512) * 2048 + 6 * (2 * 2048 * 2048 + 2048 * 1000)
    assert large.flop == 12 * 2048 * (layers + 4 * 1000 * 512)


def rehearse(tmp_path, monkeypatch, *more):
    monkeypatch.setattr(host, "peak_gflops", lambda threads: 100.0)
    monkeypatch.setattr(host, "copy_gb_s", lambda threads, size: 10.0)
    out, before = tmp_path / "lines.jsonl", torch.get_num_threads()
    try:
        status = run.main(["--device", "rehearsal", "--rounds", "3", "--out", str(out), *more])
    finally:
        torch.set_num_threads(before)
    return status, [json.loads(text) for text in out.read_text().splitlines()]


def test_rehearsal_times_a_gpu_s_contenders_and_says_so(tmp_path, monkeypatch):
    names = ("stacked_shared", "stacked_shared_graphed")
    status, lines = rehearse(tmp_path, monkeypatch, "--precision", "tf32", "--contender", *names)
    assert status == 0
    assert [(each["contender"], each["K"]) for each in lines] == [
        (name, K) for name in names for K in (1, 2)
    ]
    assert {each["kind"] for each in lines} == {"rehearsal"}
    assert not result_lines.timed(lines)  # no table of the README shows them
    assert torch.get_float32_matmul_precision() == "highest"


def test_who_comes_late_is_told_and_no_mistake(tmp_path, monkeypatch):
    arguments = ("--seconds", "1e-9", "--contender", "stacked_shared")
    status, lines = rehearse(tmp_path, monkeypatch, *arguments)
    assert status == 0
    assert [each["error"] for each in lines] == [
        "bench.suites.run.Late: the shape's time was over before its turn"
    ]


@pytest.mark.cuda_host
@pytest.mark.parametrize("name, clusters", [("ours_cuda", {0}), ("ours_cuda_clusters", {1})])
def test_the_persistent_kernel_is_timed_where_it_runs(
    tmp_path, monkeypatch, cuda_module, name, clusters
):
    """On the host: it takes the twin's steps, in calls of any length."""
    launched = []

    class Watched:
        def __getattr__(self, name):
            return getattr(cuda_module, name)

        def launch(self, program, *where):
            if program["blocks"] > 1:
                launched.append(program["cluster"])
            cuda_module.launch(program, *where)

    monkeypatch.setattr(extension, "module", Watched())
    status, lines = rehearse(tmp_path, monkeypatch, "--contender", name, "--K", "1", "3")
    assert status == 0 and set(launched) == clusters
    assert [(each["K"], each["ms_per_step"] > 0) for each in lines] == [(1, True), (3, True)]
    assert result_lines.our_lines(lines, "adamw") == lines  # not among its own rivals


@pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16"])
def test_the_persistent_kernel_is_left_out_with_the_reason(tmp_path, monkeypatch, precision):
    monkeypatch.setattr(extension, "module", None)
    monkeypatch.setattr(extension, "_missing", "no nvcc was there")
    arguments = ("--precision", precision, "--contender", "ours_cuda")
    status, lines = rehearse(tmp_path, monkeypatch, *arguments)
    assert status == 0
    assert [each["error"] for each in lines] == [
        "bench.contenders.contender.Missing: the CUDA backend: no nvcc was there"
    ]


def test_what_does_not_fit_is_no_mistake_and_what_is_wrong_is():
    entry = run.Entry("sequential", Sequential)
    assert not run.mistaken(torch.OutOfMemoryError("no room"), entry)
    assert run.mistaken(twin.Mismatch("losses"), replace(entry, compiles=True))
    assert run.mistaken(RuntimeError("broken"), entry)
    assert not run.mistaken(RuntimeError("broken"), replace(entry, compiles=True))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_commands_say_so(tmp_path, capsys):
    for main in (
        partial(run.main, ["--device", "cuda"]),
        partial(gpu.main, ["facts", "--out", str(tmp_path / "facts")]),
        partial(gpu_memory.main, []),
    ):
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 2
        assert "no GPU that PyTorch can use" in capsys.readouterr().err
    assert not (tmp_path / "facts").exists()


def test_facts_and_costs_are_told(tmp_path):
    out = tmp_path / "device.jsonl"
    assert gpu.main(["facts", "--rehearse", "--out", str(out)]) == 0
    line = json.loads(out.read_text())
    assert line["torch"] == torch.__version__ and line["rehearsal"] is True
    cpu = torch.device("cpu")
    slept = []
    ms = gpu.milliseconds(cpu, lambda: slept.append(sum(range(10_000))), repeats=3)
    assert len(slept) == 4 and 0 < ms < 1000
    assert gpu.matrix_gflops(cpu, "bfloat16", [16]) > 0 and gpu.copy_gb_s(cpu, 1 << 16) > 0
    assert torch.get_float32_matmul_precision() == "highest"


def line(contender, ms, precision="tf32", peak=3e5, **more):
    return {
        **{"contender": contender, "maths": "adamw", "shape": "large", "threads": 1, "K": 50},
        **{"ms_per_step": ms, "ms_q20": ms, "ms_q80": ms, "share_of_peak": 0.5},
        **{"compile_seconds": None, "memory_bytes": {"weights": 1, "optimizer": 2, "step": None}},
        **{"date": "2026-01-01", "machine": {"cpu": "a cpu", "cores": 2, "gpu": "A GPU"}},
        **{"peak_gflops": peak, "precision": precision, "versions": {"torch": "2"}, "commit": "0"},
    } | more


def test_report_gives_a_gpu_a_section_of_its_own():
    on_cpu = line("ours", 7.0, "float32", 100.0, machine={"cpu": "a cpu", "cores": 2})
    lines = [on_cpu, line("ours", 2.0), line("stacked_shared_graphed", 3.0)]
    lines += [line("ours_no_pdl", 1.0), line("ours_by_hand", 1.5)]  # ours, and no rivals
    lines += [line("ours", 1.0, "bfloat16", 6e5), line("step_compiled", 1.3, "bfloat16", 6e5)]
    section = page.readme_section(lines)
    assert "a cpu, 2 cores; measured FMA peak 100 GF/s on 1; torch 2" in section
    assert "A GPU; measured matrix rate 600 TF/s in bfloat16, 300 TF/s in tf32; torch 2" in section
    assert "| 3.00 `stacked_shared_graphed` | **1.50** | 50% |" in section
    assert "| 1.30 `step_compiled` | **1.30** | 50% |" in section


class Nine(Contender):
    def steps(self, indices, eps=None):
        return torch.zeros(len(indices), self.shape.T)

    def step_bytes(self, indices):
        return 9 * self.gradient_bytes()


def test_memory_is_told_in_parts(problem):
    entry = gpu_memory.Entry("nine", Nine)
    measured = gpu_memory.measure(entry, problem, K=1, samples=1)
    weights = 4 * SHAPE.parameters
    assert measured["memory_bytes"] == {
        **{"weights": weights, "optimizer": 2 * weights, "gradients": weights},
        **{"activations": 8 * weights, "workspace": 0, "peak": None},
    }
    base = line("nine", 1.0) | {"kind": "gpu_memory"} | measured
    header, row = suite_rows.gpu_memory_rows([base, line("other", 1.0)])
    assert len(header) == len(row) and row[:3] == ("large", "nine", "tf32")


def test_sanitizer_is_right_or_says_why(monkeypatch):
    fine = {"precision": "float32", "same_bits": True, "finite": True}
    assert sanitize.acceptable(fine)
    assert not sanitize.acceptable(fine | {"same_bits": False})
    assert not sanitize.acceptable(fine | {"finite": False})
    uncompiled = {"precision": "tf32", "error": "RuntimeError: PassManager::run failed"}
    assert sanitize.acceptable(uncompiled)
    assert not sanitize.acceptable(uncompiled | {"precision": "float32"})
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert sanitize.main(["--consan"]) == sanitize.SKIPPED


@pytest.mark.cuda_host
def test_sanitizer_runs_the_persistent_kernel(tmp_path, monkeypatch, cuda_module):
    """Moments that stay on chip included: a launch has three steps."""
    calls = []

    class Watched:
        def __getattr__(self, name):
            return getattr(cuda_module, name)

        def launch(self, program, *where):
            calls.append((program["K"], program["precision"], program["resident_floats"] > 0))
            cuda_module.launch(program, *where)

    monkeypatch.setattr(extension, "module", Watched())
    out = tmp_path / "lines.jsonl"
    arguments = ["--backend", "cuda", "--rehearse", "--plain", "--precision", "tf32"]
    assert sanitize.main([*arguments, "--out", str(out)]) == 0
    (outcome,) = [json.loads(text) for text in out.read_text().splitlines()]
    assert outcome["backend"] == "cuda" and outcome["same_bits"] and outcome["finite"]
    assert {(1, "tf32", False), (3, "tf32", True)} <= set(calls)


def test_sanitizer_without_the_cuda_backend_says_why(monkeypatch, capsys):
    monkeypatch.setattr(extension, "module", None)
    monkeypatch.setattr(extension, "_missing", "no nvcc was there")
    assert sanitize.main(["--backend", "cuda"]) == sanitize.SKIPPED
    assert capsys.readouterr().out == "the CUDA backend: no nvcc was there\n"
    with pytest.raises(SystemExit):
        sanitize.main(["--backend", "cuda", "--consan"])
    assert "--consan must have --backend triton" in capsys.readouterr().err


def test_sanitizer_counts_what_was_instrumented(tmp_path):
    for name, text in (("a", "call @consan_check"), ("b", "ret void")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "kernel.llir").write_text(text)
    assert sanitize.instrumented(str(tmp_path)) == {"kernels": 2, "instrumented": 1}
