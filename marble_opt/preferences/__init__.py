"""Models conditioned on a preference between rewards (ParetoSlider, arXiv 2604.20816), and how to balance them."""

from .anatomy import conditioning_width
from .bucket_means import BucketMeans
from .buckets import BucketBalancer, balance_buckets, bucket_advantages, bucket_rewards
from .conditioning import PreferenceConditioning
from .ideal_point import IdealPoint
from .install import Installed, install
from .sampling import PreferenceSampler
from .scalarisation import linear, scalarise_advantages, smooth_tchebycheff, tchebycheff_weights
from .simplex import check_preferences, nearest, simplex_grid

__all__ = [
    "BucketBalancer",
    "BucketMeans",
    "IdealPoint",
    "Installed",
    "PreferenceConditioning",
    "PreferenceSampler",
    "balance_buckets",
    "bucket_advantages",
    "bucket_rewards",
    "check_preferences",
    "conditioning_width",
    "install",
    "linear",
    "nearest",
    "scalarise_advantages",
    "simplex_grid",
    "smooth_tchebycheff",
    "tchebycheff_weights",
]
