"""Delivery to MLflow through a spool on disk: a run never waits for, or fails with, its tracking server.

Every record is first appended to ``<spool>/<run>/ops.jsonl``; a thread delivers records in order and stores how far it
came. What could not be delivered (server down, database locked) is delivered later by the same run, by the next run, or
by ``transferopt sync``. Repeating a delivery is harmless: runs are found by their own id, parameters, tags and files
are overwritten with equal content, and MLflow keeps one copy of equal metric points. A record whose values MLflow can
never take is kept in ``<spool>/<run>/refused.jsonl``, counted and listed, and does not hold up the rest; ``transferopt
sync --retry-refused`` offers it again. Every other answer (a fault of the database or of a proxy, a deleted experiment,
a server that is not the one the run was begun at) may change, so the run's records wait in order.
"""

import errno
import json
import logging
import math
import os
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, suppress
from functools import cache
from itertools import count, groupby
from pathlib import Path
from typing import Any

from core.state import StateError, exclusive, home, write_bytes, write_json
from tasks import courier
from tasks.addresses import without_password

log = logging.getLogger(__name__)
LOCAL_ID = "transferopt.id"
# MLflow's own limits for one log_batch are 1,000 metrics, 100 parameters, 100 tags and 1,000 of all together
BATCH = {"metrics": 800, "params": 100, "tags": 100}
RETRY_S = 2.0
GATHER_S = 0.2  # how long a record waits for others, to be delivered with them

# The one answer that a repetition does not change. MLflow says BAD_REQUEST of most faults of its database, and its
# client of a proxy's bare 400; RESOURCE_DOES_NOT_EXIST is what another server says of a run.
REFUSAL = "INVALID_PARAMETER_VALUE"


class NotDelivered(Exception):
    """The tracking server did not take a record; it stays in the spool."""


class Refused(ValueError):
    """A record that can never be delivered: the run it belongs to was refused."""


def spool_root() -> Path:
    return home() / "spool"


class Spool:
    """Records of one flow run. ``append`` is cheap and never fails because of the server."""

    def __init__(self, run: str):
        self.folder = spool_root() / run
        self.folder.mkdir(parents=True, exist_ok=True)
        self._held = ExitStack()  # while this process lives, no other delivers this spool
        self._held.enter_context(exclusive(self.folder / "run"))
        self._lock = threading.Lock()
        self._wake, self._closing = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._work, name="tracking", daemon=True)
        self._thread.start()

    def append(self, op: str, run: str, **fields: Any) -> None:
        """Record one operation of the run with local id ``run``.

        Raises:
            OSError: the disk is full; the record is not there, those before it are.
        """
        line = (json.dumps({"op": op, "run": run, **fields}, sort_keys=True) + "\n").encode()
        with self._lock, open(self.folder / "ops.jsonl", "ab", buffering=0) as f:
            before = f.tell()
            try:
                if f.write(line) < len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.folder))
                os.fsync(f.fileno())
            except OSError:
                os.truncate(f.fileno(), before)  # half a record would swallow the next one
                raise
        self._wake.set()

    def close(self, wait_s: float = 60) -> bool:
        """Deliver what is left, waiting at most ``wait_s``; True when nothing is left."""
        self._closing.set()
        self._wake.set()
        self._thread.join(wait_s)
        self._held.close()
        return pending(self.folder) == 0

    def _work(self) -> None:
        quiet, earlier, fresh = False, True, True
        while True:
            if self._wake.wait(RETRY_S) and not earlier:  # the run itself is told at once
                self._closing.wait(GATHER_S)
            self._wake.clear()
            last = self._closing.is_set()
            try:
                _send(self.folder, fresh)
                quiet, fresh = False, True
                if earlier:
                    _send(None)
                earlier = False
            except (NotDelivered, StateError, OSError) as error:
                if not quiet:
                    log.warning("tracking is kept on disk for now: %s", error)
                quiet, fresh = True, False
            if last:
                return


def _send(folder: Path | None, fresh: bool = False) -> None:
    """Deliver a run's spool (None: those of earlier runs), through the courier where there is one."""
    if courier.running():
        try:
            said = courier.ask(folder, fresh)
        except courier.CourierLost:
            fresh = False  # part of it may be there
        else:
            if said is not None:
                raise NotDelivered(said)
            return
    deliver_all() if folder is None else deliver(folder, fresh)


def pending(folder: Path) -> int:
    """Number of records not yet delivered."""
    return sum(1 for _ in _undelivered(folder))


