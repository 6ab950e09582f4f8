"""A density of the latents in the directions that they use, to draw new ones from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from lightning_rank.functional.compose import without_autocast
from lightning_rank.functional.moments import finite_moments, principal_directions
from lightning_rank.functional.rank import VARIANCE_RTOL, check_variance_rtol, numerical_rank
from lightning_rank.sampling._mixture import fit_mixture

Kind = Literal["gaussian", "mixture"]


class LatentSampler(nn.Module):
    r"""Draws latents like those that it was fitted on, in the subspace of their leading principal directions.

    .. math:: z = \bar z + V_r c, \qquad c \sim \textstyle\sum_k \pi_k \, \mathcal N(m_k, L_k L_k^T)

    with the mean of the latents, their ``r`` leading principal directions, and one Gaussian of their covariance
    (``kind="gaussian"``) or a mixture. In the subspace no covariance is singular, however low the rank.

    Fit it on latents of the *training* data: fitted on those of the test data, it would know what it is judged by.
    A child of a module, it is saved and loaded with it, fitted or not. Sampling, densities and loading need no
    scikit-learn.

    Args:
        rank: Width ``r`` of the subspace at most; ``None`` takes the numerical rank of the latents. Directions in which
            they do not vary are left out in any case.
        kind: ``"gaussian"``, or ``"mixture"`` for scikit-learn's ``GaussianMixture``.
        n_components: Number of Gaussians of a mixture.
        variance_rtol: Threshold of the numerical rank, relative to the largest variance.

    Attributes:
        mean: Mean of the latents, shape ``(dim,)``.
        directions: Principal directions as orthonormal columns, in falling variance, shape ``(dim, r)``.
        component_weights: Shape ``(K,)``; one Gaussian is a mixture of one.
        component_means: Along the directions, shape ``(K, r)``.
        component_scale_tril: Cholesky factors of the covariances along the directions, shape ``(K, r, r)``.

    Raises:
        TypeError: ``rank`` or ``n_components`` is not an int.
        ValueError: ``rank`` or ``n_components`` < 1, ``kind`` unknown, or ``variance_rtol`` not in [0, 1).

    Source: a density fitted to the latents after training, as in Ghosh et al. 2020 (arXiv 1903.12436) and, for latents
    of low rank, Jing et al. 2020 (arXiv 2010.00679).

    Example:
        >>> latents = torch.randn(500, 3) @ torch.randn(3, 32) + 7
        >>> sampler = LatentSampler().fit(latents)
        >>> sampler.directions.shape, sampler.sample(10).shape, sampler.log_prob(latents).shape
        (torch.Size([32, 3]), torch.Size([10, 32]), torch.Size([500]))
    """

    mean: Tensor
    directions: Tensor
    component_weights: Tensor
    component_means: Tensor
    component_scale_tril: Tensor

    def __init__(
        self,
        rank: int | None = None,
        kind: Kind = "gaussian",
        *,
        n_components: int = 10,
        variance_rtol: float = VARIANCE_RTOL,
    ) -> None:
        super().__init__()
        for name, value in (("rank", 1 if rank is None else rank), ("n_components", n_components)):
            if not isinstance(value, int) or isinstance(value, bool):
                raise TypeError(f"{name}: expected an int, got {type(value).__name__} ({value!r})")
            if value < 1:
                raise ValueError(f"{name}: expected 1 or more, got {value}")
        if kind not in get_args(Kind):
            raise ValueError(f"kind: expected one of {', '.join(map(repr, get_args(Kind)))}, got {kind!r}")
        check_variance_rtol(variance_rtol)
        self.rank = rank
        self.kind = kind
        self.n_components = n_components
        self.variance_rtol = variance_rtol
        # Empty until fitted or loaded; the device is that of the module all the same.
        for name, ndim in (("mean", 1), ("directions", 2)):
            self.register_buffer(name, torch.empty([0] * ndim))
        for name, ndim in (("weights", 1), ("means", 2), ("scale_tril", 3)):
            self.register_buffer(f"component_{name}", torch.empty([0] * ndim))
        self.register_load_state_dict_pre_hook(_take_shapes)

    def fit(self, latents: Tensor | Iterable[Tensor]) -> LatentSampler:
        """Fit to latents of the training data.

        Args:
            latents: Real floating-point tensor, shape ``(n, dim)``, or an iterable of such batches. A Gaussian is
                fitted batch by batch, in the memory of one ``dim x dim`` matrix; a mixture keeps all rows. The fit is
                in float64; what is kept is in the dtype of the first batch, float32 at
                least.

        Returns:
            ``self``.

        Raises:
            TypeError: ``latents`` is something else.
            ValueError: It is not of that shape, has NaN or infinities or fewer rows than components, or does not vary;
                or ``rank`` exceeds ``dim``.
            ImportError: ``kind="mixture"``, and scikit-learn is not installed.
        """
        # Outside inference mode, for densities are differentiable.
        with torch.inference_mode(False), torch.no_grad():
            checked = _checked(latents, self.rank)
            first = next(checked, torch.empty(0, 0))
            batches: Iterable[Tensor] = chain([first], checked)
            if self.kind == "mixture":
                batches = list(batches)
            moments = finite_moments(batches, "latents")
            deviations, directions = principal_directions(moments)
            rank = int(numerical_rank(deviations, variance_rtol=self.variance_rtol))
            if self.rank is not None:
                rank = min(self.rank, int((deviations > 0).sum()))
            if rank == 0:
                raise ValueError("latents: expected rows that vary, got the same throughout; their rank is 0")
            scale, directions = deviations[:rank], directions[:, :rank]
            weights, means, scale_tril = torch.ones(1), torch.zeros(1, rank), torch.eye(rank)[None]
            if self.kind == "mixture":
                # In units of the deviations, for what the fit adds to the variances is small in those only.
                codes = [(batch.cpu().double() - moments.mean) @ directions / scale for batch in batches]
                weights, means, scale_tril = fit_mixture(torch.cat(codes), self.n_components)
            self._set(
                torch.promote_types(first.dtype, torch.float32),
                mean=moments.mean,
                directions=directions,
                component_weights=weights,
                component_means=means * scale,
                component_scale_tril=scale[:, None] * scale_tril,
            )
        return self

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw latents.

        Args:
            n: Number of latents.
            generator: Source of random numbers, on whichever device; one with the same seed gives the same latents.

        Returns:
            Shape ``(n, dim)``, on the device and in the dtype of the buffers, as ``.to()`` sets them.

        Raises:
            TypeError: ``n`` is not an int.
            ValueError: ``n`` < 1.
            RuntimeError: Nothing was fitted or loaded yet.
        """
        if not isinstance(n, int) or isinstance(n, bool):
            raise TypeError(f"n: expected an int, got {type(n).__name__} ({n!r})")
        if n < 1:
            raise ValueError(f"n: expected 1 or more, got {n}")
        mean, directions, weights, means, scale_tril = self._fitted()
        # Drawn where the generator is, so that a seed means the same latents on every device.
        source = mean.device if generator is None else generator.device
        component = weights.to(source).multinomial(n, replacement=True, generator=generator)
        noise = torch.randn(n, means.shape[1], dtype=means.dtype, device=source, generator=generator).to(mean.device)
        component = component.to(mean.device)
        with without_autocast(mean.device.type):
            codes = means[component]
            for k, factor in enumerate(scale_tril):
                rows = (component == k).nonzero().squeeze(1)
                codes[rows] += noise[rows] @ factor.T
            return (mean + codes @ directions.T).to(self.mean.dtype)

    def log_prob(self, latents: Tensor) -> Tensor:
        """Log density of the projection of the latents onto the subspace.

        It is a density with respect to the Lebesgue measure of the ``r``-dimensional affine subspace, for a
        distribution on a subspace has none in the whole space. What a latent has across the subspace is not seen: a
        point off it gets the density of the nearest point in it. Samplers of different rank cannot be compared by it.

        Args:
            latents: Shape ``(..., dim)``, of the same device.

        Returns:
            Shape ``(...)``, in nats, in the dtype of the latents or buffers, whichever is wider, and float32 at least.
            Differentiable; NaN where the latents are.

        Raises:
            TypeError: ``latents`` is not a real floating-point tensor.
            ValueError: It is not ``dim`` wide.
            RuntimeError: Nothing was fitted or loaded yet.
        """
        mean, directions, weights, means, scale_tril = self._fitted()
        if not isinstance(latents, Tensor) or not latents.is_floating_point():
            got = latents.dtype if isinstance(latents, Tensor) else type(latents).__name__
            raise TypeError(f"latents: expected a real floating-point tensor, got {got}")
        if latents.ndim < 1 or latents.shape[-1] != len(mean):
            raise ValueError(f"latents: expected shape (..., {len(mean)}), got {tuple(latents.shape)}")
        dtype = torch.promote_types(latents.dtype, mean.dtype)
        mean, directions, weights, means, scale_tril = (
            part.to(dtype) for part in (mean, directions, weights, means, scale_tril)
        )
        components = MultivariateNormal(means, scale_tril=scale_tril, validate_args=False)
        density = MixtureSameFamily(Categorical(weights, validate_args=False), components, validate_args=False)
        with without_autocast(mean.device.type):
            return density.log_prob((latents.to(dtype) - mean) @ directions)

    def extra_repr(self) -> str:
        """The settings, as shown by ``print``."""
        components = f", n_components={self.n_components}" if self.kind == "mixture" else ""
        fitted = "x".join(map(str, self.directions.shape)) if self.directions.numel() else "not fitted"
        return f"rank={self.rank}, kind={self.kind!r}{components}, directions={fitted}"

    def _fitted(self) -> list[Tensor]:
        """The buffers, in float32 at least."""
        if self.directions.numel() == 0:
            raise RuntimeError(
                "LatentSampler: nothing to sample from yet; call fit(latents) or load a state_dict first"
            )
        wide = torch.promote_types(self.mean.dtype, torch.float32)
        return [buffer.to(wide) for buffer in self.buffers()]

    def _set(self, dtype: torch.dtype, **buffers: Tensor) -> None:
        for name, value in buffers.items():
            # A copy, so that no view keeps a larger tensor alive in a checkpoint.
            setattr(self, name, value.to(self.mean.device, dtype, copy=True).contiguous())


