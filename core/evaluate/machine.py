"""What measured a row: the hardware, as far as rounding depends on it, and the commit of the code."""

import os
import platform
import subprocess
from functools import cache
from pathlib import Path
from typing import Any


@cache
def hardware() -> str:
    """What rounding depends on: count, model and vector width of the CPU, bfloat16 where it has it, CUDA device."""
    kind = f"{platform.machine()} {os.cpu_count()} cores"
    try:
        import torch

        from core.models.score import resolve_dtype
    except ImportError:
        return f"{kind}, {_cpu_model()}"
    found = [kind, _cpu_model(), torch.backends.cpu.get_cpu_capability()]
    found += ["bfloat16"] if resolve_dtype("auto") == "bfloat16" else []
    found += [torch.cuda.get_device_name(0)] if torch.cuda.is_available() else []
    return ", ".join(found)


def _cpu_model() -> str:
    """As Linux names it, else as Python does."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unnamed CPU"


@cache
def commit(folder: Path = Path()) -> str:
    """The git commit of a folder (the working one), ``+`` when changed; empty outside git."""
    settings: dict[str, Any] = {"capture_output": True, "text": True, "timeout": 10, "cwd": folder}
    try:
        head = subprocess.run(["git", "rev-parse", "--short", "HEAD"], **settings)
        dirty = subprocess.run(["git", "status", "--porcelain", "-uno"], **settings)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return head.stdout.strip() + ("+" if dirty.stdout.strip() else "") if head.returncode == 0 else ""
