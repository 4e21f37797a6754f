"""Which tensors of which models make which output tensor, and with which parameters: the jobs of a merge.

Everything comes from names, shapes and formats in the headers; what does not fit together is refused here.
"""

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from core.merge.dtypes import NAMES, RAW, promote
from core.merge.names import Names, Stack, in_module, is_before, is_buffer, is_vocabulary, sort_names
from core.merge.one_base import longer_by
from core.merge.operators import Contract
from core.merge.output import output_config
from core.merge.recipe import InputSlice, ModelRef, Module, OutputSlice, Parameters, lookup
from core.merge.tensors import Checkpoint, TensorInfo

HEAD = "lm_head.weight"


@dataclass(frozen=True)
class Input:
    """One tensor of one model."""

    model: int
    name: str
    info: TensorInfo


@dataclass(frozen=True)
class Job:
    """One output tensor: what it is made from and with which parameters. ``copy``: bytes are taken over."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    inputs: tuple[Input, ...]
    base: Input | None = None
    shared: Mapping[str, Any] = field(default_factory=dict)
    per_model: tuple[Mapping[str, Any], ...] = ()
    copy: bool = False
    vocabulary: bool = False

    @property
    def everything(self) -> tuple[Input, ...]:
        """All inputs, the base last."""
        return self.inputs + ((self.base,) if self.base else ())

    @property
    def read_bytes(self) -> int:
        return sum(i.info.bytes for i in self.everything)


def find_model(name: str, folder: Path, revision: str | None = None) -> Path:
    """The folder of a model: relative to ``folder``, to the working folder, or an asset fetched by name.

    Raises:
        FileNotFoundError: it is nowhere.
    """
    for candidate in (folder / Path(name).expanduser(), Path(name).expanduser()):
        if candidate.exists():
            return candidate
    if Path(name).is_absolute() or name.startswith((".", "~")):
        raise FileNotFoundError(f"model {name} does not exist")
    from core.data.assets import resolve

    try:
        return Path(resolve(f"{name}@{revision}" if revision else name).path)
    except ValueError as error:
        raise FileNotFoundError(f"model {name} is neither a folder nor an asset: {error}") from None


def _weights(checkpoint: Checkpoint) -> list[str]:
    """Names of the tensors that are not recomputed buffers, in the files' order."""
    return [n for n, info in checkpoint.tensors.items() if not is_buffer(n, info.shape)]


def _longer(names: Sequence[str], others: Set[str]) -> str:
    """A remark when one side's names are the other's with a prefix: the models were saved by different classes."""
    prefix = longer_by(names, others) or longer_by(sorted(others - {HEAD}), names)
    return (
        f" (names differ by the prefix {prefix!r}: save both models by the same class of transformers)"
        if prefix
        else ""
    )


