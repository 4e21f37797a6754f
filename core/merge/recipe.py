"""Merge recipes: mergekit's YAML as it is, checked strictly.

A recipe says which operator (``merge_method``) makes the tensors of which models into a new model. Exactly one of

- ``models``: whole models; ``slices``: stacks of layer ranges; ``modules``: either of the two for each part of a model

is given. A parameter is a scalar, a gradient (list of numbers spread over the layers), or a list of ``{filter, value}``
whose first match (part of the tensor's name, none or ``*`` for all) counts; it may stand at a model, a slice, a module
or the whole recipe, the innermost that has a value for the tensor wins.

Own keys: ``compat: mergekit`` (arithmetic in the tensors' format instead of exact), ``seed``, ``out_shard_size``,
``missing``, ``schema_version`` (of this format; recipes without it, such as mergekit's, are of the first).
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator, model_serializer, model_validator

from core.config import Config
from core.merge.dtypes import NAMES
from core.registry import nearest
from core.safe_yaml import load_yaml
from core.state import write_bytes

SCHEMA = 1
Scalar = bool | int | float | str
UNITS = {"k": 10**3, "m": 10**6, "g": 10**9, "b": 10**9}


class ModelRef(Config):
    """A model, optionally with an adapter: ``path``, ``path@revision``, ``path+adapter``."""

    path: str = Field(description="folder, file, asset name or hub name")
    revision: str | None = None
    lora: str | None = Field(None, description="adapter folder, added exactly")

    @model_validator(mode="before")
    @classmethod
    def _parse(cls, data: Any) -> Any:
        if isinstance(data, str):
            if (known := _on_disk(data)) is not None:
                return known
            model, *lora = data.split("+")
            if len(lora) > 1 or not model:
                raise ValueError(f"model {data!r} cannot be read; write path, path@revision or path+adapter")
            path, _, revision = model.partition("@")
            return {"path": path, "revision": revision or None, "lora": lora[0] if lora else None}
        if isinstance(data, Mapping) and "model" in data:
            inner = data["model"] if isinstance(data["model"], Mapping) else {"path": data["model"]}
            lora = data.get("lora")
            rest = {k: v for k, v in data.items() if k not in ("model", "lora")}
            if isinstance(lora, Mapping) and "path" not in lora:
                raise ValueError(f"lora {dict(lora)!r} has no path")
            return {**inner, **rest, "lora": lora["path"] if isinstance(lora, Mapping) else lora}
        return data

    @model_serializer
    def _written(self) -> str:
        return str(self)

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        return f"{self.path}{revision}" + (f"+{self.lora}" if self.lora else "")


def _on_disk(text: str) -> dict[str, Any] | None:
    """``text`` as a path, or as path+adapter, where the path is there: folders may have + and @ in their names."""
    plus = [i for i, sign in enumerate(text) if sign == "+"]
    for end in [len(text), *reversed(plus)]:
        if text[:end] and os.path.exists(os.path.expanduser(text[:end])) and text[end:] != "+":
            return {"path": text[:end], "revision": None, "lora": text[end + 1 :] or None}
    return None


class Conditional(Config):
    """A value for the tensors whose name contains ``filter``."""

    value: Scalar | list[Scalar]
    filter: str | None = None


Setting = Scalar | list[Scalar] | list[Conditional] | Conditional
Parameters = dict[str, Setting]


class InputModel(Config):
    """One model of ``models``."""

    model: ModelRef
    parameters: Parameters = Field(default_factory=dict)


class InputSlice(Config):
    """Some layers of one model."""

    model: ModelRef
    layer_range: tuple[int, int] = Field(description="first layer and the one after the last")
    parameters: Parameters = Field(default_factory=dict)

    @field_validator("layer_range")
    @classmethod
    def _rising(cls, value: tuple[int, int]) -> tuple[int, int]:
        if not 0 <= value[0] < value[1]:
            raise ValueError(f"layer_range {list(value)} is empty; give [first, one after the last]")
        return value


class OutputSlice(Config):
    """A stretch of layers of the output, from the same number of layers of each source."""

    sources: list[InputSlice] = Field(min_length=1)
    base_model: ModelRef | None = None
    residual_weight: float | None = Field(None, description="accepted for compatibility; mergekit does not use it")
    parameters: Parameters = Field(default_factory=dict)


class Module(Config):
    """A part of the model (encoder, decoder, vision tower) with its own inputs."""

    slices: list[OutputSlice] | None = None
    models: list[InputModel] | None = None
    parameters: Parameters = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one(self) -> "Module":
        if bool(self.slices) == bool(self.models):
            raise ValueError("a module needs either slices or models")
        return self


class TokenSource(Config):
    """Where the embedding of one token comes from."""

    source: Any = Field(None, description="model, {kind: zero}, or {kind: model_token, model, token or token_id}")
    force: bool = Field(False, description="also for models that have the token")


class TokenizerSetting(Config):
    """The output's tokenizer and how embeddings are matched to it."""

    source: str = Field("union", description="union, base, or a model")
    tokens: dict[str, TokenSource] = Field(default_factory=dict)
    pad_to_multiple_of: int | None = Field(None, ge=1)


