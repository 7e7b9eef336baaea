"""Every experiment one after the other, then the table of claims.

    python experiments/hoffer2018/run_all.py --data-dir PATH --text-dir PATH --jobs 2

Takes the options of any experiment on images and hands them on; --text-dir is the --data-dir of
the experiment on text.  Runs that are in the results already are not repeated: with all of them
there, this draws the figures and the table anew.
"""

from __future__ import annotations

import bounded_norm
import claims
import constant
import deviations
import half_norm
import images
import lp_norm
import range_norm
import weight_decay

ON_IMAGES = (weight_decay, deviations, constant, half_norm, bounded_norm, range_norm)


def main(arguments: list[str] | None = None) -> None:
    parser = images.parser(__doc__ or "")
    parser.add_argument("--text-dir", required=True, help="folder or file of the text")
    args = parser.parse_args(arguments)
    common = ["--scale", args.scale, "--device", args.device, "--output", str(args.output)]
    for name in ("seeds", "jobs", "epochs", "batch"):
        if getattr(args, name) is not None:
            common += [f"--{name}", str(getattr(args, name))]
    own = ["--data", args.data, "--workers", str(args.workers)]
    for name in ("data-dir", "cache-dir", "network"):
        value = getattr(args, name.replace("-", "_"))
        if value is not None:
            own += [f"--{name}", value]
    for experiment in ON_IMAGES:
        experiment.main([*common, *own])
    lp_norm.main([*common, "--data-dir", args.text_dir])
    claims.main(["--scale", args.scale, "--output", str(args.output)])


if __name__ == "__main__":
    main()
