"""Images are read safely, from either form, and refused where they do not fit."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from capture.data.image_files import read_images
from capture.data.images import ImagePreprocessor, ImageSet
from capture.data.invented_classes import invent_images
from evidence.errors import InputError

GREY = ImagePreprocessor(1, (8, 8), labels={"cat": 0, "dog": 1})
COLOUR = ImagePreprocessor(3, (16, 16), (0.4, 0.5, 0.6), (0.2, 0.3, 0.4), {"cat": 0, "dog": 1})


def some(count=6, seed=0):
    rng = np.random.default_rng(seed)
    pixels = torch.tensor(rng.normal(size=(count, 1, 8, 8)), dtype=torch.float32)
    return ImageSet(pixels, np.arange(count) % 2, tuple(f"i{n}" for n in range(count)))


def test_a_saved_set_comes_back_whole(tmp_path):
    images = some()
    images.save(tmp_path / "a.npz")
    reloaded = read_images(tmp_path / "a.npz", GREY)
    assert reloaded.digest == images.digest


def test_any_change_changes_the_digest():
    images = some()
    moved = ImageSet(images.pixels + 1e-3, images.labels, images.ids)
    swapped = ImageSet(images.pixels, images.labels[::-1].copy(), images.ids)
    renamed = ImageSet(images.pixels, images.labels, (*images.ids[:-1], "other"))
    digests = {each.digest for each in (images, moved, swapped, renamed)}
    assert len(digests) == 4


def test_raw_images_are_scaled_resized_and_normalised():
    raw = np.full((2, 8, 8, 3), 255, dtype=np.uint8)
    ready = COLOUR.preprocess(raw)
    assert ready.shape == (2, 3, 16, 16)
    expected = (1 - torch.tensor(COLOUR.mean)) / torch.tensor(COLOUR.std)
    torch.testing.assert_close(ready[0, :, 3, 5], expected)
    assert COLOUR.preprocess(raw[..., 0]).shape == (2, 3, 16, 16)  # grey for a colour model


def test_folders_are_classes_by_name_or_by_number(tmp_path):
    for name, grey in (("cat", 0), ("dog", 255)):
        (tmp_path / name).mkdir()
        for number in range(2):
            picture = Image.new("L", (10, 6), grey)
            picture.save(tmp_path / name / f"{number}.png")
    found = read_images(tmp_path, GREY)
    assert found.labels.tolist() == [0, 0, 1, 1]
    assert found.pixels.shape == (4, 1, 8, 8)
    torch.testing.assert_close(found.pixels[0], -torch.ones(1, 8, 8))
    torch.testing.assert_close(found.pixels[3], torch.ones(1, 8, 8))
    assert found.ids[0] == "cat/0.png"


def test_never_taught_images_are_halves_of_two_classes():
    images = some(40)
    made = invent_images(images, 10, np.random.default_rng(1))
    assert len(made) == 10 and (made.labels < 0).all()
    upper = {tuple(p[0, :4].flatten().tolist()) for p in images.pixels}
    whole = {tuple(p.flatten().tolist()) for p in images.pixels}
    for pixels in made.pixels:
        assert tuple(pixels[0, :4].flatten().tolist()) in upper
        assert tuple(pixels.flatten().tolist()) not in whole


def test_bad_input_is_one_clear_error(tmp_path):
    def npz(name, **arrays):
        np.savez(tmp_path / name, **arrays)
        return tmp_path / name

    label = np.zeros(2, dtype=int)
    cases = {
        "neither a folder": tmp_path / "nothing.zip",
        "does not hold images": npz("a.npz", image=np.zeros((2, 8, 8))),
        "never opened": npz("b.npz", image=np.array([{}, 1]), label=label),
        "the model's shape": npz("c.npz", image=np.zeros((2, 9, 9)), label=label),
        "invalid shape or type": npz("d.npz", image=np.zeros((2, 8)), label=label),
        "do not fit together": npz("e.npz", image=np.zeros((3, 8, 8)), label=label),
        "NaN or infinite": npz("f.npz", image=np.full((2, 8, 8), np.nan), label=label),
    }
    for message, path in cases.items():
        with pytest.raises(InputError, match=message):
            read_images(path, GREY)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no images"):
        read_images(tmp_path / "empty", GREY)
    (tmp_path / "strange" / "bird").mkdir(parents=True)
    with pytest.raises(InputError, match="no class 'bird'"):
        read_images(tmp_path / "strange", GREY)
    (tmp_path / "torn" / "cat").mkdir(parents=True)
    (tmp_path / "torn" / "cat" / "x.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match="not an image"):
        read_images(tmp_path / "torn", GREY)
    twice = some()
    with pytest.raises(InputError, match="have the id"):
        _ = twice + twice
    with pytest.raises(InputError, match="two known classes"):
        invent_images(twice.select(twice.labels == 0), 3, np.random.default_rng(0))


def test_an_archive_that_unpacks_to_too_much_is_refused(tmp_path, monkeypatch):
    some().save(tmp_path / "a.npz")
    monkeypatch.setattr("capture.data.image_files.MAX_BYTES", 100)
    with pytest.raises(InputError, match="is too large when unpacked"):
        read_images(tmp_path / "a.npz", GREY)


def test_a_models_size_comes_from_its_settings_or_its_preprocessor(tmp_path):
    settings = {"num_channels": 3, "id2label": {"0": "cat", "1": "dog"}}
    assert ImagePreprocessor.from_config(settings | {"image_size": 32}, tmp_path).size == (32, 32)
    free = ImagePreprocessor.from_config(settings, tmp_path)
    assert free.size is None and free.classes == 2
    for config, size in (
        ({"size": {"height": 8, "width": 12}}, (8, 12)),
        ({"size": {"shortest_edge": 9}}, (9, 9)),
        ({"size": {"shortest_edge": 9}, "crop_size": 7}, (7, 7)),
    ):
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
        assert ImagePreprocessor.from_config(settings, tmp_path).size == size
    (tmp_path / "preprocessor_config.json").write_text("[")
    with pytest.raises(InputError, match="not valid JSON"):
        ImagePreprocessor.from_config(settings, tmp_path)
    with pytest.raises(InputError, match="lacks the number of channels"):
        ImagePreprocessor.from_config({"model_type": "llama"}, None)


def test_a_model_of_any_size_takes_one_size_at_a_time(tmp_path):
    free = ImagePreprocessor(1, None, labels={"cat": 0, "dog": 1}, classes=2)
    assert free.preprocess(np.zeros((2, 5, 7), dtype=np.uint8)).shape == (2, 1, 5, 7)
    for name, side in (("cat", 6), ("dog", 9)):
        (tmp_path / name).mkdir()
        Image.fromarray(np.zeros((side, side), dtype=np.uint8)).save(tmp_path / name / "a.png")
    with pytest.raises(InputError, match="different sizes"):
        read_images(tmp_path, free)
    assert len(read_images(tmp_path, GREY)) == 2
    images = some()
    free.check(images.select(images.labels < 2))
    with pytest.raises(InputError, match="a class the model does not have"):
        free.check(ImageSet(images.pixels, images.labels + 2, images.ids, images.name))
    (tmp_path / "bird").mkdir()
    with pytest.raises(InputError, match="a class without images"):
        read_images(tmp_path, ImagePreprocessor(1, (8, 8), labels={"bird": 2, "cat": 0, "dog": 1}))
