"""What stands beside the weights: configuration, tokenizer files, manifest and model card. All of it deterministic."""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from core.merge.dtypes import LONG_NAMES
from core.merge.names import LAYER_KEYS
from core.merge.recipe import Recipe
from core.merge.tensors import INDEX, Checkpoint
from core.models.layers import PER_LAYER
from core.state import write_bytes, write_json

MANIFEST = "merge.json"
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "tokenizer.model", "added_tokens.json",
    "vocab.json", "vocab.txt", "merges.txt", "spiece.model", "sentencepiece.bpe.model", "chat_template.jinja",
    "chat_template.json",
)  # fmt: skip
OTHER_FILES = (
    "generation_config.json", "preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json",
    "modules.json", "sentence_bert_config.json", "config_sentence_transformers.json", "1_Pooling/config.json",
)  # fmt: skip
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] }}"
    "{{ '<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
ALPACA = (
    "{% for message in messages %}{% if message['role'] == 'system' %}{{ message['content'] + '\n\n' }}"
    "{% elif message['role'] == 'user' %}{{ '### Instruction:\n' + message['content'] + '\n\n' }}"
    "{% else %}{{ '### Response:\n' + message['content'] + eos_token + '\n\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '### Response:\n' }}{% endif %}"
)
TEMPLATES = {"chatml": CHATML, "alpaca": ALPACA}


def output_config(
    reference: Checkpoint, layers: Sequence[tuple[str, int]], dtype: str, vocabulary: Any, tied: bool
) -> dict[str, Any]:
    """``config.json`` of the output: the reference's, with the merge's format, depth, vocabulary and tying.

    Args:
        layers: for a stack of slices (stack, source layer) of each output layer; empty otherwise.
        dtype: safetensors name of most tensors.
        vocabulary: new vocabulary or None.
        tied: whether the output embedding is the input embedding.
    """
    config = json.loads(json.dumps(dict(reference.config)))
    if not config:
        return {}
    for key in ("torch_dtype", "dtype"):
        if key in config:
            config[key] = LONG_NAMES.get(dtype, config[key])
    for stack in dict.fromkeys(name for name, _ in layers):
        _stacked(config, stack, [i for name, i in layers if name == stack])
    for part in [config, *[config[k] for k in ("text_config",) if isinstance(config.get(k), dict)]]:
        if vocabulary is not None and "vocab_size" in part:
            part["vocab_size"] = vocabulary.size
    if config.get("tie_word_embeddings") and not tied:
        config["tie_word_embeddings"] = False
    return config


def _stacked(config: dict[str, Any], stack: str, kept: Sequence[int]) -> None:
    """Tell a configuration which layers a stack has now: their number, and what it lists of each."""
    parts, keys = _told_by(config, stack)
    for part in parts:
        for key in [k for k in keys if k in part]:
            old, part[key] = part[key], len(kept)
            for name in PER_LAYER:
                if isinstance(part.get(name), list) and len(part[name]) == old:
                    part[name] = [part[name][i] for i in kept]


def _told_by(config: dict[str, Any], stack: str) -> tuple[list[dict[str, Any]], Sequence[str]]:
    """Where a configuration tells a stack's depth: a nested one for each modality, a key for each side of a T5."""
    side = next((s for s in ("decoder", "encoder") if s in stack.split(".")), "")
    own = [k for k in (f"{side}_layers", f"num_{side}_layers") if side and k in config]
    if own:
        return [config], own if side == "decoder" else [*own, *LAYER_KEYS]
    if "vis" in stack and isinstance(config.get("vision_config"), dict):
        return [config["vision_config"]], (*LAYER_KEYS, "depth")
    return [config, *[config[k] for k in ("text_config",) if isinstance(config.get(k), dict)]], LAYER_KEYS


def known_template(recipe: Recipe, checkpoints: Sequence[Checkpoint]) -> str | None:
    """The chat template asked for: the text, a known name, or with ``auto`` the most frequent of the inputs.

    Raises:
        ValueError: neither a known name nor a template.
    """
    wanted = recipe.chat_template
    if wanted is None:
        return None
    if wanted == "auto":
        found = [t.strip() for c in checkpoints if (t := read_template(c.path)) is not None]
        return max(found, key=found.count) if found else None
    if wanted in TEMPLATES:
        return TEMPLATES[wanted]
    if "{" not in wanted or len(wanted) < 20:
        raise ValueError(
            f"chat_template {wanted!r} is no template; give auto, {', '.join(TEMPLATES)}, or the Jinja text itself"
        )
    return wanted


def read_template(folder: Path) -> str | None:
    """The chat template of a model folder, None without one."""
    jinja, config = folder / "chat_template.jinja", folder / "tokenizer_config.json"
    if jinja.is_file():
        return jinja.read_text()
    template = json.loads(config.read_text()).get("chat_template") if config.is_file() else None
    if isinstance(template, list):
        template = next((t["template"] for t in template if t.get("name") == "default"), None)
    return template


def write_companions(
    folder: Path, config: Mapping[str, Any], donor: Path, index: bytes | None, vocabulary: Any, template: str | None
) -> None:
    """Write index, configuration, tokenizer and the other files of the donor model into ``folder``."""
    if index is not None:
        write_bytes(folder / INDEX, index)
    if config:
        write_json(folder / "config.json", config)
    if not donor.is_dir():
        return
    for name in (*TOKENIZER_FILES, *OTHER_FILES):
        if (donor / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(donor / name, folder / name)
    if vocabulary is not None:
        vocabulary.write(folder)
    if template is not None:
        settings = folder / "tokenizer_config.json"
        data = json.loads(settings.read_text()) if settings.is_file() else {}
        data.pop("chat_template", None)
        write_json(settings, data)
        write_bytes(folder / "chat_template.jinja", template.encode())


def model_card(recipe: Recipe, title: str, models: Sequence[str], source: str, version: str) -> str:
    """README.md of the result: what was merged, how, and the recipe that repeats it."""
    base = str(recipe.base_model) if recipe.base_model else None
    head = {"library_name": "transformers", "tags": ["merge", "transferopt"], "base_model": list(models)}
    text = recipe.written()
    lines = ["---", yaml.safe_dump(head, sort_keys=True).strip(), "---", f"# {title}", ""]
    lines += [
        f"Merged with transferopt {version}, method `{recipe.merge_method}`" + (f" ({source})." if source else ".")
    ]
    lines += ["", "## Models", "", *[f"- {m}" + (" (base)" if m == base else "") for m in models]]
    lines += ["", "## Recipe", "", "```yaml", yaml.safe_dump(text, sort_keys=False).strip(), "```", ""]
    lines += [f"Hashes of every input and output file, seed and versions: `{MANIFEST}`.", ""]
    return "\n".join(lines)
