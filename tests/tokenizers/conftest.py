"""Texts made to trip a tokenizer, from seeds."""

from collections.abc import Callable

import pytest

from tests.tokenizers import texts


@pytest.fixture
def random_text() -> Callable[..., str]:
    """random_text(seed, size) -> str."""
    return texts.random_text
