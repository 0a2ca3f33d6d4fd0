"""The OCR reward: an image should show the text that its prompt asks for."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .interface import Metadata, Reward
from .ocr_rule import in_reading_order, target_text, text_score
from .pil_images import pil_images
from .registry import RewardSettings

_OPTIONS = {"exact": False, "min_confidence": 0.5, "threads": 4}


def ocr(settings: RewardSettings) -> Reward:
    """Share of the asked text that rapidocr reads in the image, in [0, 1] (as in Flow-GRPO, arXiv 2505.05470).

    Score = max(0, 1 − d / n) as in ``ocr_rule.text_score``; 0 where nothing is read; NaN where the prompt asks for no
    text (``ocr_rule.target_text``). Lines are joined by a space, from top to bottom, left to right within a line.

    ``settings.options``:

    - ``exact`` (false): case, spaces and text around the target count. By default they do not.
    - ``min_confidence`` (0.5): a line read with less confidence is dropped; 0.5 is PaddleOCR's own bound, which the
      recipes leave as it is.
    - ``threads`` (4, at most the machine's cores): threads of onnxruntime per operator.

    ``settings.device``: "cpu", or "cuda" / "cuda:<index>" with onnxruntime-gpu. The models are those in rapidocr's
    wheel (PP-OCRv6 in 3.10; the recipes read with PaddleOCR 2.9, so scores are close but not the same): nothing is
    downloaded. Images are read one by one, ``batch_size`` and ``dtype`` change nothing.

    Raises ``ImportError`` where rapidocr or onnxruntime is missing, ``ValueError`` for a bad option or device and, when
    called, for a prompt of source "ocr" without quoted text.
    """
    unknown = set(settings.options) - set(_OPTIONS)
    if unknown:
        raise ValueError(f"the ocr reward has no option {sorted(unknown)}: known are {', '.join(_OPTIONS)}")
    options = {**_OPTIONS, **settings.options}
    return OcrReward(Reader(settings.device, options["min_confidence"], options["threads"]), options["exact"])


class OcrReward:
    """Scores what ``reader`` reads: a callable from a PIL image to text."""

    def __init__(self, reader: Any, exact: bool = False) -> None:
        if not isinstance(exact, bool):
            raise ValueError(f"the ocr reward's option exact must be true or false, got {exact!r}")
        self.reader = reader
        self.exact = exact

    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Metadata]) -> Tensor:
        targets = [target_text(prompt, facts) for prompt, facts in zip(prompts, metadata, strict=True)]
        if len(images) != len(targets):
            raise ValueError(f"{len(images)} images for {len(targets)} prompts")
        scores = torch.full((len(targets),), torch.nan)
        asked = [i for i, target in enumerate(targets) if target is not None]
        for i, image in zip(asked, pil_images(images[asked]), strict=True):
            scores[i] = text_score(self.reader(image), targets[i] or "", self.exact)
        return scores


class Reader:
    """rapidocr with the models of its wheel: a PIL image in, the text in it out ("" if there is none)."""

    def __init__(self, device: str, min_confidence: float, threads: int) -> None:
        if not 0 <= min_confidence <= 1:
            raise ValueError(f"the ocr reward's option min_confidence must be in [0, 1], got {min_confidence}")
        if not isinstance(threads, int) or threads < 1:
            raise ValueError(f"the ocr reward's option threads must be a whole number from 1, got {threads!r}")
        try:
            import rapidocr
        except ImportError as error:
            raise ImportError("the ocr reward needs rapidocr: pip install rapidocr onnxruntime") from error
        models = Path(rapidocr.__file__).parent / "models"
        engine = "EngineConfig.onnxruntime"
        parameters = {
            "Global.log_level": "critical",
            "Global.use_cls": False,  # no lines upside down, as in the recipes
            "Global.text_score": min_confidence,
            "Det.model_path": _only(models, "*det*.onnx"),
            "Rec.model_path": _only(models, "*rec*.onnx"),
            f"{engine}.intra_op_num_threads": min(threads, os.cpu_count() or 1),
            f"{engine}.inter_op_num_threads": 1,
            **_on_device(engine, device),
        }
        self.engine = rapidocr.RapidOCR(params=parameters)

    def __call__(self, image: Any) -> str:
        found = self.engine(image)
        return in_reading_order(found.boxes.tolist(), found.txts) if len(found) else ""


def _only(folder: Path, pattern: str) -> str:
    """The path of the one model that fits ``pattern``: given a path, rapidocr does not look for a download."""
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        names = [path.name for path in found]
        raise ValueError(f"expected one model {pattern} in {folder}, found {names}: reinstall rapidocr>=3.10")
    return str(found[0])


def _on_device(engine: str, device: str) -> dict[str, Any]:
    """rapidocr's parameters for a device; ``ValueError`` if onnxruntime cannot use it."""
    kind, _, index = device.partition(":")
    if kind == "cpu":
        return {}
    import onnxruntime

    if kind != "cuda" or "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        hint = "; pip install onnxruntime-gpu in place of onnxruntime" if kind == "cuda" else ""
        raise ValueError(f"the ocr reward cannot run on {device!r} with the installed onnxruntime{hint}")
    return {f"{engine}.use_cuda": True, f"{engine}.cuda_ep_cfg.device_id": int(index or 0)}
