"""K steps of a training call: plain launches, or a CUDA graph of them.

The first call of a kind runs plain launches, which also compile the kernels; the second captures
its steps, and later ones replay them. A graph's key is all that it froze: every address, shape,
dtype and constant. What changes from call to call (indices, labels, numbers, rates, draws, gathered
batches) is copied to the graph's own buffers before a replay, and losses from them after it. Inside
a capture of the caller's only plain launches run.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from ..calls import TrainCall
from ..gpu.memory import Workspace, stored
from ..gpu.options import of_inputs
from ..gpu.split import part_of
from ..warn import warn_once
from . import launch_options
from .context import LaunchContext
from .launch import run

STEPS = 32  # per graph; more take several replays, since no bit depends on K
GRAPHS = 16  # kept of an object

Path = tuple[str, ...]
Capture = Callable[[Callable[[], None]], Callable[[], None]]
ContextOf = Callable[[TrainCall, Workspace], LaunchContext]


@dataclass
class Graph:
    """K captured steps. It must not reference the object's tensors: the cache would keep them
    alive.

    Args:
        fresh: its own copies of the tensors that change from call to call.
        held: all other tensors that it owns and reads or writes.
        replay: runs the steps again.
    """

    fresh: dict[Path, Tensor]
    held: list[Tensor]
    replay: Callable[[], None]


@dataclass
class GraphCache:
    """The cache of one object: its graphs by key (None: called once, not captured yet), and the
    workspace that they share, by stream.
    """

    graphs: "OrderedDict[Any, Graph | None]" = field(default_factory=OrderedDict)
    workspaces: dict[int, Workspace] = field(default_factory=dict)


_caches = WeakTensorKeyDictionary()  # by `updates`
_registry = threading.RLock()  # reentrant: a signal handler may interrupt a call that holds it


def cache_of(owner: Tensor) -> GraphCache:
    with _registry:
        if owner not in _caches:
            _caches[owner] = GraphCache()
        return _caches[owner]


def train(call: TrainCall, context_of: ContextOf) -> None:
    """Runs every step of the call.

    The workspace is allocated before the first launch, so that a call without enough memory changes
    nothing.
    """
    owner, n = call.slices.updates, len(call.slices.index)
    cache = cache_of(owner)
    group = n if call.blocks_per_launch is None else call.blocks_per_launch
    groups = [slice(first, first + group) for first in range(0, n, group)]
    captured = owner.is_cuda and torch.cuda.is_current_stream_capturing()
    stream = torch.cuda.current_stream(owner.device).cuda_stream if owner.is_cuda else 0
    # a caller's graph may outlive the workspace of a stream
    workspace = Workspace() if captured else cache.workspaces.get(stream, Workspace())
    if captured or not owner.is_cuda or call.K == 1:
        parts = [part_of(call, slice(None), slices) for slices in groups]
        contexts = [context_of(part, workspace) for part in parts]
        for part, ctx in zip(parts, contexts, strict=True):
            launch_steps(part, ctx)
        return
    steps = [slice(start, start + STEPS) for start in range(0, call.K, STEPS)]
    parts = [part_of(call, rows, slices) for slices in groups for rows in steps]
    train_by_graphs(parts, context_of, cache, capture_cuda, stream, workspace)


def launch_steps(call: TrainCall, ctx: LaunchContext) -> None:
    for k in range(call.K):
        ctx.at |= {name: value[k] for name, value in of_inputs(call.inputs).items()}
        run(ctx, k)


def train_by_graphs(
    parts: list[TrainCall],
    context_of: ContextOf,
    cache: GraphCache,
    capture: Capture,
    stream: int,
    workspace: Workspace,
) -> None:
    """Runs the parts of a call in order: new ones by plain launches, known ones by a graph."""
    keys = [(stream, launch_options.current().key(), *key_of(part)) for part in parts]
    without = {
        len(part.slices.index): part
        for part, key in zip(parts, keys, strict=True)
        if cache.graphs.get(key) is None
    }
    for part in without.values():
        context_of(part, workspace)  # allocates the workspace for all parts of this size
    for part, key in zip(parts, keys, strict=True):
        if key not in cache.graphs:
            launch_steps(part, context_of(part, workspace))
            remember(cache.graphs, key, None)
            continue
        graph = cache.graphs[key]
        if graph is None:
            try:
                graph = graph_of(part, context_of, capture, workspace)
            except torch.OutOfMemoryError:  # after earlier steps of the same call
                warn_once(
                    "no memory for a CUDA graph; plain launches run instead, with the same results"
                )
                launch_steps(part, context_of(part, workspace))
                continue
            cache.workspaces[stream] = workspace
        remember(cache.graphs, key, graph)
        replay(graph, part)


def replay(graph: Graph, call: TrainCall) -> None:
    for path, given in fresh(call):
        if path[0] != "out":
            stored(graph.fresh[path]).copy_(stored(given), non_blocking=True)
    graph.replay()
    for path, given in fresh(call):
        if path[0] == "out":
            given.copy_(graph.fresh[path])


def graph_of(
    call: TrainCall, context_of: ContextOf, capture: Capture, workspace: Workspace
) -> Graph:
    own = with_own_tensors(call)
    ctx = context_of(own, workspace)
    replay = capture(lambda: launch_steps(own, ctx))
    held = [ctx.index, *(ctx.at[name] for name in ctx.table.shapes)]
    return Graph(dict(fresh(own)), held, replay)


def remember(graphs: "OrderedDict[Any, Graph | None]", key: Any, graph: Graph | None) -> None:
    graphs[key] = graph
    graphs.move_to_end(key)
    while len(graphs) > GRAPHS:
        graphs.popitem(last=False)


def capture_cuda(launches: Callable[[], None]) -> Callable[[], None]:
    """Captures launches into a CUDA graph; nothing runs yet."""
    graph = torch.cuda.CUDAGraph()
    # other threads may meanwhile make calls that a capture must not contain
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        launches()
    return graph.replay


def parts(value: Any, path: Path = (), changes: bool = False) -> Iterator[tuple[Path, Any, bool]]:
    """Every leaf of a record: its path, its value, and whether it changes from call to call."""
    if is_dataclass(value):
        yield (*path, ""), type(value), False
        for item in fields(value):
            changes = item.metadata.get("fresh", False)
            yield from parts(getattr(value, item.name), (*path, item.name), changes)
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield from parts(inner, (*path, name), changes)
    else:
        yield path, value, changes and isinstance(value, Tensor)


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
    """The call with copies, of the same strides, of its tensors that change from call to call."""
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
