"""Pre-training of the tiny backbones that `data/backbones` ships."""
