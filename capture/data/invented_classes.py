"""Image classes that no model saw: the floor of an image audit without a reference.

Each is made of the upper half of one known class and the lower half of another. The
strokes, their thickness and their grey values are those of real images, so the model
meets nothing strange at any one place; the whole belongs to no class it was taught.
What a model calls the forgotten class among them, it calls so without having seen it.
"""

import numpy as np
import torch

from capture.data.images import ImageSet
from evidence.errors import InputError


def invent_images(
    known: ImageSet, count: int, rng: np.random.Generator, n_pairs: int = 12
) -> ImageSet:
    """Images of classes that no model saw.

    Args:
        known: Images of the classes that stay, none of the forgotten one; best not
            those the models were trained on.
        count: How many are made.
        rng: Generator of the choice.
        n_pairs: Kinds they are shared out among, labelled -1, -2, ...

    Raises:
        InputError: fewer than two classes to make them from.
    """
    classes = np.unique(known.labels)
    if len(classes) < 2 or count < 1:
        raise InputError(
            "never-taught image classes need two known classes",
            expected="images of two classes or more, and a count of 1 or more",
            got=f"{len(classes)} classes, count {count}",
        )
    every = [(a, b) for a in classes for b in classes if a != b]
    chosen = [every[at] for at in rng.permutation(len(every))[: min(n_pairs, count)]]
    half = known.pixels.shape[2] // 2
    made, labels = [], []
    for number in range(count):
        kind = number % len(chosen)
        upper, lower = (
            int(rng.choice(np.flatnonzero(known.labels == label)))
            for label in chosen[kind]
        )
        made.append(
            torch.cat([known.pixels[upper][:, :half], known.pixels[lower][:, half:]], 1)
        )
        labels.append(-1 - kind)
    ids = tuple(f"never-taught-{number:04d}" for number in range(count))
    return ImageSet(torch.stack(made), np.array(labels), ids, "never taught")