def folders() -> list[Path]:
    """The spools of all runs, in the order in which they were begun."""
    root = spool_root()
    found = [f for f in root.iterdir() if (f / "ops.jsonl").exists()] if root.is_dir() else []
    return sorted(found, key=lambda f: ((f / "ops.jsonl").stat().st_ctime_ns, f.name))


def waiting_paths(folder: Path) -> Iterator[Path]:
    """Files and folders that undelivered and refused records of a run name: MLflow gets them from there."""
    records = [op for _, op in _undelivered(folder)] + [entry["record"] for entry in refused(folder)]
    yield from (Path(op["path"]) for op in records if "path" in op)


def deliver_all() -> tuple[int, int]:
    """Deliver the spools of all earlier runs: (runs fully delivered, records still pending).

    Runs that are going on deliver their own.
    """
    done = left = 0
    for folder in folders():
        if pending(folder) == 0:
            continue
        try:
            with exclusive(folder / "run"):
                deliver(folder)
            done += 1
        except StateError as busy:
            log.info("%s: %s", folder.name, busy)
        except NotDelivered as error:
            log.warning("%s: %s", folder.name, error)
            left += pending(folder)
    return done, left


def deliver(folder: Path, fresh: bool = False) -> None:
    """Apply undelivered records in order; neighbours that only add values to one run go as one.

    Args:
        fresh: no delivery was broken off before, so MLflow holds nothing of what is undelivered.

    Raises:
        NotDelivered: the server is away, another than the run's, or does not take a record now; the position is kept.
        StateError: another process delivers this spool.
    """
    if pending(folder) == 0:
        return
    with exclusive(folder / "delivery", wait_s=0):
        ids = _read(folder / "runs.json", {})
        _at_home(folder, ids)
        for group in _groups(_undelivered(folder)):
            known = dict(ids)
            _hand_over(folder, group, ids, fresh)
            fresh = True  # only where an earlier delivery stopped can a record be there already
            if ids != known:
                write_json(folder / "runs.json", ids)
                write_json(folder / "server.json", _here())
            write_json(folder / "delivered.json", group[-1][0])


def _groups(records: Iterable[tuple[int, dict]]) -> Iterator[list[tuple[int, dict]]]:
    """Records in order; those beside each other that add values to the same run are one group."""
    numbers = count()
    for _, group in groupby(records, lambda r: r[1]["run"] if r[1]["op"] == "values" else next(numbers)):
        yield list(group)


def _hand_over(folder: Path, group: list[tuple[int, dict]], ids: dict[str, str], fresh: bool) -> None:
    """Apply a group; when MLflow refuses it, its records one by one."""
    try:
        _apply(_joined([op for _, op in group]), ids, fresh)
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
        _keep_refused(folder, end, op, _first_line(error))


def _joined(ops: list[dict]) -> dict:
    """Records of values as one.

    Raises:
        Refused: two values of one parameter; MLflow takes the first, the second is refused on its own.
    """
    if len(ops) == 1:
        return ops[0]
    joined: dict[str, Any] = {"op": "values", "run": ops[0]["run"], "metrics": [], "params": {}, "tags": {}}
    for op in ops:
        for name, value in op.get("params", {}).items():
            if joined["params"].setdefault(name, value) != value:
                raise Refused(f"parameter {name} has two values")
        joined["metrics"] += op.get("metrics", [])
        joined["tags"] |= op.get("tags", {})
    return joined


def refused(folder: Path) -> list[dict[str, Any]]:
    """What MLflow refused for good, in order: ``at`` (byte position), ``error``, ``record``."""
    path = folder / "refused.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return list({entry["at"]: entry for entry in map(json.loads, lines)}.values())


def forget_refused() -> None:
    """Drop what MLflow refused, of all runs."""
    for folder in folders():
        (folder / "refused.jsonl").unlink(missing_ok=True)


def retry_refused() -> int:
    """Put what MLflow refused behind the undelivered records of its run, in order; the number of records.

    A run that is going on keeps its own.
    """
    again = 0
    for folder in folders():
        entries = refused(folder)
        if not entries:
            continue
        try:
            with exclusive(folder / "run"), exclusive(folder / "delivery"), open(folder / "ops.jsonl", "ab") as f:
                # the line that a kill tore ends here, lest it swallow the first of these
                f.write(b"\n" + b"".join(json.dumps(e["record"], sort_keys=True).encode() + b"\n" for e in entries))
                f.flush()
                os.fsync(f.fileno())
                (folder / "refused.jsonl").unlink()
        except StateError as busy:
            log.info("%s: %s", folder.name, busy)
        else:
            again += len(entries)
    return again


