"""Audit documents of every shape a report may meet, small and made by hand."""

from typing import Any

from audits.core.config import AuditConfig, Rule

CONFIG = AuditConfig(axes=("behaviour",), seed=7, device="cpu", rule=Rule(margin=0.2))
HOSTILE = (
    "</script><script>alert(1)</script><img src=http://evil.example/x onerror=alert(2)>"
    "{{ 7 * 7 }}\"'><a href='javascript:alert(3)'>&lt;\u202egnp.exe\x00\ud800"
)


def column(name, statistic, *, used=True, floor=0.1, ceiling=1.0):
    return {
        "name": name,
        "used": used,
        "statistic": statistic,
        "interval": [max(0.0, statistic - 0.1), min(1.0, statistic + 0.1)],
        "floor": floor,
        "ceiling": ceiling,
        "difference": statistic - floor,
        "tost": [statistic - floor - 0.1, statistic - floor + 0.1],
        "p_value": 0.0005 if used else None,
    }


METRICS = {
    "exact match": ("exact_match", "share of answers given", True),
    "entity-answer contrast": ("contrast", "other answers outranked (chance 0.5)", False),
    "refitted probe": ("refitted_probe", "", True),
    "original's own probe": ("original_probe", "", True),
    "after the original's front, exact match": ("exact_match", "share of answers given", True),
    "transferred states, exact match": ("exact_match", "share of answers given", True),
    "transferred states, contrast": ("contrast", "other answers outranked (chance 0.5)", False),
    "held-out half, exact match": ("exact_match", "share of answers given", True),
    "steered, exact match": ("exact_match", "share of answers given", True),
    "steered, contrast": ("contrast", "other answers outranked (chance 0.5)", False),
    "held-out half, contrast": ("contrast", "other answers outranked (chance 0.5)", False),
}
"""Metric, unit and whether it is a share, by the name of the reading."""


def reading(name, columns, residual=0.6, kind="never_taught"):
    best = max(columns, key=lambda each: each["difference"])
    metric, unit, is_share = METRICS.get(name, (name.replace(" ", "_"), "", False))
    return {
        "metric": metric,
        "unit": unit,
        "is_share": is_share,
        "primary": True,
        "name": name,
        "statistic": best["statistic"],
        "interval": best["interval"],
        "floor": best["floor"],
        "floor_kind": kind,
        "ceiling": best["ceiling"],
        "residual": residual,
        "residual_interval": [residual - 0.2, residual + 0.2],
        "p_value": 0.8805597201,
        "p_below": 0.3,
        "smallest_p": 0.0005,
        "where": best["name"],
        "columns": columns,
    }


def control(name, passed=True, required=True):
    planted = "planted" in name
    on_failure = "no_absence" if planted else "silence"
    return {
        "id": "planted" if planted else "power",
        "kind": "p_value",
        "on_failure": on_failure if required else "inform",
        "name": name,
        "value": 0.03,
        "expected": "p < 0.05",
        "passed": passed,
    }


def axis(name, *readings, status="retained", controls=(), details=None, **other):
    return {
        "name": name,
        "question": f"What of {name}?",
        "status": status,
        "statistic_name": "accuracy",
        "controls": list(controls),
        "readings": list(readings),
        "n_entities": 12,
        "details": details or {},
        "notes": [f"A note on {name}."],
        **other,
    }


def behaviour(**other):
    item = {"id": "f-1", "entity": "Ada", "prompt": "Ada was born in", "answer": "Rome"}
    scores = {"exact_match": False, "logprob_original": -0.01, "logprob_unlearned": -7.254321}
    return axis(
        "behaviour",
        reading("exact match", [column("output", 0.08)], residual=-0.1),
        status="absent",
        statistic_name="share of answers given",
        controls=[control("the original gives the answers")],
        details={
            "accuracy_by_wording": {"original": [1.0, 0.9], "unlearned": [0.1, 0.0]},
            "items": [item | scores, item | scores | {"exact_match": True, "answer": "Oslo"}],
            "truth_ratio": {"original": 0.001, "unlearned": 92.5},
        },
        **other,
    )


