"""The compose file: pinned images, health checks, no secret inline, and the commands `transferopt serve` uses."""

import re
from pathlib import Path

import pytest
import yaml

from tasks import servers

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "deployments" / "compose.yaml").read_text()
COMPOSE = yaml.safe_load(TEXT)
SERVICES = COMPOSE["services"]
ONE_SHOT = {"bucket", "register"}
SECRET = re.compile(r"PASSWORD|SECRET|AUTH_STRING|DATABASE_CONNECTION_URL|STORE_URI")


@pytest.mark.parametrize("name", SERVICES)
def test_images_are_pinned_by_a_full_version(name):
    image = SERVICES[name]["image"]
    tag = image.rpartition(":")[2]
    assert tag != image, "an image without a tag is the newest one"
    assert re.fullmatch(r"\d+(\.\d+)+|RELEASE\.[\dTZ-]+", tag) or SERVICES[name]["build"]["context"] == ".."


def test_the_built_image_is_pinned_and_installs_the_lock():
    docker = (ROOT / "deployments" / "Dockerfile").read_text()
    assert re.search(r"^FROM python:3\.11\.\d+-", docker, re.M)
    assert "--no-deps -r requirements.lock" in docker
    wanted = re.search(r"torch==([\d.]+)", docker)[1]
    assert f"torch=={wanted}" in (ROOT / "Makefile").read_text()
    assert "\nUSER transferopt\n" in docker


@pytest.mark.parametrize("name", sorted(SERVICES.keys() - ONE_SHOT))
def test_what_stays_up_is_checked(name):
    check = SERVICES[name]["healthcheck"]
    assert check["test"][0] == "CMD"
    assert check["retries"] > 1


def test_everything_waits_for_what_it_needs():
    for name, service in SERVICES.items():
        for other, how in service.get("depends_on", {}).items():
            expected = "service_completed_successfully" if other in ONE_SHOT else "service_healthy"
            assert how["condition"] == expected, f"{name} needs {other}"


def test_secrets_come_from_the_environment_alone():
    named = set()
    for name, service in SERVICES.items():
        for key, value in service.get("environment", {}).items():
            if SECRET.search(key):
                assert "${" in str(value), f"{name}: {key} is written down"
        named |= set(re.findall(r"\$\{(\w+)", yaml.safe_dump(service)))
    example = (ROOT / "deployments" / ".env.example").read_text()
    offered = dict(line.split("=", 1) for line in example.splitlines() if line and line[0] != "#")
    assert named - {"TRANSFEROPT_RUNNER"} == set(offered)
    assert not any(offered.values())
    for variable in offered:
        assert re.search(rf"\$\{{{variable}:\?", TEXT), f"{variable}: an empty value must be refused"
    assert ".env" in (ROOT / ".gitignore").read_text().splitlines()


def test_servers_are_published_on_loopback_only():
    ports = [p for s in SERVICES.values() for p in s.get("ports", [])]
    assert ports
    assert all(p.startswith("127.0.0.1:") for p in ports)
    assert not {"postgres", "objects"} & {n for n, s in SERVICES.items() if s.get("ports")}


def test_commands_are_those_of_serve():
    config = servers.read_config(ROOT, host="0.0.0.0", mlflow_workers=2)
    pool = config.pools[0]["name"]
    assert SERVICES["mlflow"]["command"] == ["python", "-m", *servers.mlflow_command(config)]
    assert SERVICES["prefect"]["command"] == ["python", "-m", *servers.prefect_command(config)]
    assert SERVICES["worker"]["command"] == ["python", "-m", *servers.worker_command(pool)]
    clients = SERVICES["worker"]["environment"]
    assert clients["PREFECT_API_URL"] == "http://prefect:4200/api"
    assert clients["MLFLOW_TRACKING_URI"] == "http://mlflow:5000"
    assert "mlflow:5000" in SERVICES["mlflow"]["environment"]["MLFLOW_SERVER_ALLOWED_HOSTS"].split(",")


def test_volumes_and_mounted_files_exist():
    used = [v.split(":")[0] for s in SERVICES.values() for v in s.get("volumes", [])]
    assert {v for v in used if not v.startswith(".")} == set(COMPOSE["volumes"])
    assert all((ROOT / "deployments" / v).is_file() for v in used if v.startswith("."))
