"""Image augmentation: flips, crops, rotations and scalings as one affine map an image."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from core.data.augment import IMAGE
from core.data.examples import Examples


def change_images(train: Examples, settings: Mapping[str, Mapping[str, Any]], rng: np.random.Generator) -> Examples:
    """All geometric methods as one affine map an image, sampled once (bilinear, edge pixels repeated)."""
    import torch

    count, _, height, width = train.arrays.shape
    affine = np.tile(np.eye(3), (count, 1, 1))
    for name, options in settings.items():
        function = IMAGE.get(name)
        try:
            affine = affine @ function(count, rng, **options)
        except TypeError as error:
            raise ValueError(f"augmentation {name!r} with {dict(options)}: {error}") from None
    # the maps act on coordinates scaled to [-1, 1] by the larger side, so that rotations keep the shape
    ratio = np.diag([width / max(width, height), height / max(width, height), 1.0])
    theta = torch.from_numpy((np.linalg.inv(ratio) @ affine @ ratio)[:, :2].astype(np.float32))
    pixels = torch.from_numpy(train.arrays.astype(np.float32))
    grid = torch.nn.functional.affine_grid(theta, list(pixels.shape), align_corners=False)
    moved = torch.nn.functional.grid_sample(pixels, grid, padding_mode="border", align_corners=False).numpy()
    if train.arrays.dtype == np.uint8:
        moved = np.rint(moved).clip(0, 255).astype(np.uint8)
    return replace(train, arrays=moved.astype(train.arrays.dtype))


@IMAGE.register("flip")
def flip(count: int, rng: np.random.Generator, share: float = 0.5, vertical: bool = False) -> np.ndarray:
    """Mirror left to right (or top to bottom) with probability ``share``."""
    maps = np.tile(np.eye(3), (count, 1, 1))
    maps[:, 1 if vertical else 0, 1 if vertical else 0] = np.where(rng.random(count) < share, -1.0, 1.0)
    return maps


@IMAGE.register("crop")
def crop(count: int, rng: np.random.Generator, least: float = 0.8) -> np.ndarray:
    """A window of a random side in [least, 1] of the image's, anywhere in it, resized to the full size."""
    if not 0 < least <= 1:
        raise ValueError(f"crop: least is a share of the side in (0, 1], got {least}")
    side = rng.uniform(least, 1.0, count)
    maps = np.tile(np.eye(3), (count, 1, 1))
    maps[:, 0, 0] = maps[:, 1, 1] = side
    maps[:, :2, 2] = rng.uniform(-1, 1, (count, 2)) * (1 - side)[:, None]
    return maps


@IMAGE.register("rotate")
def rotate(count: int, rng: np.random.Generator, degrees: float = 15.0) -> np.ndarray:
    """Turn about the centre by an angle drawn from [-degrees, degrees]."""
    angle = np.deg2rad(rng.uniform(-degrees, degrees, count))
    maps = np.tile(np.eye(3), (count, 1, 1))
    maps[:, 0, 0] = maps[:, 1, 1] = np.cos(angle)
    maps[:, 0, 1], maps[:, 1, 0] = -np.sin(angle), np.sin(angle)
    return maps


@IMAGE.register("scale")
def scale(count: int, rng: np.random.Generator, low: float = 0.9, high: float = 1.1) -> np.ndarray:
    """Enlarge about the centre by a factor drawn from [low, high]."""
    if not 0 < low <= high:
        raise ValueError(f"scale: factors need 0 < low <= high, got {low} and {high}")
    maps = np.tile(np.eye(3), (count, 1, 1))
    maps[:, 0, 0] = maps[:, 1, 1] = 1 / rng.uniform(low, high, count)
    return maps
