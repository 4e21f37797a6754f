"""Audio: any ``AutoModelForAudioClassification`` that reads waveforms, without its classifier."""

from typing import Any

import numpy as np
import torch
from torch import nn

from core.data.examples import Examples
from core.models.folder import check_architecture, check_complete
from core.models.load import default_device, locate
from core.models.quiet import quietly
from core.transfer.modalities import MODALITIES, ArrayInputs, arrays_of, seeded

WANTED = "an audio classifier of transformers that reads waveforms (wav2vec 2.0, HuBERT, WavLM, ...)"


@MODALITIES.register("audio", reads="arrays (n, samples) at the source's sampling rate")
class AudioBody(nn.Module):
    """wav2vec 2.0, HuBERT, WavLM and the like on waveforms, mean pooling over time."""

    modality = "audio"

    def __init__(self, backbone: nn.Module, name: str, sha256: str):
        super().__init__()
        self.backbone, self.name, self.sha256 = backbone, name, sha256
        self.width = int(backbone.config.hidden_size)

    @classmethod
    def load(cls, source: Any, device: str | None = None) -> "AudioBody":
        """From an asset, folder or name.

        Raises:
            ValueError: a model that reads no waveforms, or whose files lack weights other than its output layers.
        """
        from transformers import MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING, AutoModelForAudioClassification

        found = locate(source)
        check_architecture(found, MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING, WANTED)
        load = AutoModelForAudioClassification.from_pretrained
        model, info = quietly(load, found.path, dtype=torch.float32, output_loading_info=True)
        if getattr(model, "main_input_name", "input_values") != "input_values":
            raise ValueError(f"{found.name} reads {model.main_input_name}, not waveforms; use a wav2vec-like model")
        inside = f"{model.base_model_prefix}."
        check_complete(found.name, [name for name in info["missing_keys"] if name.startswith(inside)], WANTED)
        return cls(model.base_model, found.name, found.sha256).to(device or default_device()).eval()

    def inputs(self, examples: Examples) -> ArrayInputs:
        waves = arrays_of(examples, "audio", 2, "(n, samples)").astype(np.float32)
        # Zero mean and unit variance each, as the waveform models' own feature extractor does.
        centred = waves - waves.mean(axis=1, keepdims=True)
        return ArrayInputs("input_values", centred / (centred.std(axis=1, keepdims=True) + 1e-7), length=256)

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return self.backbone(input_values=batch["input_values"]).last_hidden_state.float().mean(dim=1)

    def fresh(self, seed: int) -> "AudioBody":
        backbone = seeded(lambda: type(self.backbone)(self.backbone.config), seed)
        return AudioBody(backbone, f"{self.name} (new)", "").to(next(self.parameters()).device)
