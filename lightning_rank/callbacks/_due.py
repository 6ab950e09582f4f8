"""When pictures are due: one rule, counted from the last ones."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

Every = int | Literal["auto"] | None

_SHARE = 0.05  # of the time since the last pictures
_FIRST_COST = 1.0  # seconds: what the first ones are reckoned to take


class Due:
    """Says when pictures are due.

    Args:
        every: After so many occasions since the last pictures; ``"auto"`` as soon as they take no more than 5 % of the
            time since the last ones; ``None`` for never.
        at_once: Whether the first occasion is one, if occasions are counted.
        clock: Seconds.

    Example:
        >>> due = Due(2)
        >>> [due.now() for _ in range(2)]
        [True, True]
        >>> with due.drawing():
        ...     pass
        >>> [due.now() for _ in range(3)]
        [False, True, True]
    """

    def __init__(self, every: Every, at_once: bool = True, clock: Callable[[], float] = time.monotonic) -> None:
        self._every = every
        self._clock = clock
        self._last, self._cost = clock(), _FIRST_COST
        self._occasions: int | None = None if at_once else 0

    def now(self) -> bool:
        """Whether pictures are due; to be asked on each occasion."""
        if self._every is None:
            return False
        if isinstance(self._every, str):
            return self._cost <= _SHARE * (self._clock() - self._last)
        if self._occasions is not None:
            self._occasions += 1
        return self._occasions is None or self._occasions >= self._every

    @contextmanager
    def drawing(self) -> Iterator[None]:
        """Around the making of pictures, to see what they cost."""
        start = self._clock()
        yield
        self._last = self._clock()
        self._cost, self._occasions = self._last - start, 0
