"""The contract of unlearning methods: one class and one registry line, for text and images."""

import copy
import re
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path

import pytest
import torch
from torch.nn import functional

import exhume
from capture.scoring.class_logits import class_logits
from erasure.unlearning.config import IMAGE_METHODS, METHODS, ImageUnlearnConfig, UnlearnConfig
from erasure.unlearning.methods.base import Method
from erasure.unlearning.methods.distillation import UNDIAL
from erasure.unlearning.methods.likelihood import NPO, GradAscent
from erasure.unlearning.methods.registry import REGISTRY, register, unlearning_methods
from erasure.unlearning.methods.representation import RMU
from erasure.unlearning.methods.retain_only import CFk, L1Sparse
from erasure.unlearning.run import unlearn_, unlearn_images_
from erasure.unlearning.training.settings import TrainingSettings
from evidence.errors import InputError
from testbeds.worlds.digits import DigitsConfig, new_classifier
from tests.helpers.tiny_erasure import FORGET, RELABELLED, RETAIN, changed, greedy, weights

CONTRIBUTING = Path(exhume.__file__).parents[1] / "CONTRIBUTING.md"
MARK = "<!-- A test runs the next two blocks. -->"
SMALL = TrainingSettings(lr=3e-3, steps=30)


def classifier():
    return new_classifier(DigitsConfig(layers=2, width=8, heads=2, family="vit"), 0)


def images():
    rng = torch.Generator().manual_seed(0)
    pixels, labels = torch.randn(30, 1, 8, 8, generator=rng), torch.arange(30) % 3
    return [(pixels[mask], labels[mask]) for mask in (labels == 0, labels != 0)]


def probability(model, data):
    with torch.no_grad():
        return float((-functional.cross_entropy(class_logits(model, data[0]), data[1])).exp())


def test_the_new_method_of_contributing_unlearns_text_and_images(knows):
    """Two places: the class, and the line that registers it."""
    after = CONTRIBUTING.read_text("utf-8").split(MARK)[1]
    define, run = re.findall(r"^```python\n(.*?)^```$", after, re.MULTILINE | re.DOTALL)[:2]
    assert define.count("class ") == 1 and define.count("register(") == 1
    names = {"exhume": exhume}
    before = dict(REGISTRY)
    try:
        exec(compile(define, str(CONTRIBUTING), "exec"), names)
        (name,) = set(REGISTRY) - set(before)
        assert name in unlearning_methods("text") and name in unlearning_methods("images")
        # A name in a config is enough, too.
        by_name = copy.deepcopy(knows)
        config = UnlearnConfig(name, lr=3e-3, steps=60, weight_decay=0.01)
        unlearn_(by_name, FORGET, RETAIN, config, seed=0)

        exec(run, names | {"model": knows, "forget": FORGET, "retain": RETAIN})
        assert greedy(knows, FORGET) == 0.0 and greedy(knows, RETAIN) >= 0.75
        assert not changed(weights(by_name), knows)

        model, (forget, retain) = classifier(), images()
        everything = (torch.cat((forget[0], retain[0])), torch.cat((forget[1], retain[1])))
        other = forget[0], forget[1] + 5
        unlearn_(model, other, everything, CFk(last_k=2), training=SMALL, seed=0)
        known = probability(model, forget)
        exec(run, names | {"model": model, "forget": forget, "retain": retain})
        assert probability(model, forget) < 0.25 * known
    finally:
        REGISTRY.clear()
        REGISTRY.update(before)
    with pytest.raises(InputError, match="method cannot be used"):
        UnlearnConfig(name)


@pytest.mark.parametrize("name", REGISTRY)
def test_every_method_is_one_class_of_its_own(name):
    method = REGISTRY[name]
    assert method.name == name and method.__mro__[1] is Method
    assert is_dataclass(method) and vars(method)["__dataclass_params__"].frozen
    assert set(method.modalities) <= {"text", "images"} and method.modalities
    method()  # every hyperparameter has a default
    documented = method.__doc__
    assert documented is not None
    assert "arXiv" in documented or name in ("last_block_relabel", "famr")
    for field in fields(method):
        assert f"    {field.name}: " in documented