class Recipe(Config):
    """A merge, as written by the user."""

    merge_method: str = Field(description="name of the operator")
    models: list[InputModel] | None = None
    slices: list[OutputSlice] | None = None
    modules: dict[str, Module] | None = None
    base_model: ModelRef | None = None
    parameters: Parameters = Field(default_factory=dict)
    dtype: str | None = Field(None, description="format of the output; in compat mode also of the arithmetic")
    out_dtype: str | None = Field(None, description="format of the output, before dtype")
    tokenizer_source: str | None = Field(None, description="union, base, or a model")
    tokenizer: TokenizerSetting | None = None
    chat_template: str | None = Field(None, description="auto, the name of a known template, or the template itself")
    name: str | None = Field(None, description="title of the model card")
    compat: Literal["mergekit"] | None = Field(None, description="reproduce mergekit's arithmetic bit for bit")
    seed: int = Field(0, ge=0, description="of the random operators")
    out_shard_size: int = Field(5 * 10**9, gt=0, description="bytes of a shard at most; 500M, 5B and the like")
    missing: Literal["error", "keep"] = Field("error", description="tensors that not every model has: refuse or copy")
    schema_version: int = Field(SCHEMA, ge=1, description="of the format; a newer one is refused")

    @model_validator(mode="before")
    @classmethod
    def _readable(cls, data: Any) -> Any:
        """Refuse a newer format at once: its unknown keys are no mistakes of the user's."""
        found = data.get("schema_version") if isinstance(data, Mapping) else None
        if isinstance(found, int) and found > SCHEMA:
            raise ValueError(f"a recipe of schema {found}, and this version reads up to {SCHEMA}; update transferopt")
        return data

    @field_validator("dtype", "out_dtype")
    @classmethod
    def _known_dtype(cls, value: str | None) -> str | None:
        if value is None:
            return None
        name = value.removeprefix("torch.")
        if name not in NAMES:
            raise ValueError(f"unknown dtype {value!r}{nearest(name, NAMES)} Allowed: {', '.join(NAMES)}")
        return name

    @field_validator("out_shard_size", mode="before")
    @classmethod
    def _size(cls, value: Any) -> Any:
        if isinstance(value, str) and value and value[-1].lower() in UNITS:
            try:
                return int(float(value[:-1]) * UNITS[value[-1].lower()])
            except (ValueError, OverflowError):
                raise ValueError(f"{value[:40]!r} is no size; write a number of bytes such as 500M or 5B") from None
        return value

    @model_validator(mode="after")
    def _consistent(self) -> "Recipe":
        given = [k for k in ("models", "slices", "modules") if getattr(self, k)]
        if len(given) != 1:
            raise ValueError(f"give exactly one of models, slices, modules; got {', '.join(given) or 'none'}")
        if self.tokenizer_source and self.tokenizer:
            raise ValueError("give tokenizer_source or tokenizer, not both")
        return self

    def written(self) -> dict[str, Any]:
        """What the user wrote, in order, with the version of the format."""
        return {"schema_version": SCHEMA, **self.model_dump(mode="json", exclude_defaults=True)}

    def parts(self) -> dict[str, Module]:
        """``modules``; models or slices as the one module ``default``."""
        return self.modules or {"default": Module(models=self.models, slices=self.slices)}

    def references(self) -> list[ModelRef]:
        """Every model named, the base first, each once."""
        found = [self.base_model] if self.base_model else []
        for module in self.parts().values():
            found += [m.model for m in module.models or []]
            for s in module.slices or []:
                found += [source.model for source in s.sources] + ([s.base_model] if s.base_model else [])
        return list(dict.fromkeys(found))

    def parameter_names(self) -> Iterator[tuple[str, str]]:
        """(where, name) of every parameter given, in order."""
        yield from (("parameters", k) for k in self.parameters)
        for name, module in self.parts().items():
            yield from ((f"modules.{name}", k) for k in module.parameters)
            for i, m in enumerate(module.models or []):
                yield from ((f"models[{i}]", k) for k in m.parameters)
            for i, s in enumerate(module.slices or []):
                yield from ((f"slices[{i}]", k) for k in s.parameters)
                for j, source in enumerate(s.sources):
                    yield from ((f"slices[{i}].sources[{j}]", k) for k in source.parameters)


