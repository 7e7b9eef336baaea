"""Every experiment one after the other, then the table of claims.

    python -m experiments.banner2018.run_all --data-dir PATH --text-dir PATH --jobs 2

Takes the options of any experiment on images and hands them on; --text-dir is the --data-dir of
the experiment on text.  Runs that are in the results already are not repeated: with all of them
there, this draws the figures and the table anew.
"""

from __future__ import annotations

from experiments.banner2018 import (
    angle,
    bifurcation,
    bits,
    cifar_resnet,
    claims,
    int8_resnet,
    transformer,
)
from experiments.harness.run_all import run_all

ON_IMAGES = (bits, int8_resnet, bifurcation, cifar_resnet, angle)


def main(arguments: list[str] | None = None) -> None:
    run_all(
        __doc__ or "",
        __file__,
        on_images=[experiment.main for experiment in ON_IMAGES],
        on_text=[transformer.main],
        claims=claims.main,
        arguments=arguments,
    )


if __name__ == "__main__":
    main()
