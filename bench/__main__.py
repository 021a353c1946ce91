"""The commands of the benchmarks: `python -m bench NAME [options]`."""

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

# each command: the module with its `main`, imported when it is called, and its description
COMMANDS = {
    "run": ("suites.run", "times a training step of every contender"),
    "paper": ("suites.paper", "times a training step of the paper's convolutional blocks"),
    "continuous": ("suites.continuous", "times a training step of CT and FM"),
    "samplers": ("suites.samplers", "times their samplers"),
    "parts": ("ops.suite", "times the drop-in layers and the other parts of a step, one by one"),
    "in_backward": ("in_backward.suite", "times an optimizer inside backward on three models"),
    "infer": ("suites.infer", "times inference"),
    "scaling": ("suites.scaling", "times steps over T, B and H"),
    "neighbour": ("suites.neighbour", "times steps beside a busy process"),
    "interleaved": ("suites.interleaved", "times steps between a user's torch operations"),
    "boundary": ("suites.boundary", "compares the cost of a call with another build's"),
    "memory": ("memory.cpu", "memory in parts, and its measured peak"),
    "gpu_memory": ("memory.gpu", "the same on a GPU"),
    "job": ("whole.job", "times the whole job, MNIST from the first epoch on"),
    "repair": ("whole.repair", "times the repair of one block beside its run"),
    "local": ("whole.local", "accuracy by the loss that a block is trained for"),
    "grid": ("whole.grid", "the trainer's defaults beside logistic regression on small data"),
    "estimator": ("whole.estimator", "scikit-learn's classifiers beside NoPropClassifier"),
    "curves": ("whole.curves", "why CT's training is unsteady, and what helps"),
    "kills": ("whole.kills", "kills runs, goes on with them, and compares bits"),
    "campaign": ("whole.campaign", "the same with workers, drivers and nodes of Ray"),
    "engines": ("whole.engines", "two workers against one process, and more of them on paper"),
    "gpu_check": ("gpu_check.check", "all that a GPU has to show; by bash bench/gpu_check.sh OUT"),
    "gpu": ("machine.gpu", "facts or rates of a GPU"),
    "sanitize": ("gpu_check.sanitize", "small shapes for tools that look for races"),
    "clocks": ("gpu_check.clocks", "cycles of the persistent CUDA kernel by stage"),
    "bits": ("bits.command", "whether a change of the sources changed a bit of what they compute"),
    "report": ("report.page", "tables from result files"),
    "figures": ("report.figures", "pictures of result files"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        usage="%(prog)s NAME [options]",
        description="Benchmarks. `python -m bench NAME --help` tells a command's options.",
        epilog="\n".join(f"  {name:<11}  {about}" for name, (_, about) in COMMANDS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", choices=COMMANDS, metavar="NAME", help="one of those below")
    name, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    parser.parse_args([name])
    module, _ = COMMANDS[name]
    return import_module(f"bench.{module}").main(rest)


if __name__ == "__main__":
    sys.exit(main())
