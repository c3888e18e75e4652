"""Small valid examples of every file that is read, made once a run.

They are made by the program itself where it writes such files, so that what is tried is
what users have.
"""

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from testbeds.worlds.biographies import BiosConfig, BiosWorld, build_bios
from testbeds.worlds.digits import DigitsConfig, DigitsWorld, build_digits
from tests.security.fuzz.inputs.shapes import SHAPES

if TYPE_CHECKING:
    from peft import PeftConfig

WORLD = BiosConfig(
    people=40,
    forget=8,
    names=16,
    values=8,
    layers=2,
    width=48,
    heads=4,
    steps=120,
    batch_size=96,
    lr=6e-3,
)
DIGITS = DigitsConfig(layers=2, width=48, steps=150, lr=4e-3, weight_decay=0.1, family="cnn")
EVIL = "import exhume_canary\n\nexhume_canary.run()\n\n\nclass Evil:\n    pass\n"
CANARY = (
    "import os\n\n\ndef run(*_, **__):\n"
    "    with open(os.environ['EXHUME_CANARY'], 'w') as file:\n"
    "        file.write('code of an input was run')\n\n\nrun()\n"
)


def make(name: str, root: Path) -> Path:
    """The example called ``name``, made below ``root`` if it is not there."""
    folder = root / "seeds" / name
    if not folder.exists():
        scratch = root / "seeds" / f"{name}.part"
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            MAKERS[name](scratch, root)
        scratch.rename(folder)
    return folder


def world(root: Path) -> BiosWorld:
    """Two models of which one knows what is to be forgotten, and the facts."""
    return build_bios(WORLD, 0, root / "worlds")


def digits(root: Path) -> DigitsWorld:
    """The same of images."""
    return build_digits(DIGITS, 0, root / "worlds")


