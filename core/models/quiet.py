"""transformers without its bars."""

from collections.abc import Callable
from typing import Any


def quietly(load: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a loader or writer of transformers without its bar; the global RNG is left as it was."""
    import torch
    from transformers.utils import logging

    shown, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        with torch.random.fork_rng():
            return load(*args, **kwargs)
    finally:
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()
