"""The axes that look inside the candidate, and the suppression planted for them."""

from typing import Any

from audits import decodability, relearning
from audits.context import Run
from audits.data import ask
from audits.knowledge import said
from audits.planted import plant, planted_subject
from audits.probing import capture_states
from audits.probing_tasks import make_tasks
from audits.subjects import Subject
from capture.items import Item, ItemSet
from evidence.axis import AxisResult
from evidence.rates import by_entity
from evidence.seeds import numpy_rng

# Probes are fitted on this share of the retain entities and checked on the rest.
FIT_SHARE = 0.8


def inner_axes(
    run: Run,
    forget: ItemSet,
    retain: ItemSet,
    never: ItemSet,
    heard: dict[str, Any],
    stage,
    advance,
) -> dict[str, AxisResult]:
    """The axes that look inside: decodability and relearning, with their plant.

    ``advance`` takes shares of the whole of these stages.
    """
    axes: dict[str, AxisResult] = {}
    wanted = [
        name for name in ("decodability", "relearning") if name in run.config.axes
    ]
    if not wanted:
        return axes
    subjects = dict(run.subjects)
    made = stage("planted", lambda: _plant(run, forget, retain))
    notes: tuple[str, ...] = ()
    if made["made"]:
        subjects["planted"] = planted_subject(subjects["original"], run.space.work)
    else:
        notes = (
            "No suppression could be planted in the original (forget "
            f"{made['forget']:.2f}, retain {made['retain']:.2f}), so the power of "
            "this axis is not shown.",
        )
    advance(0.15)
    if "decodability" in wanted:
        axes["decodability"] = _decodability(
            run, subjects, forget, retain, never, notes, stage
        )
    advance(0.35)
    if "relearning" in wanted:
        axes["relearning"] = _relearning(
            run, subjects, forget, never, heard, notes, stage
        )
    advance(0.5)
    return axes


def _plant(run: Run, forget: ItemSet, retain: ItemSet) -> dict[str, Any]:
    rng = numpy_rng(run.config.seed, "planted", "retain")
    most = min(len(retain), 3 * len(forget))
    kept = rng.permutation(len(retain))[:most]
    items: list[Item] = [retain.items[index] for index in sorted(kept)]
    return plant(
        run.subjects["original"],
        run.tokenizer,
        list(forget),
        items,
        run.config.budget,
        run.space.work,
        device=run.device,
        seed=run.config.seed,
        progress=run.progress,
    )


def _decodability(
    run: Run,
    subjects: dict[str, Subject],
    forget: ItemSet,
    retain: ItemSet,
    never: ItemSet,
    notes: tuple[str, ...],
    stage,
) -> AxisResult:
    budget, seed = run.config.budget, run.config.seed
    names = retain.entities
    order = numpy_rng(seed, "decodability", "split").permutation(len(names))
    cut = int(FIT_SHARE * len(names))
    tasks, extra = make_tasks(
        {
            "fit": retain.of([names[i] for i in order[:cut]]),
            "check": retain.of([names[i] for i in order[cut:]]),
            "forget": forget,
            "never_taught": never,
        },
        wordings=budget.prompts_per_item,
        statement_wordings=budget.statement_wordings,
        block=budget.block,
        rng=numpy_rng(seed, "decodability", "blocks"),
    )
    sites: list[str] = []
    for role, subject in subjects.items() if tasks else ():
        # All models have one architecture, and so the same sites.
        sites = stage(
            f"states-{role}",
            lambda subject=subject: capture_states(
                subject, run.tokenizer, tasks, run.store, run.device, run.progress
            ),
        )
    saved = stage(
        "decodability",
        lambda: decodability.run_decodability(
            subjects,
            run.tokenizer,
            tasks,
            sites,
            run.store,
            run.config,
            notes=(*notes, *extra),
            progress=run.progress,
        ).to_dict(),
    )
    return AxisResult.from_dict(saved)


def _relearning(
    run: Run,
    subjects: dict[str, Subject],
    forget: ItemSet,
    never: ItemSet,
    heard: dict[str, Any],
    notes: tuple[str, ...],
    stage,
) -> AxisResult:
    rng = numpy_rng(run.config.seed, "relearning", "halves")
    halves = relearning.rotations(list(forget), list(never), rng)
    # The hardest to teach comes first, so that a rate too low is found out soonest.
    trial = [subjects[role] for role in ("unlearned", "planted") if role in subjects]
    chosen = stage("relearn-rate", lambda: _rate(run, trial, halves[0]))
    runs: dict[str, list[Any]] = {}
    for role, subject in subjects.items():
        if role == "original":
            continue
        # The plant only has to be seen once, and its first run chose the rate.
        numbers = [0] if role == "planted" else [0, 1]
        runs[role] = [
            chosen["runs"][role]
            if number == 0 and role in chosen["runs"]
            else stage(
                f"relearn-{role}-{number}",
                lambda subject=subject, number=number: relearning.relearn(
                    subject,
                    run.tokenizer,
                    halves[number],
                    run.config,
                    chosen["rate"],
                    device=run.device,
                    progress=run.progress,
                ),
            )
            for number in numbers
        ]
    questions = ask(forget, run.config.budget.prompts_per_item)
    first_said = said(heard["original"]["forget"])
    known = {
        "said": by_entity(first_said.greedy, questions.entities),
        "contrast": by_entity(first_said.contrast, questions.entities),
    }
    saved = stage(
        "relearning",
        lambda: relearning.judge(
            runs, known, run.config, chosen["rate"], notes
        ).to_dict(),
    )
    return AxisResult.from_dict(saved)


def _rate(run: Run, trial: list[Subject], half: relearning.Half) -> dict[str, Any]:
    return relearning.choose_rate(
        trial,
        run.tokenizer,
        half,
        run.config,
        device=run.device,
        progress=run.progress,
    )
