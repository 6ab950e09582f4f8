"""The linear bottleneck: a stack of bias-free square layers that acts as one matrix and trains as many."""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_rank.functional._feature_axis import LayerFeatures, feature_axis_of, moved_back, shape_of
from lightning_rank.functional.compose import compose_linear, without_autocast

Init = Literal["orthogonal", "default"]


class OrthogonalLinear(nn.Linear):
    """A square bias-free layer that initializes itself to ``gain`` times an orthogonal matrix.

    It does so itself because whoever materializes a module from the meta device calls ``reset_parameters`` of each
    layer, not of the whole.

    Args:
        dim: Width.
        gain: Every singular value of the weight.
        device: Device of the weight.
        dtype: Data type of the weight.
    """

    def __init__(
        self, dim: int, gain: float, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> None:
        self.gain = gain  # nn.Linear's constructor initializes
        super().__init__(dim, dim, bias=False, device=device, dtype=dtype)

    def reset_parameters(self) -> None:
        """Draw an orthogonal matrix anew."""
        if self.weight.is_meta:
            return
        # The decomposition behind it wants float32 or wider.
        wide = torch.empty_like(self.weight, dtype=torch.promote_types(self.weight.dtype, torch.float32))
        nn.init.orthogonal_(wide, gain=self.gain)
        with torch.no_grad():
            self.weight.copy_(wide)


class LinearBottleneck(nn.Module):
    r"""A stack of ``depth`` bias-free linear layers of one width.

    .. math:: y = W_N \cdots W_2 W_1 \, z

    It can express no more than one matrix, but gradient descent through the factors learns large singular values
    first and small ones late: placed at the bottleneck of an autoencoder it keeps the rank of the latents low.

    The product is formed first, at a cost of ``(depth - 1) * dim**3``, when at least ``dim`` rows come in, else the
    layers are applied one by one; the results are equal up to rounding. Under autocast both ways run in the
    parameters' precision, float32 at least, and the result alone is cast. Nothing is kept from one call to the next;
    :func:`~lightning_rank.collapse_linear_bottleneck` makes a bottleneck whose training is over cheap to run.

    Layers that are more than their weight (adapted by LoRA, pruned, reparametrized, quantized, wrapped or hooked) are
    called one by one, each through its own ``forward``.

    Args:
        dim: Width of the latents.
        depth: Number of layers; 0 is the identity.
        gain: Singular value of the whole product at initialization; each factor gets ``gain ** (1 / depth)``. It is
            the knob of the rank: the smaller, the lower the rank, and 1 has no effect. Not used by
            ``init="default"``.
        init: ``"orthogonal"``, or ``"default"`` for that of ``nn.Linear``, as in IRMAE (Jing et al. 2020).
        feature_axis: Axis of the input that holds the ``dim`` features: 1 for ``(B, dim, H, W)``, where the layers
            act at each position as a 1x1 convolution. ``None`` takes axis 1 or the last one, whichever is ``dim``
            wide.
        device: Device of the parameters.
        dtype: Data type of the parameters.

    Shape:
        ``(..., dim) -> (..., dim)``, or with the features on ``feature_axis``.

    Raises:
        TypeError: ``dim`` or ``depth`` is not an int, ``gain`` is not a number, or the input is not floating-point.
        ValueError: ``dim`` < 1, ``depth`` < 0, ``gain`` not positive and finite, ``init`` unknown; an input whose
            feature axis is not ``dim`` wide, or, with ``feature_axis=None``, that is ``dim`` wide on both axes.

    Source: Sun et al., "Implicit Greedy Rank Learning in Autoencoders via Overparameterized Linear Networks", 2021
    (arXiv 2107.01301).

    Example:
        >>> bottleneck = LinearBottleneck(8, depth=4, gain=0.1)
        >>> bottleneck(torch.randn(5, 8)).shape
        torch.Size([5, 8])
        >>> torch.linalg.svdvals(bottleneck.weight).round(decimals=4)
        tensor([0.1000, 0.1000, 0.1000, 0.1000, 0.1000, 0.1000, 0.1000, 0.1000], ...)
    """

    #: What the layer beside says of the axis, for ``feature_axis=None``; whoever inserts the bottleneck sets it.
    beside: LayerFeatures | None = None

    def __init__(
        self,
        dim: int,
        depth: int = 4,
        *,
        gain: float = 0.1,
        init: Init = "orthogonal",
        feature_axis: int | None = -1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.dim = _whole_number("dim", dim, minimum=1)
        self.depth = _whole_number("depth", depth, minimum=0)
        self.gain = _positive("gain", gain)
        if init not in get_args(Init):
            raise ValueError(f"init: expected one of {', '.join(map(repr, get_args(Init)))}, got {init!r}")
        self.init = init
        if not (feature_axis is None or (isinstance(feature_axis, int) and not isinstance(feature_axis, bool))):
            raise TypeError(f"feature_axis: expected an int or None, got {type(feature_axis).__name__}")
        self.feature_axis = feature_axis
        self.layers = nn.ModuleList(self._new_layer(device, dtype) for _ in range(depth))
        # With no layers, something still has to know where the module is and in which precision; no buffer, for
        # DistributedDataParallel would then broadcast before each forward pass.
        self._like = torch.empty(0, device=device, dtype=dtype)

    def reset_parameters(self) -> None:
        """Initialize all layers anew, as ``init`` and ``gain`` say."""
        for layer in self.layers:
            cast("nn.Linear", layer).reset_parameters()

    @property
    def weight(self) -> Tensor:
        """The composed matrix ``W_N ... W_1``, shape ``(dim, dim)``; differentiable."""
        weights = self._plain_weights()
        if weights:
            return compose_linear(weights)
        like = next(self.parameters(), self._like)
        return self._one_by_one(torch.eye(self.dim, device=like.device, dtype=like.dtype)).T

    def collapse(self) -> nn.Linear:
        """The one layer that all layers are equal to: an ``nn.Linear(dim, dim, bias=False)`` with the composed weight.

        :func:`~lightning_rank.collapse_linear_bottleneck` puts it in their place. Alone it acts on the last axis, as
        every ``nn.Linear`` does, whatever ``feature_axis`` is here. It is trainable unless all layers are frozen.
        """
        training = {module: module.training for module in self.modules()}
        self.eval()  # a layer may have dropout
        try:
            weight = self.weight.detach().contiguous()
        finally:
            for module, was in training.items():
                module.training = was
        return self._one_layer(weight)

    def become_one_layer(self, layer: nn.Linear) -> None:
        """Put one layer in the place of all."""
        self.layers, self.depth = nn.ModuleList([layer]), 1

    def forward(self, input: Tensor) -> Tensor:
        """Apply the layers to ``input``."""
        if not isinstance(input, Tensor) or not input.is_floating_point():
            got = input.dtype if isinstance(input, Tensor) else type(input).__name__
            raise TypeError(
                f"input: expected a real floating-point tensor, got {got}; where the module in front returns several, "
                "attach the bottleneck with output="
            )
        axis = self._axis_of(input)
        if not len(self.layers):
            return input
        weights = self._plain_weights()
        if weights is None and axis == input.ndim - 1:
            return self._one_by_one(input)
        if weights is None:
            return moved_back(self._one_by_one(input.movedim(axis, -1)), axis, input)
        if input.numel() // self.dim >= self.dim:
            return _multiply([compose_linear(weights)], input, axis)
        device_type = input.device.type
        casts = device_type != "meta" and torch.is_autocast_enabled(device_type)
        if not casts or weights[0].dtype == torch.float64:  # which autocast leaves as it is
            return _multiply(weights, input, axis)
        with without_autocast(device_type):
            output = _multiply(weights, input.to(weights[0].dtype), axis)
        return output.to(torch.get_autocast_dtype(device_type))

    def extra_repr(self) -> str:
        """The settings, as shown by ``print``."""
        gain = f", gain={self.gain:g}" if self.init == "orthogonal" else ""
        axis = "" if self.feature_axis == -1 else f", feature_axis={self.feature_axis}"
        return f"dim={self.dim}, depth={self.depth}{gain}, init={self.init!r}{axis}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "LinearBottleneck":
        self._like = fn(self._like)
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:  # pyright: ignore
        saved = [key for key in state_dict if key.startswith(f"{prefix}layers.")]
        if saved == [f"{prefix}layers.0.weight"] and len(self.layers) != 1:
            # The first layer's own parameter, which an optimizer may have already.
            first = _plain_weight(self.layers[0]) if self.layers else None
            self.become_one_layer(self._one_layer(self._like.new_empty(self.dim, self.dim) if first is None else first))
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _axis_of(self, input: Tensor) -> int:
        axis, shape = feature_axis_of(input, self.feature_axis, self.dim, self.beside), shape_of(input)
        if shape[axis] != self.dim:
            raise ValueError(
                f"input: expected {self.dim} features on axis {axis}, got shape {shape}; "
                "set dim to the width of the latents, or feature_axis to the axis that holds them"
            )
        return axis

    def _new_layer(self, device: torch.device | str | None, dtype: torch.dtype | None) -> nn.Linear:
        if self.init == "default":
            return nn.Linear(self.dim, self.dim, bias=False, device=device, dtype=dtype)
        return OrthogonalLinear(self.dim, self.gain ** (1 / self.depth), device=device, dtype=dtype)

    def _one_layer(self, weight: Tensor) -> nn.Linear:
        layer = nn.Linear(self.dim, self.dim, bias=False, device="meta")
        trainable = not self.layers or any(parameter.requires_grad for parameter in self.parameters())
        layer.weight = weight if isinstance(weight, nn.Parameter) else nn.Parameter(weight, requires_grad=trainable)
        return layer.train(self.training)

    def _plain_weights(self) -> list[Tensor] | None:
        """The weights, if each layer is its weight and nothing more."""
        weights = []
        for layer in self.layers:
            weight = _plain_weight(layer)
            if weight is None:
                return None
            weights.append(weight)
        return weights

    def _one_by_one(self, rows: Tensor) -> Tensor:
        for layer in self.layers:
            rows = layer(rows)
        return rows


def _plain_weight(layer: nn.Module) -> Tensor | None:
    # Parametrizations, pruning, adapters and quantization change the class, set hooks or bring a tensor of their own;
    # some wrappers give the instance another forward. DTensors compose as tensors do.
    if type(layer) is not OrthogonalLinear and type(layer) is not nn.Linear:
        return None
    own = layer.__dict__
    weight = own["_parameters"].get("weight")
    if own["_parameters"].get("bias") is not None or "forward" in own:
        return None
    if own["_forward_pre_hooks"] or own["_forward_hooks"] or own["_backward_pre_hooks"] or own["_backward_hooks"]:
        return None
    return weight if type(weight) in (nn.Parameter, Tensor) or hasattr(weight, "full_tensor") else None


def _multiply(weights: Sequence[Tensor], input: Tensor, axis: int) -> Tensor:
    last = axis == input.ndim - 1
    rows = input if last else input.movedim(axis, -1)
    if last or (rows.is_contiguous() and not input.is_contiguous()):  # as they are in memory
        for weight in weights:
            rows = F.linear(rows, weight)
        return rows if last else rows.movedim(-1, axis)
    # The axes behind the features become the columns, so that the output is laid out as the input is.
    columns = input.flatten(axis + 1)
    for weight in weights:
        columns = torch.matmul(weight, columns)
    return columns.reshape(input.shape)


def _whole_number(name: str, value: int, minimum: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name}: expected an int, got {type(value).__name__} ({value!r})")
    if value < minimum:
        raise ValueError(f"{name}: expected {minimum} or more, got {value}")
    return value


def _positive(name: str, value: float) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError(f"{name}: expected a number, got {type(value).__name__} ({value!r})")
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name}: expected a positive finite number, got {value!r}")
    return float(value)
