"""Putting a linear bottleneck into an autoencoder that has none."""

import copy
import warnings
from itertools import chain
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from lightning_rank.nn.linear_bottleneck import Init, LinearBottleneck
from lightning_rank.nn.submodules import find_submodule

ModuleT = TypeVar("ModuleT", bound=nn.Module)

#: Name of the child that the bottleneck becomes.
CHILD = "linear_bottleneck"


class LinearBottleneckMixin:
    """Gives a module a linear bottleneck, added in its ``__init__``.

    List it before the module class; it inherits from none, so that it serves ``lightning``, ``pytorch_lightning``
    and plain torch alike. Since the bottleneck is built by ``__init__``, ``load_from_checkpoint`` works.

    Example:
        >>> class Autoencoder(LinearBottleneckMixin, nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.encoder, self.decoder = nn.Linear(64, 16), nn.Linear(16, 64)
        ...         self.add_linear_bottleneck(dim=16, depth=4, after="encoder")
        ...
        ...     def forward(self, x):
        ...         return self.decoder(self.encoder(x))
        >>> Autoencoder().linear_bottleneck
        LinearBottleneck(
          dim=16, depth=4, gain=0.1, init='orthogonal', feature_axis=None
          ...
    """

    linear_bottleneck: LinearBottleneck

    def add_linear_bottleneck(
        self,
        *,
        dim: int,
        depth: int = 4,
        gain: float = 0.1,
        init: Init = "orthogonal",
        feature_axis: int | None = None,
        after: str | None = None,
    ) -> None:
        """Add the child ``linear_bottleneck``.

        Args:
            dim: Width of the latents.
            depth: Number of layers; 0 is the identity.
            gain: Singular value of the whole product at initialization.
            init: ``"orthogonal"``, or ``"default"`` for that of ``nn.Linear``.
            feature_axis: Axis of the latents that holds the features; ``None`` takes axis 1 of ``(B, dim, H, W)``
                and the last of others.
            after: Name of the child whose output passes through the bottleneck, ``forward`` being left as it is;
                dots lead to a child's child. ``None``: ``forward`` calls ``self.linear_bottleneck(latents)`` itself.

        Raises:
            TypeError: As :class:`LinearBottleneck`, or ``self`` is not an ``nn.Module``.
            ValueError: As :class:`LinearBottleneck`; there is no child ``after``; or there is a bottleneck already.
        """
        if not isinstance(self, nn.Module):
            raise TypeError(f"{type(self).__name__}: expected LinearBottleneckMixin to be mixed into an nn.Module")
        _add(self, after, dim, depth, gain=gain, init=init, feature_axis=feature_axis)