def test_ten_methods_are_written_once_for_text_and_images():
    both = set(METHODS) & set(IMAGE_METHODS)
    assert len(METHODS) == 17 and len(IMAGE_METHODS) == 14 and len(both) == 10
    assert list(unlearning_methods("images")) == list(IMAGE_METHODS)
    for name in both:
        text, image = UnlearnConfig(name).parts(), ImageUnlearnConfig(name).parts()
        assert type(text[0]) is type(image[0]) is REGISTRY[name]


@pytest.mark.parametrize(("config", "name"), [
    *((UnlearnConfig, name) for name in METHODS),
    *((ImageUnlearnConfig, name) for name in IMAGE_METHODS),
])  # fmt: skip
def test_every_hyperparameter_comes_from_the_config(config, name):
    """Each field of the method changes with one field of the config."""
    other = {float: 0.75, int: 2, bool: True, str: "all"}
    changed_to = {
        field.name: other[field.type]
        for field in fields(config)
        if field.type in other and field.name not in ("method", "loss_on")
    }
    before, after = config(name).parts()[0], config(name, **changed_to).parts()[0]
    for field in fields(before):
        if (config, name, field.name) != (ImageUnlearnConfig, "rmu", "parameters"):
            assert getattr(before, field.name) != getattr(after, field.name), field.name


def test_a_config_gives_its_settings_to_the_method_under_the_methods_names():
    config = UnlearnConfig("rmu", rmu_layer=2, rmu_coefficient=3.0, rmu_parameters="all", lr=0.5)
    method, training = config.parts()
    assert method == RMU(block=2, coefficient=3.0, parameters="all") and training.lr == 0.5
    method, training = ImageUnlearnConfig("rmu", block=0, coefficient=3.0).parts()
    assert method == RMU(block=0, coefficient=3.0, parameters="prefix")
    assert training == TrainingSettings(
        lr=1e-3, steps=30, batch_size=32, retain_batch_size=64, weight_decay=0.0
    )
    assert UnlearnConfig("undial", lowered=3.0).parts()[0] == UNDIAL(penalty=3.0)
    assert ImageUnlearnConfig("l1_sparse", anchor=0.5).parts()[0] == L1Sparse(penalty=0.5)


def test_fields_of_the_configs_are_those_that_are_stored_and_hashed():
    assert (
        list(asdict(UnlearnConfig("npo")))
        == (
            "method lr steps batch_size retain_batch_size retain_weight forget_weight beta margin "
            "lowered temperature distil_weight ascents guidance last_k saliency scale dampen_above "
            "dampen_by weight_decay clip warmup loss_on lora_rank lora_alpha rmu_layer "
            "rmu_coefficient rmu_parameters train_head stop_below every"
        ).split()
    )
    assert (
        list(asdict(ImageUnlearnConfig("duck")))
        == (
            "method lr steps batch_size retain_batch_size forget_weight retain_weight temperature "
            "distil_weight ascents saliency dampen_above dampen_by step anchor last_k block "
            "coefficient weight_decay clip"
        ).split()
    )


def test_a_method_and_a_config_train_alike(knows):
    by_method, by_config = copy.deepcopy(knows), copy.deepcopy(knows)
    training = TrainingSettings(lr=1e-3, steps=3, batch_size=2, lora_rank=2)
    method = NPO(beta=0.3)
    log = unlearn_(by_method, FORGET, RETAIN, method, training=training, seed=4)
    assert log.config is method
    config = UnlearnConfig("npo", lr=1e-3, steps=3, batch_size=2, lora_rank=2, beta=0.3)
    unlearn_(by_config, FORGET, RETAIN, config, seed=4)
    assert changed(weights(knows), by_method) and not changed(weights(by_method), by_config)