def _model(out: Path, root: Path) -> None:
    _copy(world(root).original, out)
    (out / "modeling_evil.py").write_text(EVIL)
    (out / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(out)
    (out / "special_tokens_map.json").write_text(
        json.dumps({key: str(value) for key, value in tokenizer.special_tokens_map.items()})
    )


def _other(out: Path, root: Path) -> None:
    _copy(world(root).twin, out)


def _shards(out: Path, root: Path) -> None:
    from transformers import AutoModelForCausalLM

    source = world(root).original
    _copy(source, out)
    (out / "model.safetensors").unlink()
    model = AutoModelForCausalLM.from_pretrained(source)
    model.save_pretrained(out, max_shard_size="200KB")


def _lora(out: Path, root: Path) -> None:
    from peft import LoraConfig

    _adapter(
        out, root, LoraConfig(r=2, target_modules=["q_proj", "up_proj"], task_type="CAUSAL_LM")
    )


def _ia3(out: Path, root: Path) -> None:
    from peft import IA3Config

    kept = ["k_proj", "down_proj"]
    _adapter(
        out,
        root,
        IA3Config(target_modules=kept, feedforward_modules=kept[1:], task_type="CAUSAL_LM"),
    )


def _adapter(out: Path, root: Path, config: "PeftConfig") -> None:
    import torch
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(world(root).original)
    torch.manual_seed(0)
    adapted = get_peft_model(base, config)
    with torch.no_grad():
        for name, value in adapted.named_parameters():
            if "lora_B" in name or "ia3" in name:
                value += 0.01 * torch.randn_like(value)
    adapted.peft_config["default"].base_model_name_or_path = "base"
    adapted.save_pretrained(str(out))
    _copy(world(root).original, out / "base")


def _gguf(out: Path, root: Path) -> None:
    from tests.security.fuzz.inputs.small_gguf import write_gguf

    write_gguf(out / "model.gguf")


def _classifier(out: Path, root: Path) -> None:
    _copy(digits(root).original, out)
    preprocessor = {"image_mean": [0.5], "image_std": [0.5], "size": {"height": 8, "width": 8}}
    (out / "preprocessor_config.json").write_text(json.dumps(preprocessor))


def _classifier_candidate(out: Path, root: Path) -> None:
    _copy(digits(root).twin, out)


def _images(out: Path, root: Path) -> None:
    import numpy as np
    from PIL import Image

    made = digits(root)
    for name in ("forget", "retain"):
        images = made.images(f"{name}_test")
        rows = range(0, len(images), 1 if name == "forget" else 12)
        images.select(list(rows)).save(out / f"{name}.npz")
        for row in rows:
            pixels = (images.pixels[row, 0].numpy() + 1) * 127
            folder = out / name / str(images.labels[row])
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{row}.png")


def _items(out: Path, root: Path) -> None:
    """The facts in every format, and small files of every shape known."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    made = world(root)
    for name in ("forget", "retain", "never_taught"):
        text = getattr(made, name).read_text()
        rows = [json.loads(line) for line in text.splitlines()]
        (out / f"{name}.jsonl").write_text(text)
        (out / f"{name}.json").write_text(json.dumps(rows))
        names = list(rows[0])
        for end, mark in (("csv", ","), ("tsv", "\t")):
            lines = [names, *([_cell(row[key]) for key in names] for row in rows)]
            quoted = [mark.join(f'"{cell}"' for cell in line) for line in lines]
            (out / f"{name}.{end}").write_text("\n".join(quoted) + "\n")
        pq.write_table(pa.Table.from_pylist(rows), out / f"{name}.parquet")
    for name, rows in SHAPES.items():
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (out / f"{name}.jsonl").write_text(text)


def _cell(value: object) -> str:
    return "|".join(value) if isinstance(value, list) else str(value)


def _pga(out: Path, root: Path) -> None:
    settings = {
        "size": "small",
        "seed": 3,
        "erasers": ["pga", "md-pga"],
        "epochs": None,
        "align_weight": 0.5,
        "fixed_clean": False,
        "erase_share": 0.5,
        "folds": 5,
        "permutations": 99,
        "margin": 0.2,
        "random_inits": 2,
        "six_probes": False,
        "trained_readers": False,
        "device": "cpu",
    }
    (out / "pga.yaml").write_text(json.dumps(settings, indent=1))


def _finished(out: Path, root: Path) -> None:
    from audits.run.api import audit

    made = world(root)
    # The very folders that cases hold: the files beside the weights count as well.
    audit(
        make("model", root),
        make("other", root),
        made.forget,
        made.retain,
        out,
        axes=["behaviour", "decodability"],
        device="cpu",
    )


def _interrupted(out: Path, root: Path) -> None:
    """The same audit, ended before its states were read from the store."""
    _copy(make("finished", root), out)
    for name in ("audit.json", "report.html", "work/stages/decodability-measured.json"):
        (out / name).unlink()


def _finished_images(out: Path, root: Path) -> None:
    from audits.run.api import audit

    made, sets = digits(root), make("images", root)
    audit(
        made.original,
        made.twin,
        sets / "forget.npz",
        sets / "retain.npz",
        out,
        axes=["behaviour", "decodability"],
        device="cpu",
    )


def _document(out: Path, root: Path) -> None:
    """An audit of every axis that reports know of."""
    from tests.helpers.audit_documents import whole

    text = json.dumps(whole(), indent=1, sort_keys=True)
    (out / "audit.json").write_text(text)


def _zoo(out: Path, root: Path) -> None:
    from testbeds.zoo.build import build_zoo

    world(root)
    shutil.copytree(root / "worlds", out / "worlds", ignore=_digits_only)
    build_zoo(out, seeds=[0], only=["untouched"], config=WORLD)


def _digits_only(_: str, names: list[str]) -> list[str]:
    return [name for name in names if name.startswith("digits-")]


def _sae(out: Path, root: Path) -> None:
    import numpy as np

    from attribution.sae.training import SaeConfig, train_sae

    x = np.random.default_rng(0).standard_normal((512, 16)).astype(np.float32)
    config = SaeConfig(kind="topk", expansion=2, k=4, epochs=1, batch_size=64)
    train_sae(x, "resid.1", out / "all", config)
    (made,) = (each.parent for each in (out / "all").rglob("cfg.json"))
    for file in made.iterdir():
        shutil.copy(file, out)
    shutil.rmtree(out / "all")


def _erasers(out: Path, root: Path) -> None:
    import torch

    from erasure.concept.leace import Leace
    from erasure.concept.md_pga import fit_md_pga

    torch.manual_seed(0)
    x, labels = torch.randn(60, 6), torch.arange(60) % 2
    Leace().fit(x, labels).save(out / "leace.safetensors")
    fit_md_pga(torch.randn(2, 60, 6), labels).save(out / "mdpga.safetensors")


def _wheel(out: Path, root: Path) -> None:
    """A zip archive where a wheel is expected."""
    import numpy as np

    with (out / "some.whl").open("wb") as file:
        np.savez(file, member=np.arange(4))


def _evil(out: Path, root: Path) -> None:
    """A model whose every file would run code, if one of them were trusted."""
    from tests.security.fuzz.inputs.values import PAYLOADS

    settings = {
        "model_type": "evil",
        "architectures": ["Evil"],
        "auto_map": {
            "AutoConfig": "modeling_evil.Evil",
            "AutoModel": "modeling_evil.Evil",
            "AutoModelForCausalLM": "modeling_evil.Evil",
            "AutoTokenizer": ["modeling_evil.Evil", "modeling_evil.Evil"],
        },
    }
    for name in ("config.json", "tokenizer_config.json"):
        (out / name).write_text(json.dumps(settings))
    (out / "modeling_evil.py").write_text(EVIL)
    for name in ("pytorch_model.bin", "adapter_model.bin", "training_args.bin"):
        (out / name).write_bytes(PAYLOADS["torch archive"](b""))


def _canary(out: Path, root: Path) -> None:
    (out / "exhume_canary.py").write_text(CANARY)


def _copy(source: Path, target: Path) -> None:
    shutil.copytree(source, target, dirs_exist_ok=True)


MAKERS: dict[str, Callable[[Path, Path], None]] = {
    "model": _model,
    "other": _other,
    "shards": _shards,
    "lora": _lora,
    "ia3": _ia3,
    "gguf": _gguf,
    "classifier": _classifier,
    "classifier candidate": _classifier_candidate,
    "images": _images,
    "items": _items,
    "pga": _pga,
    "finished": _finished,
    "interrupted": _interrupted,
    "finished images": _finished_images,
    "document": _document,
    "zoo": _zoo,
    "sae": _sae,
    "erasers": _erasers,
    "wheel": _wheel,
    "evil": _evil,
    "canary": _canary,
}
