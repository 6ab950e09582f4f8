"""A forward hook that feeds a layer's output to a LatentSpectrum."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lightning_rank.functional.feature_axis import resolve_feature_axis
from lightning_rank.metrics import LatentSpectrum
from lightning_rank.nn import LinearBottleneck


class LatentTap:
    """Forward hook on one layer; takes in rows while ``active``.

    It stays registered for the whole stage, so that a module compiled after it was set keeps it, and does all its work
    outside compiled code. A copy or a pickle of the hooked module gets a tap that does nothing.

    Attributes:
        layer: Dotted name of the layer.
        active: Whether outputs are taken in.
        metric: The spectrum accumulated so far; ``None`` before the first output.
        valid: ``(batch, valid)`` when only the first ``valid`` of the ``batch`` samples that come count.
    """

    def __init__(self, layer: str = "", module: nn.Module | None = None) -> None:
        self.layer = layer
        self.active = False
        self.metric: LatentSpectrum | None = None
        self.valid: tuple[int, int] | None = None
        self._handle = None if module is None else module.register_forward_hook(self)
        plain = getattr(module, "_orig_mod", module)  # of a compiled layer, the layer
        self._feature_axis = plain.feature_axis if isinstance(plain, LinearBottleneck) else None

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

    def new_metric(self, dim: int, device: torch.device) -> LatentSpectrum:
        """An empty spectrum; fresh each epoch, for a state made in inference mode cannot be used outside."""
        # MPS has no float64.
        place = torch.device("cpu") if device.type == "mps" else device
        return LatentSpectrum(dim, feature_axis=self._feature_axis).to(place)

    @torch.compiler.disable
    def _take(self, output: Any) -> None:
        if not isinstance(output, Tensor) or not output.is_floating_point():
            got = output.dtype if isinstance(output, Tensor) else type(output).__name__
            raise TypeError(f"layer={self.layer!r}: expected it to return a real floating-point tensor, got {got}")
        if self.valid is not None and output.shape[0] == self.valid[0]:
            output = output[: self.valid[1]]
        if output.ndim < 2:
            raise ValueError(
                f"layer={self.layer!r}: expected it to return (B, dim), (B, T, dim) or (B, dim, H, W), got shape "
                f"{tuple(output.shape)}"
            )
        axis = resolve_feature_axis(output.ndim, self._feature_axis)
        if self.metric is None:
            self.metric = self.new_metric(output.shape[axis], output.device)
        if output.shape[axis] != self.metric.dim:
            raise ValueError(
                f"layer={self.layer!r}: expected {self.metric.dim} features, as it returned before in this epoch, got "
                f"shape {tuple(output.shape)}"
            )
        self.metric.update(output)
