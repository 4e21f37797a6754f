"""What a user brings to a search, in its form: tables of measured architectures, or a portable source."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from core.nas.spaces import SPACES
from core.registry import nearest
from flows.forms import Form
from tasks.earlier import LATEST
from tasks.learn_source import LEAST
from tasks.load_source import SUFFIX, SourceFile, check_source, is_source
from tasks.load_table import SUFFIXES, Checked, OwnTable, check_table, is_table

SOURCES, HOME = ("cifar10", "cifar100", "imagenet16", LATEST), "nb201"
STUDENT = "transformer-student"
TARGETS = ("nb101", "nb201", "darts", STUDENT)
Side = Literal["source", "target"]
Space = Literal[tuple(SPACES.names())]
TableFile = Annotated[str, Field(title="file", pattern=r"\.(parquet|csv)$")]
SourceOrTable = Annotated[str, Field(title="file", pattern=r"\.(parquet|csv|source)$")]


class OwnTables(Form):
    """What teaches and what is searched: a built-in name, or a file and what its columns mean."""

    source: Literal[SOURCES] | SourceOrTable = Field(
        "cifar10",
        description="data set of the NAS-Bench-201 table that teaches (cifar10, cifar100, imagenet16); latest: what "
        "the last search knew and measured; a portable source that a search wrote (.source); or a table of your own "
        "(.parquet, .csv)",
    )
    source_space: Space | None = Field(None, description="space of the column genotype of an own source")
    source_metric: str = Field("", description="column of an own source that teaches")
    target: Literal[TARGETS] | TableFile = Field(
        "nb101",
        description="space in which every query is a real training (nb101, nb201, darts) or a real distillation of "
        "MiniLM-L6 (transformer-student), or a table of your own (.parquet, .csv) whose cells alone can be asked",
    )
    target_space: Space | None = Field(None, description="space of the column genotype of an own target")
    target_metric: str = Field("", description="column of an own target that answers a query")
    target_test: str = Field("", description="column of an own target that only the report sees (empty: the metric)")
    minimise: tuple[Side, ...] = Field((), description="own tables whose metric is better when smaller: source, target")

    @field_validator("source", "target", mode="before")
    @classmethod
    def _is_known(cls, value: Any, info: ValidationInfo) -> Any:
        known = {"source": SOURCES, "target": TARGETS}[info.field_name]
        source = info.field_name == "source" and is_source(str(value))
        if isinstance(value, str) and value not in known and not is_table(value) and not source:
            files = (*SUFFIXES, SUFFIX) if info.field_name == "source" else SUFFIXES
            allowed = f"{', '.join(known)}, or a {' or '.join(files)} file of your own"
            raise ValueError(f"unknown name {value!r}{nearest(value, known)} Allowed: {allowed}")
        return value

    @model_validator(mode="after")
    def _own_tables_are_described(self) -> Self:
        for side in ("source", "target"):
            named = [f"{side}_space", f"{side}_metric"]
            value, given = getattr(self, side), [n for n in (*named, f"{side}_test") if getattr(self, n, None)]
            given += ["minimise"] if side in self.minimise else []
            if is_table(value) and (missing := [n for n in named if n not in given]):
                raise ValueError(
                    f"{side} {value} is a table of your own; give {' and '.join(missing)} (the space of its genotypes: "
                    f"{', '.join(SPACES.names())}; the column that counts)"
                )
            if given and not is_table(value):
                raise ValueError(f"{', '.join(given)}: only for a table of your own, but {side} is {value!r}")
        if self.target_test and "target" in self.minimise:
            raise ValueError("target_test is read as larger is better; leave it out where the target is minimised")
        return self

    def own(self, side: Side) -> OwnTable | None:
        """The user's own table on a side, if it is one."""
        if not is_table(getattr(self, side)):
            return None
        told = {name: getattr(self, f"{side}_{name}") for name in ("space", "metric")}
        test = self.target_test if side == "target" else ""
        return OwnTable(path=getattr(self, side), minimise=side in self.minimise, test=test, **told)


def checked_source(form: OwnTables) -> SourceFile | None:
    """The portable source that the form names, read whole.

    Raises:
        ValueError: what is wrong with it.
    """
    return check_source(form.source) if is_source(form.source) else None


def checked(form: OwnTables, queries: int) -> dict[Side, Checked]:
    """The tables of the user's own, read whole; the target's must hold as many cells as a run may ask.

    Raises:
        ValueError: what is wrong with one of them, or both sides are the same column.
    """
    needs = {"source": (LEAST, "a source"), "target": (queries, f"a budget of {queries} queries (parameter queries)")}
    own = {side: check_table(table, *needs[side]) for side in needs if (table := form.own(side))}
    if len(own) == 2 and own["source"].sha256 == own["target"].sha256:
        knows = {form.target_metric: "every answer", form.target_test: "what only the report may see"}
        if form.source_metric in knows:
            raise ValueError(
                f"source and target are both {form.source_metric} of {form.target}: the source would know "
                f"{knows[form.source_metric]}"
            )
    return own
