"""qtrain: would this network still train in low precision, and where does it break?"""

from . import recipes as recipes
from .attention import ScaledDotProductAttention as ScaledDotProductAttention
from .bounded import bound_weights as bound_weights
from .bounded import bound_weights_ as bound_weights_
from .bounded import unbound_weights_ as unbound_weights_
from .bounded import weight_norm as weight_norm
from .bounded import weight_norm_ as weight_norm_
from .channels import channel_norms as channel_norms
from .checkpoint import CheckpointError as CheckpointError
from .config import TrainConfig as TrainConfig
from .conversion import summary as summary
from .convert import quantize as quantize
from .convert import quantize_ as quantize_
from .converted import calibrate as calibrate
from .converted import plain_state_dict as plain_state_dict
from .converted import reseed as reseed
from .inspection import inspect as inspect
from .matmul import Matmul as Matmul
from .monitor import Monitor as Monitor
from .monitor_rows import MonitorRow as MonitorRow
from .monitor_rows import read_monitor as read_monitor
from .nonfinite import NonFiniteError as NonFiniteError
from .norm_arithmetic import Arithmetic as Arithmetic
from .norm_history import NormHistory as NormHistory
from .norm_recipe import NormRecipe as NormRecipe
from .rate_history import EffectiveRates as EffectiveRates
from .rate_history import RateRow as RateRow
from .recipe import Forward as Forward
from .recipe import GradInput as GradInput
from .recipe import GradWeight as GradWeight
from .recipe import Recipe as Recipe
from .report import Report as Report
from .report import Row as Row
from .results import Result as Result
from .training import train as train
from .training_recipes import training_recipe as training_recipe
from .weight_decay import CorrectedSteps as CorrectedSteps
from .weight_decay import NormSchedule as NormSchedule
from .weight_decay import effective_rates as effective_rates

__version__ = "0.1.0"
