"""``exhume doctor``: check the installation."""

import shutil
from dataclasses import dataclass
from importlib.metadata import packages_distributions
from importlib.util import find_spec

import psutil
import torch

from audits.output.manifest import versions
from capture.checkpoints.cache import cache_root
from evidence.machine.devices import choose_device

OURS = (
    "attribution",
    "audits",
    "capture",
    "erasure",
    "evidence",
    "exhume",
    "experiments",
    "probes",
    "testbeds",
)
OPTIONAL = ("transformer_lens", "nnsight", "sae_lens")
MIN_DISK = 3 * 2**30
MIN_MEMORY = 6 * 2**30


@dataclass(frozen=True)
class Check:
    """One check, with advice where it fails."""

    name: str
    found: str
    good: bool
    advice: str = ""


def clashes() -> dict[str, list[str]]:
    """Our import names that another installed distribution also provides."""
    owners = packages_distributions()
    clashing = {
        name: sorted({owner for owner in owners.get(name, ()) if owner != "exhume"})
        for name in OURS
    }
    return {name: others for name, others in clashing.items() if others}


def run_checks() -> list[Check]:
    """Run every check, in report order."""
    checks = [
        Check(name, installed_version, installed_version != "not installed", "reinstall exhume")
        for name, installed_version in versions().items()
    ]
    taken = clashes()
    checks.append(
        Check(
            "package names",
            "; ".join(f"{n} also in {', '.join(o)}" for n, o in taken.items()) or "no clash",
            not taken,
            "use a virtual environment of its own",
        )
    )
    for name in OPTIONAL:
        installed = find_spec(name) is not None
        checks.append(Check(name, "installed" if installed else "not installed", True))
    root = cache_root()
    existing = next(folder for folder in (root, *root.parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    memory = psutil.virtual_memory().total
    checks += [
        Check(
            "cache",
            f"{root}, {free / 2**30:.1f} GiB free",
            free >= MIN_DISK,
            "free some space, or set EXHUME_CACHE to another disk",
        ),
        Check("memory", f"{memory / 2**30:.1f} GiB", memory >= MIN_MEMORY, "the demo needs 6 GiB"),
        Check("device", f"{choose_device('auto')}, {torch.get_num_threads()} threads", True),
    ]
    return checks
