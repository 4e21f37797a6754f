"""Task arithmetic and its sparse relatives: eight published methods as settings of one function.

With deltas d_i = x_i - base, sparsified to s_i = S(d_i) and weighted to v_i = w_i s_i:

- without consensus: result = base + lambda * sum v_i, with ``normalize`` divided by sum w_i;
- with consensus (TIES, eq. 3-4): g = sign(sum v_i), zero counting as +; only v_i with sign g enter the sum, and
  ``normalize`` divides by the sum of their weights.

S is nothing, the ``density`` share of largest magnitudes per tensor (TIES), a random ``density`` share (DARE), a random
share whose probability rises with the magnitude's rank in its row (DELLA), or magnitudes without both tails
(breadcrumbs). ``rescale`` multiplies the kept entries so that the delta's L1 norm is what it was.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from core.merge.mixing import DeltaMix
from core.merge.operators import OPERATORS, Group, Parameter
from core.merge.selection import Drawn, Mask, magnitude_masks, masked_norms, random_masks, rank_random_masks


@dataclass(frozen=True)
class Setting:
    """One published method: how it sparsifies, whether it elects signs, its defaults, its source."""

    summary: str
    sparsify: str = ""
    consensus: bool = False
    normalize: bool = False
    rescale: bool = False
    source: str = ""


TIES = "Yadav et al. 2023, TIES-Merging, https://arxiv.org/abs/2306.01708"
DARE = "Yu et al. 2023, Language models are Super Mario, https://arxiv.org/abs/2311.03099"
DELLA = "Deep et al. 2024, DELLA-Merging, https://arxiv.org/abs/2406.11617"
CRUMBS = "Davari and Belilovsky 2023, Model Breadcrumbs, https://arxiv.org/abs/2312.06795"
SETTINGS = {
    "task_arithmetic": Setting(
        "Base plus the weighted sum of the deltas.", source="Ilharco et al. 2022, https://arxiv.org/abs/2212.04089"
    ),
    "ties": Setting("Trim by magnitude, elect signs, mean of the agreeing.", "magnitude", True, True, source=TIES),
    "dare_linear": Setting("Drop at random and rescale, then sum.", "random", rescale=True, source=DARE),
    "dare_ties": Setting("Drop at random and rescale, then elect signs.", "random", True, rescale=True, source=DARE),
    "della": Setting("Drop at random by rank, rescale, elect signs.", "rank_random", True, True, True, DELLA),
    "della_linear": Setting("Drop at random by rank and rescale, then sum.", "rank_random", rescale=True, source=DELLA),
    "breadcrumbs": Setting("Drop both tails of the magnitudes, then sum.", "outliers", source=CRUMBS),
    "breadcrumbs_ties": Setting("Drop both tails, then elect signs.", "outliers", True, source=CRUMBS),
}


def _parameters(s: Setting) -> dict[str, Parameter]:
    parameters = {
        "weight": Parameter(float, scope="model", description="weight of the model's delta"),
        "density": Parameter(float, 1.0, scope="model", low=0, high=1, description="share of the delta that is kept"),
        "normalize": Parameter(bool, s.normalize, description="divide by the sum of the weights that take part"),
        "rescale": Parameter(bool, s.rescale, description="keep the L1 norm of the sparsified delta"),
        "lambda": Parameter(float, 1.0, description="factor on the merged delta"),
        "int8_mask": Parameter(bool, False, description="accepted for compatibility; does not change the result"),
    }
    if s.sparsify == "outliers":
        text = "share of the largest magnitudes that is dropped"
        parameters["gamma"] = Parameter(float, 0.01, scope="model", low=0, high=1, description=text)
    if s.sparsify == "rank_random":
        text = "half the spread of the keep probability"
        parameters["epsilon"] = Parameter(float, 0.15, scope="model", low=0, high=1, description=text)
    return parameters


def _check(shared: Mapping[str, Any], each: Sequence[Mapping[str, Any]]) -> None:
    weights = [p["weight"] for p in each]
    if weights and shared["normalize"] and abs(sum(weights)) < 1e-8:
        raise ValueError(
            f"the weights {weights} sum to zero and normalize is true; change them or set normalize: false"
        )
    for p in each:
        density, epsilon = p["density"], p.get("epsilon")
        if epsilon is not None and 0 < density < 1 and not (epsilon < density < 1 - 1e-9 - epsilon):
            raise ValueError(f"density {density} +- epsilon {epsilon} must lie inside (0, 1)")


def merge(group: Group, setting: Setting) -> DeltaMix:
    """The function behind the table (see the module's formulas)."""
    masks = _masks(group, setting)
    weights = [float(w) for w in group.values("weight")]
    for mask, w in zip(masks, weights):
        mask.weight = w
    normalize = group.shared["normalize"]
    divisor = sum(weights) if normalize and not setting.consensus else 1.0
    return DeltaMix(
        group, masks, consensus=setting.consensus, agreeing=normalize, divisor=divisor, lambda_=group.shared["lambda"]
    )


def _masks(group: Group, s: Setting) -> list[Mask]:
    """One mask a model. density >= 1 keeps everything unscaled, density <= 0 nothing."""
    densities = [float(d) for d in group.values("density")]
    n = group.size
    if not s.sparsify or n == 0 or all(d >= 1 for d in densities):
        return [Mask() for _ in densities]
    if s.sparsify == "magnitude":
        ranks = [(0, n if d >= 1 else (max(1, int(d * n)) if d > 0 else 0)) for d in densities]
        return _rescaled(group, magnitude_masks(group, ranks), densities)
    if s.sparsify == "outliers":
        pairs = zip(densities, group.values("gamma"))
        return _rescaled(group, magnitude_masks(group, [_inner_ranks(n, d, float(g)) for d, g in pairs]), densities)
    drawn = (
        random_masks(group, densities)
        if s.sparsify == "random"
        else rank_random_masks(group, densities, [float(e) for e in group.values("epsilon")])
    )
    return [_drawn_mask(d, density, group.shared["rescale"]) for d, density in zip(drawn, densities)]


def _inner_ranks(n: int, density: float, gamma: float) -> tuple[int, int]:
    """Ranks kept by breadcrumbs: after the ``gamma`` n largest the next ``density`` n; fewer are dropped above when
    that would leave too few."""
    if density >= 1:
        return 0, n
    target, top = int(density * n), int(gamma * n)
    bottom = max(0, n - target - top)
    return n - bottom - target, n - bottom


def _drawn_mask(drawn: Drawn, density: float, rescale: bool) -> Mask:
    mask, everything, kept = drawn
    if density >= 1:
        return Mask()
    mask.scale = _factor(everything, kept) if rescale else 1.0
    return mask


def _rescaled(group: Group, masks: list[Mask], densities: Sequence[float]) -> list[Mask]:
    if group.shared["rescale"]:
        for mask, (everything, kept), density in zip(masks, masked_norms(group, masks), densities):
            mask.scale = _factor(everything, kept) if density < 1 else 1.0
    return masks


def _factor(everything: float, kept: float) -> float:
    return 1.0 if everything < 1e-7 or kept < 1e-7 else float(np.float64(everything) / kept)


def _register(name: str, setting: Setting) -> None:
    def operator(group: Group) -> DeltaMix:
        return merge(group, setting)

    operator.__name__ = operator.__qualname__ = name
    operator.__doc__ = setting.summary
    kind = "selection" if setting.sparsify else "element"
    random = setting.sparsify in ("random", "rank_random")
    OPERATORS.register(
        name, kind=kind, parameters=_parameters(setting), source=setting.source, check=_check, random=random
    )(operator)


for _name, _setting in SETTINGS.items():
    _register(_name, _setting)