def attach_linear_bottleneck(
    module: ModuleT,
    after: str = "encoder",
    *,
    dim: int,
    depth: int = 4,
    gain: float = 0.1,
    init: Init = "orthogonal",
    feature_axis: int | None = None,
) -> ModuleT:
    """Give an existing module a linear bottleneck behind one of its children.

    The output of ``module.<after>`` passes through the new child ``module.linear_bottleneck`` from now on, wherever
    that child is called (``module.<after>.forward(x)`` alone is not a call). No existing parameter changes its name,
    so checkpoints saved without the bottleneck still load: its own weights then stay as they are, with a warning.
    ``load_from_checkpoint`` of the module's class knows nothing of what was attached to an instance: use
    :class:`LinearBottleneckMixin` for it, or attach and then ``load_state_dict``.

    Code that ``torch.compile`` made earlier would not notice, so it is dropped (``torch.compiler.reset``).

    Args:
        module: The autoencoder; any ``nn.Module``.
        after: Name of the child that makes the latents; dots lead to a child's child.
        dim: Width of the latents ``(B, dim)``, ``(B, T, dim)`` or ``(B, dim, H, W)``.
        depth: Number of layers; 0 is the identity.
        gain: Singular value of the whole product at initialization.
        init: ``"orthogonal"``, or ``"default"`` for that of ``nn.Linear``.
        feature_axis: Axis of the latents that holds the features; ``None`` takes axis 1 of ``(B, dim, H, W)`` and the
            last of others.

    Returns:
        ``module`` itself.

    Raises:
        TypeError: As :class:`LinearBottleneck`; when the child's output is not a tensor, at the call.
        ValueError: As :class:`LinearBottleneck`; there is no child ``after``; or there is a bottleneck already.

    Example:
        >>> autoencoder = nn.Sequential()
        >>> autoencoder.encoder, autoencoder.decoder = nn.Linear(64, 16), nn.Linear(16, 64)
        >>> autoencoder = attach_linear_bottleneck(autoencoder, after="encoder", dim=16)
        >>> [name for name, _ in autoencoder.named_children()]
        ['encoder', 'decoder', 'linear_bottleneck']
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"module: expected an nn.Module, got {type(module).__name__}")
    if after is None:
        raise TypeError("after: expected the name of a submodule, got NoneType")
    _add(module, after, dim, depth, gain=gain, init=init, feature_axis=feature_axis)
    return module


def collapse_linear_bottleneck(module: ModuleT) -> ModuleT:
    """Make every linear bottleneck in ``module`` one layer deep, in place, with the same outputs.

    The layers are replaced by one that holds their product: ``linear_bottleneck.layers.0.weight``. Do it when training
    is over; an optimizer made before still holds the old layers. Bottlenecks of depth 0 stay what they are.

    Args:
        module: A module with one or more :class:`LinearBottleneck`.

    Returns:
        ``module`` itself.

    Raises:
        ValueError: There is no :class:`LinearBottleneck` in ``module``.

    Example:
        >>> model = nn.Sequential(nn.Linear(8, 4), LinearBottleneck(4, depth=8), nn.Linear(4, 8))
        >>> len(list(collapse_linear_bottleneck(model).parameters()))
        5
    """
    bottlenecks = [child for child in module.modules() if isinstance(child, LinearBottleneck)]
    if not bottlenecks:
        raise ValueError(f"module: expected a LinearBottleneck somewhere in {type(module).__name__}, found none")
    for bottleneck in bottlenecks:
        if bottleneck.depth > 0:
            requires_grad = any(parameter.requires_grad for parameter in bottleneck.parameters())
            bottleneck.layers = nn.ModuleList([bottleneck.collapse().requires_grad_(requires_grad)])
            bottleneck.depth = 1
    return module


class _PassThrough:
    """Forward hook that sends a module's output through its parent's bottleneck, whatever that is at the time.

    It holds the parent's children rather than the parent, so that a copy of the hooked child alone does not bring the
    parent, and with it a trainer, along.
    """

    def __init__(self, children: dict[str, nn.Module | None], after: str) -> None:
        self.children = children
        self.after = after

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        bottleneck = self.children.get(CHILD)
        if bottleneck is None:
            return output
        if not isinstance(output, Tensor):
            raise TypeError(
                f"after={self.after!r}: expected that child to return one tensor, got {type(output).__name__}; call "
                "self.linear_bottleneck(latents) in forward instead (LinearBottleneckMixin, after=None)"
            )
        return bottleneck(output)

    def __deepcopy__(self, memo: dict[int, Any]) -> "_PassThrough":
        # With the parent, its children are being copied already; a child alone gets a bottleneck of its own.
        children = memo.get(id(self.children))
        if children is None:
            children = {CHILD: copy.deepcopy(self.children.get(CHILD), memo)}
        return _PassThrough(children, self.after)


def _add(module: nn.Module, after: str | None, dim: int, depth: int, **options: Any) -> None:
    if hasattr(module, CHILD):
        raise ValueError(f"module: expected no attribute {CHILD!r} yet, but {type(module).__name__} has one")
    parents = [module] if after is None else [find_submodule(module, after, "after"), module]
    if isinstance(parents[0], nn.ModuleList | nn.ModuleDict):
        raise ValueError(f"after: expected a child that is called, got {after!r}, a {type(parents[0]).__name__}")
    # Where the latents are made, there the bottleneck belongs: same device, same precision.
    parameters = chain.from_iterable(parent.parameters() for parent in parents)
    like = next((parameter for parameter in parameters if parameter.is_floating_point()), torch.empty(0))
    bottleneck = LinearBottleneck(dim, depth, **options, device=like.device, dtype=like.dtype)
    bottleneck.register_load_state_dict_pre_hook(_keep_own_weights)
    module.add_module(CHILD, bottleneck.train(module.training))
    if after is not None:
        parents[0].register_forward_hook(_PassThrough(module._modules, after))
        # Compiled code does not look whether a module has got a hook since: not even code of an equal module.
        torch.compiler.reset()


def _keep_own_weights(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Let a checkpoint saved before the bottleneck was added load as it is."""
    own = module.state_dict(prefix=prefix)
    if own and not any(key.startswith(prefix) for key in state_dict):
        warnings.warn(
            f"state_dict: no weights for {prefix.rstrip('.')!r} in it: it was saved without the bottleneck, which "
            "keeps the weights that it has",
            stacklevel=2,
        )
        state_dict.update(own)