def decodability(**other):
    sites = [column("embed", 0.1, used=False)]
    sites += [column(f"resid.{layer}", 0.1 + 0.1 * layer) for layer in range(8)]
    return axis(
        "decodability",
        reading("refitted probe", sites),
        reading("original's own probe", sites),
        controls=[
            control("the planted suppression is found"),
            control("a control that fails", passed=False),
            control("one that is only shown", passed=False, required=False),
        ],
        **other,
    )


def causal_depth(**other):
    sites = [f"resid.{layer}" for layer in range(3)]
    item = {"id": "f-1", "entity": "Ada", "prompt": "Ada was born in", "answer": "Rome"}
    figures = {"uds": 0.2, "smallest_loss": 0.0, "mean_loss": 0.3, "share_beyond": None}
    columns = [column(site, 0.9 - 0.2 * place) for place, site in enumerate(sites)]
    return axis(
        "causal_depth",
        reading("transferred states, contrast", columns),
        reading("transferred states, exact match", columns),
        controls=[control("the planted suppression is found")],
        details={
            "sites": sites,
            "used": sites[:2],
            "depth": {"unrelated": figures | {"loss_by_layer": [0.0, 0.1, None]}},
            "loss_items": [item, item | {"id": "f-2", "answer": "Oslo"}],
            "losses": {
                "unlearned": [[0.0, 0.1, 5.25], [0.0, -0.2, 6.5]],
                "unrelated": [[4.0, 5.0, 6.0], [4.0, 5.0, 6.0]],
            },
            "norms": {"unlearned": [1.0, 1.0, 1.6]},
        },
        **other,
    )


def front_transplant(**other):
    """The original's front before the candidate's blocks."""
    return axis(
        "front_transplant",
        reading("after the original's front, exact match", [column("embed", 0.1)]),
        status="absent",
        controls=[control("the planted early suppression is found")],
        **other,
    )


def relearning(**other):
    curve = [0.0, 0.4, 0.7]
    parts = (
        *("held_out_exact_match", "held_out_contrast"),
        *("never_taught_exact_match", "never_taught_contrast", "training_accuracy"),
    )
    roles = ("unlearned", "planted", "reference-1")
    return axis(
        "relearning",
        reading("held-out half, contrast", [column("after teaching", 0.8, floor=0.5)]),
        reading("held-out half, exact match", [column("after teaching", 0.7)]),
        controls=[control("the planted suppression returns")],
        details={
            "learning_rate": 1e-4,
            "steps": [0, 2, 4],
            "curves": {role: {part: curve for part in parts} for role in roles},
        },
        **other,
    )