def load_recipe(source: str | Path | Mapping[str, Any]) -> Recipe:
    """Read a recipe from a YAML file, or from a mapping.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not YAML, an unknown key (the nearest is named), a wrong value.
    """
    if isinstance(source, Mapping):
        return _recipe(source, "recipe")
    data = load_yaml(Path(source).read_text(encoding="utf-8"), str(source))
    if not isinstance(data, Mapping):
        raise ValueError(f"{source} holds {type(data).__name__}, expected keys such as merge_method and models")
    return _recipe(data, str(source))


def write_recipe(path: str | Path, recipe: Mapping[str, Any]) -> None:
    """Write a recipe's keys as YAML, whole or not at all, with the version of the format."""
    import yaml

    text = yaml.safe_dump({"schema_version": SCHEMA, **recipe}, sort_keys=False)
    write_bytes(Path(path), text.encode())


def _recipe(data: Mapping[Any, Any], name: str) -> Recipe:
    try:
        return Recipe(**{str(key): value for key, value in data.items()})
    except ValidationError as error:
        found: dict[str, str] = {}
        faults = error.errors(include_url=False, include_context=False, include_input=False)
        for e in sorted(faults, key=lambda e: e["type"] != "value_error"):  # our own words before the checker's
            found.setdefault(_place(data, e["loc"]), e["msg"].removeprefix("Value error, ")[:300])
        lines = [f"{place}: {text}" if place else text for place, text in list(found.items())[:5]]
        raise ValueError(f"{name}: {'; '.join(lines)}") from None


def _place(data: Any, loc: Iterable[Any]) -> str:
    """The keys of an error's location that the recipe has (without the alternatives a checker tried)."""
    keys = []
    for key in loc:
        known = data.keys() if isinstance(data, Mapping) else range(len(data)) if isinstance(data, list) else ()
        if key in known:
            data = data[key]
            keys.append(str(key)[:60])
    return ".".join(keys)


def evaluate(setting: Setting, tensor: str, t: float) -> Any:
    """The value of a setting for a tensor at position ``t`` (0 first layer, 1 last); None when no filter matches.

    A gradient of numbers is interpolated linearly; of words or booleans the entry at ``int(t (n-1))`` is taken.
    """
    if isinstance(setting, Conditional):
        setting = [setting]
    if not isinstance(setting, list):
        return setting
    if any(isinstance(s, Conditional) for s in setting):
        for s in setting:
            if isinstance(s, Conditional) and (s.filter in (None, "*") or (tensor and s.filter in tensor)):
                return evaluate(s.value, tensor, t)
        return None
    return _gradient(setting, t) if setting else None


def _gradient(values: list[Scalar], t: float) -> Any:
    numbers = [_number(v) for v in values]
    at = t * (len(values) - 1)
    i = int(at)
    if any(n is None for n in numbers):
        return values[i]
    j = min(len(values) - 1, i + 1)
    return (1 - (at - i)) * numbers[i] + (at - i) * numbers[j]


def _number(value: Scalar) -> float | int | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return None
    return value


def lookup(name: str, scopes: Iterable[Parameters], tensor: str, t: float) -> Any:
    """The innermost value of a parameter for a tensor; None when none is given."""
    for scope in scopes:
        if name in scope:
            value = evaluate(scope[name], tensor, t)
            if value is not None:
                return value
    return None
