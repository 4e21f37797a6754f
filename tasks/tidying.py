"""A size limit for the cache, kept after every run: for schedules, whose cache nobody looks after."""

import logging
import os

from core.state import Cache

LIMIT = "TRANSFEROPT_CACHE_LIMIT_GB"
log = logging.getLogger(__name__)


def limit_bytes() -> int | None:
    """The limit that the environment sets; None without one.

    Raises:
        ValueError: it is no number of gigabytes.
    """
    text = os.environ.get(LIMIT, "").strip()
    if not text:
        return None
    try:
        limit = float(text)
    except ValueError:
        limit = -1.0
    if not limit >= 0:
        raise ValueError(f"{LIMIT}={text}: give a number of gigabytes, or unset it for no limit")
    return int(1e9 * limit)


def keep_within_limit() -> None:
    """Remove the longest unused folders while the cache is above its limit; nothing that a model or a run needs."""
    limit = limit_bytes()
    if limit is None:
        return
    from mlflow.exceptions import MlflowException

    from tasks.pruning import entries, prune

    try:
        gone = prune(entries([Cache()]), max_age_s=None, max_bytes=limit)
    except (MlflowException, OSError, ValueError) as error:  # nobody knows what registered models need
        log.warning("the cache was not tidied: %s", error)
        return
    if gone:
        log.info("%s: removed %d folders, %.0f MB", LIMIT, len(gone), sum(e.bytes for e in gone) / 1e6)
