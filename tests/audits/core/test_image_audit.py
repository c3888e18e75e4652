"""Audits of image classifiers from end to end, and what they refuse."""

import json
import shutil

import numpy as np
import pytest
import torch
from transformers import (
    PreTrainedModel,
    ResNetConfig,
    ResNetForImageClassification,
    SwinConfig,
    SwinForImageClassification,
)

from audits.comparison.compare import compare
from audits.comparison.page import write_page
from audits.core.registry import AXES, load_axis
from audits.modalities.image_sets import predicted_classes
from audits.run.api import audit, load
from audits.verdict.reevaluate import reevaluate
from capture.checkpoints.open import open_checkpoint
from capture.data.images import ImageSet
from capture.network.hooks import count_hooks
from capture.network.structure import classifier_of
from evidence.errors import InputError
from tests.audits.own_world import FIRST, LAST

# Of the libraries under sae-lens.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


@pytest.fixture(scope="module")
def world(digits_zoo):
    return digits_zoo[0].world


def model_of(digits_zoo, kind):
    return next(each for each in digits_zoo if each.kind == kind).model


def audited(world, candidate, out, **other):
    return audit(world.original, candidate, world.forget_test, world.retain_test, out, **other)


@pytest.fixture(scope="module")
def hidden(digits_zoo, world, tmp_path_factory):
    """A suppression of the head, with the twin for a reference."""
    out = tmp_path_factory.mktemp("audit") / "out"
    twin = model_of(digits_zoo, "twin")
    candidate = model_of(digits_zoo, "head_only")
    return audited(world, candidate, out, reference=[twin])


def test_a_head_edit_is_suppressed_and_told_of_as_a_class(hidden):
    assert hidden.verdict == "suppressed"
    document = hidden.document
    assert document["verdict"]["floor"] == "reference"
    assert document["verdict"]["probabilities"] is None
    assert document["verdict"]["where"]
    assert {each["format"] for each in document["manifest"]["items"]} == {"images"}
    axes = hidden.axes
    inner = ["decodability", "causal_depth", "front_transplant", "relearning"]
    assert list(axes) == ["behaviour", *inner]
    assert axes["behaviour"].main_reading.metric == "named"
    assert axes["behaviour"].main_reading.statistic < 0.1
    assert axes["decodability"].metric("original_probe").residual > 0.7
    assert axes["causal_depth"].metric("named").residual > 0.7
    assert axes["relearning"].metric("named") is not None
    assert not any("answers" in reason for reason in hidden.reasons)


def test_the_controls_of_a_head_edit_come_out(hidden):
    for name in ("behaviour", "decodability"):
        axis = hidden.axes[name]
        assert axis.controls and all(each.passed for each in axis.controls), name
    # Of two blocks only what leaves the last is read: no site lies before the block
    # that the planted suppression is in, and an axis that cannot see it has no say.
    depth = hidden.axes["causal_depth"]
    assert depth.status == "control_failed"
    failed = [each.id for each in depth.controls if not each.passed]
    assert failed == ["planted"]


def test_the_report_says_what_image_pairs_do_not_have(hidden):
    page = hidden.report.read_text(encoding="utf-8")
    left_out = {name: load_axis(name).spec.unavailable.get("images") for name in AXES}
    assert sum(map(bool, left_out.values())) == 4
    for name, why in left_out.items():
        assert (f"{name}: not run on images; {why}." in page) == bool(why)
    assert "Images predicted as the class" in page and "Retain facts" not in page
    assert "no longer predicts the class" in page and "no longer gives" not in page
    assert "none is stated for images" in page


def test_the_same_call_goes_on_and_gives_the_same_bytes(digits_zoo, world, hidden):
    before = dict(hidden.document)
    (hidden.path / "audit.json").unlink()
    (hidden.path / "work" / "stages" / "causal_depth-measured.json").unlink()
    resumed = audited(
        world,
        model_of(digits_zoo, "head_only"),
        hidden.path,
        reference=[model_of(digits_zoo, "twin")],
    )
    assert {k: v for k, v in resumed.document.items() if k != "runtime"} == {
        k: v for k, v in before.items() if k != "runtime"
    }
    assert load(hidden.path).verdict == "suppressed"


def test_the_original_against_itself_is_not_unlearned(world, tmp_path):
    done = audited(world, world.original, tmp_path / "out")
    assert done.verdict == "not_unlearned"
    assert "predicts the class for 100% of its images" in " ".join(done.reasons)


def test_a_scratch_retrain_is_not_suppressed(digits_zoo, world, tmp_path):
    done = audited(world, model_of(digits_zoo, "twin"), tmp_path / "out")
    assert done.verdict == "inconclusive"
    assert done.axes["behaviour"].status == "absent"
    # Without a reference nothing can say how well an unseen class is read or learned.
    assert done.axes["decodability"].metric("refitted_probe") is None
    assert "retrained without the class" in " ".join(done.axes["decodability"].notes)


