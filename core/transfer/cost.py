"""What a run costs: seconds, peak memory, energy (measured where a counter can be read, else a declared estimate)."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

WATTS_PER_CORE = 8.0  # declared: package power of a server CPU under load over its cores
RAPL = Path("/sys/class/powercap/intel-rapl:0/energy_uj")


@dataclass
class Cost:
    """Cost of one fit. ``peak_memory_mb`` is what the process (or the CUDA device) took on top of the state before.

    ``energy_source``: "rapl", "nvml" or "estimate" (CPU seconds times 8 W a core).
    """

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    peak_memory_mb: float = 0.0
    energy_wh: float = 0.0
    energy_source: str = "estimate"
    trained_parameters: int = 0
    total_parameters: int = 0
    train_steps: int = 0
    train_examples: int = 0

    @property
    def trained_share(self) -> float:
        """Trained parameters over all parameters of the model that answers."""
        return self.trained_parameters / max(self.total_parameters, 1)


@contextmanager
def metered(every_s: float = 0.02) -> Iterator[Cost]:
    """Measure the body: ``with metered() as cost: ...``; fields are filled at exit."""
    import psutil

    cost, process = Cost(), psutil.Process()
    gpu = _Gpu()
    start, cpu, joules = time.perf_counter(), time.process_time(), _rapl()
    before = peak = process.memory_info().rss
    stop = threading.Event()

    def sample() -> None:
        nonlocal peak
        while not stop.wait(every_s):
            peak = max(peak, process.memory_info().rss)

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield cost
    finally:
        stop.set()
        thread.join()
        peak = max(peak, process.memory_info().rss)
        cost.seconds, cost.cpu_seconds = time.perf_counter() - start, time.process_time() - cpu
        cost.peak_memory_mb = gpu.peak_mb() if gpu.there else (peak - before) / 2**20
        after = _rapl()
        if gpu.there and gpu.joules() is not None:
            cost.energy_wh, cost.energy_source = gpu.joules() / 3600, "nvml"
        elif joules is not None and after is not None and after >= joules:
            cost.energy_wh, cost.energy_source = (after - joules) / 3600, "rapl"
        else:
            cost.energy_wh = cost.cpu_seconds * WATTS_PER_CORE / 3600


def _rapl() -> float | None:
    """Joules counted by the CPU package, None where the counter is absent or not readable."""
    try:
        return int(RAPL.read_text()) / 1e6
    except (OSError, ValueError):
        return None


class _Gpu:
    """Peak memory and energy of the current CUDA device since construction."""

    def __init__(self) -> None:
        import torch

        self.there = torch.cuda.is_available()
        if self.there:
            torch.cuda.reset_peak_memory_stats()
            self._before, self._joules = torch.cuda.memory_allocated(), _nvml_joules()

    def peak_mb(self) -> float:
        import torch

        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - self._before) / 2**20

    def joules(self) -> float | None:
        now = _nvml_joules()
        return None if now is None or self._joules is None else now - self._joules


def _nvml_joules() -> float | None:
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        return pynvml.nvmlDeviceGetTotalEnergyConsumption(pynvml.nvmlDeviceGetHandleByIndex(0)) / 1e3
    except pynvml.NVMLError:
        return None
