"""Prefect's embedded server, begun before Prefect is imported: both take seconds, so they go side by side.

Prefect itself starts the same server when a flow first asks for one and waits for it. Here a command starts it first,
imports what it needs meanwhile, and :func:`wait` is called when the flow begins. Whoever calls a flow as a function
gets Prefect's own way.
"""

import atexit
import os
import signal
import socket
import subprocess
import sys
import threading
import time

from tasks.prepared import place

# As Prefect starts its own: no UI, and the settings of the environment are final.
SERVER = {"PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1", "PREFECT__SERVER_FINAL": "1"}
# Meant for a server that others use: its password, which no client here would send, its database and its broker.
SHARED = (
    "PREFECT_SERVER_API_",
    "PREFECT_SERVER_DATABASE_",
    "PREFECT_API_DATABASE_",
    "PREFECT_SERVER_DOCKET_",
    "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE",
    "PREFECT_SERVER_EVENTS_MESSAGING_",
    "PREFECT_MESSAGING_",
)
APPLICATION, HOST = "prefect.server.api.server:create_app", "127.0.0.1"
STOP_S = 5.0
_process: subprocess.Popen | None = None
_answered = False


def begin() -> None:
    """Start the server and name it in ``PREFECT_API_URL``; nothing where a server is named already.

    Call it before Prefect is imported: it reads its address then.
    """
    global _process
    place()
    if os.environ.get("PREFECT_API_URL") or _process is not None:
        return
    with socket.socket() as free:
        free.bind((HOST, 0))
        port = free.getsockname()[1]
    # A session of its own: Ctrl-C is for the flow, which still tells the server how it ended.
    _process = subprocess.Popen(
        [sys.executable, "-c", f"from tasks.embedded import serve; serve({port})"],
        env=environment(),
        stdin=subprocess.PIPE,
        start_new_session=True,
    )
    os.environ["PREFECT_API_URL"] = f"http://{HOST}:{port}/api"
    atexit.register(stop)


def environment() -> dict[str, str]:
    """Of the server: this process's, without what is meant for a shared one."""
    return {name: value for name, value in os.environ.items() if not name.startswith(SHARED)} | SERVER


def serve(port: int) -> None:
    """Be the server; ends when the process that began it is gone, however that went."""
    import uvicorn

    def follow() -> None:
        sys.stdin.buffer.read()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=follow, daemon=True).start()
    uvicorn.run(APPLICATION, factory=True, host=HOST, port=port, log_level="error", lifespan="on")


def running() -> bool:
    """Whether the server named in ``PREFECT_API_URL`` is the embedded one of this process."""
    return _process is not None


def wait() -> None:
    """Until the server answers.

    Raises:
        RuntimeError: it ended, or did not answer in ``PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS``.
    """
    global _answered
    if _process is None:
        return
    import httpx

    limit = float(os.environ["PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS"])
    end = time.monotonic() + limit
    with httpx.Client() as client:
        while time.monotonic() < end:
            if _process.poll() is not None:
                raise RuntimeError(
                    f"the embedded Prefect server ended with code {_process.returncode}; "
                    "its message stands above, transferopt doctor looks at the installation"
                )
            try:
                if client.get(f"{os.environ['PREFECT_API_URL']}/health", timeout=limit).status_code == 200:
                    _answered = True
                    return
            except httpx.ConnectError:
                time.sleep(0.05)
    raise RuntimeError(f"the embedded Prefect server did not answer in {limit:g} s")


def stop() -> None:
    """End the server, its own or Prefect's, before the interpreter exits, so that it prints no traceback then."""
    global _process, _answered
    if "prefect.server.api.server" in sys.modules:
        from prefect.server.api.server import SubprocessASGIServer

        for server in list(SubprocessASGIServer._instances.values()):
            server.stop()
    if _process is None:
        return
    if _answered:
        _process.terminate()
    else:  # nobody used it, and asked to end while it starts it would print a traceback
        _process.kill()
    try:
        _process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        _process.kill()
        _process.wait()
    _process, _answered = None, False
    del os.environ["PREFECT_API_URL"]
