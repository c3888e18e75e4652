"""Base classes of erasers: scikit-learn's contract, with an optional site axis."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, OneToOneFeatureMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from erasure.concept.affine import AffineEraser
from erasure.concept.moments import Moments
from erasure.inputs import site_tables
from evidence.arrays import ConceptKind, as_array, check_finite, float_tensor


class ConceptEraser(OneToOneFeatureMixin, TransformerMixin, BaseEstimator):
    """Removes a concept from activations.

    ``fit`` takes the activations of one or several sites and the concept, classes or numbers by the
    rule of ``evidence.arrays``. In a scikit-learn pipeline the eraser is
    refitted within each fold. It must be: fitted on the rows that a probe is tested on, any eraser
    drives the probe below chance.

    Fitted:
        eraser_: The affine map, to be used as a hook, folded into weights or saved.
        n_features_in_: d.
    """

    eraser_: AffineEraser
    n_features_in_: int

    def fit(self, X: ArrayLike | Tensor, y: ArrayLike | Tensor) -> "ConceptEraser":
        """Fit on (item, d) or (site, item, d) activations and the concept ``y``."""
        raise NotImplementedError

    @overload
    def transform(self, X: Tensor) -> Tensor: ...
    @overload
    def transform(self, X: ArrayLike) -> NDArray: ...
    def transform(self, X):
        """Activations without the concept, of the same shape, type and device."""
        check_is_fitted(self, "eraser_")
        if isinstance(X, Tensor):
            check_finite(X)
            return self.eraser_.transform(X)
        X = as_array(X) if isinstance(X, Sequence) else X
        if self.eraser_.single_site:
            dtypes = [np.float64, np.float32, np.float16]
            given: Any = X
            X = validate_data(self, given, reset=False, dtype=dtypes, ensure_all_finite=False)
        rows = float_tensor(X)
        check_finite(rows)
        return self.eraser_.transform(rows.numpy())

    @property
    def rank_(self) -> int | tuple[int, ...]:
        """Number of removed dimensions; one per site if there are several."""
        check_is_fitted(self, "eraser_")
        return self.eraser_.rank_

    def save(self, path: Path | str) -> None:
        """Write the fitted eraser; ``AffineEraser.load`` reads it."""
        check_is_fitted(self, "eraser_")
        self.eraser_.save(path)

    @staticmethod
    def load(path: Path | str) -> AffineEraser:
        """Read the fitted eraser that ``save`` wrote."""
        return AffineEraser.load(path)

    def __sklearn_tags__(self):
        """Tell scikit-learn that the concept is required."""
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        return tags

    def _validated_rows(self, X: ArrayLike | Tensor, y: ArrayLike | Tensor | None):
        """Validated rows, (item, d) or (site, item, d); sets ``n_features_in_``."""
        if y is None and self.__sklearn_tags__().target_tags.required:
            raise ValueError(
                f"{type(self).__name__} requires y to be passed, but the target y is None"
            )
        X = as_array(X) if isinstance(X, Sequence) else X
        if not isinstance(X, Tensor) and len(getattr(X, "shape", ())) != 3:
            dtypes = [np.float64, np.float32, np.float16]
            X = np.asarray(
                validate_data(self, X, reset=True, dtype=dtypes, ensure_all_finite=False)  # pyright: ignore
            )
        tables, single = site_tables(X)
        self.n_features_in_ = tables.shape[2]
        return tables[0] if single else tables

    def _finite_tables(self, X: ArrayLike | Tensor, y: ArrayLike | Tensor | None):
        """(site, item, d) float64, and whether the input was (item, d)."""
        rows = self._validated_rows(X, y)
        tables = (rows if rows.ndim == 3 else rows[None]).double()
        check_finite(tables)
        return tables, rows.ndim == 2


class MomentEraser(ConceptEraser):
    """An eraser that needs only means and covariances, so rows may come in chunks.

    ``kind`` says whether the concept is "classes" or "numbers"; None for the rule.
    """

    kind: ConceptKind | None

    def fit(self, X: ArrayLike | Tensor, y: ArrayLike | Tensor) -> "MomentEraser":
        """Fit on (item, d) or (site, item, d) activations and the concept ``y``."""
        return self.fit_moments(Moments(kind=self.kind).update(self._validated_rows(X, y), y))

    def fit_moments(self, moments: Moments) -> "MomentEraser":
        """Fit on moments accumulated in chunks.

        Raises:
            RowsError: The moments are empty.
        """
        self.eraser_ = self.solve(moments)
        self.n_features_in_ = moments.width
        return self

    def solve(self, moments: Moments) -> AffineEraser:
        """Solve for the eraser given the moments."""
        raise NotImplementedError
