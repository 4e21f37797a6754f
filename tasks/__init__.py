"""One file a stage: read inputs, call ``core``, record in MLflow. No mathematics here.

Importing this package switches telemetry off (unless the environment says otherwise) and points MLflow and Prefect at
the embedded stores under ``TRANSFEROPT_HOME``; ``MLFLOW_TRACKING_URI`` and ``PREFECT_API_URL`` select servers instead.
It must happen before either library is imported, hence here.

It also makes Python look for cyclic garbage more rarely, and no more at the exit: of a command's thousands of modules
nothing is garbage, and looking took a fifth of the seconds of their import and two seconds of every exit.
"""

import atexit
import gc
import os

from core.state import home

gc.set_threshold(10_000)
atexit.register(gc.freeze)

_DEFAULTS = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "token",  # Ray reads it when it is imported; a local cluster makes its own token
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "PREFECT_HOME": str(home() / "prefect"),
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # two lines a stage; the result line names the run
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",  # 6 s on an idle machine, longer on a busy one
    "PREFECT_LOGGING_LEVEL": "WARNING",
    "PREFECT_LOGGING_EXTRA_LOGGERS": "core,tasks,flows",
    "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
    # Waits of 2, 4, ... 256 s: a server that is back within five minutes is found; the default gives up after one.
    "PREFECT_CLIENT_MAX_RETRIES": "8",
    # The spool (tasks.spool) retries on its own; long retries inside the client would only hold a run up.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "TOKENIZERS_PARALLELISM": "false",
}
for _name, _value in _DEFAULTS.items():
    os.environ.setdefault(_name, _value)
home().mkdir(parents=True, exist_ok=True)  # Prefect makes its own folder, but not the one above it
if "MLFLOW_TRACKING_URI" not in os.environ:
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{home() / 'mlflow.db'}"
