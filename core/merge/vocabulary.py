"""Matching embeddings by token when the models' vocabularies differ.

The output's tokenizer is the base's, another model's, or the union (the base's, then what the others add). Each model's
embedding rows are put into the output's order. A row a model lacks is taken from the only model that has it, else from
the base, else it is the mean over the models that have it; a token nobody has is zero. ``tokens`` overrides this for
single tokens, ``pad_to_multiple_of`` appends rows holding the mean of all others.

Reads ``tokenizer.json`` with the tokenizers library; torch and transformers are not imported.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from core.merge.dtypes import decode, encode
from core.merge.names import is_vocabulary, vocabulary_size
from core.merge.recipe import ModelRef, TokenizerSetting
from core.merge.tensors import Checkpoint, FileSource, close
from core.registry import nearest


@dataclass
class Vocabulary:
    """The output's vocabulary and, for each model, the old row of every new row (-1: none).

    Args:
        tokenizer: the output's (``tokenizers.Tokenizer``).
        tokens: token -> row of the output.
        used: rows up to the last token.
        size: rows, padding included.
        old_rows: for each model int64 [size].
        settings: per-token overrides of the recipe.
        references: the models, the base first where there is one.
        donor: folder whose tokenizer settings the output takes.
    """

    tokenizer: Any
    tokens: Mapping[str, int]
    used: int
    size: int
    old_rows: Sequence[np.ndarray]
    settings: TokenizerSetting
    references: Sequence[ModelRef]
    vocabularies: Sequence[Mapping[str, int]]
    donor: Path
    has_base: bool
    _fills: dict[str, dict[int, np.ndarray]] = field(default_factory=dict)

    def covers(self, name: str, inputs: Sequence[tuple[Mapping[str, Any], tuple[int, ...]]]) -> bool:
        """Whether a tensor's first dimension counts tokens in every model."""
        return all(is_vocabulary(name, shape, config) for config, shape in inputs)

    @cached_property
    def by_row(self) -> dict[int, str]:
        """Row -> token."""
        return {row: token for token, row in self.tokens.items()}

    def rows(self, wanted: Any, job: Any, plan: Any) -> tuple[np.ndarray, dict[int, np.ndarray]]:
        """For one input of a job: old row of each new row, and the raw values of the rows the model lacks."""
        rows = self.old_rows[wanted.model].copy()
        forced = {self.tokens[t] for t, s in self.settings.tokens.items() if s.force and t in self.tokens}
        rows[list(forced)] = -1
        with ExitStack() as stack:
            sources = {}
            for i in job.everything:
                source: Any = FileSource(i.info)
                stack.callback(close, source)
                adapter = plan.adapters[i.model]
                if adapter is not None and adapter.touches(i.name):
                    source = adapter.source(i.name, source)
                    stack.callback(close, source)
                sources[i.model] = source
            columns = int(np.prod(job.shape[1:], dtype=np.int64))
            dtype = sources[wanted.model].dtype
            fill = {}
            for row in np.flatnonzero(rows < 0):
                token = self.by_row.get(int(row))
                if token is not None:
                    fill[int(row)] = encode(self._embedding(token, int(row), sources, columns), dtype)
            if self.size > self.used:
                mean = encode(self._mean(rows, fill, sources[wanted.model], columns, dtype), dtype)
                fill |= dict.fromkeys(range(self.used, self.size), mean)
        return rows, fill

    def _embedding(self, token: str, row: int, sources: Mapping[int, Any], columns: int) -> np.ndarray:
        """The row of a token for the models that lack it, float64 [columns]."""

        def read(model: int, old: int) -> np.ndarray:
            source = sources[model]
            return decode(source.read(old * columns, (old + 1) * columns), source.dtype)

        setting = self.settings.tokens.get(token)
        if setting is not None and setting.source is not None:
            place = self._explicit(token, row, setting.source, sources)
            return np.zeros(columns) if place is None else read(*place)
        having = [m for m in sources if self.old_rows[m][row] >= 0]
        if not having:
            return np.zeros(columns)
        if self.has_base and 0 in having:
            having = [0]
        return sum((read(m, int(self.old_rows[m][row])) for m in having), np.zeros(columns)) / len(having)

    def _explicit(self, token: str, row: int, source: Any, sources: Mapping[int, Any]) -> tuple[int, int] | None:
        """(model, old row) that a recipe names for a token; None for zero."""
        if isinstance(source, Mapping) and source.get("kind") == "zero":
            return None
        model_token = isinstance(source, Mapping) and source.get("kind") == "model_token"
        name = str(ModelRef.model_validate(source["model"] if model_token else source))
        known = {str(self.references[m]): m for m in sources}
        if name not in known:
            raise ValueError(f"tokenizer.tokens[{token!r}]: {name} is no model here{nearest(name, known)}")
        model = known[name]
        old = int(self.old_rows[model][row])
        if model_token:
            vocabulary = self.vocabularies[model]
            old = source["token_id"] if source.get("token_id") is not None else vocabulary.get(source.get("token"), -1)
        if not 0 <= old < sources[model].shape[0]:
            raise ValueError(f"tokenizer.tokens[{token!r}]: {name} has no such token")
        return model, old

    def _mean(self, rows, fill, source: Any, columns: int, dtype: str) -> np.ndarray:
        """Mean of the new rows (those that are tokens), float64 [columns]."""
        total = np.zeros(columns)
        for row in range(self.used):
            old = int(rows[row])
            if old >= 0:
                total += decode(source.read(old * columns, (old + 1) * columns), dtype)
            elif row in fill:
                total += decode(fill[row], dtype)
        return total / max(1, self.used)

    def write(self, folder: Path) -> None:
        """Write the output's tokenizer files."""
        for path in self.donor.glob("tokenizer*"):
            if path.is_file() and path.suffix == ".json":
                (folder / path.name).write_bytes(path.read_bytes())
        self.tokenizer.save(str(folder / "tokenizer.json"))
        settings = folder / "tokenizer_config.json"
        if settings.is_file():
            data = json.loads(settings.read_text())
            data.pop("added_tokens_decoder", None)  # tokenizer.json has the tokens that were added
            settings.write_text(json.dumps(data, indent=2, sort_keys=True) + "\n")


