"""Build and pre-train the tiny backbones that `data/backbones` ships."""
