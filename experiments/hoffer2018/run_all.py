"""Every experiment one after the other, then the table of claims.

    python experiments/hoffer2018/run_all.py --data-dir PATH --jobs 2

Takes the options of any experiment on images and hands them on.  Runs that are in the results
already are not repeated: with all of them there, this draws the figures and the table anew.
"""

from __future__ import annotations

import sys

import bounded_norm
import claims
import constant
import deviations
import images
import range_norm
import weight_decay

EXPERIMENTS = (weight_decay, deviations, constant, bounded_norm, range_norm)


def main(arguments: list[str] | None = None) -> None:
    own = sys.argv[1:] if arguments is None else arguments
    args = images.parser(__doc__ or "").parse_args(own)
    for experiment in EXPERIMENTS:
        experiment.main(own)
    claims.main(["--scale", args.scale, "--output", str(args.output)])


if __name__ == "__main__":
    main()
