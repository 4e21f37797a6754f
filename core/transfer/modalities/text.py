"""Text: a transformer of any kind as an encoder with mean pooling."""

from typing import Any

from core.data.examples import Examples
from core.models.encoder import TextEncoder
from core.models.load import keep_float32, load_encoder
from core.models.score import Tokenized
from core.transfer.modalities import MODALITIES, seeded


@MODALITIES.register("text", reads="texts or pairs of texts")
class TextBody(TextEncoder):
    """Encoders, and causal models read as encoders, on texts and pairs."""

    modality = "text"

    @classmethod
    def load(cls, source: Any, layers: int | None = None, max_length: int = 128, device: str | None = None):
        """From an asset, folder, GGUF file or name; ``layers`` keeps the first ones, ``max_length`` cuts texts."""
        e = load_encoder(source, layers=layers, device=device)
        return cls(e.backbone, e.tokenizer, e.name, e.sha256, min(max_length, e.max_length))

    def inputs(self, examples: Examples) -> Tokenized:
        if examples.arrays is not None and not examples.texts:
            raise ValueError(f"a source of modality text reads texts, the target holds arrays {examples.arrays.shape}")
        return self.tokenize(examples.texts, examples.pairs)

    def fresh(self, seed: int) -> "TextBody":
        backbone = seeded(lambda: type(self.backbone)(self.backbone.config), seed)
        if getattr(backbone, "pooler", None) is not None:
            backbone.pooler = None
        keep_float32(backbone)
        body = TextBody(backbone, self.tokenizer, f"{self.name} (new)", "", self.max_length)
        return body.to(self.device)
