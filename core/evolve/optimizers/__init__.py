"""Ask-tell optimizers, one a file. ``OPTIMIZERS.get(name)(space, seed=0, **settings)``.

The registry fact ``space`` says what an optimizer needs: ``"operators"`` (any :class:`core.evolve.space.Space`) or
``"box"`` (real vectors, :class:`core.evolve.space.Box`).
"""

from typing import Any

from core.registry import Registry

OPTIMIZERS: Registry[Any] = Registry("optimizer", "core.evolve.optimizers")
