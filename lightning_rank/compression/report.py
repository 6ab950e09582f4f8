"""What a truncation did."""

import math
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Truncation:
    """What :func:`~lightning_rank.truncate_linear_bottleneck` did; ``print`` shows it as a table.

    Attributes:
        rank: Width of the code.
        principal_deviations: Standard deviations of the latents along all principal directions, descending, shape
            ``(dim,)``.
        folded_into: Name of the layer that took the second map in; ``None`` if it was kept.
        parameters: Number of parameters of the whole module, before and after.
        multiply_adds: Of one row of latents in the layers that changed, before and after. Before, the bottleneck
            counts as one ``dim x dim`` matrix, however many layers it has.

    Example:
        >>> import torch
        >>> print(Truncation(1, torch.tensor([3.0, 1.0]), None, (14, 12), (4, 4)))
                                                                before       after
        width of the latents                                         2           1
        parameters of the model                                     14          12
        multiply-adds a row, in what changed                         4           4
        90 % of the variance kept, 1 discarded; two maps kept
    """

    rank: int
    principal_deviations: Tensor
    folded_into: str | None
    parameters: tuple[int, int]
    multiply_adds: tuple[int, int]

    @property
    def singular_values(self) -> Tensor:
        """The name of 0.1 for ``principal_deviations``."""
        return self.principal_deviations

    @property
    def discarded_variance(self) -> float:
        """Mean squared distance between the latents and what is left of them, the sum of the discarded variances."""
        return self.principal_deviations[self.rank :].square().sum().item()

    @property
    def kept_variance_ratio(self) -> float:
        """Part of the total variance that is kept; NaN if there is none."""
        total = self.principal_deviations.square().sum().item()
        return 1 - self.discarded_variance / total if total > 0 else math.nan

    def __str__(self) -> str:
        rows = [
            ("width of the latents", len(self.principal_deviations), self.rank),
            ("parameters of the model", *self.parameters),
            ("multiply-adds a row, in what changed", *self.multiply_adds),
        ]
        lines = [f"{'':<42}{'before':>12}{'after':>12}", *(f"{a:<42}{b:>12,}{c:>12,}" for a, b, c in rows)]
        fold = "two maps kept" if self.folded_into is None else f"second map folded into {self.folded_into}"
        kept = f"{100 * self.kept_variance_ratio:.4g} % of the variance kept, {self.discarded_variance:.3g} discarded"
        return "\n".join([*lines, f"{kept}; {fold}"])
