"""The contract shared by training and serving: what a bundle is, how it is verified, and how it is run."""

from pathlib import Path

ZOO = Path(__file__).parent / "zoo"
"""The small trained bundles that ship."""
