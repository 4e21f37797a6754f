"""Tiny experts, trained once for all tests of merging."""

import pytest


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """Base, three tiny experts of it, their task vectors and objectives (:class:`tests.tiny_experts.World`)."""
    from tests import tiny_experts

    return tiny_experts.world(tmp_path_factory.mktemp("experts"))
