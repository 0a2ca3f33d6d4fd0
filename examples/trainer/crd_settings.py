"""The section ``crd`` of a config: Centered Reward Distillation (arXiv 2603.14128)."""

from dataclasses import dataclass, field
from math import isfinite

from .decay import check_schedule
from .settings import require

WEIGHTINGS = ("uniform", "temperature")
FORMS = ("mse", "bce")
STRENGTHS = ("constant", "raw", "advantage")


@dataclass
class AnchorSettings:
    """The pull towards the pretrained model under classifier-free ``guidance`` s (1: its plain velocity), with
    ``weight`` (0: none, and no forward for it).

    ``adaptive`` "constant": every sample has ``weight``. Otherwise sample i has (1 − u_i) · ``low`` + u_i · ``high``
    and ``weight`` is not used: "raw", the paper's, takes for u the sample's raw rewards, clipped to [0, 1] and averaged
    over the trained ones that apply; "advantage" their ρ = clip(A, ±adv_clip) / (2 adv_clip) + 1/2, averaged likewise.
    """

    weight: float = 0.1
    guidance: float = 4.5
    adaptive: str = "raw"
    low: float = 1e-4
    high: float = 0.1

    def __post_init__(self) -> None:
        require(self.weight >= 0 and isfinite(self.weight), f"crd.anchor.weight must be >= 0, got {self.weight}")
        require(self.guidance >= 0 and isfinite(self.guidance), f"crd.anchor.guidance is >= 0, got {self.guidance}")
        require(self.adaptive in STRENGTHS, f"crd.anchor.adaptive must be one of {STRENGTHS}, got {self.adaptive!r}")
        require(
            0 <= self.low <= self.high and isfinite(self.high),
            f"crd.anchor.low and high: 0 <= low <= high, got {self.low} and {self.high}",
        )

    @property
    def on(self) -> bool:
        """Whether any sample is pulled."""
        return (self.weight if self.adaptive == "constant" else self.high) > 0


@dataclass
class CrdSettings:
    """``beta``, ``self_normalize``, ``weighting``, ``temperature`` and ``form`` of ``marble_opt.losses.crd``.

    ``old`` and ``sampling``: how these two adapters follow the trained one, adapter ← d · adapter + (1 − d) · trained
    after each epoch, d by ``decay.decay_at``: the denominator of the policies' ratio, and the policy that rolls out.
    """

    beta: float = 1.0
    self_normalize: bool = True
    weighting: str = "uniform"
    temperature: float = 1.0
    form: str = "mse"
    old: str = "crd_ocr_old"
    sampling: str = "crd_ocr_sampling"
    anchor: AnchorSettings = field(default_factory=AnchorSettings)

    def __post_init__(self) -> None:
        require(self.beta > 0 and self.temperature > 0, f"crd: beta and temperature must be positive, got {self}")
        require(self.weighting in WEIGHTINGS, f"crd.weighting must be one of {WEIGHTINGS}, got {self.weighting!r}")
        require(self.form in FORMS, f"crd.form must be one of {FORMS}, got {self.form!r}")
        check_schedule("crd.old", self.old)
        check_schedule("crd.sampling", self.sampling)
