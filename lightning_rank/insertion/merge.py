"""The way back: the linear bottleneck becomes part of a layer beside it, and the module is what it was."""

from collections.abc import Callable
from itertools import product
from typing import Any, TypeVar

from torch import Tensor, nn

from lightning_rank.insertion._folding import Foldable, composed_behind, composed_in_front, set_parameters
from lightning_rank.insertion._hooks import CHILD, hooked_at, runs_its_steps, unhook
from lightning_rank.insertion._neighbours import Neighbours
from lightning_rank.nn._submodules import plain_name
from lightning_rank.nn.linear_bottleneck import LinearBottleneck

ModuleT = TypeVar("ModuleT", bound=nn.Module)
Fold = tuple[Foldable, Callable[[Foldable, Tensor], tuple[Tensor, Tensor | None]]]


def merge_linear_bottleneck(module: ModuleT) -> ModuleT:
    r"""Fold every linear bottleneck in ``module`` into the layer beside it, in place, with the same outputs.

    .. math:: W (A x + b) = (W A) x + W b \qquad \text{or} \qquad A (W z) + b = (A W) z + b

    with ``W`` the composed bottleneck and ``A, b`` the linear layer or convolution in front of it, or, where there is
    none, behind it. What was attached is taken out again, child and hook, so that class and keys are those from before
    and whatever loads a module of that class loads this one. Where the author of the module calls the bottleneck,
    ``nn.Identity`` takes its place.

    Which layer is beside is read off the forward passes, without data (``torch.fx``), with the arguments that are
    ``None`` by default and without: a linear layer or convolution, plain and with one group, that gives its output to
    the bottleneck alone or alone takes the output of it, that is called nowhere else, and whose parameters nothing else
    shares or computes with; of a forward pass that cannot be read, the code must not name them (``weight``). A layer of
    the module that the bottleneck was attached to comes first: that module then does the same for whoever calls it.
    Folded into a layer of another module, the latents in between are others from then on, and so is whatever else is
    made of them. Do it when training is over; an optimizer made before still holds the old layers.

    Args:
        module: A module with one or more :class:`~lightning_rank.LinearBottleneck`, collapsed or not.

    Returns:
        ``module`` itself.

    Raises:
        ValueError: There is no bottleneck in ``module``; it is one itself; or no such layer is beside one: then nothing
            was changed.

    Example:
        >>> import torch
        >>> from lightning_rank import attach_linear_bottleneck
        >>> encoder = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4))
        >>> model = attach_linear_bottleneck(nn.Sequential(encoder, nn.Linear(4, 8)), after="0", dim=4)
        >>> expected = model(torch.ones(8))
        >>> torch.allclose(merge_linear_bottleneck(model)(torch.ones(8)), expected, atol=1e-5)
        True
        >>> list(model.state_dict())
        ['0.0.weight', '0.0.bias', '0.2.weight', '0.2.bias', '1.weight', '1.bias']
    """
    found = {name: child for name, child in module.named_modules() if isinstance(child, LinearBottleneck)}
    if not found or "" in found:
        got = "the LinearBottleneck itself" if found else "none"
        raise ValueError(f"module: expected a LinearBottleneck somewhere in {type(module).__name__}, got {got}")
    folds = _planned(module, found)
    weights = {bottleneck: bottleneck.collapse().weight for bottleneck in folds}
    # Nothing was changed up to here.
    for bottleneck, (layer, compose) in folds.items():
        set_parameters(layer, *compose(layer, weights[bottleneck]))
    for bottleneck in found.values():
        _take_out(module, bottleneck)
    return module


def _planned(root: nn.Module, found: dict[str, LinearBottleneck]) -> dict[LinearBottleneck, Fold]:
    """Which layer takes which bottleneck in, in that order: of two in a row the one next to the layer comes first."""
    folds: dict[LinearBottleneck, Fold] = {}
    gone = {bottleneck for bottleneck in found.values() if bottleneck.depth == 0}
    waiting = {name: bottleneck for name, bottleneck in found.items() if bottleneck.depth > 0}
    modes = [Neighbours(root, training, optional, gone) for training, optional in product((True, False), repeat=2)]
    while waiting:
        trials = ((name, _layer_beside(modes, bottleneck)) for name, bottleneck in waiting.items())
        name, fold = next(((name, fold) for name, fold in trials if fold is not None), (next(iter(waiting)), None))
        if fold is None:
            raise ValueError(
                f"module: expected a plain linear layer or convolution right in front of or behind {plain_name(name)!r}"
                ", found none that gives it its input alone, or alone takes its output, and is used nowhere else, as "
                "far as forward passes can be read without data; attach it to that layer itself if there is one, or "
                "use collapse_linear_bottleneck, which leaves one layer, and load that with "
                "attach_linear_bottleneck(..., depth=1)"
            )
        bottleneck = waiting.pop(name)
        folds[bottleneck] = fold
        gone.add(bottleneck)
    return folds


def _layer_beside(modes: list[Neighbours], bottleneck: LinearBottleneck) -> Fold | None:
    trials = [_candidates(neighbours, bottleneck) for neighbours in modes]
    for side in zip(*trials, strict=True):
        layer, compose = side[0]
        if layer is None or any(other is not layer for other, _ in side) or not _fits(layer, bottleneck, compose):
            continue
        if all(neighbours.is_free(layer) for neighbours in modes):
            return layer, compose
    return None


def _candidates(neighbours: Neighbours, bottleneck: LinearBottleneck) -> list[tuple[Foldable | None, Any]]:
    """The layers on both sides; first one that belongs to the module it was attached to, whoever calls that module."""
    modules = neighbours.root.modules()
    host = next(parent for parent in modules if any(child is bottleneck for child in parent._modules.values()))
    behind, before = hooked_at(host, "output"), hooked_at(host, "input")
    if before is not None:
        front, back = neighbours.layer_in_front(host), neighbours.first_layer(host, before)
    elif behind is not None:
        front, back = neighbours.last_layer(host, behind), neighbours.layer_behind(host)
    else:
        front, back = neighbours.layer_in_front(bottleneck), neighbours.layer_behind(bottleneck)
    found = [(front, composed_in_front), (back, composed_behind)]
    return found[::-1] if before is not None else found


def _fits(layer: Foldable, bottleneck: LinearBottleneck, compose: Any) -> bool:
    """Whether the layer's features are those of the bottleneck, in number and on the same axis."""
    linear = isinstance(layer, nn.Linear)
    axes = {None, -1} if linear else {None, 1, 1 - layer.weight.ndim}
    out = (compose is composed_in_front) != getattr(layer, "transposed", False)
    return bottleneck.feature_axis in axes and layer.weight.shape[0 if out else 1] == bottleneck.dim


def _take_out(root: nn.Module, bottleneck: LinearBottleneck) -> None:
    for parent in list(root.modules()):
        for name in [name for name, child in parent._modules.items() if child is bottleneck]:
            attached = hooked_at(parent, "output") is not None or hooked_at(parent, "input") is not None
            step = runs_its_steps(parent) and name == CHILD
            if attached or step:
                delattr(parent, name)
                unhook(parent)
            else:
                setattr(parent, name, nn.Identity())
