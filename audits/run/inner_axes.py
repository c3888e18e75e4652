"""The axes that look inside the candidate, and the planted suppression."""

from typing import Any

from audits.axes import persistence, relearning
from audits.axes.behaviour import known_rows
from audits.axes.causal_depth import axis as causal_depth
from audits.axes.causal_depth.state_transfer import (
    PatchingPrompts,
    transfer_states,
    with_other_fact_donor,
    with_unrelated_receiver,
)
from audits.axes.decodability import axis as decodability
from audits.axes.decodability.text_probes import capture_states, make_audit_tasks
from audits.core.answers import scores_from_json
from audits.core.context import AuditedModel, Run
from audits.core.preflight import Damage
from audits.core.workspace import axis_stage
from audits.run import optional_axes
from audits.run.optional_axes import CapturedTasks
from audits.run.planting import PLANTED_FILE, plant, planted_model, planting_notes
from capture.data.items import Item, ItemSet
from capture.data.questions import Questions, build_questions
from evidence.intervals import average_by_entity
from evidence.results import AxisResult
from evidence.seeds import numpy_rng


def run_inner_axes(
    run: Run,
    forget: ItemSet,
    retain: ItemSet,
    never_taught: ItemSet,
    baseline_scores: dict[str, Any],
    damage: Damage,
    absent_at_output: bool,
    stage,
    advance,
) -> dict[str, AxisResult]:
    """Plant a suppression, then run the requested inner axes.

    ``absent_at_output`` says whether behaviour is ``absent``; ``advance`` takes progress as a
    share of these stages.
    """
    axes: dict[str, AxisResult] = {}
    requested = [name for name in run.config.axes if name != "behaviour"]
    if not requested:
        return axes
    models = dict(run.models)
    planted = stage("planted", lambda: plant_suppression(run, forget, retain), [PLANTED_FILE])
    if planted["made"]:
        models["planted"] = planted_model(models["original"], run.workspace.work)
    notes = planting_notes(planted)
    advance(0.15)
    if {"decodability", "concept"} & set(requested):
        states = capture_tasks(run, models, forget, retain, never_taught, stage)
        if "decodability" in requested:
            axes["decodability"] = _decodability(run, models, states, notes, stage)
        if "concept" in requested:
            axes["concept"] = optional_axes.run_concept(
                run, models, states, forget, retain, notes, stage
            )
    if "membership" in requested:
        axes["membership"] = optional_axes.run_membership(
            run, models, forget, retain, never_taught, notes, stage
        )
    advance(0.3)
    if "causal_depth" in requested:
        axes["causal_depth"] = _causal_depth(
            run, models, forget, retain, never_taught, baseline_scores, damage, notes, stage
        )
    advance(0.05)
    if "persistence" in requested:
        axes["persistence"] = _persistence(
            run, forget, retain, never_taught, baseline_scores, absent_at_output, stage
        )
    advance(0.05)
    if "relearning" in requested:
        axes["relearning"] = _relearning(
            run, models, forget, never_taught, baseline_scores, notes, stage
        )
    if "restoration" in requested:
        axes["restoration"] = optional_axes.run_restoration(
            run, models, forget, retain, never_taught, notes, stage
        )
    if "circuit" in requested:
        axes["circuit"] = optional_axes.run_circuit(run, models, forget, never_taught, notes, stage)
    advance(0.45)
    return axes


def plant_suppression(run: Run, forget: ItemSet, retain: ItemSet) -> dict[str, Any]:
    """Plant a suppression in the original, with a sample of retain items."""
    rng = numpy_rng(run.config.seed, "planted", "retain")
    n_retain = min(len(retain), 3 * len(forget))
    rows = rng.permutation(len(retain))[:n_retain]
    items: list[Item] = [retain.items[index] for index in sorted(rows)]
    return plant(
        run.models["original"],
        run.tokenizer,
        list(forget),
        items,
        run.config.budget,
        run.workspace.work,
        device=run.device,
        seed=run.config.seed,
        progress=run.progress,
    )


def capture_tasks(
    run: Run,
    models: dict[str, AuditedModel],
    forget: ItemSet,
    retain: ItemSet,
    never_taught: ItemSet,
    stage,
) -> CapturedTasks:
    """The probing tasks, with the states of every model captured."""
    tasks, notes = make_audit_tasks(forget, retain, never_taught, run.tokenizer, run.config)
    sites: list[str] = []
    for role, audited in models.items() if tasks else ():
        # All models share one architecture, and so the same sites.
        sites = stage(
            f"states-{role}",
            lambda audited=audited: capture_states(
                audited, run.tokenizer, tasks, run.store, run.device, run.progress
            ),
        )
    return CapturedTasks(tasks, sites, tuple(notes))


def _decodability(
    run: Run, models: dict[str, AuditedModel], states: CapturedTasks, notes: tuple[str, ...], stage
) -> AxisResult:
    return axis_stage(
        stage,
        "decodability",
        lambda: decodability.run_decodability(
            models,
            run.tokenizer,
            states.tasks,
            states.sites,
            run.store,
            run.config,
            notes=(*notes, *states.notes),
            progress=run.progress,
        ),
    )


