"""NCE: negative conditional entropy of the target labels given the source's hard labels."""

import numpy as np

from core.transfer.scores import SCORES, Undefined


@SCORES.register("nce", needs="probabilities", source="Tran et al. 2019, eq. 5")
def nce(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """NCE: -H(Y|Z) in nats, Z the source's most probable label; at most 0."""
    if labels.max() < 1:
        raise Undefined("undefined: the target has one class")
    joint = np.zeros((labels.max() + 1, probabilities.shape[1]))
    np.add.at(joint, (labels, probabilities.argmax(axis=1)), 1 / len(labels))
    given = np.broadcast_to(joint.sum(axis=0), joint.shape)
    seen = joint > 0
    return float((joint[seen] * np.log(joint[seen] / given[seen])).sum())
