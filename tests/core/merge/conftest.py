"""Tiny experts, trained once for all tests of merging."""

import pytest


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """Base, three tiny experts of it, their task vectors and objectives (:class:`tests.tiny_experts.World`)."""
    from tests import tiny_experts

    return tiny_experts.world(tmp_path_factory.mktemp("experts"))


@pytest.fixture(scope="session")
def language(tmp_path_factory):
    """A tiny causal base with three adapters (:class:`tests.tiny_language.Language`)."""
    from tests import tiny_language

    return tiny_language.language(tmp_path_factory.mktemp("language"))
