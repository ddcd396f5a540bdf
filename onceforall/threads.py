"""How many threads numpy's work uses."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from threadpoolctl import threadpool_limits


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """numpy with one thread, in this block: for many small products, as predictors and searches ask for them.

    A second thread makes them no faster; and where another program is busy, threads that wait for each other after
    each of them take twenty times as long (`benchmarks/two_at_once.py`). The number belongs to the whole process.
    """
    with threadpool_limits(1, user_api="blas"):
        yield
