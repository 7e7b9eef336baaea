"""Fused quantizers for CPU tensors: one pass, no temporaries, the bits of the eager path.

Everything here is optional, the faster form of an `ByDevice`: where a kernel does not serve a
tensor, or numba is missing or fails (one warning), the functions return None and the eager path
computes the same elements.
"""

from quantizers.devices.memory import eager as eager
from quantizers.devices.memory import serves as serves

from .serving import is_dense as is_dense
from .serving import made as made
