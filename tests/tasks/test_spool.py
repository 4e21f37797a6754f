"""Records on disk: those that were written are there, whole, whatever becomes of the next one."""

import json
import resource

import pytest

from tasks import spool


@pytest.fixture
def away():
    """A way to MLflow that is closed."""

    def deliver(folder, fresh):
        raise spool.NotDelivered("closed")

    return deliver


def test_a_torn_last_record_is_not_used(home, away):
    log = spool.Spool("torn", away)
    log.append("values", "r", tags={"a": "1"})
    log.close(0)
    with open(log.folder / "ops.jsonl", "a") as f:
        f.write('{"op": "values", "run": "r')
    assert [op["tags"] for _, op in spool.undelivered(log.folder)] == [{"a": "1"}]


def test_a_full_disk_costs_the_record_that_did_not_fit_and_no_other(home, away):
    log = spool.Spool("full", away)
    try:
        log.append("values", "r", tags={"a": "1"})
        size = (log.folder / "ops.jsonl").stat().st_size
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20, before[1]))
        try:
            with pytest.raises(OSError, match=r"No space|too large"):
                log.append("values", "r", tags={"b": "2"})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        log.append("values", "r", tags={"c": "3"})
    finally:
        log.close()
    written = [json.loads(line)["tags"] for line in (log.folder / "ops.jsonl").read_text().splitlines()]
    assert written == [{"a": "1"}, {"c": "3"}]
