"""The contracts, the quantizers and all that compiles, with each supported release of torch.

    python tests/versions.py FOLDER [VERSION ...]

Makes, or takes up again, an environment a version in FOLDER (some GB each), prints a table, and
exits with 1 where a test failed or an environment could not be made.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import venv
from pathlib import Path
from xml.etree import ElementTree

from bare_pytest import bare_pytest
from tabulate import tabulate

ROOT = Path(__file__).parent.parent
#: the oldest supported, the last of each minor release since, the newest
VERSIONS = ("2.11.0", "2.12.1", "2.13.0", "2.14.1", "2.15.0")


def files() -> list[Path]:
    """The contracts, the tests of the quantizers, and every file with a test that compiles, itself
    or in a process that it starts (sync_cases)."""
    found = sorted((ROOT / "tests" / "qtrain").glob("test_*.py"))
    compiles = re.compile(r"contract_1|\.compile\(|sync_cases")
    return [
        *(path for path in found if compiles.search(path.read_text("utf-8"))),
        ROOT / "tests" / "quantizers",
    ]


def environment(folder: Path, version: str) -> Path:
    """The python of an environment with this torch, the package and its test extras.

    Raises subprocess.CalledProcessError where pip cannot install them.
    """
    home = folder / version
    python = home / "bin" / "python"
    if not python.exists():
        venv.create(home, with_pip=True)
    pins = folder / "pins.txt"
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines(keepends=True)
    pins.write_text("".join(line for line in lines if not line.startswith("torch==")), "utf-8")
    subprocess.run(
        [python, "-m", "pip", "install", "-q", "-c", pins, f"torch=={version}",
         "-e", f"{ROOT}[test]"],
        check=True,
    )  # fmt: skip
    return python


def tested(folder: Path, version: str) -> tuple[int, int, int]:
    """How many tests passed, failed (or had errors) and were skipped."""
    report = folder / f"{version}.xml"
    report.unlink(missing_ok=True)
    run = bare_pytest(
        "--every-case", "--tb=short", f"--junitxml={report}", *files(),
        python=environment(folder, version), cwd=ROOT,
    )  # fmt: skip
    (folder / f"{version}.txt").write_text(run.stdout + run.stderr, encoding="utf-8")
    if not report.exists():
        print(run.stdout[-2000:], run.stderr[-2000:], sep="\n", file=sys.stderr)
        return 0, 1, 0
    suite = next(ElementTree.parse(report).iter("testsuite"))
    total, failed, errors, skipped = (
        int(suite.attrib[name]) for name in ("tests", "failures", "errors", "skipped")
    )
    bad = failed + errors
    if run.returncode and not bad:  # stopped before its end
        bad = 1
    return total - failed - errors - skipped, bad, skipped


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path, help="where the environments are, or are made")
    parser.add_argument("versions", nargs="*", default=VERSIONS, help=f"of {', '.join(VERSIONS)}")
    asked = parser.parse_args(arguments)
    folder = asked.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[tuple[object, ...]] = []
    for version in asked.versions:
        try:
            rows.append((version, *tested(folder, version)))
        except subprocess.CalledProcessError as error:
            print(error, file=sys.stderr)
            rows.append((version, "not installed", "", ""))
        print(*rows[-1], flush=True)
    print(tabulate(rows, ["torch", "passed", "failed", "skipped"], disable_numparse=True))
    print(f"what each printed: {folder}/VERSION.txt")
    return int(any(row[2] != 0 for row in rows))


if __name__ == "__main__":
    sys.exit(main())
