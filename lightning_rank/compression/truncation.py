"""A bottleneck cut down to the directions that its latents use."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from lightning_rank.compression._bottleneck import find_bottleneck, replace_submodule, take_over
from lightning_rank.compression._folding import fold_decode
from lightning_rank.compression._latents import axis_of, check_data, evaluating, input_of, latent_moments
from lightning_rank.compression.report import Truncation
from lightning_rank.functional.moments import principal_directions
from lightning_rank.functional.rank import VARIANCE_RTOL, check_variance_rtol, numerical_rank
from lightning_rank.insertion._folding import set_parameters
from lightning_rank.nn._submodules import plain_name
from lightning_rank.nn.linear_bottleneck import LinearBottleneck
from lightning_rank.nn.truncated_bottleneck import TruncatedBottleneck

_SAMPLE_ROWS = 64  # to see whether folding leaves the outputs as they were


def truncate_linear_bottleneck(
    module: nn.Module,
    data: Tensor | Iterable[Any],
    rank: int | None = None,
    *,
    fold: bool = False,
    variance_rtol: float = VARIANCE_RTOL,
) -> Truncation:
    r"""Replace a linear bottleneck by two thin linear maps, in place.

    .. math:: c = V_r^T (W e - \bar z), \qquad z = V_r c + \bar z

    with ``W`` the composed bottleneck, and the mean and the ``rank`` leading principal directions of its output over
    ``data``. The axes of the code ``c`` are those directions, in falling variance. Over ``data``, the latents change
    by the sum of the discarded variances in the mean square, and the output of a decoder that is Lipschitz with
    constant ``L`` by no more than ``L**2`` times that.

    Hooks that were registered on the bottleneck stay. Do it when training is over: an optimizer made before still
    holds the old layers. To load a ``state_dict`` saved afterwards, see :func:`~lightning_rank.load_truncated`.

    Args:
        module: A module with one :class:`~lightning_rank.LinearBottleneck`, collapsed or not.
        data: Latents, that is outputs of the bottleneck, ``(..., dim)`` or with the features where the bottleneck has
            them. Or a dataloader of training batches: ``module(batch)`` is called on each, or on its first entry if a
            batch is a tuple or list, in evaluation mode and without gradients.
        rank: Width of the code; ``None`` takes the numerical rank of the latents.
        fold: Let the linear layer or 1x1 convolution behind the bottleneck take the second map in, so that the latents
            are ``rank`` wide from then on. With a dataloader, that layer is looked for, and the result checked, by
            running ``module`` on the first batch, twice from the same random state; with latents, by running
            ``module.decoder`` on some of them, which trusts that nothing happens to latents before they reach it. If
            there is no such layer, or the outputs are others with it, a warning says so and both maps are kept.
        variance_rtol: Threshold of the numerical rank, relative to the largest variance.

    Returns:
        What was done: rank, variances, sizes before and after.

    Raises:
        TypeError: ``data`` or ``rank`` is of another type.
        ValueError: ``rank`` is not within 1 and ``dim``, or ``variance_rtol`` not in [0, 1); the latents do not vary,
            are not ``dim`` wide or have NaN; or ``module`` has no linear bottleneck, several, or one that was truncated
            before.

    Example:
        >>> model = nn.Sequential(nn.Linear(8, 4), LinearBottleneck(4, depth=2), nn.Linear(4, 8))
        >>> latents = torch.randn(100, 2) @ torch.randn(2, 4)
        >>> truncate_linear_bottleneck(model, latents).rank
        2
        >>> model[1]
        TruncatedBottleneck(
          dim=4, rank=2, folded=False
          ...
    """
    name, bottleneck = find_bottleneck(module)
    if rank is not None:
        _check_rank(rank, bottleneck.dim)
    check_data(data)
    check_variance_rtol(variance_rtol)
    with evaluating(module):
        sample, data = _sample(data, bottleneck.weight.device)
        moments = latent_moments(module, bottleneck, data)
        deviations, directions = principal_directions(moments)
        if rank is None:
            rank = int(numerical_rank(deviations, variance_rtol=variance_rtol))
            if rank == 0:
                raise ValueError("data: expected latents that vary, got the same row throughout; their rank is 0")
        truncated = _truncated(bottleneck, directions[:, :rank], moments.mean)
        # Nothing was changed up to here.
        parameters = _count(module)
        replace_submodule(module, name, truncated)
        folded = against = None
        if fold:
            runs = _run_decoder if isinstance(data, Tensor) else _run_module
            try:
                done = fold_decode(module, truncated, runs(module, truncated, sample))
            except BaseException:
                replace_submodule(module, name, bottleneck)
                raise
            folded, against = (None, done) if isinstance(done, str) else (done, None)
    truncated.train(bottleneck.training)
    if folded is not None:
        folded[2].train(folded[1].training)
    elif fold:
        warnings.warn(
            f"fold: {against}, so both maps are kept; looked for in "
            f"{'module.decoder, as data are latents' if isinstance(data, Tensor) else 'module(batch)'}",
            stacklevel=2,
        )
    width = 0 if folded is None else len(folded[1].weight)
    before = bottleneck.dim**2 * (bottleneck.depth > 0) + width * bottleneck.dim
    after = rank * bottleneck.dim + (rank * bottleneck.dim if folded is None else width * rank)
    into = None if folded is None else plain_name(folded[0])
    return Truncation(rank, deviations, into, (parameters, _count(module)), (before, after))


def _check_rank(rank: int, dim: int) -> None:
    if not isinstance(rank, int) or isinstance(rank, bool):
        raise TypeError(f"rank: expected an int or None, got {type(rank).__name__} ({rank!r})")
    if not 1 <= rank <= dim:
        raise ValueError(f"rank: expected 1 to {dim}, the width of the latents, got {rank}")


def _sample(data: Any, device: torch.device) -> tuple[Tensor, Any]:
    """A few latents, or inputs if ``data`` are batches; and all of the data, none of which was used up."""
    if isinstance(data, Tensor):
        return data[:_SAMPLE_ROWS], data
    batches = iter(data)
    first = next(batches, None)
    if first is None:
        raise ValueError("data: expected latents or batches, got none")
    return input_of(first, device)[:_SAMPLE_ROWS], chain([first], batches)


def _run_module(module: nn.Module, truncated: TruncatedBottleneck, input: Tensor) -> Callable[[], tuple[Tensor, Any]]:
    def run() -> tuple[Tensor, Any]:
        latents: list[Any] = []
        hook = truncated.register_forward_hook(lambda module, args, output: latents.append(output))
        try:
            made = module(input)
        finally:
            hook.remove()
        return latents[-1], made

    return run


def _run_decoder(
    module: nn.Module, truncated: TruncatedBottleneck, latents: Tensor
) -> Callable[[], tuple[Tensor, Any]]:
    decoder = getattr(module, "decoder", None)
    if not isinstance(decoder, nn.Module) or any(child is truncated for child in decoder.modules()):
        decoder = None  # a method; or it takes what goes into the bottleneck, not what comes out
    assert truncated.decode is not None
    matrix, mean = truncated.decode.weight, truncated.decode.bias
    axis = axis_of(latents, truncated)
    code = (latents.to(matrix).movedim(axis, -1) - mean) @ matrix

    def run() -> tuple[Tensor, Any]:
        output = (code if truncated.decode is None else truncated.decode(code)).movedim(-1, axis)
        return output, None if decoder is None else decoder(output)

    return run


def _truncated(bottleneck: LinearBottleneck, directions: Tensor, mean: Tensor) -> TruncatedBottleneck:
    weight = bottleneck.weight.detach()
    rank, axis = directions.shape[1], bottleneck.feature_axis
    # Nothing is drawn for it.
    truncated = TruncatedBottleneck(bottleneck.dim, rank, feature_axis=axis, device="meta", dtype=weight.dtype)
    truncated.to_empty(device=weight.device)
    take_over(bottleneck, truncated)
    assert truncated.decode is not None
    set_parameters(truncated.encode, directions.T @ weight.to("cpu", torch.float64), -directions.T @ mean)
    set_parameters(truncated.decode, directions, mean)
    frozen = bottleneck.depth > 0 and not any(parameter.requires_grad for parameter in bottleneck.parameters())
    return truncated.requires_grad_(not frozen)


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
