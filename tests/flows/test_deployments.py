"""Every flow is a deployment whose form shows each parameter with description, default, choices and bounds."""

import base64
import importlib
import socket
import subprocess
from pathlib import Path

import httpx
import pytest
import yaml
from mlflow.server.security_utils import get_default_allowed_hosts, is_allowed_host_header
from prefect.utilities.callables import parameter_schema

from flows.runtime import FLOWS, TransferFlow
from tasks import servers

ROOT = Path(__file__).resolve().parents[2]
DEPLOYMENTS = yaml.safe_load((ROOT / "deployments" / "prefect.yaml").read_text())["deployments"]


def flow_of(deployment) -> TransferFlow:
    path, name = deployment["entrypoint"].split(":")
    return getattr(importlib.import_module(path.removesuffix(".py").replace("/", ".")), name)


def test_every_flow_is_deployed_once():
    assert sorted(flow_of(d).name for d in DEPLOYMENTS) == FLOWS.names()
    pools = {p["name"] for p in servers.read_config(ROOT).pools}
    assert {d["work_pool"]["name"] for d in DEPLOYMENTS} <= pools


@pytest.mark.parametrize("name", FLOWS.names())
def test_the_form_explains_every_parameter(name):
    flow = FLOWS.get(name)
    schema = parameter_schema(flow)
    assert list(schema.properties) == list(flow.form.model_fields)
    for field, shown in schema.properties.items():
        assert len(shown.get("description", "")) > 5, f"{name}.{field} has no description"
        for limit in _limits(shown):
            assert f" {limit:g}" in shown["description"], f"{name}.{field} does not say its bound {limit}"
    assert schema.properties["size"]["enum"] == ["smoke", "default", "full"]
    assert not schema.required, "a flow starts with its defaults"
    assert flow.form().resolved().size == "default"
    assert set(flow.form.sizes) >= {"smoke", "default"}
    for preset in flow.form.sizes.values():
        assert set(preset) <= set(flow.form.model_fields)


def test_a_taken_port_is_said_in_one_line():
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        config = servers.read_config(ROOT, prefect_port=port)
        with pytest.raises(ValueError, match=f"port {port} for Prefect is taken") as error:
            servers.check(config)
        assert "\n" not in str(error.value)


def test_a_public_address_needs_authentication(monkeypatch):
    for name in ("PREFECT_SERVER_API_AUTH_STRING", "MLFLOW_AUTH_CONFIG_PATH"):
        monkeypatch.delenv(name, raising=False)
    config = servers.read_config(ROOT, host="0.0.0.0", prefect_port=_free(), mlflow_port=_free())
    with pytest.raises(ValueError, match="authentication must be on: set PREFECT_SERVER_API_AUTH_STRING"):
        servers.check(config)


