"""Where the runs of a study are done: in this process, in others, or on a cluster."""

from .executor import Executor as Executor
from .executor import Here as Here
from .executor import Running as Running
from .named import named as named
from .processes import Processes as Processes
from .ray import Ray as Ray
from .slurm import Slurm as Slurm

__all__ = ["Executor", "Here", "Processes", "Ray", "Running", "Slurm", "named"]
