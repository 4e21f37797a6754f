"""Images and tables as arrays."""

from typing import Any

import numpy as np
import pandas as pd

from core.data.examples import Examples, Label, TaskError


def task_arrays(task: Any, rows: pd.DataFrame, labels: list[Label]) -> Examples:
    """Examples of an image or table task.

    Image folders become uint8 (N, channels, height, width), resized to ``task.image_shape`` (default 3 x 64 x 64);
    numeric columns become float32 (N, features), or (N, channels, height, width) where ``image_shape`` is given.

    Raises:
        TaskError: missing or non-numeric column, an unreadable image, a shape that does not fit.
    """
    if task.kind == "image" and task.fields.image in rows.columns:
        paths = [str(p) for p in rows[task.fields.image]]
        shape = task.image_shape or (3, 64, 64)
        images = [read_image(p, shape, task.name) for p in paths]
        stacked = np.stack(images) if images else np.zeros((0, *shape), np.uint8)
        return Examples([], None, labels, stacked)
    table = numeric_columns(task, rows)
    if task.kind == "image":
        if task.image_shape is None or int(np.prod(task.image_shape)) != table.shape[1]:
            raise TaskError(
                f"task {task.name}: image_shape {task.image_shape} does not fit {table.shape[1]} columns; give"
                f" channels, height, width with that product, or a column {task.fields.image!r} of files"
            )
        table = table.reshape(-1, *task.image_shape)
    return Examples([], None, labels, table)


def numeric_columns(task: Any, rows: pd.DataFrame) -> np.ndarray:
    """The feature columns as float32 (N, features)."""
    names = list(task.fields.features) or [c for c in rows.columns if c != task.fields.label]
    missing = [n for n in names if n not in rows.columns]
    if missing:
        raise TaskError(f"task {task.name}: no feature column {missing[0]!r}. Has: {', '.join(map(str, rows.columns))}")
    numbers = rows[names].apply(pd.to_numeric, errors="coerce")
    bad = numbers.columns[~np.isfinite(numbers.to_numpy(dtype=np.float64)).all(axis=0)]
    if len(bad):
        raise TaskError(
            f"task {task.name}: feature column {bad[0]!r} holds values that are no finite numbers; name the numeric "
            "columns in fields.features"
        )
    return numbers.to_numpy(dtype=np.float32)


def read_image(path: str, shape: tuple[int, int, int], where: str) -> np.ndarray:
    """One image file as uint8 (channels, height, width); 1 channel is grey, 3 is RGB.

    Raises:
        TaskError: unreadable or oversized file, or a channel count other than 1 and 3.
    """
    from PIL import Image, UnidentifiedImageError

    channels, height, width = shape
    if channels not in (1, 3):
        raise TaskError(f"{where}: image_shape {shape} has {channels} channels; allowed are 1 (grey) and 3 (RGB)")
    try:
        with Image.open(path) as image:
            small = image.convert("L" if channels == 1 else "RGB").resize((width, height), Image.Resampling.BILINEAR)
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
        raise TaskError(f"{where}: cannot read image {path} ({error})") from None
    pixels = np.asarray(small, dtype=np.uint8)
    return pixels[None] if channels == 1 else np.ascontiguousarray(pixels.transpose(2, 0, 1))
