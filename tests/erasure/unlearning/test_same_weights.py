"""Weights after five steps of every unlearning method are those of a stored table.

``same_weights.json`` holds, for every case, a SHA-256 of the state dict, the last values of the log
and the norm of the change, with the torch version and the CPU that made them. On the same torch
and CPU the hash must be equal. Other kernels round otherwise, so elsewhere the losses and the norm
are compared within a tolerance. To write the table again, with the code that is trusted:
``python -m tests.erasure.unlearning.test_same_weights``.
"""

import hashlib
import json
import platform
from pathlib import Path

import pytest
import torch

from capture.data.sequences import Sequences
from capture.network.structure import find_blocks
from erasure.unlearning.config import IMAGE_METHODS, METHODS, ImageUnlearnConfig, UnlearnConfig
from erasure.unlearning.run import unlearn_, unlearn_images_
from testbeds.worlds.digits import DigitsConfig, new_classifier
from tests.helpers.tiny_erasure import (
    ANSWERS,
    FORGET,
    RELABELLED,
    RETAIN,
    facts,
    greedy,
    tiny_gpt2,
    tiny_llama,
)

TABLE = Path(__file__).with_name("same_weights.json")
NOVICE = facts(20, 4, ANSWERS)
REFUSAL = Sequences(
    tuple(
        (*ids[:start], 38, 39) for ids, start in zip(FORGET.ids, FORGET.answer_start, strict=True)
    ),
    FORGET.answer_start,
)
# At least one setting of its own for every method, away from the default.
TEXT_SETTINGS = {
    "grad_ascent": {"forget_weight": 0.5},
    "grad_diff": {"retain_weight": 0.5},
    "npo": {"beta": 0.5, "retain_weight": 2.0},
    "simnpo": {"beta": 2.5, "margin": 0.3},
    "dpo": {"beta": 0.3},
    "rmu": {"rmu_coefficient": 3.0, "rmu_parameters": "all"},
    "relabel": {"forget_weight": 0.5},
    "last_block_relabel": {"train_head": True},
    "salun": {"saliency": 0.2},
    "undial": {"lowered": 3.0},
    "scrub": {"temperature": 2.0, "ascents": 1, "distil_weight": 0.3, "retain_weight": 0.7},
    "bad_teacher": {"temperature": 2.0},
    "elm": {"guidance": 3.0},
    "cf_k": {"last_k": 2},
    "eu_k": {"last_k": 2},
    "task_vector": {"scale": 2.0},
    "ssd": {"dampen_above": 1.1, "dampen_by": 0.5},
}
IMAGE_SETTINGS = {
    "grad_ascent": {"forget_weight": 0.5},
    "grad_diff": {"retain_weight": 0.5},
    "relabel": {"forget_weight": 0.5},
    "salun": {"saliency": 0.2},
    "ssd": {"dampen_above": 1.01, "dampen_by": 0.5},
    "scrub": {"temperature": 1.5, "ascents": 1, "distil_weight": 0.3, "retain_weight": 0.7},
    "bad_teacher": {"temperature": 1.0, "retain_weight": 0.7},
    "boundary_shrink": {"step": 0.7},
    "duck": {"temperature": 3.0, "retain_weight": 1.4},
    "famr": {"anchor": 0.5},
    "cf_k": {"last_k": 2},
    "eu_k": {"last_k": 2},
    "rmu": {"block": 0, "coefficient": 4.0},
    "l1_sparse": {"anchor": 0.01},
}
WITHOUT_ADAPTERS = ("salun", "eu_k", "ssd")


def text_config(method, **settings):
    return UnlearnConfig(method, lr=1e-3, steps=5, rmu_layer=1, **settings)


def image_config(method, **settings):
    return ImageUnlearnConfig(
        method, lr=3e-3, steps=5, batch_size=8, retain_batch_size=8, **settings
    )


def text_cases():
    """Name of a case to its model and config."""
    small = {"batch_size": 2, "retain_batch_size": 3}
    for method, settings in TEXT_SETTINGS.items():
        # No weight of so small a model is ten times as important to the forget rows.
        above = {"dampen_above": 1.5} if method == "ssd" else {}
        yield f"text/{method}/default", tiny_llama, text_config(method, **above)
        others = {"loss_on": "all", "weight_decay": 0.1, "clip": 0.5, "warmup": 2}
        other = text_config(method, **small, **others, **settings)
        yield f"text/{method}/other", tiny_gpt2, other
        if method not in WITHOUT_ADAPTERS:
            adapted = text_config(method, lora_rank=2, lora_alpha=3.0)
            yield f"text/{method}/lora", tiny_llama, adapted
    for method in ("npo", "rmu", "scrub", "elm"):
        alone = text_config(method, **small, retain_weight=0.0)
        yield f"text/{method}/alone", tiny_llama, alone
    for method in ("relabel", "task_vector"):
        stopping = text_config(method, **small, stop_below=-1.0, every=2)
        yield f"text/{method}/evaluated", tiny_llama, stopping


