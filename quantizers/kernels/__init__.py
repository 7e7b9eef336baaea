"""Fused quantizers for CPU tensors: one pass, no temporaries, the bits of the eager path.

Everything here is optional: where a kernel does not serve a tensor, or numba is missing or fails
(one warning), the functions return None and the eager path computes the same elements.
"""

from .elements import elements as elements
from .serving import eager as eager
from .serving import made as made
from .serving import serves as serves
from .whole import Running as Running
from .whole import whole as whole
