"""Losses of RL for diffusion and flow models, as :class:`marble_opt.SeparableLoss`."""

from .clipped_policy_gradient import clipped_policy_gradient
from .diffusion_nft import diffusion_nft
from .weighted_matching import weighted_matching

__all__ = ["clipped_policy_gradient", "diffusion_nft", "weighted_matching"]
