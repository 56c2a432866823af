"""Where a run comes from: package versions, hardware and the commit of the code, as run manifests keep them."""

import os
import platform
import re
import subprocess
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Give the versions of Python, the platform, the hardware and the versions of those `packages` that are
    installed."""
    found = {
        "python": platform.python_version(),
        "platform": f"{platform.system()}-{platform.machine()}",
        "hardware": hardware(),
    }
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def hardware(proc: Path = Path("/proc")) -> str:
    """Give what this process may compute on, such as `2 CPU cores (AMD EPYC), 23 GiB, 1 × NVIDIA H100`. It does not
    name the machine; what the system does not tell is left out."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    model = re.search(r"^model name\s*:\s*(.+)$", _text(proc / "cpuinfo"), re.MULTILINE)
    memory = re.search(r"^MemTotal:\s*(\d+) kB$", _text(proc / "meminfo"), re.MULTILINE)
    cores = f"{usable} CPU core{'s' if usable > 1 else ''}"
    parts = [f"{cores} ({' '.join(model[1].split())})" if model else cores]
    if memory:
        parts.append(f"{int(memory[1]) / 2**20:.0f} GiB")
    cards = [_text(path) for path in sorted((proc / "driver" / "nvidia" / "gpus").glob("*/information"))]
    names = [found[1].strip() for text in cards if (found := re.search(r"^Model:\s*(.+)$", text, re.MULTILINE))]
    return ", ".join([*parts, *(f"{names.count(name)} × {name}" for name in dict.fromkeys(names))])


def git_revision(folder: Path = Path(__file__).parent) -> str | None:
    """Give the commit of the checkout that `folder` lies in, `+dirty` when it has changes; None outside a checkout."""
    try:
        commit = _git(folder, "rev-parse", "HEAD")
        dirty = _git(folder, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{commit}+dirty" if dirty else commit


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()
