"""noprop export: `Model.to_module` in a file that runs without this library."""

import json
import warnings
from types import SimpleNamespace

import torch
import typer

from .. import loading
from ..errors import extra, notice
from ..files import atomic_file
from ..model import Model
from . import common
from .options import refused

EXAMPLE_ROWS = 2  # torch.export treats a size of 1 as a constant


def run(options: SimpleNamespace) -> None:
    if (options.onnx is None) == (options.torch is None):
        raise typer.BadParameter("give one of --onnx FILE and --torch FILE")
    trained = loading.load(options.folder)
    trained.check_whole(str(options.folder))
    replica = common.check_replica(options.replica, trained.seeds, options.folder)
    if trained.replicas > 1:
        trained = trained.replica(replica)
    with refused("--steps"):
        module, x = trained.to_module(steps=options.steps), example(trained)
    shapes = ({0: torch.export.Dim("B")},)
    if options.torch is not None:
        program = torch.export.export(module, (x,), dynamic_shapes=shapes)
        files = {"classes.json": json.dumps(trained.classes_)}
        with atomic_file(options.torch) as file:
            torch.export.save(program, file, extra_files=files)
    else:
        with extra("onnx"):
            import onnx  # noqa: F401
            import onnxscript  # noqa: F401
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporter's warnings about its own parts
            program = torch.onnx.export(
                module, (x,), dynamo=True, dynamic_shapes=shapes, verbose=False
            )
        assert program is not None
        program.model.metadata_props["classes"] = json.dumps(trained.classes_)
        with atomic_file(options.onnx) as file:
            file.write(program.model_proto.SerializeToString())
    kind = "bytes" if x.dtype == torch.uint8 else "float32"
    notice(
        f"{options.onnx or options.torch}: x (B, {x.shape[1]}) {kind} -> labels (B,), "
        f"probs (B, {trained.blocks.M}); its classes are kept in it as JSON"
    )


def example(trained: Model) -> torch.Tensor:
    """Example rows in the model's input format."""
    inputs = trained.inputs
    width = trained.blocks.plan.widths["x"]
    bytes_ = inputs is not None and inputs.kind == "bytes"
    return torch.zeros(
        EXAMPLE_ROWS,
        width,
        dtype=torch.uint8 if bytes_ else torch.float32,
        device="cpu",
    )
