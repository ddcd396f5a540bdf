import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from onceforall.data.workers import WorkerDied, work_ahead
from onceforall.errors import DataUnavailable, InvalidConfiguration, OFAError

LARGE = 1 << 20  # more than a socket holds


def squared(number: int) -> tuple[int, NDArray[np.uint8]]:
    return number**2, np.full(LARGE, number % 256, np.uint8)


def results(found: Iterator[tuple[int, NDArray[np.uint8]]]) -> list[int]:
    values = []
    for value, array in found:
        assert array.shape == (LARGE,)
        assert (array == int(value**0.5) % 256).all()
        values.append(value)
    return values


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("ahead", [1, 2, 7])
def test_results_come_in_order(workers: int, ahead: int) -> None:
    assert results(work_ahead(squared, range(20), workers, ahead)) == [number**2 for number in range(20)]
    assert list(work_ahead(squared, [], workers, ahead)) == []
    assert multiprocessing.active_children() == []


def test_so_much_and_no_more_is_asked_for_ahead() -> None:
    asked: list[int] = []

    def endless() -> Iterator[int]:
        while True:
            asked.append(len(asked))
            yield asked[-1]

    found = work_ahead(squared, endless(), 2, 5)
    for done in range(1, 20):
        next(found)
        assert len(asked) == done + 4
    found.close()


def test_no_shared_memory_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of which a container has little: semaphores lie there, too."""

    def refuse(*given: Any, **options: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("multiprocessing.synchronize.SemLock.__init__", refuse)
    monkeypatch.setattr(torch.UntypedStorage, "_share_fd_cpu_", refuse)
    monkeypatch.setattr(torch.UntypedStorage, "_share_filename_cpu_", refuse)
    assert results(work_ahead(squared, range(6), 2, 4)) == [0, 1, 4, 9, 16, 25]


def killed(number: int) -> tuple[int, NDArray[np.uint8]]:
    if number == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return squared(number)


def crashed(number: int) -> tuple[int, NDArray[np.uint8]]:
    if number == 5:
        os.kill(os.getpid(), signal.SIGUSR1)
    return squared(number)


def ended(number: int) -> tuple[int, NDArray[np.uint8]]:
    if number == 5:
        os._exit(3)
    return squared(number)


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (killed, r"was killed, .* memory was full: take fewer workers \(--workers\), .*\(--workers 0\)"),
        (crashed, r"died of signal \d+ .*, by a fault of a library .*\(--workers 0\) it shows where"),
        (ended, "ended with exit code 3, by a fault of a library"),
    ],
)
@pytest.mark.parametrize("workers", [1, 2])
def test_a_worker_that_dies_is_an_error(function: Callable[[int], Any], said: str, workers: int) -> None:
    with pytest.raises(WorkerDied, match=rf"worker process \d+ {said}"):
        list(work_ahead(function, range(20), workers, 4))
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("main", [True, False])
def test_a_worker_that_is_killed_in_a_message_is_an_error(main: bool) -> None:
    """Whether or not signals reach the thread that waits."""
    raised: list[WorkerDied] = []

    def use() -> None:
        found = work_ahead(squared, range(20), 1, 4)
        next(found)
        next(found)  # the next is on its way, and does not fit into the socket
        (process,) = multiprocessing.active_children()
        process.kill()
        try:
            list(found)
        except WorkerDied as error:
            raised.append(error)

    if main:
        use()
    else:
        thread = threading.Thread(target=use)
        thread.start()
        thread.join()
    assert len(raised) == 1


def refuse(number: int) -> int:
    raise DataUnavailable(f"not {number}")


class Strange(Exception):
    """Does not come back from a worker."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__("strange")


def strange(number: int) -> int:
    raise Strange(1, 2)


def unsent(number: int) -> object:
    return lambda: number


@pytest.mark.parametrize(
    ("function", "kind", "said"),
    [
        (refuse, DataUnavailable, r"^not 0\n"),
        (strange, OFAError, r"in a worker: Strange\('strange'\)"),
        (unsent, OFAError, "in a worker: <function"),
    ],
)
def test_what_a_worker_raises_is_raised(function: Callable[[int], Any], kind: type[OFAError], said: str) -> None:
    with pytest.raises(kind, match=said) as error:
        list(work_ahead(function, range(20), 2, 4))
    assert function is not refuse or "Traceback" in error.value.__notes__[0]


def test_processes_that_cannot_be_started_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidConfiguration, match=r"that are not forked need .* be pickled .*\(--workers 0\)"):
        list(work_ahead(lambda number: number, range(3), 2, 4, "spawn"))

    def fail() -> None:
        raise OSError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", fail)
    with pytest.raises(InvalidConfiguration, match=r"cannot be started .*temporarily unavailable.*\(--workers 0\)"):
        list(work_ahead(squared, range(3), 2, 4, "fork"))


PROCESSES = """
import os, signal, sys
from onceforall.data.workers import work_ahead

def polite(number):
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGINT)
    return os.getpid()

found = work_ahead(polite, range(10**6), 3, 6)
print(*sorted({next(found) for _ in range(6)}), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="forks, and reads the processes from /proc")
def test_workers_end_with_their_parent_and_not_before() -> None:
    """A signal to the whole group leaves it to the parent what is to be done."""
    done = subprocess.run([sys.executable, "-c", PROCESSES], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    pids = done.stdout.split()
    assert len(pids) == 3

    def runs(pid: str) -> bool:
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
        except OSError:
            return False

    for _ in range(600):
        if not any(map(runs, pids)):
            break
        time.sleep(0.05)
    assert not any(map(runs, pids))
