"""Loading: an asset, a folder or a hub name becomes an encoder or a language model with its tokenizer.

Weights are safetensors, or a ``pytorch_model.bin`` of which torch reads tensors and nothing else (``weights_only``).
Nothing runs code that comes with a model unless ``remote_code=True`` is asked for. A GGUF file (4-bit SmolLM2) is
dequantised once and cached as safetensors: say "dequantised" where it is reported.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.hashing import content_key
from core.models.gguf import dequantised
from core.models.layers import first_layers, longest_input
from core.models.quiet import quietly
from core.state import Cache

QUANTISED = ("none", "8bit", "4bit")
FLOAT32 = ("deberta",)  # they mask attention by the least float32, which autocast's narrower scores cannot hold


@dataclass(frozen=True)
class Source:
    """Where a model lies. ``path``: a folder with ``config.json``, or one ``.gguf`` file."""

    name: str
    path: Path
    sha256: str

    @property
    def gguf(self) -> Path | None:
        if self.path.suffix == ".gguf":
            return self.path
        files = sorted(self.path.glob("*.gguf"))
        return files[0] if files and not (self.path / "config.json").exists() else None


@dataclass
class LanguageModel:
    """A language model with its head: ``kind`` is ``"causal"`` or ``"masked"``."""

    model: Any
    tokenizer: Any
    kind: str
    name: str
    sha256: str
    max_length: int


def locate(source: Any) -> Source:
    """``source`` as a :class:`Source`: an asset, a folder, a GGUF file, or an asset's name.

    Raises:
        ValueError: a path without a model in it, or an unknown asset name.
    """
    if isinstance(source, Source):
        return source
    if not (hasattr(source, "path") and hasattr(source, "sha256")):
        from core.data.assets import resolve

        source = resolve(str(Path(source).resolve()) if Path(source).exists() else str(source))
    found = Source(source.name, Path(source.path), source.sha256)
    if not (found.path / "config.json").exists() and found.gguf is None:
        raise ValueError(f"{found.path} holds no model: give a folder with config.json and *.safetensors, or a .gguf")
    return found


def load_encoder(source: Any, *, layers: int | None = None, device: str | None = None, remote_code: bool = False):
    """The text encoder of ``source`` in float32: a :class:`core.models.encoder.TextEncoder` with mean pooling.

    Args:
        layers: keep the first ``layers`` transformer layers (None: all).
        device: ``"cpu"``, ``"cuda"``, ...; None takes CUDA where it is.

    Raises:
        ValueError: a sequence-to-sequence model, no tokenizer (or none of this model), or files that lack weights.
    """
    from transformers import AutoModel

    from core.models.encoder import TextEncoder

    found = locate(source)
    folder = dequantised(found) if found.gguf else found.path
    backbone, tokenizer = _read(AutoModel, found.name, folder, "an encoder", remote_code)
    if getattr(backbone, "pooler", None) is not None:
        backbone.pooler = None
    encoder = TextEncoder(backbone, tokenizer, found.name, found.sha256, _sentence_length(folder, backbone))
    if layers is not None:
        encoder = encoder.first_layers(layers)
    return encoder.to(device or default_device()).eval()


def load_causal(
    source: Any,
    *,
    layers: int | None = None,
    device: str | None = None,
    quantised: str = "none",
    cache: Cache | None = None,
    remote_code: bool = False,
) -> LanguageModel:
    """A causal language model. A model too large for one device is sharded over all of them (Accelerate).

    Args:
        layers: keep the first ``layers`` layers (the final norm and the head stay).
        quantised: ``"8bit"`` or ``"4bit"`` load through bitsandbytes (CUDA only).
        cache: where a dequantised GGUF is kept.

    Raises:
        ValueError: a model of another kind, no tokenizer (or none of this model), or files that lack weights (a head).
    """
    from transformers import AutoModelForCausalLM

    return _load_lm(AutoModelForCausalLM, "causal", source, layers, device, quantised, cache, remote_code)


def load_masked(
    source: Any,
    *,
    layers: int | None = None,
    device: str | None = None,
    quantised: str = "none",
    remote_code: bool = False,
) -> LanguageModel:
    """A masked language model with its head (arguments as :func:`load_causal`)."""
    from transformers import AutoModelForMaskedLM

    return _load_lm(AutoModelForMaskedLM, "masked", source, layers, device, quantised, None, remote_code)


def _load_lm(auto, kind, source, layers, device, quantised, cache, remote_code) -> LanguageModel:
    if quantised not in QUANTISED:
        raise ValueError(f"quantised={quantised!r}; allowed: {', '.join(QUANTISED)}")
    found = locate(source)
    folder = dequantised(found, cache) if found.gguf else found.path
    device = device or default_device()
    extra = _placement(folder, device, quantised)
    model, tokenizer = _read(auto, found.name, folder, f"a {kind} language model with its head", remote_code, **extra)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "right"
    if layers is not None:
        model = first_layers(model, layers)
    if not extra:
        model = model.to(device)
    name = found.name if layers is None else f"{found.name}[:{layers}]"
    digest = content_key(found.sha256, layers or 0)
    return LanguageModel(model.eval(), tokenizer, kind, name, digest, longest_input(model))


def _read(auto: Any, name: str, folder: Path, wanted: str, remote_code: bool, **extra: Any) -> tuple[Any, Any]:
    """Model (float32) and tokenizer of a folder; what transformers would make up for it is refused instead.

    Args:
        auto: the class of transformers that loads it.
        wanted: what it is loaded as, for messages.
    """
    from transformers import AutoConfig, AutoTokenizer

    from core.models.folder import check_complete, check_direction, check_tokenizer, check_words

    config = AutoConfig.from_pretrained(folder, trust_remote_code=remote_code)
    check_direction(name, config, auto, wanted)
    check_tokenizer(folder)
    given = {"trust_remote_code": remote_code, "dtype": "float32", "weights_only": True, "output_loading_info": True}
    model, info = quietly(auto.from_pretrained, folder, **given, **extra)
    # The pooler of a sentence encoder is not read, and often not saved.
    check_complete(name, [key for key in info["missing_keys"] if not key.startswith("pooler.")], wanted)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=remote_code)
    check_words(tokenizer, folder, model.get_input_embeddings().num_embeddings)
    keep_float32(model)
    return model, tokenizer


def keep_float32(model: Any) -> None:
    """Make a model that fails in narrower floats (:data:`FLOAT32`) compute in float32 under any autocast."""
    if model.config.model_type in FLOAT32:
        model.base_model.forward = _Float32(model.base_model)


class _Float32:
    """The forward of ``body`` outside autocast. (An object, so that a copy of the body takes a copy of it along.)"""

    def __init__(self, body: Any):
        self.body = body

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        import torch

        with torch.autocast(next(self.body.parameters()).device.type, enabled=False):
            return type(self.body).forward(self.body, *args, **kwargs)


def _placement(folder: Path, device: str, quantised: str) -> dict[str, Any]:
    """Keyword arguments that quantise the model, or shard it when its float32 weights exceed one CUDA device."""
    import torch

    if quantised != "none":
        if not torch.cuda.is_available():
            raise ValueError(f"quantised={quantised!r} needs a CUDA device and bitsandbytes; use quantised='none'")
        from transformers import BitsAndBytesConfig

        config = BitsAndBytesConfig(load_in_8bit=quantised == "8bit", load_in_4bit=quantised == "4bit")
        return {"quantization_config": config, "device_map": "auto"}
    if str(device).startswith("cuda"):
        size = sum(p.stat().st_size for p in folder.glob("*.safetensors"))
        free, _ = torch.cuda.mem_get_info()
        if size > 0.8 * free:
            return {"device_map": "auto"}
    return {}


def default_device() -> str:
    """``"cuda"`` where a device is there (each of several processes takes its own), else ``"cpu"``."""
    import torch

    if not torch.cuda.is_available():
        return "cpu"
    return f"cuda:{os.environ['LOCAL_RANK']}" if "LOCAL_RANK" in os.environ else "cuda"


def _sentence_length(folder: Path, model: Any) -> int:
    """Longest input in tokens: sentence-transformers' setting where it is given, else the position table's."""
    import json

    length = longest_input(model)
    stated = folder / "sentence_bert_config.json"
    if stated.exists():
        length = min(length, int(json.loads(stated.read_text()).get("max_seq_length") or length))
    return length


def shape(source: Any) -> tuple[int, int]:
    """Width of the states that a model gives and its number of layers, from its configuration alone."""
    config = _config(source)
    return int(getattr(config, "word_embed_proj_dim", None) or config.hidden_size), int(config.num_hidden_layers)


def kind_of(source: Any) -> str:
    """``"causal"``, ``"masked"`` or ``"encoder"``, from the architecture that a model's configuration names."""
    names = " ".join(getattr(_config(source), "architectures", None) or [])
    if "ForCausalLM" in names or "LMHeadModel" in names:
        return "causal"
    # ELECTRA's pre-training head tells replaced words apart and writes none.
    pretrained = "ForPreTraining" in names and "ElectraForPreTraining" not in names
    return "masked" if "ForMaskedLM" in names or pretrained else "encoder"


def _config(source: Any) -> Any:
    from transformers import AutoConfig

    found = locate(source)
    return AutoConfig.from_pretrained(dequantised(found) if found.gguf else found.path)
