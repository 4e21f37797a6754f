"""Contract of every score predictor, and what tells them apart."""

from itertools import combinations

import numpy as np
import pytest
from scipy.stats import spearmanr

from core.merge.predictors import DEFAULT, PREDICTORS

N = 7


def interacting_world(seed=0, noise=0.01):
    """Relative scores that depend on directed pairs, as merges do."""
    rng = np.random.default_rng(seed)
    effect = -np.abs(rng.normal(0, 0.05, (N, N)))
    effect[0, 1] = effect[1, 0] = 0.08

    def scores(form):
        return {j: 1 + sum(effect[i, j] for i in form if i != j) + rng.normal(0, noise) for j in form}

    pairs = list(combinations(range(N), 2))
    triples = list(combinations(range(N), 3))
    rng.shuffle(triples)
    train = [*pairs, *(tuple(t) for t in triples[:15])]
    test = [*(tuple(t) for t in triples[15:]), *combinations(range(N), 4)]
    return train, [scores(f) for f in train], test, np.array([np.mean(list(scores(f).values())) for f in test])


@pytest.mark.parametrize("name", PREDICTORS.names())
def test_predicts_unseen_sets_deterministically(name):
    train, scores, test, truth = interacting_world()
    np.random.seed(1)
    before = np.random.get_state()[1].copy()
    predictions = []
    for _ in range(2):
        predictor = PREDICTORS.get(name)(N, seed=3)
        predictor.fit(train, scores)
        predictions.append(predictor.predict(test))
    np.testing.assert_array_equal(*predictions)
    assert (np.random.get_state()[1] == before).all()
    assert predictions[0].shape == truth.shape
    assert np.isfinite(predictions[0]).all()
    assert spearmanr(predictions[0], truth)[0] > 0.2


def test_pairwise_beats_models_without_interactions():
    train, scores, test, truth = interacting_world()
    found = {}
    for name in PREDICTORS.names():
        predictor = PREDICTORS.get(name)(N)
        predictor.fit(train, scores)
        found[name] = spearmanr(predictor.predict(test), truth)[0]
    assert found["pairwise"] > 0.9
    assert found["pairwise"] > max(found["additive"], found["task_means"]) + 0.1
    assert DEFAULT in found


@pytest.mark.parametrize("name", PREDICTORS.names())
@pytest.mark.parametrize(
    ("forms", "scores"), [([], []), ([(0, 9)], [{0: 1.0}]), ([(0, 1)], [{2: 1.0}]), ([(0, 1)], [])]
)
def test_wrong_forms_are_refused(name, forms, scores):
    with pytest.raises(ValueError, match="form"):
        PREDICTORS.get(name)(N).fit(forms, scores)
