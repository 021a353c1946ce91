"""K steps of a training call: plain launches, or a CUDA graph of them.

The first call of a kind runs plain launches, which also compile the kernels; the second captures
its steps, and later ones replay them. What a graph froze is its key: every address, shape, dtype
and constant. What changes from call to call (indices, labels, numbers, rates, draws, gathered
batches) is copied to buffers of the graph's own before a replay, and losses out of them after it.
Inside a capture of the caller's there are plain launches alone.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from ..calls import Gather, TrainCall
from ..gpu.records import part_of, stored
from .launch import run
from .walk import Walk

STEPS = 32  # of a graph; more are replays of it, since no bit depends on K
GRAPHS = 16  # kept of an object

# what a call brings that no graph may freeze, by record
FRESH = {
    "Noise": ("seeds", "draw", "block"),
    "Mix": ("signal", "noise", "weight"),
    "Gather": ("indices", "replica", "scale", "shift"),
    "Rule": ("lr", "weight_decay"),
    "TrainOut": ("loss", "applied"),
    "TrainCall": ("y",),
}
Path = tuple[str, ...]
Capture = Callable[[Callable[[], None]], Callable[[], None]]


@dataclass
class Graph:
    """K steps, captured. It holds nothing of the object, which would then live for ever.

    Args:
        fresh: its own tensors for what changes from call to call.
        held: whatever else it reads or writes that is no one else's.
        replay: runs the steps again.
    """

    fresh: dict[Path, Tensor]
    held: list[Tensor]
    replay: Callable[[], None]


@dataclass
class Object:
    """What belongs to one object: its lock, and its graphs by key; None was seen once."""

    lock: Any = field(default_factory=threading.RLock)
    graphs: "OrderedDict[Any, Graph | None]" = field(default_factory=OrderedDict)


_objects = WeakTensorKeyDictionary()  # by `updates`
_registry = threading.Lock()


def object_of(owner: Tensor) -> Object:
    with _registry:
        if owner not in _objects:
            _objects[owner] = Object()
        return _objects[owner]


def train(call: TrainCall, walk_of: Callable[[TrainCall], Walk]) -> None:
    """Every step of the call; a second thread's call on the same object waits."""
    owner, n = call.slices.updates, len(call.slices.index)
    known = object_of(owner)
    group = n if call.blocks_per_launch is None else call.blocks_per_launch
    with known.lock:
        plain = not owner.is_cuda or call.K == 1 or torch.cuda.is_current_stream_capturing()
        for first in range(0, n, group):
            slices = slice(first, first + group)
            if plain:
                part = part_of(call, slice(None), slices)
                launch_steps(part, walk_of(part))
                continue
            stream = torch.cuda.current_stream(owner.device).cuda_stream
            for start in range(0, call.K, STEPS):
                part = part_of(call, slice(start, start + STEPS), slices)
                train_by_graph(part, walk_of, known.graphs, capture_cuda, stream)


def launch_steps(call: TrainCall, walk: Walk) -> None:
    for k in range(call.K):
        walk.at |= {name: v[k] for name, v in call.inputs.items() if not isinstance(v, Gather)}
        run(walk, k)


def train_by_graph(
    call: TrainCall,
    walk_of: Callable[[TrainCall], Walk],
    graphs: "OrderedDict[Any, Graph | None]",
    capture: Capture,
    stream: int = 0,
) -> None:
    key = stream, *key_of(call)
    if key not in graphs:
        launch_steps(call, walk_of(call))
        remember(graphs, key, None)
        return
    graph = graphs[key]
    if graph is None:
        own = with_own_tensors(call)
        walk = walk_of(own)
        replay = capture(lambda: launch_steps(own, walk))
        held = [walk.index, *(walk.at[name] for name in walk.table.shapes)]
        graph = Graph(dict(fresh(own)), held, replay)
    remember(graphs, key, graph)
    for path, given in fresh(call):
        if path[0] != "out":
            stored(graph.fresh[path]).copy_(stored(given), non_blocking=True)
    graph.replay()
    for path, given in fresh(call):
        if path[0] == "out":
            given.copy_(graph.fresh[path])


def remember(graphs: "OrderedDict[Any, Graph | None]", key: Any, graph: Graph | None) -> None:
    graphs[key] = graph
    graphs.move_to_end(key)
    while len(graphs) > GRAPHS:
        graphs.popitem(last=False)


def capture_cuda(launches: Callable[[], None]) -> Callable[[], None]:
    """A CUDA graph of some launches; nothing runs yet."""
    graph = torch.cuda.CUDAGraph()
    # other threads may go on with calls that a capture must not contain
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        launches()
    return graph.replay


def parts(value: Any, path: Path = ()) -> Iterator[tuple[Path, Any, bool]]:
    """Every leaf of a record: where it is, itself, and whether it is fresh in every call."""
    if is_dataclass(value):
        yield (*path, ""), type(value), False
        names = FRESH.get(type(value).__name__, ())
        for item in fields(value):
            inner = getattr(value, item.name)
            if item.name in names and isinstance(inner, Tensor):
                yield (*path, item.name), inner, True
            else:
                yield from parts(inner, (*path, item.name))
    elif isinstance(value, dict):
        for name, inner in value.items():
            batch = path == ("inputs",) and isinstance(inner, Tensor)
            if batch:
                yield (*path, name), inner, True
            else:
                yield from parts(inner, (*path, name))
    else:
        yield path, value, False


def fresh(call: TrainCall) -> Iterator[tuple[Path, Tensor]]:
    return ((path, value) for path, value, changes in parts(call) if changes)


def key_of(call: TrainCall) -> tuple:
    """All that a graph of the call would freeze."""
    key: list[Any] = []
    for path, value, changes in parts(call):
        if path == ("slices", "index"):
            key.append(tuple(value.tolist()))  # on the CPU
        elif isinstance(value, Tensor):
            facts = (value.shape, value.stride(), value.dtype, value.device)
            key.append((path, *facts, None if changes else value.data_ptr()))
        else:
            key.append((path, value))
    return tuple(key)


def with_own_tensors(call: TrainCall) -> TrainCall:
    """The call with copies of its fresh tensors, of the same strides."""
    own: dict[Path, Any] = {p: stored(v).clone().expand(v.shape) for p, v in fresh(call)}

    def rebuilt(value: Any, path: Path = ()) -> Any:
        if path in own:
            return own[path]
        if is_dataclass(value) and not isinstance(value, type):
            changed = {
                item.name: rebuilt(getattr(value, item.name), (*path, item.name))
                for item in fields(value)
                if any(known[: len(path) + 1] == (*path, item.name) for known in own)
            }
            return replace(value, **changed) if changed else value
        if isinstance(value, dict):
            return {name: rebuilt(inner, (*path, name)) for name, inner in value.items()}
        return value

    return rebuilt(call)
