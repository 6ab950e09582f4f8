"""New latents, drawn like those of the training data."""

from lightning_rank.sampling.latent_sampler import LatentSampler

__all__ = ["LatentSampler"]