def image_cases():
    """Name of a case to its model and config."""
    for method, settings in IMAGE_SETTINGS.items():
        decay = 0.0 if method == "salun" else 0.1
        other = image_config(method, clip=0.5, weight_decay=decay, **settings)
        above = {"dampen_above": 1.5} if method == "ssd" else {}
        yield f"images/{method}/default", "vit", image_config(method, **above)
        yield f"images/{method}/other", "cnn", other


def unlearn_text(family, config, name):
    model = family()

    def evaluate(now):
        return {"forget": greedy(now, FORGET), "retain": greedy(now, RETAIN)}

    log = unlearn_(
        model,
        FORGET,
        Sequences((), ()) if config.retain_weight == 0 else RETAIN,
        config,
        relabeled=REFUSAL if config.method == "dpo" else RELABELLED,
        novice=NOVICE,
        rmu_module=find_blocks(model)[2] if name == "text/rmu/alone" else None,
        evaluate=evaluate if config.stop_below is not None else None,
        seed=3,
    )
    return model, family(), log


def unlearn_images(family, config, _name):
    def fresh():
        return new_classifier(DigitsConfig(layers=2, width=8, heads=2, family=family), 0)

    model = fresh()
    rng = torch.Generator().manual_seed(0)
    pixels, labels = torch.randn(30, 1, 8, 8, generator=rng), torch.arange(30) % 3
    forget, retain = ((pixels[mask], labels[mask]) for mask in (labels == 0, labels != 0))
    return model, fresh(), unlearn_images_(model, forget, retain, config, seed=3)


CASES = {name: (unlearn_text, family, config) for name, family, config in text_cases()} | {
    name: (unlearn_images, family, config) for name, family, config in image_cases()
}


def result(name):
    """What the table stores of a case."""
    run, family, config = CASES[name]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    try:
        model, before, log = run(family, config, name)
    finally:
        torch.set_num_threads(threads)
    digest, change = hashlib.sha256(), 0.0
    old = before.state_dict()
    for key, value in model.state_dict().items():
        digest.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.contiguous().numpy().tobytes())
        if value.is_floating_point() and key in old:
            change += float((value.double() - old[key].double()).square().sum())
    digest.update(json.dumps([list(log.rows), log.stopped]).encode())
    return {"sha256": digest.hexdigest(), "change": change**0.5, "last": log.last}


def machine():
    """The torch version and the CPU, which decide about rounding."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text("utf-8").splitlines() if info.is_file() else []
    marks = ("vendor_id", "cpu family", "model\t")
    kind = {line.split(":")[0].strip(): line.split(":")[1].strip() for line in lines
            if line.startswith(marks)}  # fmt: skip
    return {
        "torch": torch.__version__,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "cpu": " ".join(kind.values()) or platform.machine(),
    }


def test_the_table_has_every_method():
    stored = json.loads(TABLE.read_text("utf-8"))["cases"]
    assert stored.keys() == CASES.keys()
    assert set(TEXT_SETTINGS) == set(METHODS) and set(IMAGE_SETTINGS) == set(IMAGE_METHODS)
    assert all(case["change"] > 0 for case in stored.values())
    hashes = [case["sha256"] for case in stored.values()]
    assert len(set(hashes)) == len(hashes)


@pytest.mark.parametrize("name", CASES)
def test_weights_are_those_of_the_table(name):
    table = json.loads(TABLE.read_text("utf-8"))
    stored, found = table["cases"][name], result(name)
    if machine() == table["machine"]:
        assert found["sha256"] == stored["sha256"]
    assert found["last"].keys() == stored["last"].keys()
    # SCRUB starts where its gradient is zero, so its first step is made of rounding errors.
    if "scrub" not in name:
        assert found["last"] == pytest.approx(stored["last"], rel=0.05, abs=1e-3)
        assert found["change"] == pytest.approx(stored["change"], rel=0.05)


if __name__ == "__main__":
    written = {"machine": machine(), "cases": {name: result(name) for name in CASES}}
    TABLE.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")
