"""Slow, obvious NumPy: what the library must agree with."""

import numpy as np


def deviations(latents: np.ndarray) -> np.ndarray:
    """Singular values of the centred rows over sqrt(n), padded with zeros to the width."""
    latents = latents.astype(np.float64)
    values = np.linalg.svd(latents - latents.mean(0), compute_uv=False) / np.sqrt(len(latents))
    return np.pad(values, (0, latents.shape[1] - len(values)))


def effective_rank(singular_values: np.ndarray) -> float:
    p = singular_values / singular_values.sum()
    p = p[p > 0]
    return float(np.exp(-(p * np.log(p)).sum()))
