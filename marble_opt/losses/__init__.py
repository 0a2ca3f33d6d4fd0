"""Losses of RL for diffusion and flow models, as :class:`marble_opt.SeparableLoss`."""

from .diffusion_nft import diffusion_nft
from .weighted_matching import weighted_matching

__all__ = ["diffusion_nft", "weighted_matching"]
