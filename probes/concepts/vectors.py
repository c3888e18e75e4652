"""Concept vectors: one direction a concept and site, fitted for all concepts at once."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from evidence.arrays import as_tensor, check_finite
from evidence.display.html_table import frame_html
from evidence.errors import InputError
from evidence.progress import AUTO, Progress, as_progress
from evidence.seeds import numpy_rng
from evidence.storage.array_files import part_errors, read_arrays, write_arrays
from probes.concepts import directions as kernels
from probes.concepts.labels import Concepts
from probes.solvers.uncertified import UncertifiedFit, warn_uncertified
from probes.splits.folds import group_codes
from probes.sweeps.site_source import SiteStore, open_source


@dataclass(frozen=True, eq=False, repr=False)
class ConceptVectors:
    """One unit direction a site and concept, in units of the activations.

    Attributes:
        sites: (site,) names.
        concepts: (concept,) names.
        method: How they were fitted.
        vectors: (site, concept, d) float64, of length 1, towards the concept.
        gap: (site, concept) distance of the two means along the vector, in activation units: adding
            ``gap`` times the vector moves the mean of rows without the concept to that of rows with
            it, along the vector.
        offset: (site, concept) the midpoint between the two means along the vector.
        uncertified: Logistic fits that are not certified to be at their optimum.

    Examples:
        >>> vectors = exhume.concept_vectors(states, exhume.concepts_of(cities), method="lda")
        >>> vectors.sites, len(vectors.concepts), vectors.vectors.shape
        (('resid.0', 'resid.1'), 8, (2, 8, 32))
    """

    sites: tuple[str, ...]
    concepts: tuple[str, ...]
    method: str
    vectors: NDArray[np.float64]
    gap: NDArray[np.float64]
    offset: NDArray[np.float64]
    uncertified: tuple[UncertifiedFit, ...] = ()

    def __repr__(self) -> str:
        sites, concepts, d = self.vectors.shape
        text = f"ConceptVectors({self.method}, {sites} sites, {concepts} concepts, {d}"
        if self.uncertified:
            text += f", {len(self.uncertified)} fits uncertified"
        return text + ")"

    def _repr_html_(self) -> str:
        return frame_html(repr(self), self.to_frame())

    def vector(self, site: str, concept: str) -> Tensor:
        """(d,) float32 unit vector of one concept at one site.

        Raises:
            InputError: unknown site or concept.
        """
        return torch.from_numpy(self.vectors[self._index(site, concept)]).float()

    def scores(self, activations: ArrayLike | Tensor | SiteStore) -> NDArray:
        """(site, concept, row) position of each row along each concept's vector.

        In units of the gap: -0.5 at the mean without the concept, 0.5 at the mean with it.

        Raises:
            InputError: sites or width differ from those of the vectors.
        """
        source = open_source(activations)
        if len(source.names) != len(self.sites):
            raise InputError(
                "activations and concept vectors have different sites",
                expected=f"{len(self.sites)} sites",
                got=str(len(source.names)),
            )
        scores = np.empty((*self.gap.shape, source.n_rows))
        for i_site, name in enumerate(source.names):
            x = source.read(name, None)
            if x.shape[1] != self.vectors.shape[2]:
                raise InputError(
                    f"activations and vectors have different widths at {name}",
                    expected=str(self.vectors.shape[2]),
                    got=str(x.shape[1]),
                )
            raw = torch.from_numpy(self.vectors[i_site]).to(x) @ x.T
            centered = raw.cpu().numpy() - self.offset[i_site, :, None]
            gap = self.gap[i_site, :, None]
            scores[i_site] = np.divide(centered, gap, out=np.zeros_like(centered), where=gap != 0)
        return scores

    def to_frame(self) -> pd.DataFrame:
        """One row a site and concept: names and gap."""
        index = pd.MultiIndex.from_product([self.sites, self.concepts], names=["site", "concept"])
        return pd.DataFrame({"gap": self.gap.ravel()}, index=index).reset_index()

    def save(self, path: str | Path) -> None:
        """Write to one safetensors file, atomically.

        Raises:
            InputError: The disk is full, read-only or not writable.
        """
        arrays = {"vectors": self.vectors, "gap": self.gap, "offset": self.offset}
        fits = [asdict(fit) for fit in self.uncertified]
        for fit in fits:  # JSON has no infinity
            fit["certificate"] = float(fit["certificate"]).hex()
        names = {"sites": self.sites, "concepts": self.concepts, "method": self.method}
        write_arrays(path, "ConceptVectors", arrays, names | {"uncertified": fits})

    @classmethod
    def load(cls, path: str | Path) -> "ConceptVectors":
        """Read what ``save`` wrote, the same bit by bit.

        Raises:
            InputError: There is no such file, it is damaged, or it holds something else.

        Examples:
            >>> vectors = exhume.concept_vectors(states, exhume.concepts_of(cities))
            >>> vectors.save("vectors.safetensors")
            >>> same = exhume.ConceptVectors.load("vectors.safetensors")
            >>> same, np.array_equal(same.vectors, vectors.vectors)
            (ConceptVectors(mean, 2 sites, 8 concepts, 32), True)
        """
        arrays, note = read_arrays(path, "ConceptVectors")
        with part_errors(path, "ConceptVectors"):
            fits = tuple(
                UncertifiedFit(**fit | {"certificate": float.fromhex(fit["certificate"])})
                for fit in note["uncertified"]
            )
            sites, concepts = tuple(map(str, note["sites"])), tuple(map(str, note["concepts"]))
            vectors, gap, offset = (arrays[name] for name in ("vectors", "gap", "offset"))
            shape = (len(sites), len(concepts))
            if vectors.ndim != 3 or {vectors.shape[:2], gap.shape, offset.shape} != {shape}:
                raise ValueError(f"arrays of shape {vectors.shape} for {shape} names")
            return cls(sites, concepts, str(note["method"]), vectors, gap, offset, fits)

    def _index(self, site: str, concept: str) -> tuple[int, int]:
        for value, names, kind in ((site, self.sites, "site"), (concept, self.concepts, "concept")):
            if value not in names:
                raise InputError(
                    f"there is no vector for {kind} {value!r}",
                    expected=f"one of {', '.join(names[:6])}",
                    got=repr(value),
                )
        return self.sites.index(site), self.concepts.index(concept)


def concept_vectors(
    activations: ArrayLike | Tensor | SiteStore,
    concepts: Concepts,
    method: str = "mean",
    *,
    kinds: ArrayLike | None = None,
    weight: ArrayLike | None = None,
    shrinkage: float = 0.1,
    c: float = 0.1,
    seed: int = 0,
    flat: Literal["refuse", "zero"] = "refuse",
    device: str | None = None,
    progress: Progress = AUTO,
) -> ConceptVectors:
    """Fit every concept's direction at every site.

    Args:
        activations: (site, row, d), or an object with ``sites`` and ``site(name)``.
        concepts: Marks.
        method: "mean", difference of means (arXiv 2310.06824); "kif", the same of standardized
            columns (arXiv 2601.10566); "lda", linear discriminant with shrunk covariance;
            "logistic", a concept activation vector (CAV, arXiv 1711.11279) at its true optimum;
            "pca", first component of the differences of pairs (arXiv 2310.01405).
        kinds: (row,) for "pca": rows are paired within a kind, such as a template.
        weight: (row,) >= 0, as for a bootstrap.
        shrinkage: For "lda", above 0 and at most 1.
        c: For "logistic", the inverse penalty on standardized columns.
        seed: Seed of the pairs of "pca".
        flat: Concepts whose means are equal at a site: "refuse" raises an error, "zero" gives a
            zero vector with a gap of zero, which scores every row 0.
        device: Where to compute; where the activations are if None.
        progress: One unit a site.

    Raises:
        InputError: shapes that do not fit, NaN activations, an unknown method, or rows that do not
            differ between those with and without a concept.

    Warns:
        UncertifiedWarning: fits that are not certified to be at their optimum.

    Examples:
        >>> vectors = exhume.concept_vectors(states, exhume.concepts_of(cities))
        >>> vectors
        ConceptVectors(mean, 2 sites, 8 concepts, 32)
        >>> vectors.vector("resid.1", "Lisbon").shape
        torch.Size([32])
        >>> best = vectors.scores(states)[-1].argmax(0)
        >>> bool((np.array(vectors.concepts)[best] == cities).mean() > 0.9)
        True
    """
    source = open_source(activations)
    if method not in kernels.METHODS:
        raise InputError(
            "the method is unknown", expected=", ".join(kernels.METHODS), got=repr(method)
        )
    if concepts.n_rows != source.n_rows:
        raise InputError(
            "concepts and activations differ in rows",
            expected=str(source.n_rows),
            got=str(concepts.n_rows),
        )
    pairs = None
    if method == "pca":
        one_kind = np.zeros(source.n_rows) if kinds is None else kinds
        codes = group_codes(one_kind, source.n_rows)
        pairs = kernels.draw_pairs(concepts.marks, codes, numpy_rng(seed, "pairs"))
    results, uncertified = [], []
    with as_progress(progress).task("concept vectors", len(source.names)) as advance:
        for name in source.names:
            x = source.read(name, device)
            *parts, fits = _one_site(x, concepts, name, method, pairs, weight, shrinkage, c, flat)
            results.append(parts)
            for fit in fits:
                concept = concepts.names[fit.label]
                uncertified.append(replace(fit, site=name, name=concept))
            advance(1)
    warn_uncertified(uncertified)
    vectors, gap, offset = (np.stack(part) for part in zip(*results, strict=True))
    return ConceptVectors(
        source.names, concepts.names, method, vectors, gap, offset, tuple(uncertified)
    )


def _one_site(
    x: Tensor,
    concepts: Concepts,
    name: str,
    method: str,
    pairs: list[NDArray] | None,
    weight: ArrayLike | None,
    shrinkage: float,
    c: float,
    flat: str,
) -> tuple[NDArray, NDArray, NDArray, tuple[UncertifiedFit, ...]]:
    """Unit vectors, gaps and offsets at one site, and uncertified fits."""
    uncertified: tuple[UncertifiedFit, ...] = ()
    marks = torch.from_numpy(concepts.marks).to(x.device)
    row_weight = torch.ones_like(x[:, 0])
    if weight is not None:
        row_weight = as_tensor(weight).to(x)
        check_finite(row_weight[:, None], "the weights")
    center = x.mean(0)
    x = x - center
    if pairs is not None:
        raw = kernels.difference_component(x, pairs, row_weight)
    elif method == "mean":
        raw = kernels.mean_difference(x, marks, row_weight)
    elif method == "kif":
        raw = kernels.standardized_difference(x, marks, row_weight)
    elif method == "lda":
        raw = kernels.discriminant(x, marks, row_weight, shrinkage)
    else:
        raw, uncertified = kernels.logistic(x, marks, row_weight, c)
    length = raw.norm(dim=1, keepdim=True)
    unit = raw / length.clamp(min=1e-300)
    difference = kernels.mean_difference(x, marks, row_weight)
    gap = (unit * difference).sum(1)
    # Differences at the rounding level of the centered rows are zero.
    noise = 1e-12 * float(x.abs().max())
    is_equal = (length[:, 0] == 0) | (gap.abs() <= noise)
    if flat == "refuse" and bool(is_equal.any()):
        concept = concepts.names[int(is_equal.nonzero()[0, 0])]
        raise InputError(
            f"rows with and without {concept!r} have equal means at {name}",
            expected="activations that vary with the concept",
            got="equal means",
            fix="Leave the site or the concept out",
        )
    unit, gap = (torch.where(is_equal[:, None], 0.0, unit), torch.where(is_equal, 0.0, gap))
    positive_mean = (unit * (kernels.mean_weights(marks == 1, row_weight) @ x)).sum(1)
    offset = positive_mean - gap / 2 + unit @ center
    return unit.cpu().numpy(), gap.cpu().numpy(), offset.cpu().numpy(), uncertified
