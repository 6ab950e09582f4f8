"""Submodules by the names that they have in the source, whether compiled or not."""

import difflib

from torch import nn


def plain_name(name: str) -> str:
    """Name of a submodule without what ``torch.compile`` puts in.

    Example:
        >>> plain_name("encoder._orig_mod.0"), plain_name("encoder._orig_mod")
        ('encoder.0', 'encoder')
    """
    return ".".join(part for part in name.split(".") if part != "_orig_mod")


def find_submodule(module: nn.Module, name: str, argument: str, *, endings: bool = True) -> nn.Module:
    """The submodule called ``name``; of a compiled one its wrapper, which is what the parent calls.

    Args:
        module: Where to look.
        name: Dotted name, or the ending of one that no other submodule has.
        argument: What the caller calls ``name``, for the error.
        endings: Whether an ending will do.

    Raises:
        TypeError: ``name`` is not a string.
        ValueError: There is no such submodule, the nearest names being given; or several have that ending.

    Example:
        >>> net = nn.Sequential(nn.Sequential(nn.Linear(2, 3), nn.ReLU()), nn.Linear(3, 2))
        >>> find_submodule(net, "0.1", "layer")
        ReLU()
    """
    if not isinstance(name, str):
        raise TypeError(f"{argument}: expected the name of a submodule, got {type(name).__name__}")
    modules: dict[str, nn.Module] = {}
    for full_name, submodule in module.named_modules(remove_duplicate=False):
        modules.setdefault(plain_name(full_name), submodule)
    modules.pop("")
    if name in modules:
        return modules[name]
    ending = {full: found for full, found in modules.items() if endings and full.endswith(f".{name}")}
    if len({id(found) for found in ending.values()}) == 1:
        return next(iter(ending.values()))
    if ending:
        told = f"the ending of several: {', '.join(map(repr, list(ending)[:5]))}"
    else:
        near = difflib.get_close_matches(name, modules, n=3, cutoff=0.4)
        near = near or [other for other in modules if "." not in other]
        told = f"nearest: {', '.join(map(repr, near[:5])) or 'it has no submodules yet'}"
    raise ValueError(f"{argument}: expected the name of a submodule of {type(module).__name__}, got {name!r}; {told}")
