"""Erasing features of a dictionary: from activations, or from what neurons write.

A sparse autoencoder splits an activation into features, each with a direction it
writes. Features that are active on rows of a concept and on few others are taken out.
On activations that is a change at run time, and so a suppression; on the value vectors
of an MLP (``pisces_``) it is a change of weights.

Source: after PISCES (github.com/yoavgur/PISCES), as its abstract and settings have it:
count and value of the features. It chooses features by automated interpretation; ours
are chosen by F1 on labelled rows, as expert features are in arXiv 2602.18505.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from capture.network.structure import down_projection, find_blocks
from erasure.inputs import RowsError, class_codes, site_tables
from evidence.errors import InputError
from evidence.storage.serialization import eraser_errors, read_eraser, write_eraser


@dataclass(frozen=True, eq=False)
class Dictionary:
    """An autoencoder's tensors; latent f is relu(encoder_f . (x - centre) + bias_f).

    Attributes:
        encoder: (feature, d).
        bias: (feature,).
        decoder: (feature, d), the direction each feature writes.
        centre: (d,).
    """

    encoder: Tensor
    bias: Tensor
    decoder: Tensor
    centre: Tensor

    def __post_init__(self) -> None:
        count, d = self.decoder.shape if self.decoder.ndim == 2 else (0, 0)
        shapes = {
            "encoder": (count, d),
            "bias": (count,),
            "decoder": (count, d),
            "centre": (d,),
        }
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
        """(row, feature) of (row, d) offsets from the centre."""
        return torch.relu(offsets @ self.encoder.mT + self.bias)


@dataclass(frozen=True, eq=False, repr=False)
class DictionaryEraser:
    """Takes chosen features of a dictionary out.

    Attributes:
        dictionary: The chosen features alone.
        features: Their numbers in the whole dictionary, the best first.
        scores: (feature,) F1 of each on the rows of the fit.
        strength: 0 removes a feature; more pushes the other way by that share.
        size: Median length of the fitted rows' offsets, to which value vectors are
            scaled before they are split.
    """

    dictionary: Dictionary
    features: tuple[int, ...]
    scores: Tensor
    strength: float
    size: float

    @property
    def rank_(self) -> int:
        """How many features are taken out; as many dimensions at most."""
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
        """Choose features on (item, d) activations.

        Args:
            x: Activations of the site the dictionary was trained on.
            z: Two classes; the larger one in sorting order is the concept.
            dictionary: Handed in, however it was trained.
            n_features: Features to take out.
            strength: As the attribute.

        Raises:
            RowsError: rows that do not fit the dictionary, not two classes, or a count
                or strength that cannot be used.
        """
        tables, single = site_tables(x)
        if not single or tables.shape[2] != dictionary.centre.numel():
            raise RowsError(
                "rows and dictionary do not fit",
                expected=f"(item, {dictionary.centre.numel()})",
                got=str(tuple(tables.shape[1:] if single else tables.shape)),
            )
        classes, codes = class_codes(z, tables.shape[1], None)
        if len(classes) != 2:
            raise RowsError("a concept is two classes", got=f"{len(classes)}")
        most = len(dictionary.bias)
        if not 1 <= n_features <= most or not strength >= 0:
            raise RowsError(
                "count or strength cannot be used",
                expected=f"1 to {most} features, a strength of 0 or more",
                got=f"{n_features} and {strength}",
            )
        offsets = tables[0].double().cpu() - dictionary.centre
        active = dictionary.latents(offsets) > 0
        concept = (codes == 1).cpu()
        hits = (active & concept[:, None]).sum(0).double()
        f1 = 2 * hits / (active.sum(0) + concept.sum()).clamp(min=1)
        # A stable order: of equal features the first is taken.
        chosen = torch.sort(f1, descending=True, stable=True).indices[:n_features]
        part = Dictionary(
            dictionary.encoder[chosen],
            dictionary.bias[chosen],
            dictionary.decoder[chosen],
            dictionary.centre,
        )
        size = float(offsets.norm(dim=1).median())
        return cls(part, tuple(chosen.tolist()), f1[chosen], float(strength), size)

    def transform(self, x):
        """(..., d) activations without the features: same shape, type and device."""
        rows = x if isinstance(x, Tensor) else torch.as_tensor(x)
        flat = rows.detach().reshape(-1, rows.shape[-1]).double().cpu()
        left = flat - self._reconstruct(flat - self.dictionary.centre)
        found = left.reshape(rows.shape).to(rows)
        return found if isinstance(x, Tensor) else found.numpy()

    def transform_vectors(self, values: Tensor) -> Tensor:
        """(vector, d) directions without what they write of the features.

        A neuron may be active with either sign, so what a vector writes and what its
        opposite writes are both taken out. Vectors are scaled to the size of the
        activations the dictionary knows.
        """
        flat = values.detach().double().cpu()
        size = flat.norm(dim=1, keepdim=True)
        scale = torch.where(size > 0, self.size / size.clamp(min=1e-300), 0.0)
        ahead, back = self._reconstruct(flat * scale), self._reconstruct(-flat * scale)
        written = (ahead - back) / torch.where(scale > 0, scale, 1.0)
        return (flat - written).to(values)

    def _reconstruct(self, offsets: Tensor) -> Tensor:
        latents = self.dictionary.latents(offsets)
        return (1 + self.strength) * latents @ self.dictionary.decoder

    def save(self, path: Path | str) -> None:
        """Write it as one safetensors file."""
        parts = ("encoder", "bias", "decoder", "centre")
        tensors = {name: getattr(self.dictionary, name) for name in parts}
        facts = {
            "features": list(self.features),
            "strength": self.strength,
            "size": self.size,
        }
        write_eraser(
            path, type(self).__name__, tensors | {"scores": self.scores}, facts
        )

    @classmethod
    def load(cls, path: Path | str) -> "DictionaryEraser":
        """The eraser that ``save`` wrote.

        Raises:
            InputError: no such file, or another eraser.
        """
        tensors, facts = read_eraser(path, cls.__name__)
        with eraser_errors(path):
            scores = tensors.pop("scores")
            return cls(
                Dictionary(**tensors),
                tuple(facts["features"]),
                scores,
                facts["strength"],
                facts["size"],
            )


def pisces_(model: nn.Module, layer: int, eraser: DictionaryEraser) -> int:
    """Take the features out of every value vector of one block's MLP, in place.

    Args:
        model: A Hugging Face causal language model.
        layer: Number of the block.
        eraser: Fitted on that MLP's output.

    Returns:
        How many vectors changed by more than rounding.

    Raises:
        InputError: no such block, or another width.
    """
    blocks = find_blocks(model)
    if not 0 <= layer < len(blocks):
        raise InputError(
            "the model has no such block",
            expected=f"0 to {len(blocks) - 1}",
            got=str(layer),
        )
    module = down_projection(blocks[layer])
    weight = module.weight
    assert isinstance(weight, nn.Parameter)  # down_projection looked
    # Conv1D keeps (in, out), Linear (out, in); a value vector is what one input writes.
    values = weight.data if isinstance(module, Conv1D) else weight.data.T
    if values.shape[1] != eraser.dictionary.centre.numel():
        raise InputError(
            "the eraser is of another width",
            expected=str(values.shape[1]),
            got=str(eraser.dictionary.centre.numel()),
        )
    new = eraser.transform_vectors(values)
    changed = (new - values).norm(dim=1) > 1e-6 * values.norm(dim=1)
    with torch.no_grad():
        values.copy_(new)
    return int(changed.sum())
