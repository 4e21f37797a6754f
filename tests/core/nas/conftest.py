import pytest


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    """Tiny networks are many times faster on one thread when the machine is shared."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
