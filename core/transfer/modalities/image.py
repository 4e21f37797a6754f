"""Images: any ``AutoModelForImageClassification`` without its classifier."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from core.data.examples import Examples
from core.models.folder import check_architecture, check_complete
from core.models.load import default_device, locate
from core.models.quiet import quietly
from core.models.score import evaluating
from core.transfer.modalities import MODALITIES, ArrayInputs, arrays_of, seeded

WANTED = "an image classifier of transformers (ResNet, ViT, ConvNeXt, ...)"
PLAIN = 64  # side of the image that tells the width where a model reads any size
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@MODALITIES.register("image", reads="arrays (n, channels, height, width), uint8 or float32")
class ImageBody(nn.Module):
    """ResNet, ViT, ConvNeXt and the like on image arrays; resized and normalised as their processor says."""

    modality = "image"

    def __init__(self, backbone: nn.Module, name: str, sha256: str, mean, std, size: int | None, pretrained=True):
        super().__init__()
        self.pretrained = pretrained
        self.backbone, self.name, self.sha256 = backbone, name, sha256
        self.mean, self.std, self.size = tuple(mean), tuple(std), size
        self.width = self._width()

    @classmethod
    def load(cls, source: Any, device: str | None = None) -> "ImageBody":
        """From an asset, folder or name.

        Raises:
            ValueError: a model that is no image classifier, or whose files lack weights other than its output layer.
        """
        from transformers import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING, AutoModelForImageClassification

        found = locate(source)
        check_architecture(found, MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING, WANTED)
        load = AutoModelForImageClassification.from_pretrained
        model, info = quietly(load, found.path, dtype=torch.float32, output_loading_info=True)
        inside = next((p for p in (model.base_model_prefix, "vision_model") if p and hasattr(model, p)), None)
        if inside is None:
            raise ValueError(f"{found.name} ({type(model).__name__}) has no part below its classifier; give {WANTED}")
        check_complete(found.name, [name for name in info["missing_keys"] if name.startswith(f"{inside}.")], WANTED)
        mean, std, size = _processor(found.path)
        backbone = getattr(model, inside)
        size = size or getattr(backbone.config, "image_size", None)
        size = max(size) if isinstance(size, (list, tuple)) else size
        body = cls(backbone, found.name, found.sha256, mean, std, size)
        return body.to(device or default_device()).eval()

    def inputs(self, examples: Examples) -> ArrayInputs:
        pixels = arrays_of(examples, "image", 4, "(n, channels, height, width)")
        scaled = _unit_range(pixels, self.name)
        channels = self._channels
        if scaled.shape[1] not in (1, channels):
            raise ValueError(f"{self.name} reads {channels} channels, the target's images have {scaled.shape[1]}")
        scaled = np.repeat(scaled, channels, axis=1) if scaled.shape[1] != channels else scaled
        shape = (1, -1, 1, 1)
        mean, std = (np.resize(np.float32(v), channels).reshape(shape) for v in (self.mean, self.std))
        return ArrayInputs("pixel_values", (scaled - mean) / std, length=64)

    @property
    def _channels(self) -> int:
        return getattr(self.backbone.config, "num_channels", 3)

    def _width(self) -> int:
        """Length of the features of one black image: every family calls it otherwise, some nowhere."""
        image = torch.zeros(1, self._channels, *2 * (self.size or PLAIN,), device=next(self.parameters()).device)
        with torch.no_grad(), evaluating(self):
            return int(self({"pixel_values": image}).shape[1])

    def ready(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The batch in the size that the model reads."""
        pixels = batch["pixel_values"]
        if self.size and pixels.shape[-1] != self.size:
            pixels = nn.functional.interpolate(pixels, (self.size, self.size), mode="bilinear", antialias=True)
        return {"pixel_values": pixels}

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        out = self.backbone(**self.ready(batch))
        pooled = getattr(out, "pooler_output", None)
        state = out.last_hidden_state if pooled is None else pooled
        if state.ndim == 4:  # convolutional: [B, C, H, W]
            return state.float().mean(dim=(2, 3))
        return (state.mean(dim=1) if state.ndim == 3 else state).float()

    def train(self, mode: bool = True) -> "ImageBody":
        """As usual, but a pre-trained body keeps its batch statistics: those of a small target's batches mislead."""
        super().train(mode)
        for module in self.modules():
            if self.pretrained and isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self

    def fresh(self, seed: int) -> "ImageBody":
        backbone = seeded(lambda: type(self.backbone)(self.backbone.config), seed)
        if getattr(self.backbone, "pooler", None) is None:
            backbone.pooler = None
        body = ImageBody(backbone, f"{self.name} (new)", "", self.mean, self.std, self.size, pretrained=False)
        return body.to(next(self.parameters()).device)


def _unit_range(pixels: np.ndarray, name: str) -> np.ndarray:
    """Pixels in [0, 1], whatever other images are there: a scale taken from a set would differ between train and test.

    Raises:
        ValueError: numbers of another range.
    """
    if pixels.dtype == np.uint8:
        return pixels.astype(np.float32) / 255.0
    low, high = float(pixels.min(initial=0.0)), float(pixels.max(initial=0.0))
    if low < 0 or high > 1 + 1e-6:
        raise ValueError(
            f"{name} reads images of bytes (uint8, 0 to 255) or of fractions (0 to 1); these numbers lie between "
            f"{low:g} and {high:g}: divide them by the largest that the format allows"
        )
    return pixels.astype(np.float32)


def _processor(folder: Path) -> tuple[Any, Any, int | None]:
    """Mean, standard deviation and size from ``preprocessor_config.json``, ImageNet's where it is absent."""
    path = folder / "preprocessor_config.json"
    stated = json.loads(path.read_text()) if path.exists() else {}
    size = stated.get("size")
    if isinstance(size, dict):
        size = size.get("height") or size.get("shortest_edge")
    return stated.get("image_mean", IMAGENET[0]), stated.get("image_std", IMAGENET[1]), size
