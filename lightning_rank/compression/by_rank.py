"""What a module can do with ever fewer directions of its latents: the rank chosen after one training."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, overload

import torch
from torch import Tensor, nn

from lightning_rank.compression._bottleneck import find_bottleneck
from lightning_rank.compression._latents import (
    axis_of,
    check_data,
    evaluating,
    input_of,
    latent_moments,
    random_state_kept,
)
from lightning_rank.functional._feature_axis import moved_back
from lightning_rank.functional.compose import without_autocast
from lightning_rank.functional.moments import principal_directions
from lightning_rank.nn.linear_bottleneck import LinearBottleneck

T = TypeVar("T")
_NOT_AGAIN = (
    "data: expected batches that can be gone through once for each rank, got {}; pass the dataloader itself or a list, "
    "or a measure of your own"
)


@overload
def measure_by_rank(
    module: nn.Module, data: Iterable[Any], measure: None = None, ranks: Iterable[int] | None = None
) -> dict[int, float]: ...


@overload
def measure_by_rank(
    module: nn.Module,
    data: Tensor | Iterable[Any],
    measure: Callable[[nn.Module], T],
    ranks: Iterable[int] | None = None,
) -> dict[int, T]: ...


def measure_by_rank(
    module: nn.Module,
    data: Tensor | Iterable[Any],
    measure: Callable[[nn.Module], Any] | None = None,
    ranks: Iterable[int] | None = None,
) -> dict[int, Any]:
    r"""Measure a module with its latents cut to their 1, 2, ... leading principal directions.

    .. math:: z_r = \bar z + V_r V_r^T (z - \bar z)

    which is what :func:`~lightning_rank.truncate_linear_bottleneck` makes of them: read the rank to cut to off the
    result, without training or cutting anything. While it measures, the module is in evaluation mode, compiled code
    runs eagerly, and what is drawn (by a variational autoencoder, a shuffling dataloader) is the same at every rank;
    afterwards, also if ``measure`` raises, the module is as it was.

    Args:
        module: A module with one :class:`~lightning_rank.LinearBottleneck`; one of ``depth=0`` is that of a plain
            autoencoder.
        data: A dataloader of batches, as :func:`~lightning_rank.truncate_linear_bottleneck` takes them, or latents:
            what mean and directions are taken from.
        measure: Called with the module at each rank. ``None`` takes the squared error of the reconstruction of
            ``data``, summed over features and averaged over samples: ``data`` is gone through once more for each rank.
        ranks: To measure at; ``None`` takes 1 to the width of the latents.

    Returns:
        By rank, in the order of ``ranks``, what ``measure`` gave. At full rank that is what it gives for the module
        itself, to rounding.

    Raises:
        TypeError: ``data``, ``measure`` or a rank is of another type, or the module does not map a batch to one tensor.
        ValueError: A rank is not within 1 and the width of the latents; ``data`` can be gone through only once, or
            are latents, and there is no ``measure``; the module does not map a batch to its shape, or has no linear
            bottleneck, several, or one that was truncated before; or the latents have NaN.

    Example:
        >>> model = nn.Sequential(nn.Linear(8, 4), LinearBottleneck(4, depth=2, gain=1.0), nn.Linear(4, 8))
        >>> errors = measure_by_rank(model, [torch.randn(100, 8)])
        >>> list(errors), model.training
        ([1, 2, 3, 4], True)
    """
    _, bottleneck = find_bottleneck(module)
    chosen = _checked_ranks(ranks, bottleneck.dim)
    check_data(data)
    if measure is None:
        _check_repeatable(data)
    elif not callable(measure):
        raise TypeError(f"measure: expected a function of the module or None, got {type(measure).__name__}")
    gradients = torch.is_grad_enabled()
    with evaluating(module):
        moments = latent_moments(module, bottleneck, data)
        _, directions = principal_directions(moments)
        results = {}
        for rank in chosen:
            module.eval()  # a measure may have changed it
            with random_state_kept(module), _cut(bottleneck, moments.mean, directions[:, :rank]):
                if measure is None:
                    results[rank] = _reconstruction_error(module, data, bottleneck.weight.device)
                else:
                    with torch.set_grad_enabled(gradients):
                        results[rank] = measure(module)
    return results


@contextmanager
def _cut(bottleneck: LinearBottleneck, mean: Tensor, directions: Tensor) -> Iterator[None]:
    """Project what comes out of the bottleneck, before any other hook sees it."""

    def project(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        if output.is_nested:
            return torch.nested.as_nested_tensor([projected(part, part.ndim - 1) for part in output.unbind()])
        return projected(output, axis_of(output, bottleneck))

    def projected(latents: Tensor, axis: int) -> Tensor:
        # In the precision of the latents, float32 at least.
        dtype = torch.promote_types(latents.dtype, torch.float32)
        basis, centre = directions.to(latents.device, dtype), mean.to(latents.device, dtype)
        rows = latents.to(dtype).movedim(axis, -1)
        with without_autocast(latents.device.type):
            rows = centre + (rows - centre) @ basis @ basis.T
        return moved_back(rows.to(latents.dtype), axis, latents)

    hook = bottleneck.register_forward_hook(project, prepend=True)
    try:
        yield
    finally:
        hook.remove()


def _reconstruction_error(module: nn.Module, data: Iterable[Any], device: torch.device) -> float:
    total, count = 0.0, 0
    for batch in data:
        input = input_of(batch, device)
        output = module(input)
        if not isinstance(output, Tensor):
            raise TypeError(
                f"module: expected a batch to be mapped to its reconstruction, got {type(output).__name__}; "
                "pass measure"
            )
        if output.shape != input.shape:
            raise ValueError(
                f"module: expected a reconstruction of shape {tuple(input.shape)}, got {tuple(output.shape)}; "
                "pass measure"
            )
        total += float((output - input).double().square().sum())
        count += len(input)
    if count == 0:
        raise ValueError(_NOT_AGAIN.format(type(data).__name__))
    return total / count


def _checked_ranks(ranks: Iterable[int] | None, dim: int) -> list[int]:
    if ranks is None:
        return list(range(1, dim + 1))
    if not isinstance(ranks, Iterable) or isinstance(ranks, str):
        raise TypeError(f"ranks: expected ints or None, got {type(ranks).__name__} ({ranks!r})")
    chosen = list(ranks)
    for rank in chosen:
        if not isinstance(rank, int) or isinstance(rank, bool):
            raise TypeError(f"ranks: expected ints, got {type(rank).__name__} ({rank!r})")
        if not 1 <= rank <= dim:
            raise ValueError(f"ranks: expected 1 to {dim}, the width of the latents, got {rank}")
    return chosen


def _check_repeatable(data: Any) -> None:
    if isinstance(data, Tensor):
        raise ValueError("measure: expected a function of the module where data are latents, got None")
    if isinstance(data, Iterator):
        raise ValueError(_NOT_AGAIN.format(type(data).__name__))
