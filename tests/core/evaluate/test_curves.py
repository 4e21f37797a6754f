"""Of a curve the end is kept, whatever stands beside it."""

from core.evaluate.curves import ends
from core.evaluate.rows import Row


def point(value, method="transfer", seed=0, metric="score", **settings):
    inputs = {"train": str(settings.get("n", ""))}  # a larger training set has another hash, the curve is the same
    return Row(method=method, metric=metric, value=value, seed=seed, settings=settings, inputs=inputs)


def test_every_curve_has_one_end_and_other_rows_stay():
    rows = [
        *(point(q, target="x", queries=q) for q in (1, 10, 2)),
        *(point(q, target="y", queries=q) for q in (1, 2)),
        *(point(q, target="x", queries=q, seed=1) for q in (1, 3)),
        *(point(n, "full", metric="accuracy", source="s", n=n) for n in (8, 64)),
        point(0.5, "ties", metric="accuracy", task="t"),
        point(0.6, "ties", metric="accuracy", task="u"),
    ]
    assert [r.value for r in ends(rows)] == [10, 2, 3, 64, 0.5, 0.6]
    assert ends([]) == []
