"""Never-taught image classes: the floor of an image audit without a reference model.

Each class combines the upper half of one known class with the lower half of another. Locally the
images look like real ones, but as a whole they belong to no class of the model. The rate at which
a model assigns them to the forgotten class is a rate without knowledge.
"""

import numpy as np
import torch

from capture.data.images import ImageSet
from evidence.errors import InputError


def invent_images(
    known: ImageSet, count: int, rng: np.random.Generator, n_pairs: int = 12
) -> ImageSet:
    """Make images of never-taught classes.

    Args:
        known: Images of the retained classes, preferably not used in training.
        count: Number of images to make.
        n_pairs: Number of new classes, labeled -1, -2, ...

    Raises:
        InputError: ``known`` has fewer than two classes.
    """
    classes = np.unique(known.labels)
    if len(classes) < 2 or count < 1:
        raise InputError(
            "never-taught image classes need two known classes",
            expected="images of two classes or more, and a count of 1 or more",
            got=f"{len(classes)} classes, count {count}",
        )
    all_pairs = [(a, b) for a in classes for b in classes if a != b]
    chosen = [all_pairs[index] for index in rng.permutation(len(all_pairs))[: min(n_pairs, count)]]
    half = known.pixels.shape[2] // 2
    images, labels = [], []
    for number in range(count):
        kind = number % len(chosen)
        upper, lower = (
            int(rng.choice(np.flatnonzero(known.labels == label))) for label in chosen[kind]
        )
        images.append(torch.cat([known.pixels[upper][:, :half], known.pixels[lower][:, half:]], 1))
        labels.append(-1 - kind)
    ids = tuple(f"never-taught-{number:04d}" for number in range(count))
    return ImageSet(torch.stack(images), np.array(labels), ids, "never taught")
