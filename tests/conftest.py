"""Small tensors are faster on one thread; and two workers share two cores."""

import torch

torch.set_num_threads(1)
