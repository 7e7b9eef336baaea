"""The named recipes, a file a family."""

from .affine import banner2018 as banner2018
from .affine import int8 as int8
from .baselines import bf16 as bf16
from .baselines import fp16 as fp16
from .baselines import fp32 as fp32
from .fp4 import four_over_six as four_over_six
from .fp4 import fp4_all_the_way as fp4_all_the_way
from .fp4 import nvfp4 as nvfp4
from .fp8 import deepseek_v3 as deepseek_v3
from .fp8 import fp8 as fp8
from .fp8 import fp8_delayed as fp8_delayed
from .hbfp import hbfp4 as hbfp4
from .hbfp import hbfp6 as hbfp6
from .integer import jetfire as jetfire
from .integer import statquant as statquant
from .integer import switchback as switchback
from .luq import luq as luq
from .mx import mxfp4 as mxfp4
from .mx import mxfp4_e3m0 as mxfp4_e3m0
from .mx import mxfp6 as mxfp6
from .mx import mxfp8 as mxfp8
from .mx import mxint8 as mxint8
from .named import get as get
from .named import hint as hint
from .named import names as names
from .named import takes_bits as takes_bits
