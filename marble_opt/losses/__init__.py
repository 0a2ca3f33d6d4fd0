"""Losses of RL for diffusion and flow models, as :class:`marble_opt.SeparableLoss`, and shared terms beside them."""

from .clipped_policy_gradient import clipped_policy_gradient
from .crd import crd
from .crd_reference import crd_reference
from .diffusion_nft import diffusion_nft
from .kl_anchor import adaptive_strength, guided_velocity, kl_anchor
from .weighted_matching import weighted_matching

__all__ = [
    "adaptive_strength",
    "clipped_policy_gradient",
    "crd",
    "crd_reference",
    "diffusion_nft",
    "guided_velocity",
    "kl_anchor",
    "weighted_matching",
]
