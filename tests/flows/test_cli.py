"""The command line: messages, exit codes, and what it does not import.

Where a process of its own matters (imports, tracebacks, helper processes) it gets one; it takes ten seconds to start.
"""

import errno
import io
import json
import logging
import os
import subprocess
import sys

import pytest
import yaml

from flows import cli
from flows.cli import OneLine, message, not_told_again


def call(*arguments, env=None, code=0):
    done = subprocess.run(
        [sys.executable, "-c", "from flows.cli import main; main()", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "160", **(env or {})},
        timeout=120,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture
def here(monkeypatch, capsys):
    """Calls the command in this process; what it says, its error included."""
    monkeypatch.setattr(cli, "quiet_logs", lambda: None)  # its handler would stay
    monkeypatch.setenv("COLUMNS", "160")

    def call_here(*arguments, code=0):
        monkeypatch.setattr(sys, "argv", ["transferopt", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = ended.value.code
        assert (1 if isinstance(said, str) else said or 0) == code
        shown = capsys.readouterr()
        return shown.out + shown.err + (said if isinstance(said, str) else "")

    return call_here


def test_help_lists_commands_and_imports_nothing_heavy():
    program = (
        "import sys\nfrom flows.cli import app\n"
        "try:\n    app(['--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'prefect', 'mlflow', 'transformers', 'ray', 'pandas'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    for command in ("run", "merge", "lineage", "doctor"):
        assert command in done.stdout


def test_unknown_command_names_the_nearest(here):
    assert "did you mean 'run'" in here("rnu", code=2)


def test_unknown_flow_is_one_line(here, monkeypatch):
    out = here("run", "merg", code=1)
    assert out.startswith("error: unknown flow 'merg', did you mean 'merge'?")
    assert "\n" not in out.strip()
    monkeypatch.setenv("TRANSFEROPT_DEBUG", "")
    monkeypatch.setattr(sys, "argv", ["transferopt", "--debug", "run", "merg"])
    with pytest.raises(ValueError, match="unknown flow"):  # Python's own traceback follows
        cli.main()


def test_a_task_that_is_not_there_is_told_before_a_flow_begins(here, monkeypatch):
    monkeypatch.setattr("tasks.embedded.begin", lambda: None)
    monkeypatch.setattr("tasks.courier.begin", lambda: None)
    for setting in ("task=gone.yaml", "task=digits"):
        assert here("run", "distill", "--set", setting, code=1).startswith(
            f"error: {'gone' if 'gone' in setting else 'task'}"
        )
    out = here("run", "merge", "--set", "experts={gone.yaml: a, b.yaml: b}", code=1)
    assert out.startswith("error: gone.yaml does not exist")


def test_a_run_is_not_named_after_a_suite_that_it_does_not_read(monkeypatch):
    from types import SimpleNamespace

    from flows import runtime

    given = {"size": "smoke", "suite": "auto", "seed": 0}
    for own, name in (({}, "merge smoke auto seed 0"), ({"experts": {"a.yaml": "b"}}, "merge smoke seed 0")):
        monkeypatch.setattr(runtime, "flow_run", SimpleNamespace(parameters=given | own))
        assert runtime._run_name("merge")() == name


def test_a_switch_that_the_flow_lacks_is_refused(here):
    out = here("run", "merge", "--profile", "--plan", code=1)
    assert "the flow merge has no training that writes a trace; leave --profile out" in out
    assert "leave --log-examples out" in here("run", "search", "--log-examples", "--plan", code=1)
    here("run", "transfer", "--profile", "--size", "smoke", "--plan")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("size=huge", "size: "),
        ("size", "--set takes key=value"),
        ("size=[1", "--set size: '[1' is not valid YAML"),
    ],
)
def test_bad_parameters_are_refused_before_work(here, setting, message):
    assert message in here("run", "merge", "--set", setting, "--plan", code=1)


def test_a_bad_parameter_ends_a_run_in_one_line():
    out = call("run", "merge", "--set", "densty=3", code=1)
    assert "unknown key 'densty'" in out
    assert "Traceback" not in out


def test_bad_configuration_files(here, tmp_path):
    assert "no configuration file" in here("run", "merge", "--config", str(tmp_path / "none.yaml"), code=1)
    (tmp_path / "bad.yaml").write_text("a: [1")
    assert "is not valid YAML" in here("run", "merge", "--config", str(tmp_path / "bad.yaml"), code=1)
    (tmp_path / "list.yaml").write_text("[1, 2]")
    assert "must hold keys and values" in here("run", "merge", "--config", str(tmp_path / "list.yaml"), code=1)


def test_what_a_library_logs_of_an_error_is_one_line_on_the_terminal_and_whole_elsewhere(caplog):
    shown = io.StringIO()
    handler = logging.StreamHandler(shown)
    handler.setFormatter(OneLine("%(message)s"))
    log = logging.getLogger("a library")
    log.addHandler(handler)
    try:
        log.exception("broken", exc_info=ValueError("because"))
    finally:
        log.removeHandler(handler)
    assert shown.getvalue() == "broken\n"
    assert "because" in caplog.text


def test_a_full_disk_is_one_line_with_the_remedy():
    text = message(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "model.safetensors"))
    assert "No space left" in text
    assert "model.safetensors" in text
    assert "make room" in text
    assert "\n" not in text


def test_a_home_that_cannot_be_used_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("TRANSFEROPT_HOME", str(tmp_path / "file"))
    text = message(FileExistsError(errno.EEXIST, "File exists", str(tmp_path / "file")))
    assert text.endswith(f"set TRANSFEROPT_HOME (now {tmp_path / 'file'}) to a folder that can be made and written")
    other = message(FileNotFoundError(errno.ENOENT, "No such file or directory", str(tmp_path / "file" / "other")))
    assert "TRANSFEROPT_HOME" not in other


def test_a_prefect_that_stays_away_is_one_line_with_the_remedy(monkeypatch):
    import httpx

    from flows.runtime import _naming_prefect

    monkeypatch.setenv("PREFECT_API_URL", "http://user:secret@127.0.0.1:9/api")
    message = r"Prefect \(http://\*\*\*@127.0.0.1:9/api\) does not answer any more: .*the same command continues"
    with pytest.raises(RuntimeError, match=message) as error, _naming_prefect():
        httpx.get("http://127.0.0.1:9")
    assert "\n" not in str(error.value)


def test_flows_and_their_parameters(here):
    out = here("flows")
    assert "merge" in out
    assert "system" in out
    assert "size" in here("flows", "merge")


def test_a_plan_runs_nothing(tmp_path):
    out = call("run", "merge", "--plan", "--size", "smoke", env={"TRANSFEROPT_HOME": str(tmp_path)})
    assert "plan of merge" in out
    assert "expected time" in out
    assert not (tmp_path / "mlflow.db").exists()


def test_nested_settings_reach_the_form():
    from core.config import Config
    from flows.cli.parameters import read

    class Inner(Config):
        rate: float = 0.1

    class Form(Config):
        inner: Inner = Inner()
        names: tuple[str, ...] = ()

    assert read(Form, None, ["inner.rate=0.5", "names=[a, b]"]) == Form(inner=Inner(rate=0.5), names=("a", "b"))
    with pytest.raises(ValueError, match="unknown key 'rat', did you mean 'rate'"):
        read(Form, None, ["inner.rat=1"])


def test_files_and_settings_combine(tmp_path):
    from core.config import Config
    from flows.cli.parameters import read

    class Form(Config):
        a: int = 1
        b: int = 2

    (tmp_path / "c.json").write_text(json.dumps({"a": 5}))
    assert read(Form, tmp_path / "c.json", ["b=7"]) == Form(a=5, b=7)
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({"a": 6}))
    assert read(Form, tmp_path / "c.yaml", []) == Form(a=6)


