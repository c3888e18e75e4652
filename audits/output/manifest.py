"""Provenance of a result: code, packages, machine."""

import hashlib
import platform
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import psutil
import torch

from evidence.typed_json import Json

PACKAGES = (
    "evidence",
    "capture",
    "probes",
    "attribution",
    "erasure",
    "audits",
    "experiments",
    "exhume",
)
LIBRARIES = (
    "exhume",
    "torch",
    "transformers",
    "safetensors",
    "scikit-learn",
    "numpy",
    "scipy",
    "statsmodels",
    "zarr",
)


def code_hash() -> str:
    """sha256 of every source file that can change a result."""
    digest = hashlib.sha256()
    for package in PACKAGES:
        spec = find_spec(package)
        roots = list(spec.submodule_search_locations or ()) if spec else []
        for path in sorted(Path(roots[0]).rglob("*.py")) if roots else []:
            name = path.relative_to(roots[0]).as_posix()
            digest.update(f"{package}/{name}\n".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """Installed versions of Python and the numerical libraries."""
    installed = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            installed[name] = version(name)
        except PackageNotFoundError:
            installed[name] = "not installed"
    return installed


def hardware(device: str) -> dict[str, Json]:
    """The machine, as far as it can change a figure."""
    return {
        "platform": platform.platform(terse=True),
        "machine": platform.machine(),
        "cores": psutil.cpu_count(logical=True),
        "threads": torch.get_num_threads(),
        "memory_bytes": psutil.virtual_memory().total,
        "device": device,
    }