class Builder:
    """Turns slices into jobs, one output tensor after the other."""

    def __init__(self, recipe, c: Contract, references, checkpoints, adapters, folder: Path):
        self.recipe, self.contract, self.references, self.checkpoints = recipe, c, references, checkpoints
        self.adapters, self.folder, self.notes = adapters, folder, []
        self.number = {ref: i for i, ref in enumerate(references)}
        self.sorted: dict[int, Names] = {}
        self.layers: list[tuple[str, int]] = []  # (stack, source layer) of every output layer, in order
        self._checked: set[str] = set()
        self.vocabulary = self._vocabulary()

    def _vocabulary(self) -> Any:
        setting = self.recipe.tokenizer
        source = self.recipe.tokenizer_source or (setting.source if setting else None)
        if source is None:
            return None
        from core.merge.vocabulary import align

        has_base = self.recipe.base_model is not None
        find = lambda path: find_model(path, self.folder)  # noqa: E731
        return align(source, setting, self.references, self.checkpoints, has_base, find)

    def names(self, model: int) -> Names:
        if model not in self.sorted:
            self.sorted[model] = sort_names(self.checkpoints[model].tensors)
        return self.sorted[model]

    def jobs(self) -> Iterator[Job]:
        parts = self.recipe.parts()
        for name, module in parts.items():
            slices = self._slices(module)
            reference = self._reference(slices[0])
            for s in slices:
                self._check_inputs(s)
            if module.models:
                yield from self._whole(name, list(parts), module, slices[0], reference)
            else:
                yield from self._stacked(name, list(parts), module, slices, reference)

    def _base(self, s: OutputSlice) -> ModelRef | None:
        return s.base_model or self.recipe.base_model

    def _reference(self, s: OutputSlice) -> int:
        """The model whose names the output takes: the base, otherwise the first."""
        base = self._base(s)
        here = [source.model for source in s.sources]
        return self.number[base if base in here else here[0]]

    def _slices(self, module: Module) -> list[OutputSlice]:
        """Models as one slice over all layers; the base joins its sources when it is not among them."""
        if module.slices:
            return module.slices
        sources = [InputSlice(model=m.model, layer_range=(0, 1 << 30), parameters=m.parameters) for m in module.models]
        base = self.recipe.base_model
        if base and base not in [m.model for m in module.models]:
            sources.append(InputSlice(model=base, layer_range=(0, 1 << 30)))
        return [OutputSlice(sources=sources)]

    def _check_inputs(self, s: OutputSlice) -> None:
        """Duplicates, missing base, number of models."""
        c, method = self.contract, self.recipe.merge_method
        models = [source.model for source in s.sources]
        if len(set(models)) != len(models):
            twice = next(m for m in models if models.count(m) > 1)
            raise ValueError(f"model {twice} is given twice in one slice; give it once, with the summed weight")
        places: dict[Any, ModelRef] = {}
        for model in models:
            number = self.number[model]
            adapter = self.adapters[number]
            place = (self.checkpoints[number].path.resolve(), adapter and adapter.path.resolve())
            if place in places:
                raise ValueError(
                    f"models {places[place]} and {model} are the same folder; give it once, with the summed weight"
                )
            places[place] = model
        base = self._base(s)
        if c.base == "required" and base is None:
            raise ValueError(f"{method} needs base_model: the model the others were fine-tuned from")
        if c.base == "required" and base not in models:
            raise ValueError(f"{method} needs the base model {base} among the sources of every slice")
        others = models if c.base == "ignored" else [m for m in models if m != base]
        c.count(len(others), method)

    def _whole(self, module: str, modules: list[str], config: Module, s: OutputSlice, reference: int) -> Iterator[Job]:
        """``models``: every tensor of the reference model."""
        names = self.names(reference)
        self._refuse_extra(module, modules, s, reference)
        for name in self._output_names(s, reference):
            if not in_module(name, module, modules):
                continue
            place = names.places.get(name)
            t = 0.0
            if place is not None and place.stack:
                n = names.depth[place.stack]
                t = place.layer / (n - 1) if n > 1 else 1.0
            job = self._job(name, [name] * len(s.sources), config, s, t)
            if job is not None:
                yield job

    def _stacked(
        self, module: str, modules: list[str], config: Module, slices: list[OutputSlice], reference: int
    ) -> Iterator[Job]:
        """``slices``: layer ranges stacked; tensors before and after from the first and the last slice."""
        names = self.names(reference)
        mine = [n for n in self._output_names(slices[0], reference) if in_module(n, module, modules)]
        stacks = {names.places[n].stack for n in mine if n in names.places} - {""}
        stack = max(stacks, key=lambda k: names.depth[k], default="")
        if not stack:
            raise ValueError(f"module {module!r} has no numbered layers; use models instead of slices")
        if len(stacks) > 1:
            raise ValueError(f"the model has several layer stacks ({', '.join(sorted(stacks))}); use modules")
        outside = [n for n in mine if n not in names.places or not names.places[n].stack]
        yield from self._outside([n for n in outside if is_before(n)], config, slices[0])
        layers = Stack.of(stack, [names.places[n] for n in mine if n in names.places and names.places[n].stack])
        number = 0
        for s in slices:
            number = yield from self._range(layers, config, s, number)
        yield from self._outside([n for n in outside if not is_before(n)], config, slices[-1])

    def _outside(self, names: list[str], config: Module, s: OutputSlice) -> Iterator[Job]:
        for name in names:
            job = self._job(name, [name] * len(s.sources), config, s, 0.0)
            if job is not None:
                yield job

    def _range(self, stack: Stack, config: Module, s: OutputSlice, number: int) -> Iterator[Job]:
        """The layers of one slice; returns the number of the next output layer."""
        lengths = {source.layer_range[1] - source.layer_range[0] for source in s.sources}
        if len(lengths) != 1:
            raise ValueError(f"all sources of a slice need the same number of layers; got {sorted(lengths)}")
        for source in s.sources:
            depth = self.names(self.number[source.model]).depth.get(stack.name, 0)
            if source.layer_range[1] > depth:
                raise ValueError(f"layer_range {list(source.layer_range)} of {source.model}: it has {depth} layers")
        n = lengths.pop()
        for k in range(n):
            wanted = [source.layer_range[0] + k for source in s.sources]
            self.layers.append((stack.name, wanted[0]))
            t = k / (n - 1) if n > 1 else 1.0
            for place, layers in stack.at(wanted[0], number, wanted):
                job = self._job(place.at(number), [place.at(layer) for layer in layers], config, s, t)
                if job is not None:
                    yield job
            number += 1
        return number

    def _output_names(self, s: OutputSlice, reference: int) -> list[str]:
        """Names of the reference, tied output embeddings left out; a head that any model has of its own is kept."""
        members = [self.number[source.model] for source in s.sources]
        names = _weights(self.checkpoints[reference])
        if all(self.checkpoints[m].tied for m in members):
            names = [n for n in names if n != HEAD or self._input_embedding(reference) is None]
        elif HEAD not in names and any(HEAD in self.checkpoints[m].tensors for m in members):
            names.append(HEAD)
        if self.recipe.missing == "keep":
            names += [n for m in members for n in _weights(self.checkpoints[m])]
        return list(dict.fromkeys(names))

    def _input_embedding(self, model: int) -> str | None:
        tensors = self.checkpoints[model].tensors
        return next((n for n in tensors if n.endswith(("embed_tokens.weight", "wte.weight", "embed_in.weight"))), None)

    def _refuse_extra(self, module: str, modules: list[str], s: OutputSlice, reference: int) -> None:
        """A tensor that only some models have would silently vanish: refuse unless ``missing: keep``."""
        if self.recipe.missing == "keep":
            return
        known = {*self._output_names(s, reference), HEAD}
        for source in s.sources:
            names = _weights(self.checkpoints[self.number[source.model]])
            for name in names:
                if name not in known and in_module(name, module, modules):
                    other = self.references[reference]
                    raise ValueError(
                        f"tensor {name!r} of {source.model} is missing in {other}{_longer(names, known)}; "
                        "use models of one architecture, or set missing: keep to copy such tensors"
                    )

    def _find(self, model: int, name: str) -> Input | None:
        """The tensor, or for a tied output embedding the input embedding."""
        checkpoint = self.checkpoints[model]
        info = checkpoint.tensors.get(name)
        if info is None and name == HEAD and checkpoint.tied:
            tied = self._input_embedding(model)
            return self._find(model, tied) if tied else None
        return None if info is None else Input(model, name, info)

    def _job(self, name: str, names_in: list[str], config: Module, s: OutputSlice, t: float) -> Job | None:
        found = [self._find(self.number[x.model], n) for x, n in zip(s.sources, names_in)]
        for source, tensor, n in zip(s.sources, found, names_in):
            if tensor is None and self.recipe.missing == "error":
                raise ValueError(
                    f"tensor {n!r} is missing in {source.model}; use models of one architecture, or set missing: keep"
                )
        present = [(x, i) for x, i in zip(s.sources, found) if i is not None]
        base_ref = self._base(s)
        if len(present) < len(found):
            chosen = next((i for x, i in present if x.model == base_ref), present[0][1])
            self.notes.append(f"tensor {name!r} is not in every model; copied from {self.references[chosen.model]}")
            return self._copy(name, chosen)
        self._check_shapes(name, [i for _, i in present])
        if any(i.info.dtype not in RAW for _, i in present):
            return self._copy_equal(name, [i for _, i in present])
        return self._merge_job(name, present, config, s, t, base_ref)

    def _merge_job(self, name: str, present, config: Module, s: OutputSlice, t: float, base_ref) -> Job:
        ignored = self.contract.base == "ignored"
        others = [(x, i) for x, i in present if ignored or x.model != base_ref]
        base = None if ignored else next((i for x, i in present if x.model == base_ref), None)
        shared, each = self._parameters(name, others, config, s, t)
        vocabulary = self.vocabulary is not None and self.vocabulary.covers(
            name, [(self.checkpoints[i.model].config, i.info.shape) for _, i in present]
        )
        shape = present[0][1].info.shape
        if vocabulary:
            shape = (self.vocabulary.size, *shape[1:])
        dtype = self._dtype(name, [i for _, i in present])
        return Job(name, dtype, shape, tuple(i for _, i in others), base, shared, each, vocabulary=vocabulary)

    def _parameters(self, name: str, others, config: Module, s: OutputSlice, t: float) -> tuple[dict, tuple[dict, ...]]:
        """Values for this tensor: the innermost setting of each parameter; checked once for each distinct set."""
        outer: list[Parameters] = [s.parameters, config.parameters, self.recipe.parameters]
        c = self.contract
        try:
            given = {k: lookup(k, outer, name, t) for k, p in c.parameters.items() if p.scope == "shared"}
            shared = c.resolve(given, ("shared",))
            each = []
            for x, i in others:
                own = {k: lookup(k, [x.parameters, *outer], i.name, t) for k in c.parameters}
                each.append(c.resolve(own, ("model", "input")))
            if c.check is not None and (key := repr((shared, each))) not in self._checked:
                c.check(shared, each)
                self._checked.add(key)
        except ValueError as error:
            raise ValueError(f"{self.recipe.merge_method}, tensor {name!r}: {error}") from None
        return shared, tuple(each)

    def _dtype(self, name: str, inputs: list[Input]) -> str:
        chosen = self.recipe.out_dtype or self.recipe.dtype
        if chosen:
            return NAMES[chosen]
        kinds = {i.info.dtype for i in inputs}
        if len(kinds) > 1:
            found = ", ".join(f"{self.references[i.model]}: {i.info.dtype}" for i in inputs)
            raise ValueError(f"tensor {name!r} has different dtypes ({found}); set dtype or out_dtype")
        return promote([i.info.dtype for i in inputs])

    def _check_shapes(self, name: str, inputs: list[Input]) -> None:
        shapes = {i.info.shape for i in inputs}
        if len(shapes) == 1:
            return
        found = ", ".join(f"{self.references[i.model]}: {list(i.info.shape)}" for i in inputs)
        rows = all(is_vocabulary(name, i.info.shape, self.checkpoints[i.model].config) for i in inputs)
        if rows and len({s[1:] for s in shapes}) == 1:
            if self.vocabulary is None:
                raise ValueError(
                    f"tensor {name!r}: the vocabularies differ ({found}); set tokenizer_source: union (or base, or a "
                    "model) so that rows are matched by token"
                )
            return
        raise ValueError(
            f"tensor {name!r} has different shapes ({found}); only models of one architecture can be merged"
        )

    def _copy(self, name: str, chosen: Input) -> Job:
        floating = chosen.info.dtype in RAW
        dtype = self._dtype(name, [chosen]) if floating else chosen.info.dtype
        return Job(name, dtype, chosen.info.shape, (chosen,), copy=True)

    def _copy_equal(self, name: str, inputs: list[Input]) -> Job:
        """Integer buffers: must be equal in all models (compared when they are copied)."""
        kinds = {i.info.dtype for i in inputs}
        if len(kinds) > 1 or not kinds.isdisjoint(("F8_E4M3", "F8_E5M2")):
            found = ", ".join(f"{self.references[i.model]}: {i.info.dtype}" for i in inputs)
            raise ValueError(
                f"tensor {name!r} has dtypes that cannot be merged ({found}); convert the models to one of "
                f"{', '.join(NAMES)} first"
            )
        return Job(name, inputs[0].info.dtype, inputs[0].info.shape, tuple(inputs), copy=True)

    def config(self, jobs: Sequence[Job]) -> dict[str, Any]:
        """``config.json`` of the output: the reference model's, with what the merge changes."""
        first = next(iter(self.recipe.parts().values()))
        reference = self.checkpoints[self._reference(self._slices(first)[0])]
        kinds = [j.dtype for j in jobs if not j.copy]
        dtype = max(kinds, key=kinds.count, default="")
        tied = all(j.name != HEAD for j in jobs)
        return output_config(reference, self.layers, dtype, self.vocabulary, tied)
