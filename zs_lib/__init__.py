"""ZeroSearch workbench: reproduce, understand and extend arXiv 2505.04588."""

__version__ = "0.1.0"
