"""Several threads for one list of jobs, ended at once by an interrupt or the first failure."""

import threading
from collections.abc import Callable, Iterator
from queue import Empty, SimpleQueue
from typing import TypeVar

from yarnconv.artifact import held_back, undisturbed

T = TypeVar("T")
Ended = SimpleQueue[BaseException | None]  # how a thread ended


def _next(ended: Ended) -> BaseException | None:
    while True:
        try:  # a signal that comes just before it sleeps is seen when it wakes
            return ended.get(timeout=0.1)
        except Empty:
            pass


def share_out(items: Iterator[T], work: Callable[[Iterator[T]], None], workers: int) -> None:
    """Run work(items) in each of `workers` threads; an item reaches one of them.

    The first exception of any is raised here, and on it, as on Ctrl-C, no thread takes another item.
    Nothing of `concurrent.futures`, nor a lock of threading's, is held where an interrupt may arrive:
    they are written in Python, and one that is interrupted in the middle breaks.
    """
    lock, stop = threading.Lock(), threading.Event()
    ended: Ended = SimpleQueue()

    def shared() -> Iterator[T]:
        while not stop.is_set():
            with lock:
                try:
                    item = next(items)
                except StopIteration:
                    return
            yield item

    def thread() -> None:
        try:
            work(shared())
        except BaseException as failure:
            ended.put(failure)
        else:
            ended.put(None)

    threads = [threading.Thread(target=thread) for _ in range(workers)]
    try:
        with held_back():
            for each in threads:
                each.start()
        for _ in threads:
            failure = _next(ended)
            if failure is not None:
                raise failure
    finally:
        with undisturbed():
            stop.set()
            for each in threads:
                if each.ident is not None:
                    each.join()