def test_what_comes_after_the_last_block_is_found_by_steering(digits_zoo, world, tmp_path):
    axes = ["behaviour", "restoration"]
    candidate = model_of(digits_zoo, "logit_mask")
    done = audited(world, candidate, tmp_path / "out", axes=axes)
    named = done.axes["restoration"].metric("named")
    assert named is not None and named.residual > 0.5
    # It informs, and makes no verdict.
    assert done.verdict == "inconclusive"


def test_without_the_output_an_image_audit_still_speaks_of_a_class(digits_zoo, world, tmp_path):
    candidate = model_of(digits_zoo, "head_only")
    done = audited(world, candidate, tmp_path / "out", axes=["decodability"])
    verdict = json.dumps(done.document["verdict"])
    assert "class" in verdict
    assert "answer" not in verdict
    assert "answer" not in json.dumps(done.document["axes"])
    assert reevaluate(done.document).reasons == tuple(done.reasons)
    page = done.report.read_text(encoding="utf-8")
    words = page[page.index('<section id="words">') :]
    words = words[: words.index("</section>")]
    assert "class" in words
    assert not any(word in words for word in ("answer", "facts", "entit"))
    shutil.copytree(done.path, tmp_path / "again")
    beside = compare([done.path, tmp_path / "again"])
    page = write_page(beside, tmp_path / "page").read_text(encoding="utf-8")
    assert "images predicted as the class" in page
    assert "answers given" not in page


def test_folders_of_pictures_are_audited_by_command(digits_zoo, world, tmp_path):
    from PIL import Image
    from typer.testing import CliRunner

    from exhume.cli.app import app

    for part in ("forget_test", "retain_test"):
        images = world.images(part)
        grey = ((images.pixels[:, 0] + 1) * 127.5).round().to(torch.uint8).numpy()
        for pixels, label, name in zip(grey, images.labels, images.ids, strict=True):
            place = tmp_path / part / str(label)
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(place / f"{name}.png")
    out = tmp_path / "out"
    words = ["audit", "--original", world.original, "--out", out]
    words += ["--unlearned", model_of(digits_zoo, "head_only"), "--axes", "behaviour"]
    words += ["--forget", tmp_path / "forget_test", "--retain", tmp_path / "retain_test"]
    result = CliRunner().invoke(app, [str(each) for each in words])
    assert result.exit_code == 0, result.output
    document = json.loads((out / "audit.json").read_text())
    assert document["preflight"]["known"]["forget_items"] >= 40
    assert document["behaviour"]["forget_unlearned"] < 0.1


def test_a_network_of_convolutions_without_a_size_of_its_own(world, tmp_path):
    names = {number: str(number) for number in range(10)}
    settings = ResNetConfig(
        num_channels=1,
        embedding_size=16,
        hidden_sizes=[16, 32],
        depths=[1, 2],
        layer_type="basic",
        id2label=names,
        label2id={name: number for number, name in names.items()},
    )
    torch.manual_seed(0)
    model = ResNetForImageClassification(settings).train()
    taught = world.images("forget") + world.images("retain")
    taught.pixels.requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    labels = torch.from_numpy(taught.labels)
    order = torch.randperm(len(taught), generator=torch.Generator().manual_seed(0))
    for step in range(60):
        rows = order[torch.arange(64 * step, 64 * step + 64) % len(order)]
        optimizer.zero_grad()
        logits = model(taught.pixels[rows]).logits
        torch.nn.functional.cross_entropy(logits, labels[rows]).backward()
        optimizer.step()
    model.eval().save_pretrained(tmp_path / "original")
    label = int(world.images("forget").labels[0])
    with torch.no_grad():
        classifier_of(model).bias[label] -= 100.0
    model.save_pretrained(tmp_path / "edited")
    done = audit(
        tmp_path / "original",
        tmp_path / "edited",
        world.forget_test,
        world.retain_test,
        tmp_path / "out",
        axes=["behaviour", "decodability", "causal_depth"],
    )
    assert done.verdict == "suppressed"


def test_no_hook_is_left_behind(digits_zoo, world):
    model = open_checkpoint(world.original).load()
    predicted_classes(model, world.images("forget_test"))
    assert count_hooks(model) == 0


def changed(images, **other):
    parts = {"pixels": images.pixels, "labels": images.labels, "ids": images.ids}
    return ImageSet(**(parts | other), name="changed")


