"""Every experiment one after the other, then the table of claims.

    python -m experiments.hoffer2018.run_all --data-dir PATH --text-dir PATH --jobs 2

Takes the options of any experiment on images and hands them on; --text-dir is the --data-dir of
the experiment on text.  Runs that are in the results already are not repeated: with all of them
there, this draws the figures and the table anew.
"""

from __future__ import annotations

from experiments.harness.run_all import run_all
from experiments.hoffer2018 import (
    bounded_norm,
    claims,
    constant,
    deviations,
    half_norm,
    lp_norm,
    range_norm,
    weight_decay,
)

ON_IMAGES = (weight_decay, deviations, constant, half_norm, bounded_norm, range_norm)


def main(arguments: list[str] | None = None) -> None:
    run_all(
        __doc__ or "",
        __file__,
        on_images=[experiment.main for experiment in ON_IMAGES],
        on_text=[lp_norm.main],
        claims=claims.main,
        arguments=arguments,
    )


if __name__ == "__main__":
    main()