def test_images_are_evaluated_and_relabeled_as_text_is():
    forget, retain = images()
    training = TrainingSettings(lr=1e-2, steps=40, stop_below=0.1, every=2)
    model = classifier()

    def evaluate(now):
        return {"forget": probability(now, forget)}

    given = forget[0], torch.full_like(forget[1], 2)
    relabel = REGISTRY["relabel"]()
    log = unlearn_(
        model, forget, retain, relabel, training=training, relabeled=given, evaluate=evaluate,
        seed=0,
    )  # fmt: skip
    assert log.stopped == "criterion" and log.last["forget"] <= 0.1
    assert (class_logits(model, forget[0]).argmax(1) == 2).all()


def test_both_drivers_are_one():
    forget, retain = images()
    config = ImageUnlearnConfig("scrub", steps=4, batch_size=4)
    models = [classifier(), classifier()]
    unlearn_(models[0], forget, retain, config, seed=1)
    unlearn_images_(models[1], forget, retain, config, seed=1)
    assert not changed(weights(models[0]), models[1])


def test_bad_input_is_one_clear_error(knows):
    before = weights(knows)
    forget, retain = images()
    npo, lora = NPO(), TrainingSettings(lora_rank=2)
    cases = [
        (FORGET, RETAIN, REGISTRY["duck"](), {}, "duck does not unlearn text"),
        (forget, retain, npo, {}, "npo does not unlearn images"),
        (forget, retain, GradAscent(), {"training": lora}, "lora_rank cannot be used with images"),
        (forget, RETAIN, GradAscent(), {}, "not of one kind"),
        (FORGET, retain, GradAscent(), {}, "not of one kind"),
        (FORGET, RETAIN, UnlearnConfig("npo"), {"training": lora}, "two training settings"),
        (FORGET, RETAIN, REGISTRY["ssd"](), {"training": lora}, "lora_rank cannot be used"),
        (FORGET, RETAIN, CFk(), {"training": TrainingSettings(retain_weight=0.0)}, "retain_weight"),
    ]
    for to_forget, to_keep, method, extra, message in cases:
        with pytest.raises(InputError, match=message):
            unlearn_(knows, to_forget, to_keep, method, relabeled=None, seed=0, **extra)
    assert not changed(before, knows)
    for wrong in (
        lambda: NPO(beta=0.0),
        lambda: NPO(beta="much"),  # pyright: ignore[reportArgumentType]
        lambda: RMU(parameters="some"),
        lambda: CFk(last_k=0),
        lambda: TrainingSettings(batch_size=0),
        lambda: TrainingSettings(forget_weight=0.0),
        lambda: UnlearnConfig("npo", temperature=0.0),  # also where the method has no such field
    ):
        with pytest.raises(InputError, match="cannot be used"):
            wrong()


def test_what_is_no_method_is_not_registered():
    class Nothing(Method):
        name = "nothing"

    before = dict(REGISTRY)
    for wrong, message in ((Nothing, "does nothing"), (NPO, "own"), (Method, "own")):
        with pytest.raises(InputError, match=message):
            register(wrong)
    assert before == REGISTRY


def test_relabeled_text_and_drawn_labels_are_never_the_true_ones(knows):
    """What ``relabel`` is given for text, the driver draws for images, by the same rule."""
    with pytest.raises(InputError, match="true answer"):
        unlearn_(knows, FORGET, RETAIN, REGISTRY["relabel"](), relabeled=FORGET, seed=0)
    unlearn_(knows, FORGET, RETAIN, REGISTRY["relabel"](), relabeled=RELABELLED, training=SMALL,
             seed=0)  # fmt: skip
    model, (forget, retain) = classifier(), images()
    unlearn_(model, forget, retain, REGISTRY["relabel"](), training=SMALL, seed=0)
    assert greedy(knows, FORGET) == 0.0
    assert probability(model, forget) < 0.05
