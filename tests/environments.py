"""Environments with other releases of what this one has, made once, in the user's cache; they borrow torch."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

SECONDS = 100


def environment(name: str, *packages: list[str]) -> Path:
    """The folder of an environment, made where it is not there yet; skips where that can't be done.

    Args:
        name: of the folder, with the versions.
        packages: what to give pip, one list a call.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "qwen3-embed-integrations"
    folder = cache / f"{name}-{sys.implementation.cache_tag}"
    if not (folder / "ready").exists():
        shutil.rmtree(folder, ignore_errors=True)
        try:
            subprocess.run([sys.executable, "-m", "venv", folder], check=True, capture_output=True, timeout=SECONDS)
            for arguments in packages:
                command = [folder / "bin" / "python", "-m", "pip", "install", "--quiet", *arguments]
                subprocess.run(command, check=True, capture_output=True, text=True, timeout=SECONDS)
        except (subprocess.SubprocessError, OSError) as error:
            shutil.rmtree(folder, ignore_errors=True)
            reason = str(getattr(error, "stderr", None) or error).strip().splitlines()[-1]
            pytest.skip(f"{name} could not be installed: {reason}")
        (folder / "ready").touch()
    inner = subprocess.run(
        [folder / "bin" / "python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    # Behind its own packages, so that only what it lacks comes from here.
    (Path(inner) / "outer.pth").write_text(f"{_borrowed(folder / 'outer')}\n")
    return folder


def _borrowed(folder: Path) -> Path:
    """Link the large packages that it needs, and theirs, and no others, which may need another numpy than it has."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    waiting, seen = ["torch", "scikit-learn", "pillow"], set()
    while waiting:
        name = canonicalize_name(waiting.pop())
        if name in seen:
            continue
        seen.add(name)
        found = distribution(name)
        for top in {file.parts[0] for file in found.files if file.parts[0] not in ("..", "__pycache__")}:
            if not (folder / top).is_symlink():
                (folder / top).symlink_to(found.locate_file(top))
        requirements = map(Requirement, found.requires or [])
        waiting += [each.name for each in requirements if each.marker is None or each.marker.evaluate({"extra": ""})]
    return folder
