"""qtrain on a GPU: are its bits the CPU's, how fast are its steps, its kernels, its peers."""

import sys
from pathlib import Path

# the networks and steps that are timed on a CPU
sys.path.append(str(Path(__file__).parents[1] / "speed"))
