"""Run kept cases in the tree that is first on the path: ``python -P worker.py TASKS``.

One file, run by its path, drives trees of two commits whose modules lie in different
places. What it calls is looked for in every place that it has had: whoever moves it
adds the new one to ``PLACES``.
"""

import importlib
import json
import sys
import sysconfig
import time
from collections.abc import Collection
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

PLACES = {
    "audit": ("exhume:audit", "audits.audit:audit"),
    "AXES": ("audits.core.registry:AXES",),
    "write_report": ("audits.report.page:write_report", "audits.report:write_report"),
    "build_zoo": ("testbeds.zoo.build:build_zoo", "testbeds.zoo:build_zoo"),
    "SMALL": ("testbeds.worlds.biographies:SMALL", "testbeds.bios:SMALL"),
    "DigitsConfig": ("testbeds.worlds.digits:DigitsConfig", "testbeds.digits:DigitsConfig"),
    "LogisticProbe": ("probes.estimators.logistic:LogisticProbe", "probes.logistic:LogisticProbe"),
    "k_fold": ("probes.splits.folds:k_fold", "probes.folds:k_fold"),
    "leave_one_group_out": (
        "probes.splits.folds:leave_one_group_out",
        "probes.folds:leave_one_group_out",
    ),
}
"""Where each name is, and where it was before the modules were moved into folders."""
BEFORE = {"quantization": "persistence"}
"""Names of axes, and what a tree without them calls them."""
KINDS = {
    "bios": (
        *("last_block_relabel", "last_block_lora", "head_only", "logit_mask"),
        *("retrain_1", "twin_tuned", "collapse", "noise", "npo", "rmu", "scrub"),
    ),
    "digits": (
        *("head_only", "last_block_relabel", "late_rotation", "class_direction"),
        *("retrain_1", "twin_tuned", "collapse", "noise", "salun", "scrub"),
    ),
}
"""Models trained again, so that two trees are seen to train alike."""


def found(name: str) -> Any:
    """What this tree calls ``name``.

    Raises:
        ImportError: it is in none of its places.
    """
    for place in PLACES[name]:
        module, _, attribute = place.partition(":")
        try:
            value = getattr(importlib.import_module(module), attribute)
        except (ModuleNotFoundError, AttributeError):
            continue
        if not hasattr(value, "__path__"):  # a folder may have the name of a function
            return value
    raise ImportError(f"{name} is in none of {', '.join(PLACES[name])}: add its place")


def known_axes() -> Collection[str]:
    """Names of the axes of this tree; none where it has no registry of them."""
    try:
        return found("AXES")
    except ImportError:
        return ()


def audits(tasks: list[dict[str, Any]], reports: Path | None) -> None:
    """Run each audit; with ``reports`` its page too, without what differs by run."""
    run, write_report, known = found("audit"), found("write_report"), known_axes()
    for arguments in tasks:
        start = time.process_time()
        axes = [name if name in known else BEFORE.get(name, name) for name in arguments["axes"]]
        done = run(**arguments | {"axes": axes})
        out = Path(arguments["out"])
        print(f"{out.name}: {done.verdict}, {time.process_time() - start:.1f} s of CPU", flush=True)
        if reports is not None:
            folder = reports / out.name
            folder.mkdir(parents=True)
            write_report(folder, still(done.document))


def still(document: dict[str, Any]) -> dict[str, Any]:
    """The document with the same time, machine and code whenever it was made."""
    runtime = {"written": "1980-01-01T00:00:00+0000", "seconds": 0.0, "stages": {}}
    axes = [axis | {"seconds": 0.0, "peak_memory_bytes": 0} for axis in document["axes"]]
    hardware = dict.fromkeys(document["manifest"]["hardware"], 0) | {"device": "cpu"}
    fixed = {"code_sha256": "0" * 64, "versions": {}, "hardware": hardware}
    manifest = document["manifest"] | fixed
    return document | {"runtime": runtime, "manifest": manifest, "axes": axes}


def zoo(root: Path) -> None:
    """Train small models; the zoo's own list has the hash of each one's weights."""
    build, config = found("build_zoo"), found("DigitsConfig")
    digits = config(layers=2, width=48, steps=150, lr=4e-3, weight_decay=0.1, family="cnn")
    for world, size in (("bios", found("SMALL")), ("digits", digits)):
        build(
            root / world,
            world=world,
            seeds=[0],
            families=[size.family],
            only=KINDS[world],
            config=size,
        )
        print(f"zoo of {world}", flush=True)


def corpus(path: Path) -> None:
    """Solve every problem of the corpus, all scores kept."""
    here = spec_from_file_location("corpus", Path(__file__).with_name("corpus.py"))
    assert here is not None and here.loader is not None
    module = module_from_spec(here)
    sys.modules["corpus"] = module
    here.loader.exec_module(module)
    module.write(path, found, whole=True)
    print("solver corpus", flush=True)


def hide_editable_installs() -> None:
    """Let no import find modules that this tree lacks in one that pip installed in place."""

    def is_editable(finder: Any) -> bool:
        return "_Editable" in getattr(finder, "__name__", type(finder).__name__)

    sys.meta_path[:] = [each for each in sys.meta_path if not is_editable(each)]
    sys.path_hooks[:] = [each for each in sys.path_hooks if "_Editable" not in repr(each)]


def check_origin(tree: Path) -> None:
    """Refuse results that code of another tree may have had a part in.

    Raises:
        ImportError: naming modules that come from neither the tree nor an installation.
    """
    paths = sysconfig.get_paths()
    good = [tree, Path(__file__).parent, Path(sys.base_prefix)]
    good += [Path(paths[name]) for name in ("purelib", "platlib", "stdlib")]
    good = [path.resolve() for path in good]
    strange = sorted(
        name
        for name, module in list(sys.modules.items())
        if (file := getattr(module, "__file__", None))
        and Path(file).is_absolute()
        and not any(Path(file).resolve().is_relative_to(each) for each in good)
    )
    if strange:
        raise ImportError(f"not of {tree}: {', '.join(strange)}")


def main() -> None:
    """Do what a file of tasks says."""
    hide_editable_installs()
    import torch

    torch.set_num_threads(1)
    tasks = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    reports = tasks.get("reports")
    audits(tasks["audits"], None if reports is None else Path(reports))
    if tasks.get("corpus"):
        corpus(Path(tasks["corpus"]))
    if tasks.get("zoo"):
        zoo(Path(tasks["zoo"]))
    check_origin(Path(tasks["tree"]))


if __name__ == "__main__":
    main()
