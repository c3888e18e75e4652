"""Restoration of a forgotten class in the digits zoo: as published, and net of luck.

Run by hand: ``make bench-vision``. Models are kept in ``--root`` and every model's
figures beside them, so that an interrupted run goes on. Models whose state is graded
are shown and left out of the AUC.
"""

import argparse
import json
import platform
import subprocess
import sys
import time
from pathlib import Path

import torch
from sklearn.metrics import roc_auc_score

from audits.axes.restoration.image_state_injection import find_experts, inject_states
from audits.axes.restoration.image_steering import named_as_class
from audits.axes.restoration.image_trial import (
    net_rate,
    restore_images,
    unseen_classes,
)
from benchmarks.harness.vision_page import write_page
from capture.checkpoints.cache import cache_root
from capture.checkpoints.open import open_checkpoint
from capture.network.sites import find_image_sites
from capture.network.structure import random_like
from evidence.storage.files import write_atomic
from testbeds.zoo.build import Specimen, build_zoo

RESULT = Path(__file__).parents[2] / "results" / "vision.json"
SUPPRESSED = (
    *("head_only", "logit_mask", "last_block_relabel"),
    *("late_rotation", "class_direction"),
)
RETRAINED = ("twin", "retrain_1", "retrain_2")
KINDS = (
    *("untouched", "retain_tuned", *SUPPRESSED, *RETRAINED, "random_init", "noise"),
    *("collapse", "grad_ascent", "grad_diff", "relabel", "salun", "ssd", "scrub"),
    *("bad_teacher", "boundary_shrink", "duck", "famr", "cf_k", "eu_k", "rmu"),
    "l1_sparse",
)
FALSE = 0.2
"""A net rate above this on a retrain is a false restoration."""


def figures(
    family: str, seed: int, kinds: list[str], root: Path, ours: bool
) -> list[dict]:
    """What every model of one world shows; the retrains are each other's reference."""
    made = build_zoo(root, world="digits", seeds=[seed], families=[family], only=kinds)
    world = made[0].world
    forget, retain = (world.images(part) for part in ("forget_test", "retain_test"))
    checkpoint = open_checkpoint(world.original)
    original = checkpoint.load()
    taught = world.images("forget") + world.images("retain")
    experts = None if ours else find_experts(original, taught, root / "saes", seed)
    label = int(forget.labels[0])
    never = unseen_classes(original, retain, label, len(forget), seed)
    known = named_as_class(original, forget, {}, find_image_sites(original))
    untrained = None
    if experts is not None:
        fresh = random_like(original, seed)
        untrained = inject_states(original, fresh, forget, retain, experts, seed)
    runs: dict[str, dict] = {}
    for each in made:
        path = root / ("ours" if ours else "figures") / f"{each.name}.json"
        if not path.is_file():
            saved = measured(each, original, forget, retain, never, experts, seed)
            write_atomic(path, json.dumps(saved))
        runs[each.kind] = json.loads(path.read_text(encoding="utf-8"))
    found = []
    for each in made:
        saved = runs[each.kind]
        # A retrain is held against the other retrains, anything else against all.
        others = [
            runs[kind]["run"]
            for kind in RETRAINED
            if kind in runs and kind != each.kind
        ]
        alone = net_rate(saved["run"], known)
        beside = net_rate(saved["run"], known, others)
        found.append(
            {
                "name": each.name,
                "family": family,
                "seed": seed,
                "kind": each.kind,
                "state": each.state,
                "measured": each.card["measured"],
                "choices": saved["run"]["choices"],
                "without_reference": alone,
                "with_reference": beside,
                "called": called(beside, each.card["measured"]),
                "published": saved["published"],
                "seconds": saved["seconds"],
            }
        )
        if saved["published"] is not None and untrained is not None:
            best = saved["published"]["best"]
            best["never_trained"] = untrained["best"]["published"]
    return found


def measured(
    specimen: Specimen, original, forget, retain, never, experts, seed: int
) -> dict:
    """Both tests of one model; ours alone where there are no experts."""
    start = time.perf_counter()
    model = open_checkpoint(specimen.model).load()
    run = restore_images(original, model, forget, retain, never, seed)
    published = None
    if experts is not None:
        published = inject_states(original, model, forget, retain, experts, seed)
    seconds = round(time.perf_counter() - start, 1)
    print(specimen.name, seconds, flush=True)
    return {"run": run, "published": published, "seconds": seconds}


def called(net: dict | None, shown: dict) -> str:
    """What the restoration axis alone says of a model, by the rule of the reference.

    Suppressed where the interval of the net rate lies above 0.2 (core-papers 3.6).
    """
    if shown["kept"] < 0.8:
        return "damaged"
    if net is None:
        return "not forgotten"
    if net["interval"][0] > FALSE:
        return "restored"
    return "not restored" if net["interval"][1] < FALSE else "open"


