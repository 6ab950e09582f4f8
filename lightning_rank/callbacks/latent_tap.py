"""A forward hook that feeds a layer's output to a LatentSpectrum."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch.strategies import Strategy
from torch import Tensor, nn

from lightning_rank.functional.feature_axis import as_rows, resolve_feature_axis
from lightning_rank.metrics import LatentSpectrum
from lightning_rank.nn import LinearBottleneck
from lightning_rank.nn.layer_axis import layer_features


class LatentTap:
    """Forward hook on one layer; takes in rows while ``active``.

    It stays registered for the whole stage, so that a module compiled after it was set keeps it, and does all its work
    outside compiled code. A copy or a pickle of the hooked module gets a tap that does nothing.

    Args:
        layer: Dotted name of the layer.
        module: The layer.
        output: Which of the layer's outputs, by index or key; ``None`` if it has one only.

    Attributes:
        active: Whether outputs are taken in.
        metric: The spectrum accumulated so far; ``None`` before the first output.
        examples: The first two samples that came, as they came.
        valid: ``(batch, valid)`` when only the first ``valid`` of the ``batch`` samples that come count.
    """

    def __init__(self, layer: str = "", module: nn.Module | None = None, output: int | str | None = None) -> None:
        self.layer = layer
        self.output = output
        self.active = False
        self.metric: LatentSpectrum | None = None
        self.examples: list[Tensor] = []
        self.valid: tuple[int, int] | None = None
        self._handle = None if module is None else module.register_forward_hook(self)
        plain = getattr(module, "_orig_mod", module)  # of a compiled layer, the layer
        self._bottleneck = plain if isinstance(plain, LinearBottleneck) else None
        self._features = None if module is None else layer_features(module)

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        """Be the hook."""
        if self.active:
            self._take(output)  # pyright: ignore[reportCallIssue]

    def __reduce__(self) -> tuple[type[LatentTap], tuple[()]]:
        return LatentTap, ()

    def remove(self) -> None:
        """Take the hook off the layer."""
        if self._handle is not None:
            self._handle.remove()

    def reset(self) -> None:
        """Forget what came, and take nothing in."""
        self.active, self.metric, self.examples = False, None, []

    def feature_axis(self, latents: Tensor) -> int:
        """Which axis holds the features."""
        return resolve_feature_axis(latents.shape, None, beside=self._features)

    def agreed_metric(self, strategy: Strategy, device: torch.device) -> LatentSpectrum | None:
        """The spectrum, ready to be synchronized; ``None`` on every process if none saw rows.

        To be called on every process: one that saw no rows does not know the width, yet has to take part.
        """
        dim = torch.tensor(0 if self.metric is None else self.metric.dim, device=device)
        dim = int(strategy.reduce(dim, reduce_op="max"))
        return self._new_metric(dim, device) if self.metric is None and dim > 0 else self.metric

    def weight(self) -> Tensor | None:
        """The composed matrix if the layer is a linear bottleneck that has one and shows it, else ``None``.

        To be called on every process: under FSDP2 it is gathered. FSDP1 leaves pieces that cannot be composed.
        """
        bottleneck = self._bottleneck
        if bottleneck is None or bottleneck.depth == 0 or any(p.ndim != 2 for p in bottleneck.parameters()):
            return None
        weight = bottleneck.weight.detach()
        gather = getattr(weight, "full_tensor", None)
        return weight if gather is None else gather()

    @torch.compiler.disable
    def _take(self, output: Any) -> None:
        latents = self._select(output)
        if not latents.is_floating_point():
            raise TypeError(
                f"layer={self.layer!r}: expected it to return a real floating-point tensor, got {latents.dtype}"
            )
        if latents.ndim < 2:
            raise ValueError(
                f"layer={self.layer!r}: expected it to return (B, dim), (B, T, dim) or (B, dim, H, W), got shape "
                f"{tuple(latents.shape)}"
            )
        if self.valid is not None and latents.shape[0] == self.valid[0]:
            latents = latents[: self.valid[1]]
        axis = self.feature_axis(latents)
        if self.metric is None:
            self.metric = self._new_metric(latents.shape[axis], latents.device)
        if latents.shape[axis] != self.metric.dim:
            raise ValueError(
                f"layer={self.layer!r}: expected {self.metric.dim} features, as it returned before in this epoch, got "
                f"shape {tuple(latents.shape)}"
            )
        self.metric.update(as_rows(latents, axis))
        if len(self.examples) < 2:
            self.examples += latents[: 2 - len(self.examples)].detach().clone()

    def _new_metric(self, dim: int, device: torch.device) -> LatentSpectrum:
        """An empty spectrum; fresh each epoch, for a state made in inference mode cannot be used outside."""
        # MPS has no float64.
        place = torch.device("cpu") if device.type == "mps" else device
        return LatentSpectrum(dim).to(place)

    def _select(self, output: Any) -> Tensor:
        """The tensor that was meant."""
        if isinstance(output, Tensor):
            return output
        if isinstance(output, Mapping):
            choices = dict(output)
        elif isinstance(output, Sequence) and not isinstance(output, str):
            choices = dict(enumerate(output))
        else:
            choices = {}
        tensors = {key: value for key, value in choices.items() if isinstance(value, Tensor)}
        if self.output is None and len(tensors) == 1:
            return next(iter(tensors.values()))
        if self.output in tensors:
            return tensors[self.output]
        if not tensors:
            raise TypeError(
                f"layer={self.layer!r}: expected it to return a tensor, or a tuple or dict of tensors, got "
                f"{type(output).__name__}"
            )
        told = f"output={self.output!r} is none of them" if self.output is not None else "it is not said which"
        raise ValueError(
            f"layer={self.layer!r}: expected one tensor, got a {type(output).__name__} with tensors at "
            f"{', '.join(map(repr, tensors))}, and {told}; pass output={next(iter(tensors))!r}, for example"
        )
