"""What is left of a linear bottleneck once the latents have low rank: two thin linear maps."""

import torch
from torch import Tensor, nn

from lightning_rank.functional._feature_axis import LayerFeatures, feature_axis_of, moved_back


class TruncatedBottleneck(nn.Module):
    r"""Two linear maps, ``dim -> rank`` and ``rank -> dim``, through a code.

    .. math:: c = V^T (W e - \mu), \qquad z = V c + \mu

    as :func:`~lightning_rank.truncate_linear_bottleneck` makes it: ``W`` the bottleneck that was, ``V`` the leading
    principal directions of its output and ``mu`` their mean.

    Args:
        dim: Width of the input.
        rank: Width of the code.
        folded: Return the code: the second map is part of the layer behind.
        feature_axis: Axis of the input that holds the features, as in :class:`~lightning_rank.LinearBottleneck`.
        device: Device of the parameters.
        dtype: Data type of the parameters.

    Attributes:
        encode: ``nn.Linear(dim, rank)``, input to code.
        decode: ``nn.Linear(rank, dim)``, code to latents; ``None`` if folded.

    Shape:
        ``(..., dim) -> (..., dim)``, or ``(..., rank)`` if folded; or with the features on ``feature_axis``.

    Example:
        >>> bottleneck = TruncatedBottleneck(16, rank=3)
        >>> bottleneck(torch.randn(5, 16)).shape, bottleneck.encode(torch.randn(5, 16)).shape
        (torch.Size([5, 16]), torch.Size([5, 3]))
    """

    beside: LayerFeatures | None = None

    def __init__(
        self,
        dim: int,
        rank: int,
        *,
        folded: bool = False,
        feature_axis: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.feature_axis = feature_axis
        self.encode = nn.Linear(dim, rank, device=device, dtype=dtype)
        self.decode = None if folded else nn.Linear(rank, dim, device=device, dtype=dtype)

    @property
    def dim(self) -> int:
        """Width of the input."""
        return self.encode.in_features

    @property
    def rank(self) -> int:
        """Width of the code."""
        return self.encode.out_features

    def forward(self, input: Tensor) -> Tensor:
        """Latents, or the code if folded."""
        axis = feature_axis_of(input, self.feature_axis, self.dim, self.beside)
        last = axis == input.ndim - 1
        output = self.encode(input if last else input.movedim(axis, -1))
        if self.decode is not None:
            output = self.decode(output)
        return output if last else moved_back(output, axis, input)

    def extra_repr(self) -> str:
        """The settings, as shown by ``print``."""
        return f"dim={self.dim}, rank={self.rank}, folded={self.decode is None}"
