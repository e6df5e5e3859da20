"""Where the checkout keeps its files."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
"""The checkout: notebooks/, data/ and figures/ lie here."""
PROFILES = Path(__file__).resolve().parent / "profiles"
BENCHMARK = ROOT / "data" / "benchmark"
BACKBONES = ROOT / "data" / "backbones"
