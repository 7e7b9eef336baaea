"""Recipe: the quantizer of every operand of every product, as one value."""

from .center import Center as Center
from .center import center as center
from .lookup import Lookup as Lookup
from .recipe import Recipe as Recipe
from .slots import OPERANDS as OPERANDS
from .slots import OUTPUT as OUTPUT
from .slots import SLOTS as SLOTS
from .slots import Forward as Forward
from .slots import GradInput as GradInput
from .slots import GradWeight as GradWeight
from .slots import short as short
from .transforms import Hadamard as Hadamard
from .transforms import hadamard as hadamard