def _causal_depth(
    run: Run,
    models: dict[str, AuditedModel],
    forget: ItemSet,
    retain: ItemSet,
    never_taught: ItemSet,
    baseline_scores: dict[str, Any],
    damage: Damage,
    notes: tuple[str, ...],
    stage,
) -> AxisResult:
    prompts = patching_prompts(run, forget, retain, never_taught, baseline_scores)
    every = list(models)
    real = [role for role in every if role != "planted"]
    roles_by_part = {
        "forget": every,
        "never_taught": ["original", "unlearned", "planted"],
        "retain": ["original", "unlearned"],
        "own": real,
        "stranger": ["original"],
        "other": ["original"],
    }
    max_sites = run.config.budget.depth_sites

    def patch(receiver: str, names: list[str], roles: dict[str, list[str]]):
        return transfer_states(
            models,
            run.tokenizer,
            {name: prompts[name] for name in names},
            roles,
            max_sites,
            receiver=receiver,
            device=run.device,
            progress=run.progress,
        )

    into_original = stage("carried", lambda: patch("original", list(prompts), roles_by_part))
    into_candidate = stage(
        "carried-back", lambda: patch("unlearned", ["own"], {"own": ["original"]})
    )
    return axis_stage(
        stage,
        "causal_depth",
        lambda: causal_depth.judge(
            causal_depth.PatchedScores(prompts, into_original),
            run.config,
            damage,
            notes,
            causal_depth.PatchedScores(prompts, into_candidate),
        ),
    )


def patching_prompts(
    run: Run,
    forget: ItemSet,
    retain: ItemSet,
    never_taught: ItemSet,
    baseline_scores: dict[str, Any],
) -> dict[str, PatchingPrompts]:
    """The patching prompts of causal depth, by part."""
    wordings = run.config.budget.prompts_per_item
    questions = build_questions(forget, wordings)
    known_questions = questions.select(known_rows(questions, baseline_scores["original"]["forget"]))
    invented = build_questions(never_taught, wordings)
    names = retain.entities
    order = numpy_rng(run.config.seed, "causal_depth", "retain").permutation(len(names))
    sample = retain.of_entities([names[index] for index in order[: len(forget.entities)]])
    prompts = {
        "forget": with_unrelated_receiver(known_questions, invented),
        "never_taught": with_unrelated_receiver(invented, invented),
        "retain": with_unrelated_receiver(build_questions(sample, 1), invented),
    }
    main = prompts["forget"]
    first = [wording == 0 for wording in main.questions.wording]
    main_prompts: Questions = main.questions.select(first)
    unrelated_prompts = tuple(
        prompt for prompt, is_main in zip(main.receivers, first, strict=True) if is_main
    )
    prompts["own"] = PatchingPrompts(main_prompts, main_prompts.prompts, main_prompts.prompts)
    prompts["stranger"] = PatchingPrompts(main_prompts, unrelated_prompts, main_prompts.prompts)
    other_fact = with_other_fact_donor(
        PatchingPrompts(main_prompts, main_prompts.prompts, unrelated_prompts)
    )
    return prompts | ({"other": other_fact} if len(other_fact) else {})


def _persistence(
    run: Run,
    forget: ItemSet,
    retain: ItemSet,
    never_taught: ItemSet,
    baseline_scores: dict[str, Any],
    absent_at_output: bool,
    stage,
) -> AxisResult:
    wordings = run.config.budget.prompts_per_item
    sets = {
        "forget": build_questions(forget, wordings),
        "never_taught": build_questions(never_taught, wordings),
        "retain": build_questions(retain, 1),
    }
    quantized_scores = {
        role: stage(
            f"quantised-{role}",
            lambda audited=audited: persistence.score_quantized(
                audited, run.tokenizer, sets, run.config, device=run.device, progress=run.progress
            ),
        )
        for role, audited in run.models.items()
    }
    edit = stage(
        "edit-in-bins",
        lambda: persistence.edit_in_bins(
            run.models["original"], run.models["unlearned"], run.config, run.device
        ),
    )
    return axis_stage(
        stage,
        "persistence",
        lambda: persistence.judge(
            sets, baseline_scores, quantized_scores, edit, absent_at_output, run.config, ()
        ),
    )


def _relearning(
    run: Run,
    models: dict[str, AuditedModel],
    forget: ItemSet,
    never_taught: ItemSet,
    baseline_scores: dict[str, Any],
    notes: tuple[str, ...],
    stage,
) -> AxisResult:
    rng = numpy_rng(run.config.seed, "relearning", "halves")
    splits = relearning.relearning_splits(list(forget), list(never_taught), rng)
    # The planted suppression needs a single split.
    splits_by_role = {role: [0] if role == "planted" else [0, 1] for role in models}
    trial_roles = [role for role in ("unlearned", "planted") if role in models]
    chosen = stage(
        "relearn-rate",
        lambda: relearning.choose_rate(
            [(models[role], splits_by_role[role]) for role in trial_roles],
            run.tokenizer,
            splits,
            run.config,
            device=run.device,
            progress=run.progress,
        ),
    )
    runs: dict[str, list[Any]] = {}
    for role, audited in models.items():
        if role == "original":
            continue
        done = chosen["runs"].get(role, {})
        runs[role] = [
            done[str(number)]
            if str(number) in done
            else stage(
                f"relearn-{role}-{number}",
                lambda audited=audited, number=number: relearning.relearn(
                    audited,
                    run.tokenizer,
                    splits[number],
                    run.config,
                    chosen["rate"],
                    chosen["steps"],
                    device=run.device,
                    progress=run.progress,
                ),
            )
            for number in splits_by_role[role]
        ]
    questions = build_questions(forget, run.config.budget.prompts_per_item)
    scores = scores_from_json(baseline_scores["original"]["forget"])
    original_values = {
        "said": average_by_entity(scores.exact_match, questions.entities),
        "contrast": average_by_entity(scores.contrast, questions.entities),
    }
    return axis_stage(
        stage,
        "relearning",
        lambda: relearning.judge(runs, original_values, run.config, chosen["rate"], notes),
    )
