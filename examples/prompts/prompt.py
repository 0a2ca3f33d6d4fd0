"""One prompt, with the facts that rewards check."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Prompt:
    """``text`` goes to the model; ``source`` names the set it belongs to ("general", "ocr", "geneval", ...).

    ``metadata`` holds JSON values that rewards and models read: ``{"text": "OPEN"}`` makes the OCR reward applicable,
    ``{"include": [...]}`` the GenEval reward; ``{"image": path}`` is the image to be edited. A reward whose facts are
    missing does not apply, and scores NaN.
    """

    text: str
    source: str = "general"
    metadata: Mapping[str, Any] = field(default_factory=dict)
