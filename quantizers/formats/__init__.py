"""Number formats as specifications, and those that have a name."""

from .float_format import FloatFormat as FloatFormat
from .float_format import Overflow as Overflow
from .int_format import IntFormat as IntFormat
from .named import NAMED as NAMED
from .named import NATIVE as NATIVE
from .named import Format as Format
from .named import bf16 as bf16
from .named import by_widths as by_widths
from .named import dynamic8 as dynamic8
from .named import e2m1 as e2m1
from .named import e2m3 as e2m3
from .named import e3m0 as e3m0
from .named import e3m2 as e3m2
from .named import e4m3 as e4m3
from .named import e5m2 as e5m2
from .named import e8m0 as e8m0
from .named import fp16 as fp16
from .named import fp32 as fp32
from .named import get as get
from .named import get_sum as get_sum
from .named import int8 as int8
from .named import nf4 as nf4
from .named import tf32 as tf32
from .named import udynamic8 as udynamic8
from .named import uint8 as uint8
from .table_format import TableFormat as TableFormat
