"""The recurring benchmark: every level again, compared with its own history; a regression is told."""

from datetime import UTC, datetime
from typing import Any, ClassVar, Literal, get_args

from pydantic import Field

from core.data.assets import find_local
from core.merge.suite import load_suite
from core.recurring.compare import CompareConfig
from core.recurring.store import Store, fingerprint
from core.registry import nearest
from core.transfer.problem import Problem
from flows.forms import Form
from flows.runtime import FLOWS, flow_run, prefect_page, transfer_flow
from flows.task_names import check_distinct
from tasks import tracking
from tasks.announce_changes import AnnounceConfig, announce_changes
from tasks.record_rows import PartConfig, RecordConfig, record_rows
from tasks.report_benchmark import ReportConfig, read_changes, report_benchmark
from tasks.stage import Artifact, is_planning

Level = Literal["merge", "distill", "evolve-merge", "search", "transfer"]
MERGES = ("merge", "evolve-merge")  # take all tasks of the suite at once


class BenchmarkForm(Form):
    """What is run, how often, and when a difference counts."""

    sizes: ClassVar = {
        "smoke": {"seeds": 1, "most_tasks": 2, "targets": 1},
        "default": {"seeds": 4, "most_tasks": 5, "targets": 3},
        "full": {"seeds": 5, "most_tasks": 99, "targets": 99},
    }

    levels: tuple[Level, ...] = Field(get_args(Level), description="which flows are run, each at this size")
    suite: str = Field("auto", description="auto (eight with local data, else archive), eight, archive, or a YAML file")
    tasks: tuple[str, ...] = Field((), description="tasks instead of a suite: built-in names or task files")
    most_tasks: int | None = Field(None, ge=2, description="at most so many tasks are merged (empty: by size)")
    targets: int | None = Field(
        None, ge=1, description="so many of the tasks are distilled and transferred to, one by one (empty: by size)"
    )
    seeds: int | None = Field(
        None,
        ge=1,
        le=50,
        description="runs of each level, or of each of its targets, with seeds of their own; of search, which has no "
        "tasks, so many for each target (empty: by size)",
    )
    seed: int = Field(0, ge=0, description="first seed; the same one every time pairs runs best")
    settings: dict[str, dict[str, Any]] = Field(
        {}, description="further parameters of a level's flow, e.g. {merge: {methods: [ties, tsv_m]}}"
    )
    alpha: float = Field(0.01, gt=0, lt=1, description="largest corrected p of a regression or improvement")
    least_points: float = Field(1.0, ge=0, description="smallest regression or improvement that is told, in points")
    window: int = Field(4, ge=1, description="compared with the mean of so many earlier runs")
    webhook: str = Field(
        "", description="gets a POST on regression (empty: TRANSFEROPT_WEBHOOK; an address given here is recorded)"
    )


def task_names(form: BenchmarkForm) -> list[str]:
    """The tasks asked for.

    Raises:
        ValueError: two files of one name.
    """
    suite = form.suite if form.suite != "auto" else "eight" if find_local("text") else "archive"
    names = list(form.tasks) or load_suite(suite)
    check_distinct(names)  # rows name the task that they are of
    return names


def parts(form: BenchmarkForm) -> dict[str, tuple[PartConfig, Form]]:
    """Name of a part -> what it is, and the parameters of its flow.

    Raises:
        ValueError: settings of an unknown level, or unknown settings of a level.
    """
    for level in form.settings:
        if level not in form.levels:
            raise ValueError(f"settings of {level!r}{nearest(level, form.levels)} Levels: {', '.join(form.levels)}")
    names = task_names(form)
    found: dict[str, tuple[PartConfig, Form]] = {}
    for level in form.levels:
        for name, setup, seeds, given in _runs(level, names, form):
            more = form.settings.get(level, {})
            setup = {"size": form.size, **setup, "settings": more}
            parameters = FLOWS.get(level).form(**{"size": form.size, **given, **seeds, **more})
            found[name] = PartConfig(level=level, setup=setup), parameters
    return found


def _runs(level: str, names: list[str], form: BenchmarkForm) -> list[tuple[str, dict, dict, dict]]:
    """Of each run of a level: its name, its set-up, its seeds, and its tasks as parameters.

    The one task of a run is not part of its set-up: its rows name it, and what is compared with the history has all
    tasks and seeds as pairs. Search has no task, so it gets as many seeds as the others have pairs of task and seed.
    """
    targets = names[: form.targets]
    count = form.seeds * (len(targets) if level == "search" else 1)
    seeds = [(f"seed {s}", {"seed": s}) for s in range(form.seed, form.seed + count)]
    if level in MERGES:
        chosen = {"tasks": names[: form.most_tasks]}
        return [(f"{level} {text}", chosen, seed, chosen) for text, seed in seeds]
    if level == "search":
        return [(f"{level} {text}", {}, {**seed, "seeds": 1}, {}) for text, seed in seeds]
    if level == "distill":
        return [(f"{level} {t} {text}", {}, seed, {"task": t}) for t in targets for text, seed in seeds]
    together = {"seed": form.seed, "seeds": form.seeds}  # one run takes all seeds: the sources are ranked once
    return [(f"{level} {t}", {}, together, {"target": t}) for t in targets]


def problem(form: BenchmarkForm) -> Problem:
    """What is transferred here is in the levels' own runs."""
    return Problem(
        source="earlier runs of this benchmark",
        target=f"{', '.join(form.levels)} at size {form.size}",
        knowledge="their results, paired by task and seed",
        domain=", ".join(task_names(form)),
        objective=f"no regression: corrected p {form.alpha:g}, {form.least_points:g} points",
        budget=f"{form.seeds} seeds a level or target, each with its own counted budget",
    )


@transfer_flow(
    "benchmark",
    level="operation",
    parameters=BenchmarkForm,
    problem=problem,
    title="Run every level again and compare it with its history",
    headline=("accuracy", "score"),
)
def benchmark(form: BenchmarkForm) -> Artifact:
    started, planned = datetime.now(UTC), parts(form)
    # a retry in Prefect keeps the id of its flow run, so it appends under the same name
    run = "" if is_planning() else str(flow_run.id or tracking.current().id)
    results = {name: FLOWS.get(p.level).part(parameters, name) for name, (p, parameters) in planned.items()}
    told = {name: p for name, (p, _) in planned.items()}
    recorded = record_rows(RecordConfig(run=run, started=started, parts=told), results=results)
    stored = Store().read()
    judged = CompareConfig(alpha=form.alpha, least_points=form.least_points, window=form.window)
    facts = {"levels": ", ".join(form.levels), "size": form.size, "seeds": f"{form.seeds} from {form.seed}"}
    config = ReportConfig(
        title="Recurring benchmark",
        facts={**facts, "run": run},
        run=run,
        compare=judged,
        history_sha256=fingerprint(stored[stored["run"] != run]),
    )
    report = report_benchmark(config, recorded=recorded)
    announced = AnnounceConfig(run=run, webhook=form.webhook, url=prefect_page())
    announce_changes(announced, report=report)
    if not is_planning():
        print(read_changes(report.folder)[0])
    return report
