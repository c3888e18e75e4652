"""Restoration of a forgotten class in the digits zoo: as published, and net of luck.

Models are kept in ``--root`` and every model's figures beside them, so that an
interrupted run goes on. Models whose state is graded are shown and left out of the AUC.
The part ``audits`` puts rows and table of whole audits beside those figures.
"""

import argparse
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from audits.axes.restoration.autoencoder import ExpertAutoencoder, train_image_autoencoder
from audits.axes.restoration.axis import choice_details
from audits.axes.restoration.image_trial import steer_images, unseen_classes
from audits.axes.restoration.net_rate import image_net_rate
from audits.axes.restoration.scoring import named_as_class
from audits.axes.restoration.state_injection import IMAGE_ARMS, inject_images
from audits.axes.restoration.trial import Trial
from audits.modalities.image_sets import image_table
from audits.validation.error_rates import VERDICTS
from benchmarks.harness.pages import STATUSES, Page, results
from benchmarks.harness.results import Row, at_least, at_most, once, roc_auc, row
from benchmarks.harness.runner import Run, Suite, by_part, list_option
from benchmarks.harness.zoo import BY_CONSTRUCTION, zoo_options
from benchmarks.suites.vision import audits
from benchmarks.suites.vision.audits import RETRAINED, SUPPRESSED
from capture.checkpoints.cache import cache_root
from capture.checkpoints.open import open_checkpoint
from capture.network.sites import find_image_sites
from capture.network.structure import random_like
from evidence.typed_json import from_json, to_json
from testbeds.zoo.build import Specimen, build_zoo

KINDS = (
    *("untouched", "retain_tuned", *SUPPRESSED, *RETRAINED, "random_init", "noise"),
    *("collapse", "grad_ascent", "grad_diff", "relabel", "salun", "ssd", "scrub"),
    *("bad_teacher", "boundary_shrink", "duck", "famr", "cf_k", "eu_k", "rmu"),
    "l1_sparse",
)
FALSE = 0.2
"""A net rate above this on a retrain is a false restoration."""


def _options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    zoo_options(parser, seeds=(), families=("cnn", "vit"), kinds=())
    add("--floors", type=list_option(), default=list(audits.FLOORS), help="of audits")
    add("--made", action="store_true", help="only models, or audits, that are there")
    add("--ours", action="store_true", help="leave the published test out")
    add("--work", type=Path, default=cache_root() / "vision-audits", help="of audits")


def context(document: dict[str, Any]) -> dict[str, Any]:
    """Variables of the page."""
    whole = document.get("audits", {"models": []})["models"]
    return {
        "document": document,
        "verdicts": {e["model"]: e["verdict"] for e in whole if e["floor"] == "reference"},
        "classes": VERDICTS,
        "statuses": STATUSES,
    }


def _keep(run: Run, suite: Suite, rows: list[Row], stamps: dict) -> dict[str, Any]:
    """Figures of restoration take the place of earlier ones; audits stand beside them."""
    if run.part == "audits":
        before = run.document.get("audits", {"command": ""})
        commands = (before["command"], stamps["command"])
        command = "; ".join(each for each in commands if each)
        audits = {"command": command, "rows": rows} | run.payload
        return run.document | {"audits": audits}
    kept = kept_from(run.document) if run.document else {}
    if any(model["published"] for model in rows[0]["models"]):
        kept.pop("earlier", None)
    run.document = {}
    return by_part(run, suite, rows, stamps) | kept


PAGE = Page("vision", lambda: context(results("vision")))
SUITE = Suite(
    "vision",
    "Restoration of a forgotten class in the digits zoo, and whole audits of its models.",
    result="vision",
    pages=(PAGE,),
    options=_options,
    keep=_keep,
)


@SUITE.part()
def restoration(run: Run) -> Iterator[Row]:
    """The published restoration test and ours, by kind and shape."""
    args = run.args
    seeds, found = args.seeds or [13, 14, 15], []
    for seed in seeds:
        for family in args.families:
            kinds = args.kinds or list(KINDS)
            if args.made:
                start = f"digits-{family}-{seed}-"
                kinds = [k for k in kinds if (args.root / "models" / f"{start}{k}").is_dir()]
            found += figures(family, seed, kinds, args.root, args.ours)
    what = f"seeds {','.join(map(str, seeds))}"
    rows = list(summary(found, f"digits, {what}, both shapes"))
    for family in args.families:
        here = [each for each in found if each["family"] == family]
        rows += summary(here, f"digits {family}, {what}")
    rows[0]["models"] = found
    yield from rows


SUITE.part("audits", default=False)(audits.measure)


