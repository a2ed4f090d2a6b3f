"""Networks are fitted to series: the training loop, the optimiser, checkpoints and devices."""
