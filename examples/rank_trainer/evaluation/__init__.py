"""What a trained autoencoder is good for: errors, linear probes, samples and pictures."""

from rank_trainer.evaluation.autoencoders import AutoencoderEvaluation, Encoded, decode, encode
from rank_trainer.evaluation.probes import linear_probe

__all__ = ["AutoencoderEvaluation", "Encoded", "decode", "encode", "linear_probe"]
