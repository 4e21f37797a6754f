"""Processes that a command begins beside itself: Prefect's embedded server, and the one that delivers to MLflow."""

from concurrent.futures import ThreadPoolExecutor

from tasks import courier, embedded
from tasks.runner import configured


def begin() -> None:
    """Start both, where the runner is on this machine; Ray's workers are told of theirs by the flow."""
    if configured().embeds:
        embedded.begin()
        courier.begin()


def stop() -> None:
    """End both at once: each takes a good part of a second."""
    with ThreadPoolExecutor() as pool:
        for ended in [pool.submit(embedded.stop), pool.submit(courier.stop)]:
            ended.result()