BAD = {
    "several classes": "of several classes",
    "shared class": "is in both the forget and the retain",
    "one class to keep": "too few classes in the retain",
    "same image": "is a forget image as well",
    "channels": "do not fit the model",
    "size": "do not fit the model",
    "unknown class": "a class the model does not have",
    "few": "does not know the forget set",
    "never-taught class": "large enough to be taught",
}


@pytest.mark.parametrize("what", list(BAD))
def test_images_that_cannot_be_audited(digits_zoo, world, tmp_path, what):
    forget, retain = world.images("forget_test"), world.images("retain_test")
    other: dict = {}
    match what:
        case "several classes":
            forget = forget + retain.select(range(5))
        case "shared class":
            retain = retain + world.images("forget").select(range(5))
        case "one class to keep":
            retain = retain.select(retain.labels == retain.labels[0])
        case "same image":
            twice = changed(forget.select(range(1)), labels=retain.labels[:1], ids=("again",))
            retain = retain + twice
        case "channels":
            forget = changed(forget, pixels=forget.pixels.expand(-1, 3, -1, -1))
        case "size":
            retain = changed(retain, pixels=retain.pixels[:, :, :6])
        case "unknown class":
            retain = changed(retain, labels=retain.labels + 7)
        case "few":
            forget = forget.select(range(5))
        case "never-taught class":
            other["never_taught"] = world.images("never_taught").select(range(5))
    with pytest.raises(InputError, match=BAD[what]):
        audit(
            world.original,
            model_of(digits_zoo, "head_only"),
            forget,
            retain,
            tmp_path / "out",
            **other,
        )
    assert not (tmp_path / "out" / "audit.json").exists()


def test_models_and_items_that_do_not_belong_together(digits_zoo, world, tmp_path):
    names = [f"{FIRST[7 * n % 16]} {LAST[(5 * n + n // 16) % 12]}" for n in range(40)]
    rows = [
        {"id": name, "entity": name, "prompt": f"{name} is", "answer": "ab"[n % 2]}
        for n, name in enumerate(names)
    ]
    for name, part in (("f", rows[:20]), ("r", rows[20:])):
        text = "\n".join(json.dumps(each) for each in part)
        (tmp_path / f"{name}.jsonl").write_text(text)
    twin = model_of(digits_zoo, "twin")
    with pytest.raises(InputError, match="text items with an image model"):
        audit(world.original, twin, tmp_path / "f.jsonl", tmp_path / "r.jsonl", tmp_path / "out")
    fewer = open_checkpoint(world.original).load()
    assert isinstance(fewer, PreTrainedModel)
    fewer.classifier = torch.nn.Linear(classifier_of(fewer).in_features, 9)
    fewer.config.id2label = {n: str(n) for n in range(9)}
    fewer.config.label2id = {str(n): n for n in range(9)}
    fewer.config.architectures = [type(fewer).__name__]
    with pytest.raises(InputError, match="differ in the number of classes"):
        audited(world, fewer, tmp_path / "out")
    plain = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    with pytest.raises(InputError, match="is not an image classifier"):
        audit(plain, twin, world.forget_test, world.retain_test, tmp_path / "out")


def test_a_network_of_several_stages_is_refused_before_anything_is_read(world, tmp_path):
    names = {number: str(number) for number in range(10)}
    config = SwinConfig(
        image_size=8,
        patch_size=2,
        num_channels=1,
        embed_dim=8,
        depths=[1, 1],
        num_heads=[1, 1],
        window_size=2,
        id2label=names,
        label2id={name: number for number, name in names.items()},
    )
    torch.manual_seed(0)
    SwinForImageClassification(config).save_pretrained(tmp_path / "swin")
    with pytest.raises(InputError, match=r"Swin.* is not audited: its stages"):
        audit(
            tmp_path / "swin",
            tmp_path / "swin",
            world.forget_test,
            world.retain_test,
            tmp_path / "out",
        )
    assert not (tmp_path / "out").exists()


def test_files_that_cannot_be_read_safely(digits_zoo, world, tmp_path):
    def refused(path, match):
        with pytest.raises(InputError, match=match):
            audit(
                world.original,
                model_of(digits_zoo, "twin"),
                path,
                world.retain_test,
                tmp_path / "out",
            )

    objects = tmp_path / "objects.npz"
    np.savez(objects, image=np.array([{}, {}], dtype=object), label=np.array([1, 1]))
    refused(objects, "pickled objects are never opened")
    images = world.images("forget_test")
    broken = tmp_path / "nan.npz"
    pixels = images.pixels.numpy().copy()
    pixels[0, 0, 0, 0] = np.nan
    np.savez(broken, image=pixels, label=images.labels)
    refused(broken, "NaN or infinite pixels")
    folder = tmp_path / "pictures"
    (folder / "3").mkdir(parents=True)
    refused(folder, "a class without images")
