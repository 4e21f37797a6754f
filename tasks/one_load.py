"""Models are loaded one at a time in this process, whichever thread asks.

While it loads, transformers replaces a method of its base class (a tied head is not to be tied yet) and puts back what
it found. Two threads that load at once find each other's replacement and leave it behind: from then on no head is tied,
and a language model comes without one. MLflow loads a model in the thread that delivers it, beside the flow.
"""

import functools
import threading
from typing import Any

_lock = threading.RLock()


def load_one_at_a_time() -> None:
    """From here on, ``from_pretrained`` of every model waits for the one that is at work; once is enough."""
    from transformers import PreTrainedModel

    load = PreTrainedModel.from_pretrained.__func__
    if getattr(load, "one_at_a_time", False):
        return

    @functools.wraps(load)
    def alone(cls: type, *arguments: Any, **settings: Any) -> Any:
        with _lock:
            return load(cls, *arguments, **settings)

    alone.one_at_a_time = True
    PreTrainedModel.from_pretrained = classmethod(alone)
