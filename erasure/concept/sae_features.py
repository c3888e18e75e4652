"""Erase autoencoder features from activations, or from MLP value vectors.

A sparse autoencoder decomposes an activation into features, each with a decoder direction. Features
that are active on rows of the concept and on few others are removed. On activations this is a
runtime edit, and so a suppression; on the value vectors of an MLP (``pisces_``) it changes weights.

Source: after PISCES (github.com/yoavgur/PISCES), from its abstract and settings. PISCES selects
features by automated interpretation; here they are selected by F1 on labeled rows, like the expert
features of arXiv 2602.18505.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import overload

import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from capture.network.structure import block_at, down_projection, value_vectors
from erasure.inputs import class_codes, site_tables
from evidence.arrays import RowsError, check_finite, float_tensor
from evidence.errors import InputError
from evidence.storage.serialization import eraser_errors, read_eraser, write_eraser


@dataclass(frozen=True, eq=False)
class Dictionary:
    """Tensors of an autoencoder; latent f is relu(encoder_f . (x - center) + bias_f).

    Attributes:
        encoder: (feature, d).
        bias: (feature,).
        decoder: (feature, d), the direction of each feature.
        center: (d,).
    """

    encoder: Tensor
    bias: Tensor
    decoder: Tensor
    center: Tensor

    def __post_init__(self) -> None:
        count, d = self.decoder.shape if self.decoder.ndim == 2 else (0, 0)
        shapes = {"encoder": (count, d), "bias": (count,), "decoder": (count, d), "center": (d,)}
        for name, shape in shapes.items():
            value = getattr(self, name)
            if tuple(value.shape) != shape or not count:
                raise RowsError(
                    f"the dictionary's {name} does not fit",
                    expected=f"{shape}, with at least one feature",
                    got=str(tuple(value.shape)),
                )
            object.__setattr__(self, name, value.detach().double().contiguous())

    def latents(self, offsets: Tensor) -> Tensor:
        """(row, feature) activations of (row, d) offsets from the center."""
        return torch.relu(offsets @ self.encoder.mT + self.bias)


@dataclass(frozen=True, eq=False, repr=False)
class DictionaryEraser:
    """Removes selected features of a dictionary.

    Attributes:
        dictionary: The selected features only.
        features: Their indices in the full dictionary, best first.
        scores: (feature,) F1 on the training rows.
        strength: 0 removes a feature; more inverts it by that share.
        size: Median norm of the training rows' offsets, to which value vectors are scaled before
            they are encoded.
    """

    dictionary: Dictionary
    features: tuple[int, ...]
    scores: Tensor
    strength: float
    size: float

    @property
    def rank_(self) -> int:
        """Number of removed features, an upper bound of the removed dimensions."""
        return len(self.features)

    @classmethod
    def fit(
        cls,
        x: ArrayLike | Tensor,
        z: ArrayLike | Tensor,
        dictionary: Dictionary,
        *,
        n_features: int = 10,
        strength: float = 0.0,
    ) -> "DictionaryEraser":
        """Select features on (item, d) activations.

        Args:
            x: Activations of the site the dictionary was trained on.
            z: Two classes; the larger one in sorting order is the concept.
            dictionary: A trained autoencoder.
            n_features: Number of features to remove.
            strength: See the attribute.

        Raises:
            RowsError: The rows do not fit the dictionary, there are not two classes, or a parameter
                is out of range.
        """
        tables, single = site_tables(x)
        if not single or tables.shape[2] != dictionary.center.numel():
            raise RowsError(
                "rows and dictionary do not fit",
                expected=f"(item, {dictionary.center.numel()})",
                got=str(tuple(tables.shape[1:] if single else tables.shape)),
            )
        check_finite(tables)
        classes, codes = class_codes(z, tables.shape[1], None)
        if len(classes) != 2:
            raise RowsError("a concept is two classes", got=f"{len(classes)}")
        n_available = len(dictionary.bias)
        if not 1 <= n_features <= n_available or not strength >= 0:
            raise RowsError(
                "count or strength cannot be used",
                expected=f"1 to {n_available} features, a strength of 0 or more",
                got=f"{n_features} and {strength}",
            )
        offsets = tables[0].double().cpu() - dictionary.center
        active = dictionary.latents(offsets) > 0
        in_concept = (codes == 1).cpu()
        true_positives = (active & in_concept[:, None]).sum(0).double()
        f1 = 2 * true_positives / (active.sum(0) + in_concept.sum()).clamp(min=1)
        # Stable, so that ties go to the feature of lower index.
        chosen = torch.sort(f1, descending=True, stable=True).indices[:n_features]
        selected = Dictionary(
            dictionary.encoder[chosen],
            dictionary.bias[chosen],
            dictionary.decoder[chosen],
            dictionary.center,
        )
        size = float(offsets.norm(dim=1).median())
        return cls(selected, tuple(chosen.tolist()), f1[chosen], float(strength), size)

    @overload
    def transform(self, x: Tensor) -> Tensor: ...
    @overload
    def transform(self, x: NDArray) -> NDArray: ...
    def transform(self, x):
        """(..., d) activations without the features, of the same shape, type and device."""
        rows = x if isinstance(x, Tensor) else float_tensor(x)
        flat = rows.detach().reshape(-1, rows.shape[-1]).double().cpu()
        erased = flat - self._reconstruct(flat - self.dictionary.center)
        result = erased.reshape(rows.shape).to(rows)
        return result if isinstance(x, Tensor) else result.numpy()

    def transform_vectors(self, values: Tensor) -> Tensor:
        """(vector, d) directions without their components along the features.

        A neuron can be active with either sign, so the features of a vector and of its opposite are
        both removed. Vectors are scaled to the norm of the activations that the dictionary was
        trained on.
        """
        flat = values.detach().double().cpu()
        size = flat.norm(dim=1, keepdim=True)
        scale = torch.where(size > 0, self.size / size.clamp(min=1e-300), 0.0)
        forward, backward = (self._reconstruct(flat * scale), self._reconstruct(-flat * scale))
        removed = (forward - backward) / torch.where(scale > 0, scale, 1.0)
        return (flat - removed).to(values)

    def _reconstruct(self, offsets: Tensor) -> Tensor:
        latents = self.dictionary.latents(offsets)
        return (1 + self.strength) * latents @ self.dictionary.decoder

    def save(self, path: Path | str) -> None:
        """Write it as one safetensors file."""
        tensors = {
            "encoder": self.dictionary.encoder,
            "bias": self.dictionary.bias,
            "decoder": self.dictionary.decoder,
            "centre": self.dictionary.center,
            "scores": self.scores,
        }
        facts = {"features": list(self.features), "strength": self.strength, "size": self.size}
        write_eraser(path, type(self).__name__, tensors, facts)

    @classmethod
    def load(cls, path: Path | str) -> "DictionaryEraser":
        """Read the eraser that ``save`` wrote.

        Raises:
            InputError: The file does not exist or is not such an eraser.
        """
        tensors, facts = read_eraser(path, cls.__name__)
        with eraser_errors(path):
            scores = tensors.pop("scores")
            return cls(
                Dictionary(center=tensors.pop("centre"), **tensors),
                tuple(facts["features"]),
                scores,
                facts["strength"],
                facts["size"],
            )


def pisces_(model: nn.Module, layer: int, eraser: DictionaryEraser) -> int:
    """Remove the features from every value vector of one block's MLP, in place.

    Args:
        model: A Hugging Face causal language model.
        layer: Index of the block.
        eraser: Fitted on that MLP's output.

    Returns:
        Number of vectors that changed by more than rounding.

    Raises:
        InputError: The block does not exist, or the width differs.
    """
    values = value_vectors(down_projection(block_at(model, layer))).detach()
    if values.shape[1] != eraser.dictionary.center.numel():
        raise InputError(
            "the eraser has another width than the model",
            expected=str(values.shape[1]),
            got=str(eraser.dictionary.center.numel()),
        )
    new = eraser.transform_vectors(values)
    changed = (new - values).norm(dim=1) > 1e-6 * values.norm(dim=1)
    with torch.no_grad():
        values.copy_(new)
    return int(changed.sum())
