"""What a forward pass calls and uses, read without data."""

from __future__ import annotations

import copy
import inspect
import sys
from types import CodeType
from typing import Any, NamedTuple

from torch import Tensor, fx, nn
from torch.fx.node import map_arg

# What is asked of a parameter that is not computed with.
_ABOUT = {"device", "dtype", "ndim", "shape"}


class ForwardPass(NamedTuple):
    """One forward pass; what the children do in it is their own.

    Attributes:
        inputs: The arguments, also those that are left out.
        output: What is returned, with nodes in it.
        calls: The modules that are called.
        storages: Where the tensors are that are used, other than by calls.
    """

    inputs: list[fx.Node]
    output: Any
    calls: dict[fx.Node, nn.Module]
    storages: set[int]


class _Unknown(fx.Proxy):
    """A value of a type that is not known: a pass cannot be read that goes one way or another by ``isinstance``."""

    @property
    def __class__(self) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        if not str(sys._getframe(1).f_globals.get("__name__")).startswith("torch."):
            raise TypeError("the type of a value is not known before there is data")
        return _Unknown


class _Shallow(fx.Tracer):
    def __init__(self, optional: bool) -> None:
        super().__init__()
        self.optional = optional

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Unknown(node, self)

    def create_args_for_root(self, *args: Any, **kwargs: Any) -> tuple[Any, list[Any]]:
        function, given = super().create_args_for_root(*args, **kwargs)
        # The module and its first argument are given in any case.
        rest = given[2:] if self.optional else [None if arg.node.args == (None,) else arg for arg in given[2:]]
        return function, [*given[:2], *rest]


def read_pass(module: nn.Module, training: bool, optional: bool = True) -> ForwardPass | None:
    """The forward pass of a module in that mode; ``None`` if it cannot be read.

    Args:
        module: Whose pass.
        training: The mode.
        optional: Whether those arguments behind the first that are ``None`` by default are given.
    """
    try:
        # It may keep what it computes: in attributes, in lists, in buffers. The children are not run.
        twin = copy.copy(module)
        kept = {name: copy.copy(value) for name, value in vars(module).items() if isinstance(value, dict | list | set)}
        vars(twin).update(kept, training=training)
        buffers = {name: None if value is None else value.clone() for name, value in module._buffers.items()}
        twin._buffers.update(buffers)
        nodes = list(_Shallow(optional).trace(twin).nodes)
        calls = {node: twin.get_submodule(str(node.target)) for node in nodes if node.op == "call_module"}
        used = [_attribute(twin, str(node.target)) for node in nodes if node.op == "get_attr" and not _only_asked(node)]
    except Exception:  # whatever a forward pass does that cannot be seen without data
        return None
    inputs = [node for node in nodes if node.op == "placeholder"]
    (end,) = (node for node in nodes if node.op == "output")
    return ForwardPass(inputs, end.args[0], calls, {storage_of(value) for value in used if isinstance(value, Tensor)})


def names_in_code(module: nn.Module) -> set[str]:
    """Every name in the code of a forward pass and of the methods that it names; none of what torch wrote."""
    names: set[str] = set()
    functions: list[Any] = [module.forward]
    codes: list[CodeType] = []
    while functions or codes:
        if functions:
            function = inspect.unwrap(functions.pop())
            code = getattr(function, "__code__", None)
            written = not str(getattr(function, "__module__", "")).startswith("torch.")
            codes += [code] if written and isinstance(code, CodeType) else []
            continue
        code = codes.pop()
        codes += [constant for constant in code.co_consts if isinstance(constant, CodeType)]
        found = (getattr(type(module), name, None) for name in set(code.co_names) - names)
        methods = (getattr(method, "fget", method) for method in found)  # of a property
        functions += [method for method in methods if inspect.isfunction(method)]
        names |= set(code.co_names)
    return names


def storage_of(tensor: Tensor) -> int:
    """What tensors have in common that share memory; of those without memory, as on the meta device, their own."""
    try:
        return tensor.untyped_storage().data_ptr() or id(tensor)
    except (RuntimeError, ValueError):  # subclasses of Tensor that hold others
        return id(tensor)


def times_used(node: fx.Node) -> int:
    """How often a value is used; a call that is given it twice uses it twice."""
    found: list[fx.Node] = []
    for user in node.users:
        map_arg((user.args, user.kwargs), lambda used: found.append(used) if used is node else None)
    return len(found)


def _attribute(module: nn.Module, name: str) -> Any:
    parent, _, last = name.rpartition(".")
    return getattr(module.get_submodule(parent), last)


def _only_asked(node: fx.Node) -> bool:
    return all(user.target is getattr and user.args[1] in _ABOUT for user in node.users)
