"""qtrain: would this network still train in low precision, and where does it break?"""

import types

from . import data as data
from . import models as models
from . import recipes as recipes
from .conversion.converted import calibrate as calibrate
from .conversion.converted import plain_state_dict as plain_state_dict
from .conversion.converted import reseed as reseed
from .conversion.quantize import quantize as quantize
from .conversion.quantize import quantize_ as quantize_
from .conversion.registered import register as register
from .conversion.set_recipe import set_recipe as set_recipe
from .conversion.summary import summary as summary
from .diagnosis import rules as rules
from .diagnosis.diagnose import diagnose as diagnose
from .diagnosis.recommend import recommend as recommend
from .diagnosis.recommendation import Recommendation as Recommendation
from .diagnosis.required_bits import RequiredBits as RequiredBits
from .diagnosis.required_bits import RequiredRow as RequiredRow
from .diagnosis.required_bits import required_bits as required_bits
from .diagnosis.sensitivity import sensitivity as sensitivity
from .diagnosis.sensitivity_report import SensitivityReport as SensitivityReport
from .diagnosis.sensitivity_report import SensitivityRow as SensitivityRow
from .diagnosis.verdict import Finding as Finding
from .diagnosis.verdict import Verdict as Verdict
from .hardware import energy as energy
from .hardware.cost import cost as cost
from .hardware.doctor import doctor as doctor
from .hardware.energy import EnergyTable as EnergyTable
from .hardware.energy import UnitCost as UnitCost
from .hardware.environment import environment as environment
from .hardware.report import CostReport as CostReport
from .hardware.report import CostRow as CostRow
from .hardware.report import Trade as Trade
from .inspection.inspect import accumulated as accumulated
from .inspection.inspect import inspect as inspect
from .inspection.monitor import Monitor as Monitor
from .inspection.report import Report as Report
from .inspection.row import Row as Row
from .inspection.rows import MonitorRow as MonitorRow
from .inspection.rows import read_monitor as read_monitor
from .inspection.tensorboard import to_tensorboard as to_tensorboard
from .layers import fused as fused
from .layers.attention import ScaledDotProductAttention as ScaledDotProductAttention
from .layers.matmul import Matmul as Matmul
from .norms import deviations as deviations
from .norms.arithmetic import Arithmetic as Arithmetic
from .norms.recipe import NormRecipe as NormRecipe
from .recipe import Center as Center
from .recipe import Forward as Forward
from .recipe import GradInput as GradInput
from .recipe import GradWeight as GradWeight
from .recipe import Hadamard as Hadamard
from .recipe import Lookup as Lookup
from .recipe import Recipe as Recipe
from .recipe import center as center
from .recipe import hadamard as hadamard
from .recipe_file import load_recipe as load_recipe
from .recipe_file import save_recipe as save_recipe
from .schedule import Schedule as Schedule
from .training.checkpoint import CheckpointError as CheckpointError
from .training.compare import Comparison as Comparison
from .training.compare import compare as compare
from .training.config import TrainConfig as TrainConfig
from .training.hook import Hook as Hook
from .training.intervals import Interval as Interval
from .training.intervals import mean_difference as mean_difference
from .training.loggers.logger import Logger as Logger
from .training.named import training_recipe as training_recipe
from .training.nonfinite import NonFiniteError as NonFiniteError
from .training.nonfinite import first_nonfinite as first_nonfinite
from .training.results import Result as Result
from .training.study import differences as differences
from .training.study import executors as executors
from .training.study.differences import Difference as Difference
from .training.study.file import load_study as load_study
from .training.study.outcome import StudyRun as StudyRun
from .training.study.outcome import read_runs as read_runs
from .training.study.outcome import save_runs as save_runs
from .training.study.results import StudyResult as StudyResult
from .training.study.study import study as study
from .training.train import train as train
from .version import VERSION
from .weights.bounded import bound_weights as bound_weights
from .weights.bounded import bound_weights_ as bound_weights_
from .weights.bounded import unbound_weights_ as unbound_weights_
from .weights.bounded import weight_norm as weight_norm
from .weights.bounded import weight_norm_ as weight_norm_
from .weights.channels import channel_norms as channel_norms
from .weights.decay import CorrectedSteps as CorrectedSteps
from .weights.decay import NormSchedule as NormSchedule
from .weights.decay import effective_rates as effective_rates
from .weights.history import NormHistory as NormHistory
from .weights.rates import EffectiveRates as EffectiveRates
from .weights.rates import RateRow as RateRow
from .weights.updates.counts import UpdateReport as UpdateReport
from .weights.updates.counts import UpdateRow as UpdateRow
from .weights.updates.expansion import Expanded as Expanded
from .weights.updates.low_precision import LowPrecision as LowPrecision
from .weights.updates.low_precision import low_precision_ as low_precision_
from .weights.updates.named import save_update as save_update
from .weights.updates.update import Update as Update

__version__ = VERSION

#: modules that are imported from by name
_MODULES = (
    "data", "deviations", "differences", "energy", "executors", "fused", "models", "recipes",
    "rules",
)  # fmt: skip
#: every name above but VERSION, and no module it lives in
__all__ = sorted(
    name
    for name, value in globals().items()
    if name in _MODULES
    or not (name.startswith("_") or isinstance(value, types.ModuleType) or name == "VERSION")
)


def __dir__() -> list[str]:
    """The public names, without the folders they live in."""
    return [*__all__, "__version__"]