def test_a_bare_home_is_enough(tmp_path):
    """The first command of a new user: no folder exists yet, Prefect and MLflow make theirs below it."""
    home = tmp_path / "not" / "there"
    program = (
        "import tasks\nfrom prefect import get_client\n"
        "with get_client(sync_client=True) as client:\n    print(client.hello().status_code)\n"
        "from tasks import embedded\nembedded.stop()\n"
        "from tasks.mlflow_store import client\nprint(len(client().search_experiments()))"
    )
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT", "MLFLOW"))}
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env={**kept, "TRANSFEROPT_HOME": str(home)},
        timeout=240,
    )
    assert done.stdout.split() == ["200", "1"], done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert (home / "prefect").is_dir()


def test_a_failed_stage_is_told_when_it_fails_and_at_the_end_but_not_between():
    def record(name, text):
        return logging.LogRecord(name, logging.ERROR, "", 0, text, (), None)

    assert not_told_again(record("prefect.task_runs", "Task run failed with exception: ValueError('no')"))
    assert not not_told_again(record("prefect.task_runs", "Finished in state Failed('...')"))
    assert not not_told_again(record("prefect.flow_runs", "Encountered exception during execution: ValueError('no')"))
    assert not not_told_again(
        record("prefect.task_runs", "Crash detected! Execution was aborted by an interrupt signal.")
    )
    assert not_told_again(record("a library", "Finished in state of grace"))


