"""A mixture of Gaussians by scikit-learn, as plain tensors."""

import torch
from torch import Tensor


def fit_mixture(rows: Tensor, n_components: int) -> tuple[Tensor, Tensor, Tensor]:
    """Weights, means and Cholesky factors of the covariances of a mixture of Gaussians.

    By expectation maximization, each component with a covariance of its own; its start is drawn from torch's global
    random numbers, so that ``torch.manual_seed`` governs it.

    Args:
        rows: On the CPU, shape ``(n, rank)``, in units in which 1e-6 is a small variance.
        n_components: Number of Gaussians.

    Returns:
        float64, of shapes ``(n_components,)``, ``(n_components, rank)`` and ``(n_components, rank, rank)``.

    Raises:
        ImportError: scikit-learn is not installed.
        ValueError: There are fewer rows than components.

    Example:
        >>> rows = torch.cat([torch.randn(200, 1) - 9, torch.randn(200, 1) + 9])
        >>> weights, means, scale_tril = fit_mixture(rows, 2)
        >>> weights.tolist(), sorted(means.round().flatten().tolist())
        ([0.5, 0.5], [-9.0, 9.0])
    """
    try:
        from sklearn.mixture import GaussianMixture
    except ImportError as error:
        raise ImportError(
            "kind='mixture' needs scikit-learn for the fit: pip install 'lightning-rank[sampling]'; kind='gaussian' "
            "does not"
        ) from error
    if len(rows) < n_components:
        raise ValueError(
            f"latents: expected at least as many rows as components, got {len(rows)} for {n_components}; "
            "set n_components to fewer"
        )
    seed = int(torch.randint(2**31, ()))
    mixture = GaussianMixture(n_components, random_state=seed).fit(rows.double().numpy())
    weights, means, covariances = map(torch.tensor, (mixture.weights_, mixture.means_, mixture.covariances_))
    return weights, means, torch.linalg.cholesky(covariances)
