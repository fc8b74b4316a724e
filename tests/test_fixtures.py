"""Fixtures are what their scripts make."""

from fixtures.make_tiny_llama import make_tiny_llama
from tests.conftest import FIXTURES


def test_tiny_llama_is_reproducible(tmp_path):
    make_tiny_llama(tmp_path)
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (FIXTURES / "tiny-llama" / path.name).read_bytes(), path.name
