"""Finding the linear bottleneck of a module, and putting another child in its place."""

from torch import nn

from lightning_rank.nn.linear_bottleneck import LinearBottleneck
from lightning_rank.nn.truncated_bottleneck import TruncatedBottleneck


def find_bottleneck(module: nn.Module) -> tuple[str, LinearBottleneck]:
    """The one linear bottleneck of a module, and its name.

    Raises:
        TypeError: ``module`` is not an ``nn.Module``.
        ValueError: It has none or several, is one itself, or was truncated before.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"module: expected an nn.Module, got {type(module).__name__}")
    kind = type(module).__name__
    found = {name: child for name, child in module.named_modules() if isinstance(child, LinearBottleneck)}
    if "" in found:
        raise ValueError("module: expected a module that has a LinearBottleneck, got the LinearBottleneck itself")
    if len(found) > 1:
        raise ValueError(f"module: expected one LinearBottleneck, found {', '.join(map(repr, found))}; pass a child")
    if len(found) == 1:
        return next(iter(found.items()))
    if any(isinstance(child, TruncatedBottleneck) for child in module.modules()):
        raise ValueError(f"module: expected a LinearBottleneck, but that of {kind} is truncated already")
    raise ValueError(
        f"module: expected a LinearBottleneck somewhere in {kind}, found none; collapse_linear_bottleneck leaves one, "
        "LinearBottleneck.collapse makes a plain nn.Linear"
    )


def replace_submodule(module: nn.Module, name: str, child: nn.Module) -> None:
    """Put ``child`` where the submodule called ``name`` is, and wherever else that one is."""
    old = module.get_submodule(name)
    places = [(parent, key) for parent in module.modules() for key, value in parent._modules.items() if value is old]
    for parent, key in places:
        setattr(parent, key, child)


def take_over(bottleneck: LinearBottleneck, truncated: TruncatedBottleneck) -> None:
    """What was said of the axis, and hooks, which whoever registered them can still take off."""
    truncated.beside = bottleneck.beside
    hooks = {name: value for name, value in vars(bottleneck).items() if "hook" in name and "state_dict" not in name}
    vars(truncated).update(hooks)
