"""Putting a linear bottleneck into a module that has none."""

from collections.abc import Sequence
from itertools import chain
from typing import Any, TypeVar

import torch
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_rank.insertion._hooks import CHILD, hook_input, hook_output, runs_its_steps
from lightning_rank.insertion._loading import load_old_layout, load_when_missing
from lightning_rank.insertion._participation import expect_gradients
from lightning_rank.nn._layer_axis import layer_features
from lightning_rank.nn._outputs import Output
from lightning_rank.nn._submodules import find_submodule, plain_name
from lightning_rank.nn.linear_bottleneck import Init, LinearBottleneck

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def attach_linear_bottleneck(
    module: ModuleT,
    after: str | None = None,
    before: str | None = None,
    *,
    dim: int,
    depth: int = 4,
    gain: float = 0.1,
    init: Init = "orthogonal",
    feature_axis: int | None = None,
    output: Output | None = None,
    allow_missing: bool = False,
) -> ModuleT:
    """Give an existing module a linear bottleneck behind, or in front of, one of its submodules.

    The bottleneck becomes the child ``linear_bottleneck`` of the submodule that is named, as its last step if that is
    an ``nn.Sequential``; ``before`` goes to the first step of a Sequential, or makes one more in front of a batch norm.
    Wherever that submodule is called, what it returns (what it is given) passes through the bottleneck; whoever copies,
    moves, saves, freezes or optimizes the submodule takes the bottleneck along. No existing parameter changes its name,
    and ``forward`` stays as it is.

    A module that runs its children in a loop of its own would run the bottleneck as one more: name the last of them.

    ``before`` reaches latents that no module returns: a sample drawn from a mean and a variance, the result of a
    method ``encode``. A method, or ``submodule.forward(x)``, is no call of the module: a warning says after the first
    training step that a bottleneck took no part in it.

    Checkpoints of version 0.1, where the bottleneck was a child of ``module``, load. ``load_from_checkpoint`` of the
    module's class knows nothing of what was attached to an instance: use
    :class:`~lightning_rank.LinearBottleneckMixin` for it; attach, then ``load_state_dict``; or
    :func:`~lightning_rank.merge_linear_bottleneck` before saving.

    Code that ``torch.compile`` made earlier would not notice, so it is dropped (``torch.compiler.reset``).

    Args:
        module: The autoencoder; any ``nn.Module``.
        after: Name of the submodule that makes the latents, by default ``"encoder"``; dots lead to a child's child.
        before: Name of the submodule that takes the latents, instead of ``after``.
        dim: Width of the latents: ``(B, dim)``, ``(B, T, dim)``, ``(B, dim, L)``, ``(B, dim, H, W)`` and so on.
        depth: Number of layers; 0 is the identity.
        gain: Singular value of the whole product at initialization.
        init: ``"orthogonal"``, or ``"default"`` for that of ``nn.Linear``.
        feature_axis: Axis of the latents that holds the features. ``None`` takes axis 1 beside a convolution or batch
            norm of any dimension and the last one otherwise, as far as it is ``dim`` wide; an input that is ``dim``
            wide on both, with no layer beside that decides, is refused.
        output: Which tensor is meant, if the submodule returns several: index, key or attribute, or a path of them;
            with ``before``, position or name of the argument. The rest is passed on as it came, in the same type.
        allow_missing: Whether a ``state_dict`` without the bottleneck's weights may load under ``strict=True``; they
            stay as they are then.

    Returns:
        ``module`` itself.

    Raises:
        TypeError: As :class:`LinearBottleneck`; at the call, there is no tensor to pass through the bottleneck.
        ValueError: As :class:`LinearBottleneck`; both ``after`` and ``before``; there is no such submodule, or it is
            never called, runs its entries by itself, is in several places, loses its hooks in a copy
            (``fx.GraphModule``) or conversion (batch norm) or has a bottleneck already; at the call, there are several
            tensors and ``output`` does not say which, or its axes are not told apart.

    Example:
        >>> autoencoder = nn.Sequential()
        >>> autoencoder.encoder, autoencoder.decoder = nn.Linear(64, 16), nn.Linear(16, 64)
        >>> autoencoder = attach_linear_bottleneck(autoencoder, after="encoder", dim=16, depth=2)
        >>> [name for name, _ in autoencoder.encoder.named_parameters()]
        ['weight', 'bias', 'linear_bottleneck.layers.0.weight', 'linear_bottleneck.layers.1.weight']
        >>> autoencoder(torch.randn(5, 64)).shape
        torch.Size([5, 64])
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"module: expected an nn.Module, got {type(module).__name__}")
    if after is None and before is None:
        after = "encoder"
    insert(module, after, before, dim, depth, output, allow_missing, gain=gain, init=init, feature_axis=feature_axis)
    return module


def insert(
    root: nn.Module,
    after: str | None,
    before: str | None,
    dim: int,
    depth: int,
    output: Output | None,
    allow_missing: bool,
    **options: Any,
) -> None:
    """Add a bottleneck to what ``after`` or ``before`` names in ``root``; to ``root``, uncalled, if neither does."""
    if after is not None and before is not None:
        raise ValueError(f"before: expected either after= or before=, got after={after!r} and before={before!r}")
    _check_output(output, named=after is not None or before is not None)
    host, beside = root, None
    if after is not None:
        host = _host(root, after, "after", takes_step=output is None)
        beside = layer_features(host, "output")
    if before is not None:
        host = _host(root, before, "before", takes_step=output is None)
        beside = layer_features(host, "input")
    if hasattr(host, CHILD):
        raise ValueError(f"module: expected no attribute {CHILD!r} yet, but {type(host).__name__} has one")
    # Where the latents are made or taken, there the bottleneck belongs: same device, same precision.
    parameters = chain(list(host.parameters())[:: -1 if after is not None else 1], root.parameters())
    like = next((parameter for parameter in parameters if parameter.is_floating_point()), torch.empty(0))
    bottleneck = LinearBottleneck(dim, depth, **options, device=like.device, dtype=like.dtype)
    bottleneck.beside = beside
    steps = list(host._modules)
    host.add_module(CHILD, bottleneck.train(host.training))
    if before is not None and runs_its_steps(host):
        for step in steps:  # behind the bottleneck
            host._modules[step] = host._modules.pop(step)
    elif before is not None:
        hook_input(host, output)
    elif after is not None and not runs_its_steps(host):
        hook_output(host, output)
    load_when_missing(bottleneck, allow_missing)
    name = plain_name(next(name for name, child in root.named_modules() if child is bottleneck))
    load_old_layout(root, name)
    expect_gradients(bottleneck, name)
    # Compiled code does not look whether a module has got a hook since: not even code of an equal module.
    torch.compiler.reset()


def _host(root: nn.Module, name: str, argument: str, takes_step: bool) -> nn.Module:
    """The module that gets the child: a Sequential if it may get one more step, else its outermost step.

    In front of the steps only of a Sequential that begins with a batch norm, which loses its hooks when it is converted
    to one of all processes.
    """
    host = find_submodule(root, name, argument, endings=False)
    host = getattr(host, "_orig_mod", host)  # of a compiled one, the module itself
    while runs_its_steps(host) and len(host) > 0:
        if takes_step and (argument == "after" or isinstance(host[0], _BatchNorm)):
            return host
        host = host[-1 if argument == "after" else 0]
        if sum(child is host for parent in root.modules() for child in parent._modules.values()) > 1:
            raise ValueError(
                f"{argument}: expected {'the last' if argument == 'after' else 'the first'} step of {name!r} to be in "
                f"one place, got a {type(host).__name__} that is in several and would pass through the bottleneck in "
                "each; give each place a module of its own"
            )
        host = getattr(host, "_orig_mod", host)
    without_steps = runs_its_steps(host) and (argument == "before" or not takes_step)
    if without_steps or getattr(host.forward, "__func__", None) is nn.Module.forward:
        raise ValueError(f"{argument}: expected a submodule that is called, got {name!r}, a {type(host).__name__}")
    if isinstance(host, nn.Sequential | nn.ModuleList | nn.ModuleDict) and not runs_its_steps(host):
        raise ValueError(
            f"{argument}: expected a module that does not run its entries by itself, got {name!r}, a "
            f"{type(host).__name__}, which would run the bottleneck as one more; name one of its entries, or the "
            f"module {'that takes what it returns (before=)' if argument == 'after' else 'in front of it (after=)'}"
        )
    if isinstance(host, fx.GraphModule | _BatchNorm):
        traced = isinstance(host, fx.GraphModule)
        lost = "a traced GraphModule, and copies" if traced else "a batch norm, and convert_sync_batchnorm"
        steps = "(..., nn.Identity())" if argument == "after" else "(nn.Identity(), ...)"
        raise ValueError(
            f"{argument}: expected a module that keeps its hooks, got {name!r}, where the bottleneck would go to "
            f"{lost} would lose it; name {'a layer inside' if traced else 'the module on the other side'}, or put it "
            f"in an nn.Sequential{steps} and name that"
        )
    return host


def _check_output(output: Any, named: bool) -> None:
    if output is None:
        return
    path = [output] if isinstance(output, int | str) else output
    if not isinstance(path, Sequence) or not path or not all(isinstance(key, int | str) for key in path):
        raise TypeError(f"output: expected an index, a key, an attribute or a path of them, got {output!r}")
    if not named:
        raise ValueError("output: expected after= or before= beside it, got neither")
