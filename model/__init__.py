"""The contract shared by training and serving: what a bundle is, how it is verified, and how it is run."""
