"""Every kind of file the program reads: an example of it, and a command that reads it.

Names of files are relative to the folder of a case. ``in`` holds what is given, ``out``
what the command writes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

ITEMS = {"in/items": "items"}
PAIR = ("in/items/forget.jsonl", "in/items/retain.jsonl")
PICTURES = ("in/images/forget.npz", "in/images/retain.npz")
FOLDERS = ("in/images/forget", "in/images/retain")
QUICK_AXES = ("--axes", "behaviour", "--device", "cpu")

PROGRAM = (
    "torch",
    "transformers",
    "peft",
    "exhume.cli.app",
    "audits.run.api",
    "audits.run.planning",
    "audits.run.item_check",
    "audits.report.page",
    "audits.comparison.page",
    "experiments.pga.run",
    "capture.checkpoints.gguf",
    "tests.security.fuzz.twins",
)
"""What is imported before inputs are tried."""
CONFIG_KEYS = (
    "auto_map",
    "transformers_weights",
    "attn_implementation",
    "_attn_implementation",
    "experts_implementation",
    "quantization_config",
    "torch_dtype",
    "_name_or_path",
    "text_config",
    "vision_config",
    "sub_configs",
    "rope_scaling",
    "layer_types",
    "sliding_window",
    "id2label",
    "num_labels",
    "problem_type",
    "tokenizer_class",
    "base_model_tp_plan",
    "gradient_checkpointing",
    "device_map",
    "is_encoder_decoder",
    "pruned_heads",
    "output_attentions",
    "return_dict",
    "use_kernels",
    "chunk_size_feed_forward",
    "loss_type",
    "generation_config",
)
ADAPTER_KEYS = (
    "shadow_model",
    "auto_mapping",
    "tokenizer_name_or_path",
    "prompt_tuning_init",
    "prompt_tuning_init_text",
    "num_virtual_tokens",
    "adapters",
    "layer_replication",
    "boft_block_size",
    "runtime_config",
    "mini_config",
    "trust_remote_code",
    "init_lora_weights",
    "peft_types",
    "pissa",
)
TOKENIZER_KEYS = (
    "auto_map",
    "chat_template",
    "tokenizer_class",
    "tokenizer_file",
    "vocab_file",
    "added_tokens_decoder",
    "extra_special_tokens",
    "model_max_length",
    "fix_mistral_regex",
    "name_or_path",
    "processor_class",
    "gguf_file",
    "tokenizer_object",
    "padding_side",
    "init_inputs",
    "tokenizer_type",
)


@dataclass(frozen=True)
class Target:
    """A file that is changed.

    Attributes:
        file: Its name below the case's folder.
        format: One of ``trees.FORMATS``, or "" where only bytes are changed.
        keys: Fields that such a file may hold, and this one does not.
        tail: Whether its last bytes are numbers.
    """

    file: str
    format: str = ""
    keys: tuple[str, ...] = ()
    tail: bool = False


@dataclass(frozen=True)
class Kind:
    """A way in.

    Attributes:
        name: Of the kind.
        seeds: Examples by the folder they are copied to.
        targets: Files that are changed.
        arguments: Of ``exhume``, or paths for ``twin``.
        twin: Module and function that are called instead of the command.
        makes: Files below the case that a success leaves.
        keeps: What below ``out`` may stay after a refusal.
        stops: Functions at which a command ends that would now work for minutes.
        result: Example with the ``audit.json`` that no change may change in silence.
        imports: What is imported before, so that no input pays for it.
        reads: Whether the example itself is accepted.
        weight: Share of inputs of this kind.
    """

    name: str
    seeds: Mapping[str, str]
    targets: tuple[Target, ...]
    arguments: tuple[str, ...]
    twin: str = ""
    makes: tuple[str, ...] = ()
    keeps: tuple[str, ...] = ()
    stops: tuple[str, ...] = ()
    result: str = ""
    imports: tuple[str, ...] = PROGRAM
    reads: bool = True
    weight: int = 1
    formats: Mapping[str, str] = field(init=False)

    def __post_init__(self) -> None:
        formats = {each.file: each.format for each in self.targets}
        object.__setattr__(self, "formats", formats)


def _model(folder: str) -> tuple[Target, ...]:
    return (
        Target(f"{folder}/config.json", "json", CONFIG_KEYS),
        Target(f"{folder}/generation_config.json", "json", ("cache_implementation",)),
        Target(f"{folder}/tokenizer.json", "json"),
        Target(f"{folder}/tokenizer_config.json", "json", TOKENIZER_KEYS),
        Target(f"{folder}/special_tokens_map.json", "json", ("extra_special_tokens",)),
        Target(f"{folder}/chat_template.jinja"),
        Target(f"{folder}/model.safetensors", "safetensors", tail=True),
        Target(folder),
    )


def _adapter(folder: str) -> tuple[Target, ...]:
    return (
        Target(f"{folder}/adapter_config.json", "json", ADAPTER_KEYS),
        Target(f"{folder}/adapter_model.safetensors", "safetensors", tail=True),
        Target(f"{folder}/base"),
        Target(folder),
    )


def _audit(original: str, unlearned: str, forget: str, retain: str) -> tuple[str, ...]:
    given = ("--original", original, "--unlearned", unlearned)
    return ("audit", *given, "--forget", forget, "--retain", retain, "--out", "out")


DONE = ("out/audit.json", "out/report.html")
WORK = ("work",)


def _items_kind(end: str, weight: int = 1) -> Kind:
    files = (f"in/items/forget.{end}", f"in/items/retain.{end}")
    targets = (Target(files[0], end), Target(files[1], end))
    return Kind(f"items {end}", ITEMS, targets, ("validate", *files), weight=weight)


def _shape(name: str) -> Kind:
    file = f"in/items/{name}.jsonl"
    targets = (Target(file, "jsonl"),)
    # Too few for an audit, which is what the command asks for.
    return Kind(f"shape {name}", ITEMS, targets, (file, PAIR[1]), twin="twins.read_sets")


KINDS: dict[str, Kind] = {
    each.name: each
    for each in (
        Kind(
            "model validated",
            {"in/model": "model", **ITEMS},
            _model("in/model"),
            ("validate", *PAIR, "--original", "in/model"),
            weight=8,
        ),
        Kind(
            "model audited",
            {"in/model": "other", "in/original": "model", **ITEMS},
            (*_model("in/model"), *_model("in/original")[:4]),
            (*_audit("in/original", "in/model", *PAIR), *QUICK_AXES),
            makes=DONE,
            keeps=WORK,
            weight=6,
        ),
        Kind(
            "model planned",
            {"in/model": "model", **ITEMS, "in/other": "other"},
            _model("in/model"),
            (
                *("plan", "--original", "in/model", "--unlearned", "in/other"),
                *("--forget", PAIR[0], "--retain", PAIR[1], "--device", "cpu"),
            ),
            weight=3,
        ),
        Kind(
            "model opened",
            {"in/model": "model"},
            _model("in/model"),
            ("in/model",),
            twin="twins.open_model",
            weight=3,
        ),
        Kind(
            "shards",
            {"in/model": "shards", **ITEMS},
            (
                Target("in/model/model.safetensors.index.json", "json"),
                Target("in/model/model-00001-of-00003.safetensors", "safetensors"),
                Target("in/model/model-00003-of-00003.safetensors", "safetensors"),
            ),
            ("validate", *PAIR, "--original", "in/model"),
            weight=2,
        ),
        Kind(
            "LoRA adapter",
            {"in/adapter": "lora", **ITEMS},
            _adapter("in/adapter"),
            ("validate", *PAIR, "--original", "in/adapter"),
            weight=8,
        ),
        Kind(
            "IA3 adapter",
            {"in/adapter": "ia3", **ITEMS},
            _adapter("in/adapter"),
            ("validate", *PAIR, "--original", "in/adapter"),
            weight=2,
        ),
        Kind(
            "adapter audited",
            {"in/adapter": "lora", "in/original": "model", **ITEMS},
            _adapter("in/adapter")[:2],
            (*_audit("in/original", "in/adapter", *PAIR), *QUICK_AXES),
            makes=DONE,
            keeps=WORK,
            weight=2,
        ),
        Kind(
            "GGUF",
            {"in/gguf": "gguf"},
            (Target("in/gguf/model.gguf", "gguf", tail=True),),
            ("in/gguf/model.gguf",),
            twin="twins.open_model",
            weight=3,
        ),
        Kind(
            "classifier",
            {"in/original": "classifier", "in/model": "classifier candidate"}
            | {"in/images": "images"},
            (
                Target("in/original/config.json", "json", CONFIG_KEYS),
                Target("in/original/preprocessor_config.json", "json", ("crop_size",)),
                Target("in/original/model.safetensors", "safetensors", tail=True),
                Target("in/model/config.json", "json"),
            ),
            (*_audit("in/original", "in/model", *PICTURES), *QUICK_AXES),
            makes=DONE,
            keeps=WORK,
            weight=3,
        ),
        Kind(
            "images npz",
            {"in/original": "classifier", "in/model": "classifier candidate"}
            | {"in/images": "images"},
            (
                Target("in/images/forget.npz", "npz", ("id.npy", "../x.npy")),
                Target("in/images/retain.npz", "npz"),
            ),
            (*_audit("in/original", "in/model", *PICTURES), *QUICK_AXES),
            makes=DONE,
            keeps=WORK,
            weight=3,
        ),
        Kind(
            "images folder",
            {"in/original": "classifier", "in/model": "classifier candidate"}
            | {"in/images": "images"},
            (
                Target("in/images/forget/*/*.png"),
                Target("in/images/forget/*"),
                Target("in/images/retain/0"),
                Target("in/images/retain"),
            ),
            (*_audit("in/original", "in/model", *FOLDERS), *QUICK_AXES),
            makes=DONE,
            keeps=WORK,
            weight=2,
        ),
        _items_kind("jsonl", 3),
        _items_kind("json"),
        _items_kind("csv", 2),
        _items_kind("tsv"),
        _items_kind("parquet", 2),
        *(_shape(name) for name in ("tofu", "wmdp", "rwku", "verbmem", "text", "uds")),
        Kind(
            "items audited",
            {"in/model": "other", "in/original": "model", **ITEMS},
            (
                Target(PAIR[0], "jsonl"),
                Target(PAIR[1], "jsonl"),
                Target("in/items/never_taught.jsonl", "jsonl"),
            ),
            (
                *_audit("in/original", "in/model", *PAIR),
                *("--never-taught", "in/items/never_taught.jsonl", *QUICK_AXES),
            ),
            makes=DONE,
            keeps=WORK,
            weight=3,
        ),
        Kind(
            "pga settings",
            {"in/pga": "pga"},
            (Target("in/pga/pga.yaml", "yaml", ("__class__", "erasers.0")),),
            ("pga", "--config", "in/pga/pga.yaml", "--out", "out"),
            keeps=WORK,
            stops=("experiments.pga.run.build_codes",),
            weight=3,
        ),
        Kind(
            "audit.json reported",
            {"out": "document"},
            (Target("out/audit.json", "json", ("extra",)),),
            ("report", "out"),
            makes=DONE,
            weight=4,
        ),
        Kind(
            "audit.json compared",
            {"in/a": "finished", "in/b": "document"},
            (Target("in/b/audit.json", "json", ("extra",)), Target("in/a/audit.json", "json")),
            ("compare", "in/a", "in/b", "--out", "out"),
            makes=("out/compare.html", "out/compare.csv"),
            weight=3,
        ),
        Kind(
            "audit.json of images",
            {"out": "finished images"},
            (Target("out/audit.json", "json"),),
            ("report", "out"),
            makes=DONE,
            weight=1,
        ),
        Kind(
            "audit.json decided again",
            {"in/a": "finished"},
            (Target("in/a/audit.json", "json"),),
            ("in/a",),
            twin="twins.decide_again",
            weight=2,
        ),
    )
}
