"""The layer whose output a submodule is given, and the layer that is given what it returns."""

from __future__ import annotations

import copy
from typing import Any

from torch import fx, nn
from torch.fx.node import map_arg

from lightning_rank.insertion._folding import Foldable, is_foldable
from lightning_rank.insertion._hooks import does_what_its_class_does

Path = tuple[int | str, ...]


class _Shallow(fx.Tracer):
    """Looks at one forward pass only: what the children do is their own."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


def layer_in_front(root: nn.Module, child: nn.Module, training: bool) -> Foldable | None:
    """The layer whose output is all that ``child`` is given, wherever in ``root``; ``None`` if that is not seen.

    Args:
        root: Where to look.
        child: A submodule of it.
        training: In which mode.
    """
    found = _call(root, child, training)
    if found is None:
        return None
    parent, graph, node = found
    source = node.args[0] if node.args else None
    if not isinstance(source, fx.Node) or _uses(source) != 1:
        return None
    if source.op == "call_module":
        return last_layer(*_target(parent, graph, source), training)
    return layer_in_front(root, parent, training) if [source] == _inputs(graph) else None


def layer_behind(root: nn.Module, child: nn.Module, training: bool) -> Foldable | None:
    """The layer that is given the output of ``child``, and nothing else is; ``None`` if that is not seen.

    Args: As :func:`layer_in_front`.
    """
    found = _call(root, child, training)
    if found is None:
        return None
    parent, graph, node = found
    taker = _only_taker(node)
    if taker is None:
        return None
    if taker.op == "output":
        return layer_behind(root, parent, training)
    return first_layer(*_target(parent, graph, taker), training)


def last_layer(module: nn.Module | None, path: Path, training: bool) -> Foldable | None:
    """The layer that makes what ``module`` returns, at ``path`` of it; ``None`` if that is not seen."""
    if module is None or is_foldable(module):
        return module
    graph = _traced(module, training)
    if graph is None:
        return None
    result: Any = next(node for node in graph.nodes if node.op == "output").args[0]
    for key in path:
        if not isinstance(result, tuple | list | dict):
            return None
        result = result[key]  # pyright: ignore
    if not isinstance(result, fx.Node) or result.op != "call_module" or _uses(result) != 1:
        return None
    return last_layer(*_target(module, graph, result), training)


def first_layer(module: nn.Module | None, path: Path, training: bool) -> Foldable | None:
    """The layer that takes what ``module`` is given, at that position or name; ``None`` if that is not seen."""
    if module is None or is_foldable(module):
        return module
    graph = _traced(module, training)
    inputs = [] if graph is None else _inputs(graph)
    given = [node for index, node in enumerate(inputs) if not path or path[0] in (index, node.target)]
    taker = _only_taker(given[0]) if len(given) == 1 and len(path) < 2 else None
    if graph is None or taker is None or taker.op != "call_module":
        return None
    return first_layer(*_target(module, graph, taker), training)


def _call(root: nn.Module, child: nn.Module, training: bool) -> tuple[nn.Module, fx.Graph, fx.Node] | None:
    """The one call of ``child`` in the forward pass of the one module that holds it."""
    holders = [(parent, name) for parent in root.modules() for name, other in parent._modules.items() if other is child]
    if len(holders) != 1:
        return None
    parent, name = holders[0]
    graph = _traced(parent, training)
    calls = [] if graph is None else [node for node in graph.nodes if node.op == "call_module" and node.target == name]
    return (parent, graph, calls[0]) if graph is not None and len(calls) == 1 else None


def _traced(module: nn.Module, training: bool) -> fx.Graph | None:
    if not does_what_its_class_does(module):
        return None
    # A forward pass may keep what it computes: in attributes, in lists, in buffers. The children are not run.
    twin = copy.copy(module)
    kept = {name: copy.copy(value) for name, value in vars(module).items() if isinstance(value, dict | list | set)}
    vars(twin).update(kept, training=training)
    twin._buffers.update({name: None if value is None else value.clone() for name, value in module._buffers.items()})
    try:
        return _Shallow().trace(twin)
    except Exception:  # whatever a forward pass does that cannot be seen without data
        return None


def _target(parent: nn.Module, graph: fx.Graph, call: fx.Node) -> tuple[nn.Module | None, Path]:
    """What is called, if that is the only call of it."""
    calls = sum(node.op == "call_module" and node.target == call.target for node in graph.nodes)
    return (parent.get_submodule(str(call.target)) if calls == 1 else None), ()


def _only_taker(node: fx.Node) -> fx.Node | None:
    """What alone uses a value, as it is: a module's call that is given it first, or the end of the pass."""
    if _uses(node) != 1:
        return None
    (user,) = node.users
    plain = user.op in ("call_module", "output") and len(user.args) > 0 and user.args[0] is node
    return user if plain else None


def _uses(node: fx.Node) -> int:
    """How often a value is used; a call that is given it twice uses it twice."""
    found: list[fx.Node] = []
    for user in node.users:
        map_arg((user.args, user.kwargs), lambda used: found.append(used) if used is node else None)
    return len(found)


def _inputs(graph: fx.Graph) -> list[fx.Node]:
    return [node for node in graph.nodes if node.op == "placeholder"]