def test_ctrl_c_says_that_the_same_command_continues(here, monkeypatch):
    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr("flows.cli.doctor.doctor", interrupted)
    assert here("doctor", code=130) == "stopped; the same command continues where it stood\n"


def test_a_recipe_that_is_not_there_and_an_output_below_a_file_are_one_line(tmp_path):
    from flows.cli.diagnose import diagnose
    from flows.cli.merge import merge

    with pytest.raises(ValueError, match=r"recipe .*none.yaml does not exist; give a YAML file"):
        merge(tmp_path / "none.yaml", tmp_path / "out")
    with pytest.raises(ValueError, match="is a folder; give a YAML file"):
        diagnose(tmp_path)
    (tmp_path / "recipe.yaml").write_text("merge_method: linear\n")
    with pytest.raises(ValueError, match=r"out.config.json cannot be written: .*recipe.yaml is a file"):
        merge(tmp_path / "recipe.yaml", tmp_path / "recipe.yaml" / "out")


def test_a_result_file_that_cannot_be_written_is_refused_before_the_work(tmp_path):
    from flows.cli.parameters import writable_file

    writable_file(None)
    writable_file(tmp_path / "new" / "result.json")
    with pytest.raises(ValueError, match="is a folder"):
        writable_file(tmp_path)


def test_a_file_of_texts_that_is_not_there_is_no_text(tmp_path):
    from flows.cli.predict import predict

    with pytest.raises(ValueError, match=r"none.csv does not exist; give a text, or a file of texts"):
        predict(str(tmp_path), str(tmp_path / "none.csv"))


def test_a_search_is_a_table_a_target_with_round_numbers_of_queries(monkeypatch):
    from rich.console import Console

    from core.evaluate.rows import Row
    from flows.cli import show

    out = io.StringIO()
    monkeypatch.setattr(show, "console", Console(file=out, width=80, highlight=False))
    seeds = [(0, 50.0), (1, 52.0)]
    rows = [
        Row(method="m", metric="score", value=v + n, seed=s, settings={"run": "ours", "target": "space", "queries": n})
        for n in range(1, 13)
        for s, v in seeds
    ]
    show.show_by_queries(rows, "score")
    lines = [line.split() for line in out.getvalue().splitlines()]
    assert ["run", "1", "5", "10", "12"] in lines
    assert ["ours", "52", "±", "1.4", "56", "±", "1.4", "61", "±", "1.4", "63", "±", "1.4"] in lines


def test_a_long_curve_fits_the_terminal(monkeypatch):
    from rich.console import Console

    from core.evaluate.rows import Row
    from flows.cli import show

    out = io.StringIO()
    monkeypatch.setattr(show, "console", Console(file=out, width=80, highlight=False))
    rows = [
        Row(method="m", metric="score", value=v, seed=s, settings={"run": "no source", "target": "t", "queries": n})
        for n in range(1, 161)
        for s, v in enumerate((1000.5, 1030.5))
    ]
    show.show_by_queries(rows, "score")
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert any(line.split() == ["run", "1", "10", "50", "100", "160"] for line in lines)
    assert any(line.split()[:5] == ["no", "source", "1016", "±", "21"] for line in lines)


def test_names_in_a_narrow_table_are_wrapped_and_not_cut(monkeypatch):
    from rich.console import Console

    from core.evaluate.rows import Row
    from flows.cli import show

    out = io.StringIO()
    monkeypatch.setattr(show, "console", Console(file=out, width=60, highlight=False))
    metrics = [f"metric{i}" for i in range(5)]
    names = ["roberta-of-the-first-run", "roberta-of-the-other-run"]
    show.show_rows([Row(method="m", metric=m, value=1.0, settings={"source": n}) for n in names for m in metrics])
    cells = [line[9:17].strip() for line in out.getvalue().splitlines()]  # the column of the source
    assert all(name in "".join(cells) for name in names)
