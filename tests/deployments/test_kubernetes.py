"""The Kubernetes templates: whole, pinned, without secrets, and every placeholder of a job has its variable."""

from pathlib import Path

import pytest
import yaml
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.utilities.templating import find_placeholders

ROOT = Path(__file__).resolve().parents[2] / "deployments"
POOL = yaml.safe_load((ROOT / "kubernetes-pool.yaml").read_text())
WORKER = list(yaml.safe_load_all((ROOT / "kubernetes-worker.yaml").read_text()))


def test_prefect_takes_the_pool_and_every_placeholder_is_a_described_variable():
    made = WorkPoolCreate(name="transferopt", type="kubernetes", base_job_template=POOL)
    assert made.base_job_template == POOL
    variables = POOL["variables"]["properties"]
    assert {p.name for p in find_placeholders(POOL["job_configuration"])} == set(variables)
    assert all(v.get("description") for v in variables.values())


def test_a_stopped_run_has_time_and_is_not_repeated_blindly():
    spec = POOL["job_configuration"]["job_manifest"]["spec"]
    assert spec["backoffLimit"] == 0
    assert spec["template"]["spec"]["terminationGracePeriodSeconds"] >= 10
    assert spec["template"]["spec"]["restartPolicy"] == "Never"


def test_the_worker_fits_the_pool():
    kinds = {d["kind"]: d for d in WORKER}
    worker = kinds["Deployment"]["spec"]["template"]["spec"]
    (container,) = worker["containers"]
    pools = yaml.safe_load((ROOT / "server.yaml").read_text())["pools"]
    assert container["command"][-2] in {p["name"] for p in pools}
    assert worker["serviceAccountName"] == kinds["ServiceAccount"]["metadata"]["name"]
    assert {"create", "delete"} <= set(kinds["Role"]["rules"][0]["verbs"])
    claim = POOL["variables"]["properties"]["home_claim"]["default"]
    assert kinds["PersistentVolumeClaim"]["metadata"]["name"] == claim
    assert kinds["PersistentVolumeClaim"]["spec"]["accessModes"] == ["ReadWriteMany"]


@pytest.mark.parametrize("document", WORKER, ids=lambda d: d["kind"])
def test_pinned_and_without_secrets(document):
    text = yaml.safe_dump(document)
    assert "PASSWORD" not in text
    assert document["kind"] != "Secret"
    if document["kind"] == "Deployment":
        image = document["spec"]["template"]["spec"]["containers"][0]["image"]
        lock = (ROOT.parent / "requirements.lock").read_text()
        assert f"\nprefect=={image.split(':')[1].split('-')[0]}\n" in lock
