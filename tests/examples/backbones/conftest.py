from pathlib import Path

import pytest

from backbones import saved_pipeline
from make_pipeline import make


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading weights is an error: what a test is about has to be found before."""

    def loaded(*arguments: object) -> None:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(saved_pipeline, "load_frozen", loaded)


@pytest.fixture(scope="session")
def tiny_kontext(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved Flux Kontext pipeline with random weights; not to be changed."""
    return make(tmp_path_factory.mktemp("kontext") / "tiny", "kontext")


@pytest.fixture(scope="session")
def tiny_sd3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved SD3.5 pipeline with random weights; not to be changed."""
    return make(tmp_path_factory.mktemp("sd3") / "tiny")


@pytest.fixture(scope="session")
def tiny_ltx2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved LTX-2 pipeline with random weights; not to be changed."""
    return make(tmp_path_factory.mktemp("ltx2") / "tiny", "ltx2")
