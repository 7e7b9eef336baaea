"""What the processes that tests fork find imported, and tried: ten seconds that each of them saves.

multiprocessing's server of forks imports this (training_cases.Forked).  A backward would bar forks.
"""

import pytest  # noqa: F401
import torch
import torch._dynamo
from torch import nn

import qtrain.cli  # noqa: F401
from qtrain import quantize

torch.set_num_threads(1)
with torch.no_grad():
    quantize(nn.Linear(4, 4))(torch.ones(2, 4))
