import torch

torch.set_num_threads(1)  # networks this small are faster on one thread, and leave the machine to others
