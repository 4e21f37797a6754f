"""Worker processes of this machine for a flow's fan-out: Prefect's process pool, whose workers never outlive the flow.

A training hardly gains from a second thread (dropout and small products are serial), but two trainings in two processes
do not disturb each other. Each worker gets its share of the cores.
"""

import ctypes
import multiprocessing
import os
import signal
import sys
from typing import Any

from prefect.task_runners import ProcessPoolTaskRunner

PR_SET_PDEATHSIG = 1  # prctl(2): the signal a process gets when the one that made it is gone


class ProcessRunner(ProcessPoolTaskRunner):
    """Prefect's pool; when the flow is stopped or fails, its workers are ended at once instead of waited for."""

    def __enter__(self) -> "ProcessRunner":
        self._others = set(multiprocessing.active_children())
        return super().__enter__()

    def __exit__(self, exc_type: Any, exc_value: Any, traceback: Any) -> None:
        if exc_type is not None:  # unfinished stages keep their checkpoints
            for process in set(multiprocessing.active_children()) - self._others:
                process.kill()
        super().__exit__(exc_type, exc_value, traceback)


def process_runner(workers: int | None) -> ProcessRunner:
    """A runner of ``workers`` processes (as many as cores when None) that share the cores."""
    count = workers or os.cpu_count() or 1
    threads = max(1, (os.cpu_count() or 1) // count)
    return ProcessRunner(max_workers=count, initializer=begin_worker, initargs=(os.getpid(), threads))


def begin_worker(flow: int, threads: int) -> None:
    """Called first in a worker: torch's threads, no ears for Ctrl-C (the flow decides), and no life after the flow.

    Args:
        flow: process id of the flow.
    """
    os.environ["OMP_NUM_THREADS"] = str(threads)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":  # strictly, when the thread that made it is gone: one of the pool, which lives as long
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != flow:  # it ended before it could be noticed
        os._exit(1)
