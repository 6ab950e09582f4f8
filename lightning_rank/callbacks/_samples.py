"""Which samples of a batch are a process's own: distributed samplers repeat some, to give each process as many."""

from collections.abc import Sequence, Sized
from typing import Any, cast

from lightning.pytorch import Trainer
from torch.utils.data import BatchSampler, DataLoader
from torch.utils.data.distributed import DistributedSampler

#: ``(batch, valid)``: only the first ``valid`` of ``batch`` samples count; of any number of samples if it is ``None``.
Valid = tuple[int | None, int]


def valid_samples(loader: Any, batch_idx: int) -> Valid | None:
    """``(batch, valid)`` if only the first ``valid`` of this process's ``batch`` samples are its own, else ``None``.

    A distributed sampler fills its list of indices up from the start and hands it out round robin, so process ``k`` of
    ``world`` has ``len(range(k, n, world))`` samples of its own, and the repeated ones come last. Of a batch sampler
    with an order of its own that cannot be told.

    Args:
        loader: What the batch came from.
        batch_idx: Number of the batch, from 0.

    Example:
        >>> data = list(range(5))
        >>> sampler = DistributedSampler(data, num_replicas=2, rank=1, shuffle=False)
        >>> valid_samples(DataLoader(data, batch_size=2, sampler=sampler), batch_idx=1)
        (1, 0)
    """
    if not isinstance(loader, DataLoader):
        return None
    batches = loader.batch_sampler
    if batches is None:  # the sampler gives whole batches
        sampler, batch_size = loader.sampler, 1
    elif type(batches).__iter__ is BatchSampler.__iter__:
        sampler, batch_size = cast(BatchSampler, batches).sampler, cast(BatchSampler, batches).batch_size
    else:
        return None
    if not isinstance(sampler, DistributedSampler) or sampler.drop_last:
        return None
    start = batch_idx * batch_size
    batch = min(batch_size, sampler.num_samples - start)
    own = len(range(sampler.rank, len(cast(Sized, sampler.dataset)), sampler.num_replicas))
    valid = max(0, min(batch, own - start))
    return (None if batches is None else batch, valid) if valid < batch else None


def agreed_samples(loaders: Sequence[Any], batch_idx: int) -> Valid | None:
    """The same of several loaders, each of which gives a part of the batch; ``None`` where they disagree."""
    found = {valid_samples(loader, batch_idx) for loader in loaders}
    return found.pop() if len(found) == 1 else None


def training_loaders(trainer: Trainer) -> list[Any]:
    """The dataloaders that a training batch comes from."""
    combined = trainer.fit_loop._combined_loader
    return [] if combined is None else combined.flattened


def no_validation(trainer: Trainer) -> bool:
    """Whether ``fit`` will not validate; what is not loaded yet may hold something."""
    loaded = trainer.val_dataloaders is not None
    return not trainer.enable_validation or (loaded and sum(trainer.num_val_batches) == 0)


def evaluation_loaders(trainer: Trainer) -> list[Any]:
    """The dataloaders that are being validated or tested one after another."""
    # trainer.val_dataloaders would give those of an earlier fit while validating.
    loops = {"validate": trainer.validate_loop, "test": trainer.test_loop}
    loop = loops.get(str(trainer.state.fn and trainer.state.fn.value), trainer.fit_loop.epoch_loop.val_loop)
    combined = loop._combined_loader
    if combined is None:
        return []
    return combined.flattened if combined._mode == "sequential" or len(combined.flattened) == 1 else [combined]
