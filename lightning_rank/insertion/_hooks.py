"""Forward hooks that send what a module returns, or is given, through a child of that module.

They are plain functions that look at their own module, so that whoever copies, pickles or shares it takes the child
along.
"""

import functools
import inspect
from typing import Any, Literal, TypeGuard

from torch import nn

from lightning_rank.nn._compiled import look_for_hooks, look_no_more
from lightning_rank.nn._outputs import Output, replace_tensor, select_tensor, tensor_path

#: Name of the child that the bottleneck becomes.
CHILD = "linear_bottleneck"

End = Literal["input", "output"]


def hook_output(module: nn.Module, output: Output | None) -> None:
    """From now on the tensor at ``output`` of what ``module`` returns passes through its child."""
    look_for_hooks(module)
    module.register_forward_hook(functools.partial(_pass_output, output=output))


def hook_input(module: nn.Module, output: Output | None) -> None:
    """From now on the argument of ``module`` at ``output``, a position or a name, passes through its child."""
    look_for_hooks(module)
    names = tuple(inspect.signature(module.forward).parameters)
    hook = functools.partial(_pass_input, output=output, names=names)
    module.register_forward_pre_hook(hook, with_kwargs=True)


def hooked_at(module: nn.Module, end: End) -> tuple[int | str, ...] | None:
    """Where the tensor is that passes through the child, of the ``"output"`` or ``"input"``; ``None`` if none does."""
    hooks, function = _of(module, end)
    for hook in hooks.values():
        if isinstance(hook, functools.partial) and hook.func is function:
            at = hook.keywords["output"]
            return () if at is None else (at,) if isinstance(at, int | str) else tuple(at)
    return None


def carry_over(module: nn.Module, other: nn.Module) -> None:
    """Give a module that takes the place of another one the child and the hooks of that one."""
    hooks: dict[End, Any] = {"output": hook_output, "input": hook_input}
    for end, hook in hooks.items():
        at = hooked_at(module, end)
        if at is not None:
            other.add_module(CHILD, module._modules[CHILD])
            hook(other, at or None)


def unhook(module: nn.Module) -> None:
    """Take the hooks off a module."""
    look_no_more(module)
    ends: tuple[End, ...] = ("output", "input")
    for end in ends:
        hooks, function = _of(module, end)
        for handle in [handle for handle, hook in hooks.items() if getattr(hook, "func", None) is function]:
            del hooks[handle]
            module._forward_pre_hooks_with_kwargs.pop(handle, None)


def does_what_its_class_does(module: nn.Module) -> bool:
    """Whether it has neither a hook, save for those set here, nor a ``forward`` of its own."""
    hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
    ours = (getattr(hook, "func", None) in (_pass_output, _pass_input) for hook in hooks)
    return all(ours) and "forward" not in vars(module)


def runs_its_steps(module: nn.Module) -> TypeGuard[nn.Sequential]:
    """Whether it runs its entries one after the other, as ``nn.Sequential`` does."""
    return isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward


def _of(module: nn.Module, end: End) -> tuple[dict[int, Any], Any]:
    if end == "output":
        return module._forward_hooks, _pass_output
    return module._forward_pre_hooks, _pass_input


def _pass_output(module: nn.Module, args: Any, result: Any, *, output: Output | None) -> Any:
    where = f"the output of {type(module).__name__}"
    return _passed(module, result, tensor_path(result, output, where), where)


def _pass_input(
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any] | None = None,  # lost where a hook was moved to another module
    *,
    output: Output | None,
    names: tuple[str, ...],
) -> Any:
    where = f"the arguments of {type(module).__name__}"
    kwargs = kwargs or {}
    # By position as far as they are given so, else by name.
    given: dict[int | str, Any] = {**dict(enumerate(args)), **kwargs}
    if output is not None:
        first, *rest = [output] if isinstance(output, (int, str)) else output  # torch 2.8 cannot compile a union
        if isinstance(first, int) and first not in given and 0 <= first < len(names):
            first = names[first]
        elif first in names and first not in given:
            first = names.index(str(first))
        output = (first, *rest)
    given = _passed(module, given, tensor_path(given, output, where, kind="several arguments"), where)
    return tuple(given[index] for index in range(len(args))), {name: given[name] for name in kwargs}


def _passed(module: nn.Module, value: Any, path: tuple[int | str, ...], where: str) -> Any:
    child = module._modules.get(CHILD)
    if child is None:
        raise RuntimeError(
            f"{type(module).__name__}: expected the linear bottleneck that was attached to it, but it was lost when "
            "another module took the place of the one that had it (quantization, fusion and the like come after "
            "merge_linear_bottleneck); to take a bottleneck out, put nn.Identity() in its place"
        )
    return replace_tensor(value, path, child(select_tensor(value, path, where)))
