"""What stops a whole sweep, and how all processes hear of what went wrong in one."""

import errno
import os
from collections.abc import Callable

from lightning.pytorch import Trainer
from torch.multiprocessing.spawn import ProcessRaisedException


class DataError(RuntimeError):
    """Data that is missing, or cannot be downloaded or decoded; the message says what to do."""

    def __init__(self, message: str) -> None:
        # From a worker of a DataLoader it comes with the worker's traceback in its message, which ends with its own.
        super().__init__(message.rpartition(f"{DataError.__module__}.{DataError.__qualname__}: ")[2].strip())


class OutputError(OSError):
    """A folder for the results that cannot be made or written to."""


class FirstProcessError(RuntimeError):
    """What went wrong in another process, as this one hears of it: in words, for not every exception is pickled."""


def out_of_space(error: BaseException | None) -> bool:
    """Whether a full disk is what it comes from."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        error = error.__cause__ or error.__context__
    return False


def told_in_process(error: BaseException) -> BaseException:
    """What went wrong in a process that torch started for this one, which hears of it as a traceback in words."""
    if not isinstance(error, ProcessRaisedException):
        return error
    # Below the last line of code stands what was raised: "package.module.Kind: message", of one line or several.
    lines = str(error).rpartition('\n  File "')[2].splitlines()[1:]
    start = next((number for number, line in enumerate(lines) if line and not line[0].isspace()), 0)
    words = "\n".join(lines[start:]).strip()
    kind, _, message = words.partition(": ")
    if kind == f"{DataError.__module__}.{DataError.__qualname__}":
        return DataError(message)
    full = next((number for number in (errno.ENOSPC, errno.EDQUOT) if message.startswith(f"[Errno {number}]")), None)
    return FirstProcessError(words) if full is None else OSError(full, os.strerror(full))


def stops_all(error: BaseException) -> bool:
    """Whether all other runs would fail of it, too."""
    return isinstance(error, DataError | OutputError) or out_of_space(error)


def in_words(error: BaseException) -> str:
    """Such as ``ValueError: ...``; only the kind, if there is no more to it."""
    told = [] if isinstance(error, FirstProcessError) else [type(error).__name__]
    return ": ".join(filter(None, [*told, str(error)]))


def in_first_process(trainer: Trainer, action: Callable[[], None]) -> None:
    """Do something in one process; the others wait, as long as the process group lets them, and go on with it.

    A failure is one of all processes, so that they stay together: in the first the exception itself, in the others
    one of the same consequence.
    """
    error = None
    if trainer.is_global_zero:
        try:
            action()
        except Exception as caught:
            error = caught
    told = None if error is None else (isinstance(error, DataError), out_of_space(error), str(error), in_words(error))
    told = trainer.strategy.broadcast(told)
    if error is not None:
        raise error
    if told is not None:
        data, space, message, words = told
        if data:
            raise DataError(message)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) if space else FirstProcessError(words)