def _keep_refused(folder: Path, at: int, record: dict, error: str) -> None:
    """Append a refused record; whole or not at all."""
    entries = [*refused(folder), {"at": at, "error": error, "record": record}]
    write_bytes(folder / "refused.jsonl", "".join(json.dumps(e, sort_keys=True) + "\n" for e in entries).encode())


def _first_line(error: Exception) -> str:
    return without_password((str(error).splitlines() or [""])[0][:200])


def _undelivered(folder: Path) -> Iterator[tuple[int, dict]]:
    """(byte position after the record, record) of each undelivered complete line."""
    path = folder / "ops.jsonl"
    if not path.exists():
        return
    position = _read(folder / "delivered.json", 0)
    with open(path, "rb") as f:
        f.seek(position)
        for line in f:
            if not line.endswith(b"\n"):  # torn by a kill; the next append continues after it
                break
            position += len(line)
            try:
                op = json.loads(line)
            except ValueError:
                continue
            yield position, op


def _read(path: Path, default: Any) -> Any:
    return json.loads(path.read_text()) if path.exists() else default


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
        stage = client().get_run(run).info.lifecycle_stage
    except Exception as unknown:
        raise NotDelivered(_told(unknown)) from unknown
    if stage == "deleted":
        raise NotDelivered(
            f"MLflow run {run} was deleted; restore it and the rest arrives: {_restore('runs', '--run-id', run)}"
        )
    return True


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {_first_line(error)}"


def _restore(*what: str) -> str:
    """The command that restores what was deleted."""
    return f"MLFLOW_TRACKING_URI={_here()} mlflow {what[0]} restore {' '.join(what[1:])}"


def _here() -> str:
    return without_password(os.environ["MLFLOW_TRACKING_URI"])


def _at_home(folder: Path, ids: dict[str, str]) -> None:
    """See that a run's records go on to where it was begun: under another address its store may still be the same.

    Raises:
        NotDelivered: it is another store.
    """
    begun = _read(folder / "server.json", _here())
    if begun == _here() or not ids:
        return
    try:
        client().get_run(next(iter(ids.values())))
    except Exception as error:
        raise NotDelivered(
            f"the run was begun at {begun}, and {_here()} does not show it ({_told(error)}); call transferopt sync "
            "with MLFLOW_TRACKING_URI as it was"
        ) from error


@cache
def client():
    """The MLflow client of this process."""
    import mlflow

    home().mkdir(parents=True, exist_ok=True)
    # a server that is away or a locked database is said once, by the spool, and not with every try or with a traceback
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    return mlflow.MlflowClient()


def open_early() -> None:
    """Import MLflow, and open its store in the background: both take seconds, in which Prefect's server starts.

    What is imported is imported here, in the caller's thread: two threads that import one package at once can see it
    half made. Without an address Prefect imports its server, which shares packages with MLflow's store.
    """
    import mlflow  # noqa: F401

    if not os.environ.get("PREFECT_API_URL"):
        import prefect.server.api.server  # noqa: F401

    def work() -> None:
        with suppress(Exception):  # a store that is away is reported where records are delivered
            client().search_experiments(max_results=1)

    threading.Thread(target=work, name="open tracking", daemon=True).start()


@cache
def experiment_id(name: str) -> str:
    """Id of the experiment, created on first use; artifacts lie under TRANSFEROPT_HOME for the embedded store.

    Raises:
        NotDelivered: it was deleted; MLflow takes no new one of its name.
    """
    found = client().get_experiment_by_name(name)
    if found is not None:
        if found.lifecycle_stage == "deleted":
            raise NotDelivered(
                f"experiment {name!r} was deleted in MLflow; restore it and its runs arrive: "
                f"{_restore('experiments', '--experiment-id', found.experiment_id)}"
            )
        return found.experiment_id
    uri = os.environ["MLFLOW_TRACKING_URI"]
    location = (home().resolve() / "mlartifacts" / name).as_uri() if uri.startswith("sqlite") else None
    # so that MLflow shows description, parameters and charts of its runs, not the pages of language applications
    kind = {"mlflow.experimentKind": "custom_model_development"}
    return client().create_experiment(name, artifact_location=location, tags=kind)


def find_run(local_id: str) -> str | None:
    """MLflow run id of a local id, or None."""
    return find_run_with(LOCAL_ID, local_id)


