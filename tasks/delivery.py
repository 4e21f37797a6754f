"""Delivery to MLflow: the records of a spool in order, and what becomes of one that MLflow does not take.

What could not be delivered (server down, database locked) is delivered later by the same run, by the next run, or by
``transferopt sync``. A record whose values MLflow can never take is put aside (:func:`tasks.spool.keep_refused`) and
does not hold up the rest; ``transferopt sync --retry-refused`` offers it again. Every other answer (a fault of the
database or of a proxy, a deleted experiment, a server that is not the one the run was begun at) may change, so the
run's records wait in order.
"""

import logging
from collections.abc import Iterable, Iterator
from itertools import count, groupby
from pathlib import Path

from core.state import StateError, exclusive
from tasks import mlflow_store, records, spool
from tasks.addresses import without_password
from tasks.records import Refused
from tasks.spool import NotDelivered

log = logging.getLogger(__name__)

# The one answer that a repetition does not change. MLflow says BAD_REQUEST of most faults of its database, and its
# client of a proxy's bare 400; RESOURCE_DOES_NOT_EXIST is what another server says of a run.
REFUSAL = "INVALID_PARAMETER_VALUE"


def deliver_all() -> tuple[int, int]:
    """Deliver the spools of all earlier runs: (runs fully delivered, records still pending).

    Runs that are going on deliver their own.
    """
    done = left = 0
    for folder in spool.folders():
        if spool.pending(folder) == 0:
            continue
        try:
            with exclusive(folder / "run"):
                deliver(folder)
            done += 1
        except StateError as busy:
            log.info("%s: %s", folder.name, busy)
        except NotDelivered as error:
            log.warning("%s: %s", folder.name, error)
            left += spool.pending(folder)
    return done, left


def deliver(folder: Path, fresh: bool = False) -> None:
    """Apply undelivered records in order; neighbours that only add values to one run go as one.

    Args:
        fresh: no delivery was broken off before, so MLflow holds nothing of what is undelivered.

    Raises:
        NotDelivered: the server is away, another than the run's, or does not take a record now; the position is kept.
        StateError: another process delivers this spool.
    """
    if spool.pending(folder) == 0:
        return
    with exclusive(folder / "delivery", wait_s=0):
        ids = spool.begun(folder)
        _at_home(folder, ids)
        for group in _groups(spool.undelivered(folder)):
            known = dict(ids)
            _hand_over(folder, group, ids, fresh)
            fresh = True  # only where an earlier delivery stopped can a record be there already
            if ids != known:
                spool.note_begun(folder, ids, mlflow_store.address())
            spool.note_delivered(folder, group[-1][0])


def _groups(waiting: Iterable[tuple[int, dict]]) -> Iterator[list[tuple[int, dict]]]:
    """Records in order; those beside each other that add values to the same run are one group."""
    numbers = count()
    for _, group in groupby(waiting, lambda r: r[1]["run"] if r[1]["op"] == "values" else next(numbers)):
        yield list(group)


def _hand_over(folder: Path, group: list[tuple[int, dict]], ids: dict[str, str], fresh: bool) -> None:
    """Apply a group; when MLflow refuses it, its records one by one."""
    try:
        records.apply(records.joined([op for _, op in group]), ids, fresh)
    except NotDelivered:
        raise
    except Exception as error:  # MLflow raises many kinds: HTTP, SQL, OS; nearly all mean "not now"
        if len(group) > 1 and _is_refusal(error):
            for one in group:
                _hand_over(folder, [one], ids, fresh)
            return
        end, op = group[0]
        if not _is_final(error, op, ids):
            raise NotDelivered(_told(error)) from error
        log.error("MLflow refused a record of %s (transferopt sync lists it): %s", op["run"], error)
        spool.keep_refused(folder, end, op, _first_line(error))


def _is_refusal(error: Exception) -> bool:
    """An answer about the values of a record, as against one about the server or the run."""
    from mlflow.exceptions import MlflowException

    return isinstance(error, Refused) or (isinstance(error, MlflowException) and error.error_code == REFUSAL)


def _is_final(error: Exception, op: dict, ids: dict[str, str]) -> bool:
    """Whether MLflow can never take this record: its values are wrong, and the run that they are for is there.

    A run that cannot begin waits, whatever the reason: without it all its records would be lost.

    Raises:
        NotDelivered: the run was deleted, which looks the same; or it cannot be asked for.
    """
    if isinstance(error, Refused):
        return True
    if op["op"] == "start" or not _is_refusal(error):
        return False
    run = ids[op["run"]]
    try:
        stage = mlflow_store.client().get_run(run).info.lifecycle_stage
    except Exception as unknown:
        raise NotDelivered(_told(unknown)) from unknown
    if stage == "deleted":
        raise NotDelivered(
            f"MLflow run {run} was deleted; restore it and the rest arrives: "
            f"{mlflow_store.restore_command('runs', '--run-id', run)}"
        )
    return True


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {_first_line(error)}"


def _first_line(error: Exception) -> str:
    return without_password((str(error).splitlines() or [""])[0][:200])


def _at_home(folder: Path, ids: dict[str, str]) -> None:
    """See that a run's records go on to where it was begun: under another address its store may still be the same.

    Raises:
        NotDelivered: it is another store.
    """
    begun, here = spool.begun_at(folder), mlflow_store.address()
    if begun in (None, here) or not ids:
        return
    try:
        mlflow_store.client().get_run(next(iter(ids.values())))
    except Exception as error:
        raise NotDelivered(
            f"the run was begun at {begun}, and {here} does not show it ({_told(error)}); call transferopt sync "
            "with MLFLOW_TRACKING_URI as it was"
        ) from error
