"""How fast merges run here: each finished merge leaves its rate, from which a plan tells the expected time."""

import json
import os

from core.state import home, write_json

DEFAULT_GB_S = {"element": 3.0, "selection": 1.2, "whole": 0.05}  # a 2-core machine, warm page cache
START_S = 0.4


def expected_seconds(method: str, kind: str, total_bytes: int) -> float:
    """Seconds a merge of so many bytes (read and written) takes at the rate of the last one, else of its kind."""
    rate = DEFAULT_GB_S[kind]
    path = home() / "merge-rates.json"
    if path.is_file():
        try:
            rate = float(json.loads(path.read_text()).get(method, rate))
        except (ValueError, AttributeError):
            rate = DEFAULT_GB_S[kind]
    return START_S + total_bytes / (max(rate, 1e-3) * 1e9)


def record(method: str, total_bytes: int, seconds: float) -> None:
    """Remember the rate of a whole merge of more than 100 MB (smaller ones measure the start)."""
    if total_bytes < 10**8 or seconds <= 0:
        return
    path = home() / "merge-rates.json"
    try:
        rates = json.loads(path.read_text())
    except (OSError, ValueError):
        rates = {}
    rates[method] = round(total_bytes / seconds / 1e9, 4)
    os.makedirs(path.parent, exist_ok=True)
    write_json(path, rates)