def row(figure, value, target, sense, unit, peer, n, spread=None, **more) -> dict:
    """One figure in the shape all benchmarks share."""
    fixed = {"figure": figure, "value": value, "target": target, "sense": sense}
    return fixed | {"unit": unit, "peer": peer, "spread": spread, "n": n} | more


def area(yes: list[float], no: list[float]) -> float | None:
    """Area under the ROC curve; None without models on either side."""
    if not yes or not no:
        return None
    return float(roc_auc_score([1] * len(yes) + [0] * len(no), yes + no))


def summary(found: list[dict], what: str) -> list[dict]:
    """AUC of every score between suppressions and retrains, and false restorations."""
    scores = {
        "net rate, reference among the controls": lambda f: f["with_reference"]["net"],
        "net rate, no reference": lambda f: f["without_reference"]["net"],
        "residual, reference among the controls": lambda f: f["with_reference"][
            "residual"
        ],
        "residual, no reference": lambda f: f["without_reference"]["residual"],
        "rate without controls": lambda f: f["with_reference"]["rate"],
        "rate without controls and without the original's end": lambda f: f[
            "with_reference"
        ]["own_rate"],
        "published rate, best alpha": lambda f: f["published"]["best"]["published"],
        "published rate, alpha 1": lambda f: f["published"]["rates"]["published"][0],
    }
    peer = "state known by construction"
    rows = []
    for name, score in scores.items():
        if name.startswith("published") and not any(f["published"] for f in found):
            continue
        yes, no = (
            [score(f) for f in found if f["kind"] in group and f["with_reference"]]
            for group in (SUPPRESSED, RETRAINED)
        )
        value = area(yes, no)
        ours = name.startswith("net")
        spread = [min(yes), max(no)] if yes and no else None
        rows.append(
            row(
                f"AUC of the {name}, suppressed against retrained, {what}",
                value,
                0.98 if ours else None,
                ">=",
                "AUC",
                peer,
                len(yes) + len(no),
                spread,
            )
        )
        if ours:
            wrong = sum(value > FALSE for value in no)
            rows.append(
                row(
                    f"false restorations ({name} over {FALSE}), {what}",
                    wrong / max(len(no), 1),
                    2 / 45,
                    "<=",
                    "share of retrains",
                    peer,
                    len(no),
                )
            )
    return rows


def kept_from(before: dict) -> dict:
    """What stays of the result that a new one replaces.

    Whole audits, which another benchmark adds, and the last run in which the published
    test was made, for a run of our test alone.
    """
    kept = {name: before[name] for name in ("audits", "earlier") if name in before}
    if any(each["published"] for each in before["rows"][0]["models"]):
        kept["earlier"] = {k: before[k] for k in ("command", "commit", "rows")}
    return kept


def main() -> None:
    """Run, print, write the result and the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", default="13,14,15")
    parser.add_argument("--families", default="cnn,vit")
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument(
        "--made", action="store_true", help="only models that are in --root already"
    )
    parser.add_argument(
        "--ours", action="store_true", help="leave the published test out"
    )
    parser.add_argument("--root", type=Path, default=cache_root() / "zoo")
    parser.add_argument("--result", type=Path, default=RESULT)
    given = parser.parse_args()
    seeds = [int(each) for each in given.seeds.split(",")]
    families = given.families.split(",")
    found = []
    for seed in seeds:
        for family in families:
            kinds = given.kinds.split(",")
            if given.made:
                start = given.root / "models" / f"digits-{family}-{seed}-"
                kinds = [k for k in kinds if Path(f"{start}{k}").is_dir()]
            found += figures(family, seed, kinds, given.root, given.ours)
    rows = summary(found, f"digits, seeds {','.join(map(str, seeds))}, both shapes")
    for family in families:
        mine = [each for each in found if each["family"] == family]
        rows += summary(mine, f"digits {family}, seeds {','.join(map(str, seeds))}")
    rows[0]["models"] = found
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, encoding="utf-8", check=False
    ).stdout.strip()
    document = {
        "command": "python -m benchmarks.suites.vision.suite "
        + f"--seeds {given.seeds} --families {given.families}"
        + (f" --kinds {given.kinds}" if given.kinds != ",".join(KINDS) else "")
        + (" --made" if given.made else "")
        + (" --ours" if given.ours else ""),
        "commit": commit,
        "machine": f"{platform.machine()}, {platform.processor() or 'cpu'}",
        "threads": torch.get_num_threads(),
        "rows": rows,
    }
    if given.result.is_file():
        document |= kept_from(json.loads(given.result.read_text(encoding="utf-8")))
    if any(each["published"] for each in found):
        document.pop("earlier", None)
    given.result.parent.mkdir(exist_ok=True)
    given.result.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    if given.result == RESULT:
        write_page(document)
    for each in rows:
        print(each["figure"], "->", each["value"], "target", each["target"])


if __name__ == "__main__":
    sys.exit(main())
