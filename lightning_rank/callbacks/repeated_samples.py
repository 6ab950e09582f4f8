"""Samples that a distributed sampler repeats, so that every process gets as many."""

from collections.abc import Sized
from typing import Any, cast

from lightning.pytorch import Trainer
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler


def valid_samples(loader: Any, batch_idx: int) -> tuple[int, int] | None:
    """``(batch, valid)`` if only the first ``valid`` of this process's ``batch`` samples are its own, else ``None``.

    A distributed sampler fills its list of indices up from the start and hands it out round robin, so process ``k`` of
    ``world`` has ``len(range(k, n, world))`` samples of its own, and the repeated ones come last.

    Args:
        loader: What the batch came from.
        batch_idx: Number of the batch, from 0.

    Example:
        >>> data = list(range(5))
        >>> sampler = DistributedSampler(data, num_replicas=2, rank=1, shuffle=False)
        >>> valid_samples(DataLoader(data, batch_size=2, sampler=sampler), batch_idx=1)
        (1, 0)
    """
    sampler = getattr(loader, "sampler", None)
    batch_size = getattr(loader, "batch_size", None)
    if not isinstance(loader, DataLoader) or not isinstance(sampler, DistributedSampler) or batch_size is None:
        return None
    if sampler.drop_last:
        return None
    start = batch_idx * batch_size
    batch = min(batch_size, sampler.num_samples - start)
    own = len(range(sampler.rank, len(cast(Sized, sampler.dataset)), sampler.num_replicas))
    valid = max(0, min(batch, own - start))
    return (batch, valid) if valid < batch else None


def evaluation_loaders(trainer: Trainer) -> list[Any]:
    """The dataloaders that are being validated or tested."""
    # trainer.val_dataloaders would give those of an earlier fit while validating.
    loops = {"validate": trainer.validate_loop, "test": trainer.test_loop}
    loop = loops.get(str(trainer.state.fn and trainer.state.fn.value), trainer.fit_loop.epoch_loop.val_loop)
    return loop._combined_loader.flattened if loop._combined_loader is not None else []
