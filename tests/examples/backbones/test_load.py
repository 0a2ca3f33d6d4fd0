"""What a folder says of itself."""

from pathlib import Path

import pytest

from backbones.load import kind_of


def test_an_index_without_a_class_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(ValueError, match="has no _class_name: save the pipeline with save_pretrained"):
        kind_of(str(tmp_path))
