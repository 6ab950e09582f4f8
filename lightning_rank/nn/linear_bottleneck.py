"""The linear bottleneck: a stack of bias-free square layers that acts as one matrix and trains as many."""

import math
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_rank.functional.compose import compose_linear, without_autocast
from lightning_rank.functional.feature_axis import resolve_feature_axis

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
    parameters' precision, float32 at least, and the result alone is cast. Where no gradient of the weights is wanted
    and they are on the CPU, the product is kept and used again for as long as every entry of every weight is
    unchanged, which is compared each time: it cannot be stale, at the price of a second copy of the weights.

    Args:
        dim: Width of the latents.
        depth: Number of layers; 0 is the identity.
        gain: Singular value of the whole product at initialization; each factor gets ``gain ** (1 / depth)``. It is
            the knob of the rank: the smaller, the lower the rank, and 1 has no effect. Not used by
            ``init="default"``.
        init: ``"orthogonal"``, or ``"default"`` for that of ``nn.Linear``, as in IRMAE (Jing et al. 2020).
        feature_axis: Axis of the input that holds the ``dim`` features: 1 for ``(B, dim, H, W)``, where the layers
            act at each position as a 1x1 convolution. ``None`` takes axis 1 of 4-D inputs and the last of others.
        device: Device of the parameters.
        dtype: Data type of the parameters.

    Shape:
        ``(..., dim) -> (..., dim)``, or with the features on ``feature_axis``.

    Raises:
        TypeError: ``dim`` or ``depth`` is not an int, ``gain`` is not a number, or the input is not floating-point.
        ValueError: ``dim`` < 1, ``depth`` < 0, ``gain`` not positive and finite, ``init`` unknown, or an input whose
            feature axis is not ``dim`` wide.

    Source: Sun et al., "Implicit Greedy Rank Learning in Autoencoders via Overparameterized Linear Networks", 2021
    (arXiv 2107.01301).

    Example:
        >>> bottleneck = LinearBottleneck(8, depth=4, gain=0.1)
        >>> bottleneck(torch.randn(5, 8)).shape
        torch.Size([5, 8])
        >>> torch.linalg.svdvals(bottleneck.weight).round(decimals=4)
        tensor([0.1000, 0.1000, 0.1000, 0.1000, 0.1000, 0.1000, 0.1000, 0.1000], ...)
    """

    _like: Tensor

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
        # With no layers, something still has to know where the module is and in which precision.
        self.register_buffer("_like", torch.empty(0, device=device, dtype=dtype), persistent=False)
        self._composed: tuple[list[Tensor], Tensor] | None = None

    def reset_parameters(self) -> None:
        """Initialize all layers anew, as ``init`` and ``gain`` say."""
        for layer in self._linears():
            layer.reset_parameters()

    @property
    def weight(self) -> Tensor:
        """The composed matrix ``W_N ... W_1``, shape ``(dim, dim)``; differentiable."""
        if self.depth == 0:
            return torch.eye(self.dim, device=self._like.device, dtype=self._like.dtype)
        return compose_linear(self._weights())

    def collapse(self) -> nn.Linear:
        """One ``nn.Linear(dim, dim, bias=False)`` with the composed weight.

        Like every ``nn.Linear`` it acts on the last axis, whatever ``feature_axis`` is here.
        """
        weight = self.weight.detach()
        linear = nn.Linear(self.dim, self.dim, bias=False, device="meta", dtype=weight.dtype)
        linear.weight = nn.Parameter(weight)
        return linear.train(self.training)

    def forward(self, input: Tensor) -> Tensor:
        """Apply the layers to ``input``."""
        axis = self._checked_axis(input)
        if self.depth == 0:
            return input
        weights = self._weights()
        if self._may_reuse(weights):
            return _apply(self._reused_product(weights), input, axis)
        if input.numel() // self.dim >= self.dim:
            return _apply(compose_linear(weights), input, axis)
        return self._layer_by_layer(weights, input, axis)

    def extra_repr(self) -> str:
        """The settings, as shown by ``print``."""
        gain = f", gain={self.gain:g}" if self.init == "orthogonal" else ""
        axis = "" if self.feature_axis == -1 else f", feature_axis={self.feature_axis}"
        return f"dim={self.dim}, depth={self.depth}{gain}, init={self.init!r}{axis}"

    def __getstate__(self) -> dict[str, Any]:
        # Copies and pickles make the kept product anew.
        return self.__dict__ | {"_composed": None}

    def _new_layer(self, device: torch.device | str | None, dtype: torch.dtype | None) -> nn.Linear:
        if self.init == "default":
            return nn.Linear(self.dim, self.dim, bias=False, device=device, dtype=dtype)
        return OrthogonalLinear(self.dim, self.gain ** (1 / self.depth), device=device, dtype=dtype)

    def _linears(self) -> list[nn.Linear]:
        return cast("list[nn.Linear]", list(self.layers))

    def _weights(self) -> list[Tensor]:
        return [layer.weight for layer in self._linears()]

    def _checked_axis(self, input: Tensor) -> int:
        if not isinstance(input, Tensor) or not input.is_floating_point():
            got = input.dtype if isinstance(input, Tensor) else type(input).__name__
            raise TypeError(f"input: expected a real floating-point tensor, got {got}")
        axis = resolve_feature_axis(input.ndim, self.feature_axis)
        if input.shape[axis] != self.dim:
            raise ValueError(
                f"input: expected {self.dim} features on axis {axis}, got shape {tuple(input.shape)}; "
                "set dim to the width of the latents, or feature_axis to the axis that holds them"
            )
        return axis

    @staticmethod
    def _may_reuse(weights: list[Tensor]) -> bool:
        """Whether a kept product may serve.

        Neither version counters nor addresses tell of every change (an edit through ``.data``, the swap of averaged
        weights, FSDP's gathering), so the entries themselves are compared. That needs real tensors on the CPU:
        elsewhere it would make the host wait, and while tracing or under ``vmap`` there is nothing to compare.
        """
        if torch.is_grad_enabled() and any(weight.requires_grad for weight in weights):
            return False
        if torch.compiler.is_compiling() or torch.jit.is_tracing():
            return False
        return all(type(weight) is nn.Parameter and weight.device.type == "cpu" for weight in weights)

    def _reused_product(self, weights: list[Tensor]) -> Tensor:
        composed = self._composed
        if composed is None or not all(map(_same, composed[0], weights)) or len(composed[0]) != len(weights):
            # Outside inference mode, so that the product may later meet an input that wants a gradient.
            with torch.inference_mode(False), torch.no_grad():
                composed = [weight.clone() for weight in weights], compose_linear(weights)
            self._composed = composed
        return composed[1]

    @staticmethod
    def _layer_by_layer(weights: list[Tensor], input: Tensor, axis: int) -> Tensor:
        device_type = input.device.type
        autocast = torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type)
        output = input.to(weights[0].dtype) if autocast else input
        with without_autocast(device_type):
            for weight in weights:
                output = _apply(weight, output, axis)
        return output.to(torch.get_autocast_dtype(device_type)) if autocast else output


def _apply(weight: Tensor, input: Tensor, axis: int) -> Tensor:
    if axis == input.ndim - 1:
        return F.linear(input, weight)
    # The axes behind the features become the columns, so that the output is laid out as the input is.
    return torch.matmul(weight, input.flatten(axis + 1)).reshape(input.shape)


def _same(first: Tensor, second: Tensor) -> bool:
    return first.dtype == second.dtype and torch.equal(first, second)


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