def _take_shapes(module: LatentSampler, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Take shapes and dtype from what is about to be loaded: they are not known before."""
    for name, buffer in module.named_buffers():
        saved = state_dict.get(prefix + name)
        if isinstance(saved, Tensor) and saved.ndim == buffer.ndim:
            setattr(module, name, torch.empty_like(saved, device=buffer.device))


def _checked(latents: Any, rank: int | None) -> Iterator[Tensor]:
    """The batches, one by one."""
    if isinstance(latents, Tensor):
        latents = [latents]
    elif not isinstance(latents, Iterable) or isinstance(latents, str | bytes | dict):
        raise TypeError(f"latents: expected a tensor or an iterable of tensors, got {type(latents).__name__}")
    dim = None
    for batch in latents:
        if not isinstance(batch, Tensor):
            raise TypeError(
                f"latents: expected batches that are tensors, got {type(batch).__name__}; of a dataloader pass what "
                "the encoder makes of each batch, as in fit(encoder(x) for x, _ in loader)"
            )
        if not batch.is_floating_point():
            raise TypeError(f"latents: expected real floating-point rows, got {batch.dtype}")
        if batch.ndim != 2 or batch.shape[1] != (dim or batch.shape[1]) or batch.shape[1] == 0:
            raise ValueError(
                f"latents: expected shape (n, {dim or 'dim'}), got {tuple(batch.shape)}; flatten latents with more "
                "axes, as in latents.flatten(1), or make each position a row"
            )
        dim = batch.shape[1]
        if rank is not None and rank > dim:
            raise ValueError(f"rank: expected at most {dim}, the width of the latents, got {rank}")
        yield batch.detach()
