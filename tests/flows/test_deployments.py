"""Every flow is a deployment whose form shows each parameter with description, default, choices and bounds."""

import importlib
import socket
from pathlib import Path

import pytest
import yaml
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
    servers.check(config)
    assert servers.mlflow_command(config)[-2:] == ["--app-name", "basic-auth"]


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