def document(*axes, verdict="suppressed", **preflight) -> dict[str, Any]:
    digest = "ab" * 32
    return {
        "schema_version": "2.0",
        "modality": "text",
        "verdict": {
            "class": verdict,
            "probabilities": {"suppressed": 0.91, "deleted": 0.09},
            "calibration": {"version": "a zoo", "outside": ["blocks of the model: 30"]},
            "rule": "Rule 3: as stated.",
            "reasons": ["First reason.", "Second reason.", "Third.", "Fourth reason."],
            "floor": "never_taught",
            "adjusted_p": {"decodability.original_probe": 0.0123, "relearning.contrast": 1},
            "where": ["resid.3", "resid.4", "resid.5"],
            "claims_allowed": ["This may be said."],
            "claims_disallowed": ["That may not."],
            "would_change_it": ["Another candidate."],
            "also": [],
        },
        "axes": list(axes),
        "preflight": {
            "identical_weights": False,
            "weight_difference": {
                "relative": 0.4123456789,
                "layers": [{"layer": -1, "relative": 0.0}, {"layer": 0, "relative": 0.25}],
                "tensors_changed": 3,
                "tensors": 21,
                "components": [
                    {
                        "component": "mlp.down_proj",
                        "layers": [0, 3],
                        "norm": 2.5,
                        "relative": 0.04,
                        "stable_rank": 1.5,
                        "input_share": 0.75,
                        "output_share": 0.5,
                        "input_chance": 0.125,
                        "output_chance": 0.25,
                        "forget_cosine": 0.5,
                        "retain_cosine": -0.25,
                        "forget_share": 0.375,
                        "retain_share": None,
                    }
                ],
            },
            "known": {"forget_items": 24, "forget_entities": 12},
            "utility": {
                "shares": {"retain accuracy": 0.97, "distinct words in free text": 1.8},
                "damage": [],
            },
            "asking": {
                "chat": True,
                "system": "Be brief.",
                "bos": False,
                "scorer": "contains",
                "floor": "permuted",
                "notes": ["Items were asked in the chat template."],
            },
            "free_text": {"prompts": ["Once"], "original": ["a"], "unlearned": ["b"]},
            "warnings": ["Mind the gap."],
            **preflight,
        },
        "behaviour": {
            "forget_original": 1.0,
            "forget_unlearned": 0.08,
            "forget_floor": 0.1,
            "utility": {},
        },
        "config": CONFIG.stated() | {"budget": CONFIG.budget.model_dump(mode="json")},
        "manifest": {
            "models": [
                {"role": "original", "source": "/m/before", "sha256": digest},
                {"role": "unlearned", "source": "/m/after", "sha256": digest},
            ],
            "items": [
                {
                    "role": role,
                    "name": role,
                    "format": "exhume",
                    "sha256": digest,
                    "items": 24,
                    "entities": 12,
                }
                for role in ("forget", "retain")
            ],
            "code_sha256": digest,
            "versions": {"torch": "2.13.0"},
            "hardware": {
                "platform": "Linux",
                "machine": "x86_64",
                "cores": 2,
                "threads": 2,
                "memory_bytes": 8_000_000_000,
                "device": "cpu",
            },
            "seed": 7,
        },
        "runtime": {
            "written": "2026-01-02T03:04:05+0000",
            "seconds": 82.2,
            "stages": {"weights": {"seconds": 82.2, "peak_memory_bytes": 5e8}},
        },
    }


def whole():
    return document(behaviour(), decodability(), causal_depth(), front_transplant(), relearning())


DOCUMENTS = {
    "whole": whole,
    "identical": lambda: document(
        behaviour(),
        verdict="not_unlearned",
        identical_weights=True,
        weight_difference={"relative": 0.0, "layers": [], "tensors_changed": 0, "tensors": 21},
    ),
    "no readings": lambda: document(
        axis("decodability", status="error"),
        axis("relearning", status="no_power", controls=[control("c", passed=False)]),
    ),
    "no axes": lambda: document(verdict="inconclusive"),
    "nothing measured": lambda: document(
        behaviour(), utility={"shares": {}, "damage": []}, warnings=[], free_text={}
    ),
    "unknown axis": lambda: document(
        axis(
            "quantization",
            reading("bits of the weights", [column("q4", 0.4), column("logits", 0.2)]),
            reading("by step", [column("step 0", 0.1, used=False), column("step 4", 1)]),
            statistic_name="gap",
            details={"codes": {"deep": [1, 2, 3]}, "rows": [{"a": 1}]},
        )
    ),
    "strange details": lambda: document(
        behaviour() | {"details": {"items": "none", "accuracy_by_wording": [1]}},
        relearning() | {"details": {"steps": [0, 2], "curves": {"unlearned": "gone"}}},
        axis("y", details={"sites": 3, "losses": {"unlearned": [["a"]]}}),
        axis("z", details={"sites": ["s"], "losses": {"unlearned": [[1.0]]}}),
        axis("x", details={"curves": 3, "steps": ["a"], "deep": [[1], {"b": 2}]}),
    ),
}


def spoiled(value: Any) -> Any:
    """The document with every free text replaced by a hostile one."""
    kept = {"schema_version", "modality", "class", "status", "floor", "floor_kind"}
    kept |= {"scorer", "metric", "id", "kind", "on_failure", "axes", "adjusted_p"}
    kept |= {"sha256", "code_sha256", "profile", "role", "budget", "required_for_deleted"}
    known = ("behaviour", "decodability", "causal_depth", "front_transplant", "relearning")
    if isinstance(value, dict):
        return {
            key: each if key in kept or each in known else spoiled(each)
            for key, each in value.items()
        }
    if isinstance(value, list):
        return [spoiled(each) for each in value]
    return value + HOSTILE if isinstance(value, str) and value not in known else value