def figures(family: str, seed: int, kinds: list[str], root: Path, ours: bool) -> list[dict]:
    """What every model of one world shows; the retrains are each other's reference."""
    made = build_zoo(root, world="digits", seeds=[seed], families=[family], only=kinds)
    world = made[0].world
    forget, retain = (world.images(part) for part in ("forget_test", "retain_test"))
    checkpoint = open_checkpoint(world.original)
    original = checkpoint.load()
    taught = world.images("forget") + world.images("retain")
    experts = None if ours else train_image_autoencoder(original, taught, root / "saes", seed)
    label = int(forget.labels[0])
    never = unseen_classes(original, retain, label, len(forget), seed)
    known = named_as_class(original, forget, {}, find_image_sites(original))
    scores = image_table(known, forget).by_entity()
    untrained = None
    if experts is not None:
        fresh = random_like(original, seed)
        untrained = published(original, fresh, forget, retain, experts, seed)
    runs: dict[str, dict] = {}
    for each in made:
        path = root / ("ours" if ours else "figures") / f"{each.name}.json"
        runs[each.kind] = once(
            path, partial(measured, each, original, forget, retain, never, experts, seed)
        )
    trials = {kind: from_json(Trial, saved["trial"]) for kind, saved in runs.items()}
    found = []
    for each in made:
        saved, trial = runs[each.kind], trials[each.kind]
        # A retrain is held against the other retrains, anything else against all.
        others = [trials[kind] for kind in RETRAINED if kind in trials and kind != each.kind]
        alone, beside = (
            net if net is None else asdict(net)
            for net in (image_net_rate(trial, scores), image_net_rate(trial, scores, others))
        )
        found.append(
            {
                "name": each.name,
                "family": family,
                "seed": seed,
                "kind": each.kind,
                "state": each.state,
                "measured": each.card["measured"],
                "choices": [choice_details(choice, text=False) for choice in trial.choices],
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


def measured(specimen: Specimen, original, forget, retain, never, experts, seed: int) -> dict:
    """Both tests of one model; ours alone where there are no experts."""
    start = time.perf_counter()
    model = open_checkpoint(specimen.model).load()
    trial = steer_images(original, model, forget, retain, never, seed)
    test = None
    if experts is not None:
        test = published(original, model, forget, retain, experts, seed)
    seconds = round(time.perf_counter() - start, 1)
    print(specimen.name, seconds, flush=True)
    return {"trial": to_json(trial), "published": test, "seconds": seconds}


def published(
    original, model, forget, retain, experts: ExpertAutoencoder, seed: int
) -> dict[str, Any] | None:
    """The published test of one model; None where it lost less than a tenth."""
    outcome = inject_images(original, model, forget, retain, experts, seed)
    if outcome is None:
        return None
    full = named_as_class(original, forget, {}, find_image_sites(original)).mean()
    arms = {arm: outcome.arms.get(arm) for arm in IMAGE_ARMS}
    return {
        "site": experts.sae.site,
        "rates": {arm: None if each is None else each.rate for arm, each in arms.items()},
        "best": {arm: None if each is None else each.best for arm, each in arms.items()},
        "before": outcome.before,
        "lost": float(full) - outcome.before,
        "experts": len(experts.experts[str(int(forget.labels[0]))]),
        "fvu": experts.fvu,
    }


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


def summary(found: Sequence[dict[str, Any]], what: str) -> Iterator[Row]:
    """AUC of every score between suppressions and retrains, and false restorations."""
    alone, beside = "no reference", "reference among the controls"
    for name, *keys in (
        (f"net rate, {beside}", "with_reference", "net"),
        (f"net rate, {alone}", "without_reference", "net"),
        (f"residual, {beside}", "with_reference", "residual"),
        (f"residual, {alone}", "without_reference", "residual"),
        ("rate without controls", "with_reference", "rate"),
        ("rate without controls and without the original's end", "with_reference", "own_rate"),
        ("published rate, best alpha", "published", "best", "published"),
        ("published rate, alpha 1", "published", "rates", "published", 0),
    ):
        if name.startswith("published") and not any(f["published"] for f in found):
            continue
        yes, no = (
            [_nested(f, keys) for f in found if f["kind"] in group and f["with_reference"]]
            for group in (SUPPRESSED, RETRAINED)
        )
        ours, n = name.startswith("net"), len(yes) + len(no)
        figure = f"AUC of the {name}, suppressed against retrained, {what}"
        goal = at_least(0.98 if ours else None)
        spread: Any = [min(yes), max(no)] if yes and no else None
        yield row(figure, roc_auc(yes, no), goal, "AUC", BY_CONSTRUCTION, n, spread)
        if ours:
            yield row(
                f"false restorations ({name} over {FALSE}), {what}",
                sum(value > FALSE for value in no) / max(len(no), 1),
                at_most(2 / 45),
                "share of retrains",
                BY_CONSTRUCTION,
                len(no),
            )


def _nested(model: Any, keys: Sequence[Any]) -> float:
    for key in keys:
        model = model[key]
    return model


def kept_from(before: dict) -> dict:
    """What stays of the result that a new one replaces.

    Whole audits, which another benchmark adds, and the last run in which the published
    test was made, for a run of our test alone.
    """
    kept = {name: before[name] for name in ("audits", "earlier") if name in before}
    if any(each["published"] for each in before["rows"][0]["models"]):
        kept["earlier"] = {k: before[k] for k in ("command", "commit", "rows")}
    return kept
