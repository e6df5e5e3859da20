"""Trained policies and the paper's baselines on held-out questions."""
