"""Every experiment of a paper one after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from experiments.harness import images

Main = Callable[[list[str]], None]


def run_all(
    text: str,
    script: str,
    *,
    on_images: Sequence[Main],
    on_text: Sequence[Main],
    claims: Main,
    arguments: list[str] | None = None,
) -> None:
    """The command that runs them: experiments on images, on text, then the table of claims.

    Takes the options of any experiment on images and hands them on; --text-dir is the --data-dir
    of those on text.  text, script: its docstring and its file.
    """
    parser = images.parser(text, script)
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
    for main in on_images:
        main([*common, *own])
    for main in on_text:
        main([*common, "--data-dir", args.text_dir])
    claims(["--scale", args.scale, "--output", str(args.output)])