def align(
    source: str,
    setting: TokenizerSetting | None,
    references: Sequence[ModelRef],
    checkpoints: Sequence[Checkpoint],
    has_base: bool,
    find: Callable[[str], Path],
) -> Vocabulary:
    """Build the output's tokenizer and match every model's rows to it.

    Args:
        source: ``union``, ``base`` (without a base the first model), or a model.

    Raises:
        ValueError: a model without ``tokenizer.json``.
    """
    setting = setting or TokenizerSetting(source=source)
    loaded = [_load(c.path) for c in checkpoints]
    vocabularies = [
        {t: i for t, i in tok.get_vocab(with_added_tokens=True).items() if i < (vocabulary_size(c.config) or 1 << 62)}
        for tok, c in zip(loaded, checkpoints)
    ]
    if source == "union":
        out, donor = _union(loaded, vocabularies), checkpoints[0].path
    elif source == "base":
        out, donor = loaded[0], checkpoints[0].path
    else:
        donor = find(ModelRef.model_validate(source).path)
        out = _load(donor)
    missing = [t for t in setting.tokens if t not in out.get_vocab()]
    out.add_tokens(missing)
    tokens = dict(sorted(out.get_vocab(with_added_tokens=True).items(), key=lambda pair: pair[1]))
    size = max(tokens.values()) + 1
    multiple = setting.pad_to_multiple_of or 1
    padded = -(-size // multiple) * multiple
    old_rows = []
    for vocabulary in vocabularies:
        rows = np.full(padded, -1, dtype=np.int64)
        for token, row in tokens.items():
            rows[row] = vocabulary.get(token, -1)
        old_rows.append(rows)
    return Vocabulary(out, tokens, size, padded, old_rows, setting, references, vocabularies, donor, has_base)


def _load(folder: Path) -> Any:
    from tokenizers import Tokenizer

    path = folder / "tokenizer.json"
    if not path.is_file():
        raise ValueError(f"{folder} has no tokenizer.json, which matching tokens needs; save its fast tokenizer there")
    return Tokenizer.from_file(str(path))


def _union(loaded: Sequence[Any], vocabularies: Sequence[Mapping[str, int]]) -> Any:
    """The first tokenizer with what the others have besides, in the order of models and rows."""
    from tokenizers import AddedToken, Tokenizer

    out = Tokenizer.from_str(loaded[0].to_str())
    known = set(vocabularies[0])
    for tokenizer, vocabulary in zip(loaded[1:], vocabularies[1:]):
        added = {t.content: t for t in tokenizer.get_added_tokens_decoder().values()}
        for token, _ in sorted(vocabulary.items(), key=lambda pair: pair[1]):
            if token not in known:
                known.add(token)
                extra = added.get(token) or AddedToken(token, normalized=False)
                (out.add_special_tokens if extra.special else out.add_tokens)([extra])
    return out
