"""Sequences of public calls and assignments with hostile values; each step is logged first.

It is run as a program, since a step that ends the process must not take the tests with it. A step
may raise an error in words; then no bit of the object has changed.
"""

import argparse
import copy
import os
import pickle
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from hostile import (
    ATTRIBUTES,
    GOAL,
    KINDS,
    NUMBERS,
    OBJECTS,
    PLANS,
    TIMED,
    VALUES,
    B,
    D,
    F,
    M,
    bits,
    ones,
)
from hypothesis import HealthCheck, Phase, assume, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test
from torch import Tensor, nn

import noprop_kernels as nk
from noprop_kernels import functional
from noprop_kernels.backends.cpu import backend as cpu

WORDS = (ValueError, RuntimeError, MemoryError)  # what a call may raise; BackendError is the second
OF_PYTHON = (*WORDS, TypeError, AttributeError)  # and what setting or deleting an attribute may


def log(text: str) -> None:
    os.write(1, f"{text}\n".encode())


class Surface(RuleBasedStateMachine):
    log: Callable[[str], None]

    def __init__(self) -> None:
        super().__init__()
        self.log("--- new objects")
        self.objects: dict[str, Any] = {
            "mlp": nk.DenoisingBlocks(PLANS["mlp"], GOAL, seed=[0, 1]),
            "norm": nk.DenoisingBlocks(PLANS["norm"], GOAL, embedding=ones(M, D)),
            "plain": nk.DenoisingBlocks(PLANS["norm"], GOAL, optimizer=None, held=[1, 3]),
            "sgd": nk.DenoisingBlocks(PLANS["mlp"], GOAL, optimizer=nk.SGD(momentum=0.9)),
            "head": nk.OutputHead(D, M, goal=GOAL, seed=[0, 1]),
            "linear": nk.Linear(F, M, optimizer=nk.AdamW()),
        }
        learned = nk.CT(nk.GammaNetwork(hidden=4))
        shared = nk.Shared(learned, nk.LearnedEmbedding(M, D))
        blocks = nk.DenoisingBlocks(TIMED, learned, shared=shared)
        head = nk.OutputHead(D, M, goal=learned, shared=shared)
        self.objects |= {"ct": blocks, "ct head": head, "shared": shared}
        self.coupled = nk.Coupled(blocks, head, shared)
        self.results: list[Tensor] = []

    def teardown(self) -> None:
        torch.set_default_dtype(torch.float32)
        cpu.set_isa(None)

    def step(
        self, text: str, on: nn.Module | None, run: Callable[[], Any], allowed: tuple = WORDS
    ) -> Any:
        self.log(text)
        before = {} if on is None else bits(on)
        try:
            result = run()
        except allowed as error:
            self.log(f"    {type(error).__name__}: {str(error)[:150]}")
            after = {} if on is None else bits(on)
            for name, value in before.items():
                assert after.get(name, value) == value, f"{text}: an error, and {name} moved"
            return None
        self.log("    done")
        return result

    def hostile(self, data: st.DataObject, name: str, value: Tensor) -> tuple[str, Any]:
        kind = data.draw(st.sampled_from([*KINDS]), label=name)
        try:
            return kind, KINDS[kind](value)
        except RuntimeError:  # PyTorch has no such form of it
            assume(False)
            raise

    def tensors(self, data: st.DataObject, **values: Tensor) -> tuple[str, dict[str, Any]]:
        """At most two of the arguments hostile, so that calls get past the first."""
        names = [*values]
        wrong = data.draw(st.sets(st.sampled_from(names), max_size=2))
        texts, given = [], dict(values)
        for name in sorted(wrong):
            kind, given[name] = self.hostile(data, name, values[name])
            texts.append(f"{name}: {kind}")
        return ", ".join(texts), given

    # calls

    @rule(data=st.data(), which=st.sampled_from(["mlp", "norm", "plain", "sgd"]), number=NUMBERS)
    def call(self, data: st.DataObject, which: str, number: Any) -> None:
        blocks = self.objects[which]
        text, v = self.tensors(
            data,
            x=ones(B, F),
            y=torch.arange(B),
            z=ones(B, D),
            zs=ones(len(blocks), B, D),
            X=ones(9, F),
            Y=torch.arange(9) % M,
            rows=torch.arange(2 * B).view(2, B),
            lr=ones(2),
            w=ones(9),
        )
        calls: dict[str, Callable[[], Any]] = {
            "train_step": lambda: blocks.train_step(v["x"], v["y"]),
            "train_step blocks": lambda: blocks.train_step(v["x"], v["y"], blocks=number),
            "train_step lr": lambda: blocks.train_step(v["x"], v["y"], lr=number),
            "train_step z": lambda: blocks.train_step(
                v["x"], v["y"], z=v["zs"], input_grad=True, levels_grad=True
            ),
            "train_steps": lambda: blocks.train_steps(v["X"], v["Y"], v["rows"], lr=v["lr"]),
            "train_steps row_weight": lambda: blocks.train_steps(
                v["X"], v["Y"], v["rows"], row_weight=v["w"]
            ),
            "train_steps normalize": lambda: blocks.train_steps(
                v["X"], v["Y"], v["rows"], normalize=(v["lr"], number)
            ),
            "gradients": lambda: blocks.gradients(v["x"], v["y"], first_row=number),
            "gradients step": lambda: blocks.gradients(v["x"], v["y"], step=number, rows=number),
            "forward": lambda: self.results.append(blocks(v["x"], v["z"])),
            "loss": lambda: self.results.append(blocks.loss(v["x"], v["y"])),
            "predict": lambda: blocks.predict(v["x"], samples=number if number != 2**16 else 2),
            "predict seed": lambda: blocks.predict(v["x"], seed=number, keep="all"),
            "add_noise": lambda: blocks.add_noise(v["y"], first_row=number),
            "block": lambda: blocks.block(number),
            "to_modules": blocks.to_modules,
            "advance": blocks.advance,
            "check": blocks.check,
            "repr": lambda: repr(blocks),
            "eval": blocks.eval,
            "train": blocks.train,
        }
        # a sample is a row of the result: 2^31 of them are a lot of memory, and no error
        assume(not (isinstance(number, int) and number > 2**16 and number < 2**33))
        name = data.draw(st.sampled_from(sorted(calls)))
        moving = blocks if name not in ("advance", "forward", "loss") else None
        self.step(f"{which}.{name}({number!r}) with {text or 'fit tensors'}", moving, calls[name])

    @rule(data=st.data(), number=NUMBERS)
    def call_the_head(self, data: st.DataObject, number: Any) -> None:
        head = self.objects["head"]
        text, v = self.tensors(
            data,
            y=torch.arange(B),
            z=ones(B, D),
            Y=torch.arange(9) % M,
            rows=torch.arange(2 * B).view(2, B),
            t=torch.ones(2, dtype=torch.int64),
        )
        calls: dict[str, Callable[[], Any]] = {
            "train_step": lambda: head.train_step(v["y"], number),
            "train_steps": lambda: head.train_steps(v["Y"], v["rows"], v["t"], lr=number),
            "forward": lambda: head(v["z"]),
        }
        name = data.draw(st.sampled_from(sorted(calls)))
        self.step(f"head.{name}({number!r}) with {text or 'fit tensors'}", head, calls[name])

    @rule(data=st.data(), number=NUMBERS)
    def call_what_is_shared(self, data: st.DataObject, number: Any) -> None:
        """Steps of the parts as they were made; an assignment may have moved any tensor of them."""
        blocks, shared = self.objects["ct"], self.objects["shared"]
        text, v = self.tensors(data, x=ones(B, F), y=torch.arange(B), t=ones(B).double() / 2)
        calls: dict[str, Callable[[], Any]] = {
            "step": lambda: self.coupled.step(v["x"], v["y"]),
            "step lr": lambda: self.coupled.step(v["x"], v["y"], lr=number),
            "train_step": lambda: blocks.train_step(v["x"], v["y"], levels_grad=True),
            "times": lambda: blocks.times(number),
            "predict": lambda: blocks.predict(v["x"], steps=number if number != 2**16 else 2),
            "present_goal": lambda: shared.present_goal(replica=0).levels(v["t"]),
            "prior": lambda: shared.prior(v["y"], M),
        }
        assume(not (isinstance(number, int) and number > 2**16 and number < 2**33))
        name = data.draw(st.sampled_from(sorted(calls)))
        self.step(f"ct {name}({number!r}) with {text or 'fit tensors'}", None, calls[name])

    @rule(data=st.data(), trains=st.booleans())
    def call_linear(self, data: st.DataObject, trains: bool) -> None:
        linear = self.objects["linear"]
        text, v = self.tensors(data, x=ones(B, F), d=ones(B, M))
        run = (lambda: linear(v["x"]).backward(v["d"])) if trains else (lambda: linear(v["x"]))
        moving = linear if not trains else None  # a backward that fails may have made its step
        said = "linear and backward" if trains else "linear"
        self.step(f"{said} with {text or 'fit tensors'}", moving, run, OF_PYTHON)

    @rule(data=st.data(), which=st.sampled_from(["mlp", "norm", "sgd"]))
    def update(self, data: st.DataObject, which: str) -> None:
        blocks = self.objects[which]
        run = partial(blocks.gradients, ones(B, F), torch.arange(B))
        grads = self.step(f"{which}.gradients", blocks, run)
        if grads is None:
            return
        name = data.draw(st.sampled_from(["index", "applied", *grads.by_name, *grads.stats]))
        holder = grads.by_name if name in grads.by_name else grads.stats
        value = holder[name] if name in holder else getattr(grads, name)
        kind, value = self.hostile(data, name, value)
        if name in holder:
            holder[name] = value
        else:
            setattr(grads, name, value)
        self.step(f"{which}.update with {name}: {kind}", blocks, lambda: blocks.update(grads))

    @rule(data=st.data(), which=st.sampled_from(["mlp", "norm"]))
    def go_back(self, data: st.DataObject, which: str) -> None:
        """Backward through what an earlier call left, with whatever happened since."""
        assume(self.results)
        result = self.results.pop()
        _, d = self.hostile(data, "d", ones(*result.shape))
        blocks = self.objects[which]
        if data.draw(st.booleans()):
            self.step("backward", None, lambda: result.sum().backward())
        else:
            run = partial(blocks.backward_update, result, d)
            self.step(f"{which}.backward_update", blocks, run)

    @rule(data=st.data(), number=NUMBERS)
    def function(self, data: st.DataObject, number: Any) -> None:
        text, v = self.tensors(
            data,
            x=ones(B, F),
            w=ones(M, F),
            b=ones(M),
            d=ones(B, M),
            y=torch.arange(B),
            W=ones(M, D),
            m=ones(M, F),
            n=torch.zeros(1, dtype=torch.int64),
        )
        state = {"weight_m": v["m"], "updates": v["n"]}
        calls: dict[str, Callable[[], Any]] = {
            "dense": lambda: functional.dense(v["x"], v["w"], v["b"]),
            "dense_update_": lambda: functional.dense_update_(
                v["x"], v["d"], v["w"], optimizer=nk.SGD(momentum=0.9), state=state, lr=number
            ),
            "add_noise": lambda: functional.add_noise(
                v["y"], v["b"], number, seed=1, draw=number, W_embed=v["W"]
            ),
            "denoising_loss": lambda: functional.denoising_loss(
                v["d"], v["y"], number, W_embed=v["W"]
            ),
            "DenoisingLoss": lambda: nk.DenoisingLoss(v["W"])(v["d"], v["y"], v["b"]),
        }
        name = data.draw(st.sampled_from(sorted(calls)))
        self.step(f"{name}({number!r}) with {text or 'fit tensors'}", None, calls[name])

    # assignments

    @rule(
        data=st.data(),
        which=st.sampled_from(["mlp", "norm", "sgd", "head", "ct", "ct head", "shared", "linear"]),
    )
    def put_a_tensor(self, data: st.DataObject, which: str) -> None:
        module = self.objects[which]
        found = dict([*module.named_parameters(), *module.named_buffers()])
        name = data.draw(st.sampled_from(sorted(found)))
        assume(found[name].device.type == "cpu" and found[name].layout == torch.strided)
        kind, value = self.hostile(data, name, found[name].detach())
        path, _, key = name.rpartition(".")
        how = data.draw(st.sampled_from(["set", "data", "parameter", "load", "delete"]))
        owner = module.get_submodule(path)

        def put() -> None:
            if how == "set":
                setattr(owner, key, value)
            elif how == "data":
                found[name].data = value
            elif how == "parameter":
                setattr(owner, key, nn.Parameter(value))
            elif how == "delete":
                delattr(owner, key)
            else:
                module.load_state_dict({**module.state_dict(), name: value}, assign=True)

        self.step(f"{which}: {how} {name}: {kind}", None, put, OF_PYTHON)

    @rule(which=OBJECTS, name=st.sampled_from(ATTRIBUTES), value=VALUES)
    def put_an_attribute(self, which: str, name: str, value: Any) -> None:
        module = self.objects[which]
        run = partial(setattr, module, name, value)
        self.step(f"{which}.{name} = {value!r}", None, run, OF_PYTHON)

    @rule(which=OBJECTS, name=st.sampled_from(ATTRIBUTES))
    def delete_an_attribute(self, which: str, name: str) -> None:
        module = self.objects[which]
        assume(name != "training")  # of nn.Module, which cannot be without
        self.step(f"del {which}.{name}", None, lambda: delattr(module, name), OF_PYTHON)

    @rule(which=OBJECTS, way=st.sampled_from(["copy", "pickle"]))
    def copy(self, which: str, way: str) -> None:
        module = self.objects[which]
        ways = {
            "copy": lambda: copy.deepcopy(module),
            "pickle": lambda: pickle.loads(pickle.dumps(module)),
        }
        made = self.step(f"{way} of {which}", module, ways[way], OF_PYTHON)
        self.objects[which] = module if made is None else made

    @rule(which=OBJECTS, to=st.sampled_from(["cpu", "meta", "half"]))
    def move(self, which: str, to: str) -> None:
        module = self.objects[which]
        run = module.half if to == "half" else lambda: module.to(to)
        self.step(f"{which} to {to}", None, run, OF_PYTHON)

    @rule(name=st.sampled_from(["float16", "bfloat16", "float64", "float32"]))
    def default_dtype(self, name: str) -> None:
        self.step(f"default {name}", None, lambda: torch.set_default_dtype(getattr(torch, name)))

    @rule(name=st.sampled_from([None, "baseline", "avx2", "avx512", "neon", "x"]))
    def isa(self, name: str | None) -> None:
        self.step(f"set_isa({name!r})", None, lambda: cpu.set_isa(name))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", type=int, default=100)
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--seed", type=int, help="other sequences than CI's")
    options = parser.parse_args()
    # unbuffered: what a crash leaves must have the step that made it
    Surface.log = staticmethod(log)
    if options.seed is not None:
        from hypothesis import seed

        seed(options.seed)(Surface)
    run_state_machine_as_test(
        Surface,
        settings=settings(
            max_examples=options.examples,
            stateful_step_count=options.steps,
            derandomize=options.seed is None,
            database=None,
            deadline=None,
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.generate],  # the log has the sequence; to shrink it takes minutes
        ),
    )
    sys.stdout.flush()


if __name__ == "__main__":
    main()
