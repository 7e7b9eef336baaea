"""A report or a run as one HTML page that needs nothing else."""

from .record import RunRecord as RunRecord
from .record import read_run as read_run
from .sections import render as render
from .sections import save_page as save_page
