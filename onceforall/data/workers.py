"""Work that other processes do: given back in order, some of it done ahead, and never waited for in vain.

Each worker has a socket of its own. What it found comes through that as bytes, so that no shared memory is
needed, whose size a container limits. The other end of the socket closes with the worker however it ends, and so
does every wait for it.
"""

from __future__ import annotations

import itertools
import multiprocessing
import pickle
import queue
import signal
import sys
import threading
import traceback
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, Literal, TypeVar

import torch

from onceforall.errors import InvalidConfiguration, OFAError

StartMethod = Literal["fork", "forkserver", "spawn"]
W = TypeVar("W")
R = TypeVar("R")

PATIENCE = 10  # seconds for a process to end that has closed its socket


class WorkerDied(OFAError, RuntimeError):
    """A worker process ended before its work was done."""


def work_ahead(
    function: Callable[[W], R], works: Iterable[W], workers: int, ahead: int, method: StartMethod | None = None
) -> Iterator[R]:
    """`function` of each work, in order, by so many processes; `ahead` works are done before they are asked for.

    Without workers, in this process when they are asked for. Closing the iterator ends the workers. What a
    worker raises is raised here, with its traceback as a note. Raises WorkerDied for one that ended,
    InvalidConfiguration where processes cannot be started.
    """
    if not workers:
        yield from map(function, works)
        return
    works, asked, started = iter(works), deque[_Worker](), list[_Worker]()
    try:
        for _ in range(workers):
            started.append(_Worker.start(function, method))
        turns = itertools.cycle(started)
        while True:
            for work in itertools.islice(works, ahead - len(asked)):
                worker = next(turns)
                worker.send(work)
                asked.append(worker)
            if not asked:
                return
            yield asked.popleft().receive()
    finally:
        for worker in started:
            worker.end()


@dataclass(frozen=True)
class _Worker:
    """A process and this end of its socket."""

    process: multiprocessing.process.BaseProcess
    socket: Connection

    @classmethod
    def start(cls, function: Callable[[Any], Any], method: StartMethod | None) -> _Worker:
        method = method or ("fork" if sys.platform == "linux" else None)
        context: Any = multiprocessing.get_context(method)
        try:
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(function, theirs, ours), daemon=True)
            with warnings.catch_warnings():
                # From Python 3.12 on; why it is safe here is said in `_serve`.
                warnings.filterwarnings("ignore", r"This process .* is multi-threaded", DeprecationWarning)
                process.start()
        except OSError as error:
            raise InvalidConfiguration(
                f"worker processes cannot be started ({error}): take fewer (--workers), or none (--workers 0)"
            ) from error
        except (AttributeError, TypeError, pickle.PicklingError) as error:
            raise InvalidConfiguration(
                f"worker processes that are not forked need pictures and augmentation that can be pickled ({error}): "
                "define these in a module, or take no workers (--workers 0)"
            ) from error
        theirs.close()
        return cls(process, ours)

    def send(self, work: Any) -> None:
        with suppress(BrokenPipeError, ConnectionResetError):  # `receive` says that it died
            self.socket.send(work)

    def receive(self) -> Any:
        try:
            head, count = self.socket.recv()
            buffers = [self.socket.recv_bytes() for _ in range(count)]
        except (EOFError, OSError):
            raise WorkerDied(self._cause()) from None
        found = pickle.loads(head, buffers=buffers)
        if isinstance(found, _Raised):
            raise found.error
        return found

    def _cause(self) -> str:
        self.process.join(PATIENCE)
        code = self.process.exitcode or 0
        if code == -signal.SIGKILL:
            return (
                f"worker process {self.process.pid} was killed, most often by the system because memory was full: take "
                "fewer workers (--workers), a smaller batch size, or no workers (--workers 0)"
            )
        how = f"died of signal {-code} ({signal.strsignal(-code)})" if code < 0 else f"ended with exit code {code}"
        return (
            f"worker process {self.process.pid} {how}, by a fault of a library that decodes or augments pictures; "
            "without workers (--workers 0) it shows where"
        )

    def end(self) -> None:
        self.socket.close()
        self.process.kill()  # nothing of its own is left to be done
        self.process.join()


@dataclass(frozen=True)
class _Raised:
    error: BaseException


def _serve(function: Callable[[Any], Any], socket: Connection, other_end: Connection) -> None:
    """What a worker does until the other end of its socket is closed.

    Torch gets one thread before anything else is done: a forked child never waits for threads of its parent
    that did not come with it. 300 starts beside a thread that trained all the time took 0.12 s each, none hung;
    "forkserver" took 0.15 s each, 4 s the first time, "spawn" 4 s each.
    """
    torch.set_num_threads(1)
    for number in (signal.SIGINT, signal.SIGTERM):  # these reach the whole group: its parent decides
        signal.signal(number, signal.SIG_IGN)
    other_end.close()
    found: queue.SimpleQueue[Any] = queue.SimpleQueue()
    threading.Thread(target=_send, args=(socket, found), daemon=True).start()
    with suppress(EOFError, OSError):
        while True:
            work = socket.recv()
            try:
                found.put(function(work))
            except Exception as error:
                error.add_note(traceback.format_exc())
                found.put(_Raised(error))


def _send(socket: Connection, found: queue.SimpleQueue[Any]) -> None:
    """Sends what was found, its arrays as they lie in memory, while the next is worked on."""
    with suppress(OSError):  # nobody is there any more
        while True:
            buffers: list[pickle.PickleBuffer] = []
            result = found.get()
            try:
                head = pickle.dumps(result, protocol=5, buffer_callback=buffers.append)
                if isinstance(result, _Raised):
                    pickle.loads(head)  # some errors do not come back
            except Exception:
                raised = result.error if isinstance(result, _Raised) else result
                head, buffers = pickle.dumps(_Raised(OFAError(f"in a worker: {raised!r}"))), []
            socket.send((head, len(buffers)))
            for buffer in buffers:
                socket.send_bytes(buffer.raw())
