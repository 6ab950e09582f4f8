"""The layer whose output a submodule is given, and the layer that is given what it returns."""

from __future__ import annotations

import copy
from typing import Any

from torch import fx, nn

from lightning_rank.insertion.folding import Foldable, is_foldable

Path = tuple[int | str, ...]


class _Shallow(fx.Tracer):
    """Looks at one forward pass only: what the children do is their own."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


def layer_in_front(root: nn.Module, child: nn.Module) -> Foldable | None:
    """The layer whose output is all that ``child`` is given, wherever in ``root``; ``None`` if that is not seen.

    Args:
        root: Where to look.
        child: A submodule of it.
    """
    found = _call(root, child)
    if found is None:
        return None
    parent, graph, node = found
    source = node.args[0] if node.args else None
    if not isinstance(source, fx.Node) or list(source.users) != [node]:
        return None
    if source.op == "call_module":
        return last_layer(parent.get_submodule(str(source.target))) if _calls(graph, source.target) == 1 else None
    return layer_in_front(root, parent) if source is _inputs(graph)[0] else None


def layer_behind(root: nn.Module, child: nn.Module) -> Foldable | None:
    """The layer that is given the output of ``child``, and nothing else is; ``None`` if that is not seen.

    Args:
        root: Where to look.
        child: A submodule of it.
    """
    found = _call(root, child)
    if found is None:
        return None
    parent, graph, node = found
    taker = _only_user(node)
    if taker is None:
        return None
    if taker.op == "output":
        return layer_behind(root, parent)
    return first_layer(parent.get_submodule(str(taker.target))) if _calls(graph, taker.target) == 1 else None


def last_layer(module: nn.Module, path: Path = ()) -> Foldable | None:
    """The layer that makes what ``module`` returns, at ``path`` of it; ``None`` if that is not seen."""
    if is_foldable(module):
        return module
    graph = _traced(module)
    if graph is None:
        return None
    result: Any = next(node for node in graph.nodes if node.op == "output").args[0]
    for key in path:
        if not isinstance(result, tuple | list | dict):
            return None
        result = result[key]  # pyright: ignore
    if not isinstance(result, fx.Node) or result.op != "call_module" or len(result.users) != 1:
        return None
    return last_layer(module.get_submodule(str(result.target))) if _calls(graph, result.target) == 1 else None


def first_layer(module: nn.Module, argument: int | str = 0) -> Foldable | None:
    """The layer that takes what ``module`` is given, at that position or name; ``None`` if that is not seen."""
    if is_foldable(module):
        return module
    graph = _traced(module)
    inputs = [] if graph is None else _inputs(graph)
    given = [node for index, node in enumerate(inputs) if argument in (index, node.target)]
    taker = _only_user(given[0]) if given else None
    if graph is None or taker is None or taker.op != "call_module":
        return None
    return first_layer(module.get_submodule(str(taker.target))) if _calls(graph, taker.target) == 1 else None


def _call(root: nn.Module, child: nn.Module) -> tuple[nn.Module, fx.Graph, fx.Node] | None:
    """The one call of ``child`` in the forward pass of the one module that holds it."""
    holders = [(parent, name) for parent in root.modules() for name, other in parent._modules.items() if other is child]
    if len(holders) != 1:
        return None
    parent, name = holders[0]
    graph = _traced(parent)
    calls = [] if graph is None else [node for node in graph.nodes if node.op == "call_module" and node.target == name]
    return (parent, graph, calls[0]) if graph is not None and len(calls) == 1 else None


def _traced(module: nn.Module) -> fx.Graph | None:
    try:
        # A copy, for a forward pass may keep what it computes.
        return _Shallow().trace(copy.copy(module))
    except Exception:  # whatever a forward pass does that cannot be seen without data
        return None


def _only_user(node: fx.Node) -> fx.Node | None:
    """What alone uses a value, as it is: a module's call that is given it first, or the end of the pass."""
    if len(node.users) != 1:
        return None
    (user,) = node.users
    plain = user.op in ("call_module", "output") and len(user.args) > 0 and user.args[0] is node
    return user if plain else None


def _inputs(graph: fx.Graph) -> list[fx.Node]:
    return [node for node in graph.nodes if node.op == "placeholder"]


def _calls(graph: fx.Graph, target: Any) -> int:
    return sum(node.op == "call_module" and node.target == target for node in graph.nodes)
