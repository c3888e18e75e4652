"""Methods of class forgetting do what their papers say, on networks small enough."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from capture.network.hooks import count_hooks
from capture.network.structure import classifier_of, find_blocks
from capture.scoring.class_logits import class_logits
from erasure.unlearning.config import IMAGE_METHODS, ImageUnlearnConfig
from erasure.unlearning.methods.registry import REGISTRY
from erasure.unlearning.run import unlearn_images_
from erasure.unlearning.training.image_task import (
    class_centroids,
    fgsm_target_class,
    image_fisher,
    last_parameters,
    nearest_centroid_loss,
    uniform_loss,
)
from evidence.errors import InputError
from testbeds.worlds.digits import DigitsConfig, DigitsFamily, new_classifier

SETTINGS = {"steps": 8, "lr": 3e-3, "batch_size": 8, "retain_batch_size": 8}


def fresh(family: DigitsFamily = "vit"):
    return new_classifier(DigitsConfig(layers=2, width=8, heads=2, family=family), 0)


def images(seed=0):
    rng = torch.Generator().manual_seed(seed)
    pixels = torch.randn(30, 1, 8, 8, generator=rng)
    labels = torch.arange(30) % 3
    mine = labels == 0
    return (pixels[mine], labels[mine]), (pixels[~mine], labels[~mine])


@pytest.mark.parametrize("method", IMAGE_METHODS)
@pytest.mark.parametrize("family", ["vit", "cnn"])
def test_every_method_changes_what_it_may_and_nothing_else(method, family):
    model, (forget, retain) = fresh(family), images()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    config = ImageUnlearnConfig(method, block=0, dampen_above=1.01, **SETTINGS)
    log = unlearn_images_(model, forget, retain, config, seed=0)
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved and count_hooks(model) == 0 and not model.training
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    if method in ("cf_k", "eu_k"):
        allowed = {id(p) for p in last_parameters(model, 1)}
        first = {id(p) for p in find_blocks(model)[0].parameters()}
        assert not allowed & first
    elif method == "rmu":
        allowed = {id(p) for p in find_blocks(model)[0].parameters()}
    else:
        allowed = {id(p) for p in model.parameters()}
    assert {id(dict(model.named_parameters())[name]) for name in moved} <= allowed
    if method != "ssd":
        losses = {key for row in log.rows for key in row}
        wanted = {"retain_loss"} if method in ("cf_k", "eu_k", "l1_sparse") else set()
        assert wanted <= losses
        assert ("retain_loss" not in losses) == (not REGISTRY[method].reads_retain)


@pytest.mark.parametrize("method", ["grad_ascent", "grad_diff", "relabel", "famr"])
def test_the_class_becomes_less_likely(method):
    model, (forget, retain) = fresh(), images()
    teach = ImageUnlearnConfig("cf_k", last_k=2, **(SETTINGS | {"steps": 60}))
    everything = (torch.cat((forget[0], retain[0])), torch.cat((forget[1], retain[1])))
    # Learning all three classes first: none of them is "to be forgotten" here.
    unlearn_images_(model, (forget[0], forget[1] + 5), everything, teach, seed=0)
    with torch.no_grad():
        known = float(functional.cross_entropy(class_logits(model, forget[0]), forget[1]))
    config = ImageUnlearnConfig(method, **(SETTINGS | {"steps": 30}))
    unlearn_images_(model, forget, retain, config, seed=0)
    with torch.no_grad():
        after = float(functional.cross_entropy(class_logits(model, forget[0]), forget[1]))
    # Guessing among ten classes costs 2.3 nats.
    assert known < 1.2 and after > known + 0.5


def test_salun_trains_the_share_it_says():
    model, (forget, retain) = fresh(), images()
    before = [p.detach().clone() for p in model.parameters()]
    config = ImageUnlearnConfig("salun", saliency=0.2, weight_decay=0.1, **SETTINGS)
    unlearn_images_(model, forget, retain, config, seed=0)
    moved = sum(int((p != b).sum()) for p, b in zip(model.parameters(), before, strict=True))
    total = sum(p.numel() for p in model.parameters())
    assert 0.1 * total < moved <= round(0.2 * total)


def test_fisher_is_the_mean_of_squared_gradients_one_by_one():
    model, ((pixels, labels), _) = fresh(), images()
    chosen = list(model.parameters())
    fast = image_fisher(model, chosen, (pixels, labels))
    slow = [torch.zeros_like(p) for p in chosen]
    for pixel, label in zip(pixels, labels, strict=True):
        loss = functional.cross_entropy(class_logits(model, pixel[None]), label[None])
        for total, slope in zip(
            slow, torch.autograd.grad(loss, chosen, allow_unused=True), strict=True
        ):
            if slope is not None:
                total += slope.square() / len(pixels)
    for one, other in zip(fast, slow, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-9)


def test_boundary_shrink_finds_the_neighbour_across_a_known_boundary():
    # Two pixels, three classes: the class of x is the larger pixel, or neither.
    linear = nn.Linear(2, 3)
    net = nn.Sequential(nn.Flatten(), linear)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor([[1.0, 0], [0, 1.0], [-1.0, -1.0]]))
        linear.bias.zero_()
    pixels = torch.tensor([[2.0, 1.9], [1.0, -1.0]]).view(2, 1, 1, 2)
    labels = torch.zeros(2, dtype=torch.long)
    found = fgsm_target_class(net, pixels, labels, 0.1)
    assert found[0] == 1 and (found != 0).all()


def test_ducks_distance_is_to_the_nearest_centre_by_angle():
    features = torch.tensor([[3.0, 0.1], [0.0, 2.0]])
    centres = class_centroids(torch.eye(2), torch.tensor([0, 1]), 3)
    assert centres[2].isnan().all()
    near = nearest_centroid_loss(features, centres[:2])
    by_hand = (1 - functional.cosine_similarity(features, torch.eye(2))).mean()
    torch.testing.assert_close(near, by_hand)


def test_uniform_logits_are_famrs_optimum():
    even = torch.zeros(4, 10)
    assert float(uniform_loss(even)) == pytest.approx(2.302585, rel=1e-5)
    assert float(uniform_loss(even + torch.eye(4, 10))) > float(uniform_loss(even))


def test_the_classifier_is_the_last_linear_layer():
    for family in ("vit", "cnn"):
        model = fresh(family)
        assert classifier_of(model) is model.classifier


def test_bad_input_is_one_clear_error():
    model, (forget, retain) = fresh(), images()
    config = ImageUnlearnConfig("grad_ascent")
    mixed = (retain[0], retain[1])
    with pytest.raises(InputError, match="images of one class"):
        unlearn_images_(model, mixed, retain, config, seed=0)
    with pytest.raises(InputError, match="to be forgotten and to be kept"):
        unlearn_images_(model, forget, forget, config, seed=0)
    with pytest.raises(InputError, match="fewer blocks"):
        last_parameters(model, 3)
    with pytest.raises(InputError, match="not the index of a block"):
        wrong = ImageUnlearnConfig("rmu", block=7)
        unlearn_images_(model, forget, retain, wrong, seed=0)
    with pytest.raises(InputError, match="no linear layer"):
        classifier_of(nn.ReLU())
    for wrong in (
        lambda: ImageUnlearnConfig("magic"),
        lambda: ImageUnlearnConfig("ssd", dampen_above=0.0),
        lambda: ImageUnlearnConfig("duck", temperature=0.0),
        lambda: ImageUnlearnConfig("salun", saliency=0.0),
        lambda: ImageUnlearnConfig("relabel", lr=0.0),
    ):
        with pytest.raises(InputError, match="cannot be used"):
            wrong()
