"""SCE: select, calculate, erase."""

from core.merge.mixing import DeltaMix
from core.merge.operators import OPERATORS, Group, Parameter
from core.merge.selection import Mask, variance_mask


@OPERATORS.register(
    "sce",
    kind="selection",
    parameters={
        "select_topk": Parameter(float, 1.0, low=0, high=1, description="share of the highest-variance elements kept"),
        "int8_mask": Parameter(bool, False, description="accepted for compatibility; does not change the result"),
    },
    source="Wan et al. 2024, FuseChat, https://arxiv.org/abs/2408.07990",
)
def sce(group: Group) -> DeltaMix:
    """Deltas at the positions of highest variance, weighted by energy, minority signs erased (Wan et al. 2024).

    Select the ``select_topk`` share of the positions whose variance over the models is not zero; weight each model by
    its share of the squared kept deltas; drop entries against the sign of the unweighted sum; divide by the weights
    that remain. With a summed mean square below 1e-6 the weights are equal.
    """
    mask, squares = variance_mask(group, group.shared["select_topk"])
    means = [s / max(group.size, 1) for s in squares]
    everything = sum(means)
    weights = [m / everything for m in means] if everything >= 1e-6 else [1.0 / len(means)] * len(means)
    masks = [Mask(mask.mode, bits=mask.bits, weight=w) for w in weights]
    return DeltaMix(group, masks, consensus=True, unweighted_sign=True)
