"""Accumulators: in which order, in which formats and with which overflow a product is summed."""

from .accumulate import accumulate as accumulate
from .accumulate import needs as needs
from .endless import endless as endless
from .models import Accumulator as Accumulator
from .models import Aligned as Aligned
from .models import Exact as Exact
from .models import Integer as Integer
from .models import Sequential as Sequential
from .models import aligned as aligned
from .models import exact as exact
from .models import integer as integer
from .models import sequential as sequential
from .units import get as get
from .units import names as names