def find_run_with(tag: str, value: str) -> str | None:
    """MLflow id of the latest run with this tag, or None."""
    experiments = [e.experiment_id for e in client().search_experiments()]
    runs = client().search_runs(experiments, f"tags.`{tag}` = '{value}'", max_results=1)
    return runs[0].info.run_id if runs else None


def _apply(op: dict, ids: dict[str, str], fresh: bool) -> None:
    needed = op.get("parent") if op["op"] == "start" else op["run"]
    if needed and needed not in ids:
        raise Refused(f"run {needed} was refused, so what belongs to it has no place")
    if op["op"] == "start" and not fresh and (there := find_run(op["run"])):
        ids[op["run"]] = there
        return
    APPLY[op["op"]](op, ids)


def _start(op: dict, ids: dict[str, str]) -> None:
    from mlflow.exceptions import MlflowException

    tags = {LOCAL_ID: op["run"], **_cut(op["tags"])}
    if op.get("parent"):
        tags["mlflow.parentRunId"] = ids[op["parent"]]
    begun = {"start_time": op["time"], "tags": tags, "run_name": op["name"]}
    try:
        created = client().create_run(experiment_id(op["experiment"]), **begun)
    except MlflowException:
        experiment_id.cache_clear()  # it may have been deleted since it was found: then this says so
        experiment_id(op["experiment"])
        raise
    ids[op["run"]] = created.info.run_id


def _cut(tags: dict[str, str]) -> dict[str, str]:
    return {k: str(v)[:5000] for k, v in tags.items()}


def _values(op: dict, ids: dict[str, str]) -> None:
    from mlflow.entities import Metric, Param, RunTag

    values = {
        "metrics": [Metric(key, value, time_ms, step) for key, value, time_ms, step in op.get("metrics", [])],
        "params": [Param(k, str(v)[:6000]) for k, v in op.get("params", {}).items()],
        "tags": [RunTag(k, v) for k, v in _cut(op.get("tags", {})).items()],
    }
    for i in range(max(math.ceil(len(v) / BATCH[kind]) for kind, v in values.items())):
        batch = {kind: v[i * BATCH[kind] : (i + 1) * BATCH[kind]] for kind, v in values.items()}
        client().log_batch(ids[op["run"]], **batch)


def _artifact(op: dict, ids: dict[str, str]) -> None:
    path = Path(op["path"])
    if _is_gone(path, ids[op["run"]]):
        return
    if path.is_dir():
        client().log_artifacts(ids[op["run"]], str(path), op.get("at") or None)
    else:
        client().log_artifact(ids[op["run"]], str(path), op.get("at") or None)


def _is_gone(path: Path, run: str) -> bool:
    """Whether files were removed before they could be logged; the run then says so."""
    if path.exists():
        return False
    client().set_tag(run, f"missing.{path.name}", f"{path} was removed before it could be logged")
    return True


def _dataset(op: dict, ids: dict[str, str]) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    dataset = Dataset(
        name=op["name"],
        digest=op["sha256"][:36],
        source_type="transferopt",
        source=json.dumps(op["source"]),
        schema=json.dumps(op.get("schema", {})),
        profile=json.dumps(op.get("profile", {})),
    )
    client().log_inputs(ids[op["run"]], datasets=[DatasetInput(dataset, [InputTag("sha256", op["sha256"])])])


def _model(op: dict, ids: dict[str, str]) -> None:
    from tasks.serving import log_model

    package = Path(op["path"])
    if not _is_gone(package, ids[op["run"]]):
        log_model(ids[op["run"]], package, op["name"], op["alias"], op.get("tags", {}))


def _lineage(op: dict, ids: dict[str, str]) -> None:
    """Log the run's lineage as a page whose nodes open the upstream runs."""
    from tasks.lineage import log_graph

    log_graph(ids[op["run"]])


def _end(op: dict, ids: dict[str, str]) -> None:
    client().set_terminated(ids[op["run"]], status=op["status"], end_time=op["time"])


APPLY = {
    "start": _start,
    "values": _values,
    "artifact": _artifact,
    "dataset": _dataset,
    "model": _model,
    "lineage": _lineage,
    "end": _end,
}


def now_ms() -> int:
    return int(time.time() * 1000)


def delivered_id(folder: Path, local_id: str) -> str | None:
    """MLflow run id of a run whose start has been delivered from this spool, or None."""
    return _read(folder / "runs.json", {}).get(local_id)
