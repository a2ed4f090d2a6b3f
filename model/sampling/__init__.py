"""Rollouts and random draws: sample paths of numbers, and tokens by temperature, top-k and top-p."""
