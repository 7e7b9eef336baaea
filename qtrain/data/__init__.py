"""Data sets, and batches whose order and augmentation are a function of (seed, epoch, sample)."""

from .batches import Batches as Batches
from .catalog import Kind as Kind
from .catalog import kind as kind
from .catalog import load as load
from .catalog import names as names
from .dataset import DataSet as DataSet
from .errors import DataError as DataError
from .samples import DatasetSplit as DatasetSplit
from .splits import FileSplit as FileSplit
from .splits import Split as Split
from .splits import TensorSplit as TensorSplit
from .text import TextSplit as TextSplit
from .transforms import Augmentation as Augmentation
from .transforms import Normalisation as Normalisation
