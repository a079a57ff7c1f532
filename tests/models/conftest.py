"""One thread, and the tiny models, made once."""

import pytest
import torch

from tests.models.tiny import save_tiny


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@pytest.fixture(scope="session")
def tied(tmp_path_factory) -> str:
    """A folder with a Llama whose embedding is its LM head, too."""
    return save_tiny(tmp_path_factory.mktemp("models") / "tied", tie_word_embeddings=True)


@pytest.fixture(scope="session")
def untied(tmp_path_factory) -> str:
    """A folder with a Llama with a head of its own."""
    return save_tiny(tmp_path_factory.mktemp("models") / "untied", seed=1, tie_word_embeddings=False)
