"""What every test stands on: a cache of its own, and no network."""

import os

import pytest

# huggingface_hub reads it once, at import: a test that would download weights fails instead.
os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Hashes and unpacked archives are cached for this session only, here and in the commands that tests start."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))
