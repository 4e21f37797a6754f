"""Scores against closed forms, independent computations, bounds, and pure noise."""

import numpy as np
import pytest

from core.transfer.scores import SCORES, transferability, undefined_because
from core.transfer.scores.logme import logme


def clusters(n=120, width=20, classes=3, gap=3.0, seed=0):
    rng = np.random.default_rng(seed)
    y = np.arange(n) % classes
    return rng.normal(size=(n, width)) + gap * rng.normal(size=(classes, width))[y] / np.sqrt(width) * 2, y


def softmax(x):
    e = np.exp(x - x.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def inputs(name, x):
    return softmax(x) if SCORES.entry(name).facts["needs"] == "probabilities" else x


@pytest.mark.parametrize("name", SCORES.names())
class TestEveryScore:
    """The contract: what holds for each registered score, third-party ones included."""

    def test_is_a_finite_float_and_changes_nothing(self, name):
        x, y = clusters()
        x = inputs(name, x)
        before = x.copy()
        state = np.random.get_state()[1].copy()
        value = transferability(name, x, y)
        assert isinstance(value, float)
        assert np.isfinite(value)
        assert (x == before).all()
        assert (np.random.get_state()[1] == state).all()
        np.random.seed(3)
        assert transferability(name, x, y) == value

    def test_prefers_separated_classes(self, name):
        rng = np.random.default_rng(1)
        y = np.arange(150) % 3
        good = 6 * np.eye(3)[y] + rng.normal(size=(150, 3))
        weak = 0.6 * np.eye(3)[y] + rng.normal(size=(150, 3))
        assert transferability(name, inputs(name, good), y) > transferability(name, inputs(name, weak), y)

    def test_ignores_order_and_names_of_labels(self, name):
        x, y = clusters()
        x = inputs(name, x)
        order = np.random.default_rng(0).permutation(len(y))
        value = transferability(name, x, y)
        if name != "n-leep":  # the mixture starts from a random row
            assert transferability(name, x[order], y[order]) == pytest.approx(value, rel=1e-6)
        assert transferability(name, x, np.array(["c", "a", "b"])[y]) == pytest.approx(value, rel=1e-6)

    def test_constant_features_and_one_class_are_undefined(self, name):
        y = np.arange(12) % 2
        constant = np.full((12, 4), 0.25)
        value = transferability(name, constant, y)
        if SCORES.entry(name).facts["needs"] == "features":
            assert value is None
        else:  # a source that says the same of everything has a defined score: that of the label frequencies
            assert value == pytest.approx(-np.log(2))
        rng = np.random.default_rng(0)
        assert transferability(name, inputs(name, rng.normal(size=(12, 4))), np.zeros(12, int)) is None

    def test_fewer_examples_than_dimensions(self, name):
        x, y = clusters(n=24, width=200)
        assert np.isfinite(transferability(name, inputs(name, x), y))

    def test_one_example_in_a_class(self, name):
        x, _ = clusters(n=20)
        y = np.array([0] * 10 + [1] * 9 + [2])
        assert np.isfinite(transferability(name, inputs(name, x), y))

    @pytest.mark.parametrize(
        ("x", "y", "words"),
        [
            (np.zeros((3, 2)), [0, 1], "n labels"),
            (np.zeros(3), [0, 1, 1], "n labels"),
            (np.array([[np.nan, 1], [0, 1]]), [0, 1], "finite"),
        ],
    )
    def test_bad_input_is_named(self, name, x, y, words):
        with pytest.raises(ValueError, match=words):
            transferability(name, x, y)


def test_unknown_score_names_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'logme'"):
        transferability("logm", np.zeros((2, 2)), [0, 1])


def test_logits_are_refused_where_probabilities_are_needed():
    with pytest.raises(ValueError, match="sum to 1"):
        transferability("leep", np.array([[3.0, 4.0], [1.0, 2.0]]), [0, 1])


def test_why_undefined():
    assert undefined_because(np.ones((4, 2)), [0, 1, 0, 1]) == "the features are constant"
    assert undefined_because(np.eye(2), [1, 1]) == "the target has one class"
    assert undefined_because(np.eye(2), [0, 1]) is None


def test_leep_and_nce_in_closed_form():
    """A hard source label that agrees with the target 3 times of 4: both scores are the conditional entropy."""
    z = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    y = np.array([0, 0, 0, 1, 1, 1, 1, 0])
    entropy = 0.75 * np.log(0.75) + 0.25 * np.log(0.25)
    assert transferability("leep", np.eye(2)[z], y) == pytest.approx(entropy)
    assert transferability("nce", np.eye(2)[z], y) == pytest.approx(entropy)
    assert transferability("leep", np.eye(2)[y], y) == pytest.approx(0)
    # Soft assignment by hand: theta = (.8, .2) for class 0 and (.2, .8) for class 1.
    soft = np.where(y[:, None] == np.arange(2), 0.8, 0.2)
    assert transferability("leep", soft, y) == pytest.approx(np.log(0.8**2 + 0.2**2))


def test_leep_is_an_upper_bound_on_nce_plus_label_likelihood():
    """Published property (Nguyen et al. 2020, property 1): LEEP >= NCE + mean log theta of the pseudo-label."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        theta = rng.dirichlet(np.ones(5) * 0.3, size=200)
        y = rng.integers(3, size=200)
        hard = np.eye(5)[theta.argmax(axis=1)]
        conditional = transferability("nce", hard, y)
        leep = transferability("leep", theta, y)
        assert leep <= 1e-12
        assert conditional <= 1e-12
        assert leep >= transferability("leep", np.full((200, 5), 0.2), y) - 1e-9


def test_h_score_closed_forms():
    x, y = clusters(n=300, width=10)
    centred = x - x.mean(axis=0)
    means = np.stack([centred[y == c].mean(axis=0) for c in range(3)])[y]
    expected = np.trace(np.linalg.pinv(np.cov(x.T, bias=True)) @ np.cov(means.T, bias=True))
    assert transferability("h-score", x, y) == pytest.approx(expected)
    assert transferability("h-score", x @ np.random.default_rng(0).normal(size=(10, 10)) + 5, y) == pytest.approx(
        expected
    ), "the H-score does not change under an invertible linear map"
    assert transferability("h-score", np.eye(3)[y], y) == pytest.approx(2), "classes - 1 for perfect features"
    rng = np.random.default_rng(0)
    assert transferability("h-score", rng.normal(size=(30, 100)), y[:30]) == pytest.approx(2), "it overfits for n < D"


def test_regularised_h_score_equals_the_published_formula():
    from sklearn.covariance import LedoitWolf

    for n, width in ((200, 12), (40, 90)):
        x, y = clusters(n=n, width=width)
        fit = LedoitWolf().fit(x)
        centred = x - x.mean(axis=0)
        means = np.stack([centred[y == c].mean(axis=0) for c in range(3)])[y]
        between = means.T @ means / n
        expected = (1 - fit.shrinkage_) * np.trace(np.linalg.solve(fit.covariance_, between))
        assert transferability("h-score-regularised", x, y) == pytest.approx(expected)


def mackay(x, t, steps=2000):
    """Evidence per example by MacKay's fixed point in the D-by-D form, as an independent computation."""
    n, width = x.shape
    values, vectors = np.linalg.eigh(x.T @ x)
    values, z = np.maximum(values, 0), vectors.T @ (x.T @ t)
    alpha, beta = 1.0, 1.0
    for _ in range(steps):
        m = beta * z / (alpha + beta * values)
        effective = (beta * values / (alpha + beta * values)).sum()
        error = ((t - x @ (vectors @ m)) ** 2).sum()
        alpha, beta = effective / (m @ m), (n - effective) / error
    m = beta * z / (alpha + beta * values)
    error = ((t - x @ (vectors @ m)) ** 2).sum()
    evidence = width / 2 * np.log(alpha) + n / 2 * np.log(beta) - beta / 2 * error - alpha / 2 * (m @ m)
    return (evidence - 0.5 * np.log(alpha + beta * values).sum() - n / 2 * np.log(2 * np.pi)) / n


@pytest.mark.parametrize(("n", "width"), [(300, 10), (200, 60), (60, 60)])
def test_logme_equals_the_fixed_point_where_that_is_right(n, width):
    x, y = clusters(n=n, width=width, gap=1.0)
    expected = np.mean([mackay(x, (y == c).astype(float)) for c in range(3)])
    assert logme(x, y) == pytest.approx(expected, abs=2e-4)


def test_logme_equals_the_gaussian_process_evidence_when_n_is_below_d():
    """At the best ratio the value is the log-density of y under N(0, s2 (I + FF'/t)), maximised on a fine grid."""
    from scipy.stats import multivariate_normal

    x, y = clusters(n=24, width=100)
    expected = []
    for c in range(3):
        t = (y == c).astype(float)
        best = -np.inf
        for log_ratio in np.linspace(-6, 12, 400):
            cov = np.eye(24) + x @ x.T / np.exp(log_ratio)
            scale = t @ np.linalg.solve(cov, t) / 24
            best = max(best, multivariate_normal(np.zeros(24), scale * cov).logpdf(t) / 24)
        expected.append(best)
    assert logme(x, y) == pytest.approx(np.mean(expected), abs=1e-3)


def test_logme_of_pure_noise_does_not_depend_on_width():
    """Noise of width 8 to 1024, n = 32: near the evidence of no features (published code: 7.8 at 128, 83 at 768)."""
    rng = np.random.default_rng(0)
    y = np.arange(32) % 2
    nothing = -0.5 * (np.log(2 * np.pi * 0.5) + 1)
    for width in (8, 128, 768, 1024):
        values = [logme(rng.normal(size=(32, width)), y) for _ in range(10)]
        assert np.mean(values) == pytest.approx(nothing, abs=0.06), width
    signal = rng.normal(size=(32, 128)) + 4 * np.where(y == 1, 1, -1)[:, None] / np.sqrt(128) * 2
    assert logme(signal, y) > nothing + 0.2


def test_scores_of_pure_noise_are_at_their_chance_level():
    rng = np.random.default_rng(2)
    y = np.arange(2000) % 2
    noise = rng.normal(size=(2000, 8))
    assert transferability("h-score", noise, y) == pytest.approx(8 / 2000, abs=0.01)
    assert transferability("transrate", noise, y) == pytest.approx(0, abs=0.02)
    assert transferability("sfda", noise, y) == pytest.approx(-np.log(2), abs=0.02)
    assert transferability("gbc", noise, y) == pytest.approx(-2, abs=0.02)
    assert transferability("n-leep", noise, y) == pytest.approx(-np.log(2), abs=0.03)
    assert transferability("nce", softmax(noise), y) == pytest.approx(-np.log(2), abs=0.02)


def test_transrate_by_determinants():
    x, y = clusters(n=90, width=6)
    z = x - x.mean(axis=0)

    def rate(a):
        return 0.5 * np.linalg.slogdet(np.eye(6) + a.T @ a / (len(a) * 1e-4))[1]

    expected = rate(z) - sum((y == c).mean() * rate(z[y == c]) for c in range(3))
    assert transferability("transrate", x, y) == pytest.approx(expected)


def test_gbc_of_two_spheres_in_closed_form():
    """Same spread s, means d apart: each ordered pair overlaps by exp(-d^2 / 8 s^2)."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4000, 3))
    y = np.arange(4000) % 2
    x[y == 1, 0] += 2
    assert transferability("gbc", x, y) == pytest.approx(-2 * np.exp(-4 / 8), abs=0.05)


def test_sfda_equals_discriminant_analysis_with_mixed_features_in_the_original_space():
    """The rotation into the span of the features must not change the score."""
    x, y = clusters(n=40, width=70, gap=1.0)
    centred = x - x.mean(axis=0)

    def posterior(f, shrinkage):
        means = np.stack([f[y == c].mean(axis=0) for c in range(3)])
        within = (f - means[y]).T @ (f - means[y]) / len(f)
        shrunk = (1 - shrinkage) * within + max(shrinkage * np.trace(within) / 70, 1e-12) * np.eye(70)
        w = np.linalg.solve(shrunk, means.T)
        return softmax(f @ w - 0.5 * np.diag(means @ w) + np.log(np.bincount(y) / len(y)))

    means = np.stack([centred[y == c].mean(axis=0) for c in range(3)])
    within = (centred - means[y]).T @ (centred - means[y]) / 40
    shrinkage = np.clip(np.exp(-5 * np.linalg.eigvalsh(within)[-1]), 1e-6, 1)
    own = softmax(posterior(centred, shrinkage))[np.arange(40), y][:, None]
    others = np.stack([centred[y != c].mean(axis=0) for c in range(3)])[y]
    expected = np.log(posterior(own * centred + (1 - own) * others, shrinkage)[np.arange(40), y]).mean()
    assert transferability("sfda", x, y) == pytest.approx(expected, rel=1e-5)