def test_loopback_is_the_default_and_authentication_opens_another_address(monkeypatch):
    assert servers.read_config(ROOT).host in servers.LOOPBACK
    assert "basic-auth" not in servers.mlflow_command(servers.read_config(ROOT))
    monkeypatch.setenv("PREFECT_SERVER_API_AUTH_STRING", "user:password")
    config = servers.read_config(ROOT, host="127.0.0.2", prefect_port=_free(), mlflow_port=_free())
    with pytest.raises(ValueError, match="set MLFLOW_AUTH_CONFIG_PATH"):
        servers.check(config)
    monkeypatch.setenv("MLFLOW_AUTH_CONFIG_PATH", "auth.ini")
    with pytest.raises(ValueError, match="the worker needs an account of MLflow: set MLFLOW_TRACKING_USERNAME and"):
        servers.check(config)
    monkeypatch.setenv("MLFLOW_AUTH_ADMIN_USERNAME", "admin")
    monkeypatch.setenv("MLFLOW_AUTH_ADMIN_PASSWORD", "s3cret")
    servers.check(config)
    assert servers.mlflow_command(config)[-2:] == ["--app-name", "basic-auth"]


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("0.0.0.0", "127.0.0.1"),
        ("::", "[::1]"),
        ("::1", "[::1]"),
        ("192.0.2.7", "192.0.2.7"),
        ("localhost", "localhost"),
    ],
)
def test_own_processes_reach_the_servers_wherever_they_are_bound(host, address, home, monkeypatch):
    """MLflow answers only to names it was told, and a wildcard is no address to ask."""
    home.mkdir()
    monkeypatch.setenv("MLFLOW_SERVER_ALLOWED_HOSTS", "name:5000,localhost:*")
    config = servers.read_config(ROOT, host=host)
    own = servers.Servers(config).environment()
    assert own["MLFLOW_TRACKING_URI"] == f"http://{address}:5000"
    assert own["PREFECT_API_URL"] == f"http://{address}:4200/api"
    assert httpx.URL(own["MLFLOW_TRACKING_URI"]).port == 5000
    allowed = own["MLFLOW_SERVER_ALLOWED_HOSTS"].split(",")
    assert is_allowed_host_header(allowed, f"{address}:5000")
    assert allowed[:2] == ["name:5000", "localhost:*"]
    assert servers.mlflow_command(config)[2:4] == ["--host", host]
    monkeypatch.delenv("MLFLOW_SERVER_ALLOWED_HOSTS")
    own = servers.Servers(config).environment().get("MLFLOW_SERVER_ALLOWED_HOSTS")
    assert is_allowed_host_header(own.split(",") if own else get_default_allowed_hosts(), f"{address}:5000")


def test_behind_passwords_the_worker_and_other_machines_browsers_get_in(home, monkeypatch):
    home.mkdir()
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "PREFECT_UI_API_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_AUTH_ADMIN_USERNAME", "admin")
    monkeypatch.setenv("MLFLOW_AUTH_ADMIN_PASSWORD", "first")
    outside = servers.Servers(servers.read_config(ROOT, host="0.0.0.0"))
    own = outside.environment()
    assert (own["MLFLOW_TRACKING_USERNAME"], own["MLFLOW_TRACKING_PASSWORD"]) == ("admin", "first")
    assert own["PREFECT_UI_API_URL"] == "/api"
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "worker")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "its own")
    monkeypatch.setenv("PREFECT_UI_API_URL", "https://prefect.example/api")
    own = outside.environment()
    assert (own["MLFLOW_TRACKING_USERNAME"], own["MLFLOW_TRACKING_PASSWORD"]) == ("worker", "its own")
    assert own["PREFECT_UI_API_URL"] == "https://prefect.example/api"


@pytest.mark.parametrize(
    ("variables", "sent"),
    [
        ({"PREFECT_API_AUTH_STRING": "me:client"}, "me:client"),  # a container that only registers
        ({"PREFECT_API_AUTH_STRING": "me:client", "PREFECT_SERVER_API_AUTH_STRING": "me:server"}, "me:client"),
        ({"PREFECT_SERVER_API_AUTH_STRING": "me:server"}, "me:server"),
    ],
)
def test_limits_are_told_with_the_password_of_a_client(variables, sent, monkeypatch):
    asked = []

    def post(url, **values):
        asked.append((url, base64.b64decode(values["headers"]["Authorization"].removeprefix("Basic ")).decode()))
        return httpx.Response(201, request=httpx.Request("POST", url))

    monkeypatch.setattr(servers.httpx, "post", post)
    monkeypatch.setattr(servers.subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 0))
    servers.register(servers.read_config(ROOT), {"PREFECT_API_URL": "http://prefect:4200/api", **variables})
    assert asked == [("http://prefect:4200/api/v2/concurrency_limits/", sent)]


def test_outside_a_project_serve_says_so(tmp_path):
    with pytest.raises(ValueError, match=r"has no mlflow/server\.yaml"):
        servers.read_config(tmp_path)


def _limits(schema: dict) -> list[float]:
    """Bounds that a parameter's schema states, in whichever of its forms."""
    kinds = [schema, *schema.get("anyOf", [])]
    return [
        kind[k] for kind in kinds for k in kind if k in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
    ]


def _free() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]
