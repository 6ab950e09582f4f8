"""The layer whose output a submodule is given, and the layer that is given what it returns."""

from __future__ import annotations

from collections.abc import Container, Iterator
from typing import Any

from torch import Tensor, fx, nn

from lightning_rank.insertion._folding import Foldable, is_foldable
from lightning_rank.insertion._hooks import CHILD, End, does_what_its_class_does, hooked_at
from lightning_rank.insertion._passes import ForwardPass, names_in_code, read_pass, storage_of, times_used

Path = tuple[int | str, ...]


class Neighbours:
    """The layers beside submodules of ``root``, as far as that is seen in its forward passes.

    Args:
        root: Where to look.
        training: In which mode.
        optional: Whether with the arguments that are ``None`` by default, which a pass may ask for.
        gone: Bottlenecks that are looked through, as if they were taken out already.
    """

    def __init__(self, root: nn.Module, training: bool, optional: bool, gone: Container[nn.Module]) -> None:
        self.root = root
        self.training = training
        self.optional = optional
        self.gone = gone
        self._read: dict[nn.Module, ForwardPass | None] = {}

    def layer_in_front(self, child: nn.Module) -> Foldable | None:
        """The layer whose output is all that ``child`` is given, wherever in ``root``; ``None`` if that is not seen."""
        call = self._only_call(child)
        source = call[1].args[0] if call is not None and call[1].args else None
        if call is None or not isinstance(source, fx.Node) or times_used(source) != 1:
            return None
        if source.op == "call_module":
            return self.last_layer(self._called(source, call[0], "output"))
        parent, read = call[0], self._pass(call[0])
        assert read is not None
        return self.layer_in_front(parent) if [source] == read.inputs and self._is_open(parent, "input") else None

    def layer_behind(self, child: nn.Module) -> Foldable | None:
        """The layer that is given the output of ``child``, and nothing else is; ``None`` if that is not seen."""
        call = self._only_call(child)
        taker = None if call is None else _only_taker(call[1])
        if call is None or taker is None:
            return None
        if taker.op == "call_module":
            return self.first_layer(self._called(taker, call[0], "input"))
        return self.layer_behind(call[0]) if self._is_open(call[0], "output") else None

    def last_layer(self, module: nn.Module | None, path: Path = ()) -> Foldable | None:
        """The layer that makes what ``module`` returns, at ``path`` of it; ``None`` if that is not seen."""
        if module is None or is_foldable(module):
            return module
        if module in self.gone:
            return self.layer_in_front(module)
        read = self._pass_of_class(module)
        if read is None:
            return None
        result: Any = read.output
        for key in path:
            if not isinstance(result, tuple | list | dict):
                return None
            result = result[key]  # pyright: ignore
        if not isinstance(result, fx.Node) or result.op != "call_module" or times_used(result) != 1:
            return None
        return self.last_layer(self._called(result, module, "output"))

    def first_layer(self, module: nn.Module | None, path: Path = ()) -> Foldable | None:
        """The layer that takes what ``module`` is given, at that position or name; ``None`` if that is not seen."""
        if module is None or is_foldable(module):
            return module
        if module in self.gone:
            return self.layer_behind(module)
        read = self._pass_of_class(module)
        inputs = [] if read is None else read.inputs
        if path:
            given = [node for index, node in enumerate(inputs) if path[0] in (index, node.target)]
        else:  # the only tensor
            given = [node for node in inputs if not node.args] or inputs
        taker = _only_taker(given[0]) if len(given) == 1 and len(path) < 2 else None
        if taker is None or taker.op != "call_module":
            return None
        return self.first_layer(self._called(taker, module, "input"))

    def is_free(self, layer: Foldable) -> bool:
        """Whether nothing else has the layer or shares its parameters, and no forward pass around uses those.

        Where a forward pass cannot be read, whether its code names them.
        """
        own = {name: storage_of(value) for name, value in layer._parameters.items() if value is not None}
        held = [storage_of(tensor) for parent in self.root.modules() for tensor in _tensors_of(parent)]
        keepers = [module for parent in self.root.modules() for module in _kept_by(parent) if layer in module.modules()]
        if len(self._holders(layer)) > 1 or keepers or any(held.count(storage) > 1 for storage in own.values()):
            return False
        for parent in self._around(layer):
            read = self._pass(parent)
            if own.keys() & names_in_code(parent) if read is None else read.storages.intersection(own.values()):
                return False
        return True

    def _pass(self, module: nn.Module) -> ForwardPass | None:
        if module not in self._read:
            self._read[module] = read_pass(module, self.training, self.optional)
        return self._read[module]

    def _pass_of_class(self, module: nn.Module) -> ForwardPass | None:
        return self._pass(module) if does_what_its_class_does(module) else None

    def _around(self, module: nn.Module) -> list[nn.Module]:
        return [m for m in self.root.modules() if m is not module and any(child is module for child in m.modules())]

    def _holders(self, module: nn.Module) -> list[nn.Module]:
        return [parent for parent in self.root.modules() for child in parent._modules.values() if child is module]

    def _only_call(self, module: nn.Module) -> tuple[nn.Module, fx.Node] | None:
        """The one call of a module that one other has, from wherever in ``root``, and who calls it."""
        reads = [(parent, self._pass(parent)) for parent in self._around(module)]
        calls = [(p, node) for p, read in reads if read for node, called in read.calls.items() if called is module]
        one = len(calls) == len(self._holders(module)) == 1 and does_what_its_class_does(calls[0][0])
        return calls[0] if one else None

    def _called(self, node: fx.Node, parent: nn.Module, end: End) -> nn.Module | None:
        """What is called there, if only there and nothing lies in between at that end of it."""
        read = self._pass(parent)
        assert read is not None
        module = read.calls[node]
        return module if self._only_call(module) is not None and self._is_open(module, end) else None

    def _is_open(self, module: nn.Module, end: End) -> bool:
        return hooked_at(module, end) is None or module.get_submodule(CHILD) in self.gone


def _tensors_of(module: nn.Module) -> Iterator[Tensor]:
    for held in (module._parameters, module._buffers, vars(module)):
        yield from (value for value in held.values() if isinstance(value, Tensor))


def _kept_by(module: nn.Module) -> Iterator[nn.Module]:
    """Modules that are attributes of it, alone or in a list, but not its children."""
    for value in vars(module).values():
        entries = value if isinstance(value, list | tuple) else [value]
        yield from (entry for entry in entries if isinstance(entry, nn.Module))


def _only_taker(node: fx.Node) -> fx.Node | None:
    """What alone uses a value, as it is: a module's call that is given it first, or the end of the pass."""
    if times_used(node) != 1:
        return None
    (user,) = node.users
    plain = user.op in ("call_module", "output") and len(user.args) > 0 and user.args[0] is node
    return user if plain else None
