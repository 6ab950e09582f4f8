"""Train a low-rank autoencoder of digits from a configuration file.

``python examples/lightning_cli.py fit --config examples/lightning_cli.yaml --model.gain 0.3``
"""

from lightning.pytorch.cli import LightningCLI

from lightning_rank import LinearBottleneckMixin
from rank_trainer import data
from rank_trainer.autoencoders import Autoencoder, mlp_autoencoder
from rank_trainer.data import TensorDataModule


class LowRankAutoencoder(LinearBottleneckMixin, Autoencoder):
    """The MLP autoencoder with a linear bottleneck.

    Args:
        dim: Width of the latents.
        depth: Number of linear layers.
        gain: End-to-end gain: the knob of the rank.
        lr: Learning rate of Adam.
    """

    def __init__(self, dim: int = 32, depth: int = 4, gain: float = 0.1, lr: float = 1e-3) -> None:
        plain = mlp_autoencoder(dim=dim)
        super().__init__(plain.encoder, plain.decoder, lr)
        self.save_hyperparameters()
        self.add_linear_bottleneck(dim=dim, depth=depth, gain=gain, after="encoder")


class Digits(TensorDataModule):
    """scikit-learn's digits.

    Args:
        batch_size: Images a batch.
    """

    def __init__(self, batch_size: int = 128) -> None:
        images = data.digits()
        super().__init__(images.train.tensors, images.val.tensors, images.test.tensors, batch_size)


if __name__ == "__main__":
    LightningCLI(LowRankAutoencoder, Digits, seed_everything_default=0, save_config_kwargs={"overwrite": True})
