"""A pytest in a process of its own, with the plugins that these tests need and no other."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def bare_pytest(
    *arguments: str | Path,
    environment: Mapping[str, str] | None = None,
    python: str | Path = sys.executable,
    **how: Any,
) -> subprocess.CompletedProcess[str]:
    """Runs it quietly, without a cache, whatever plugins are installed beside; how: as
    subprocess.run takes it."""
    command = [
        str(python), "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "xdist.plugin",
        "-p", "pytest_timeout", *map(str, arguments),
    ]  # fmt: skip
    bare = {**os.environ, **(environment or {}), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    for name in ("PYTEST_ADDOPTS", "PYTEST_PLUGINS"):
        bare.pop(name, None)
    return subprocess.run(command, env=bare, capture_output=True, text=True, check=False, **how)
