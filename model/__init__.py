"""The contract that training and serving share: the format of a bundle, its verification, and how it is run."""

from pathlib import Path

ZOO = Path(__file__).parent / "zoo"
"""The small trained bundles that ship."""
