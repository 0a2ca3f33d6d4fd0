"""DiffusionNFT post-training with several rewards."""
