"""Activations with a concept in them, and what is left of it."""

import warnings

import numpy as np
import pytest


def labelled(rng, n=300, d=10, classes=2, sites=None, offset=3.0):
    """(item, d) or (site, item, d) correlated rows whose class moves their mean."""
    labels = np.arange(n) % classes
    rng.shuffle(labels)
    shape = (sites or 1, n, d)
    mixing = rng.standard_normal((shape[0], d, d))
    shifts = rng.standard_normal((shape[0], classes, d))
    rows = rng.standard_normal(shape) @ mixing + shifts[:, labels] + offset
    return (rows if sites else rows[0]), labels


def onehot(labels):
    return (labels[:, None] == np.unique(labels)).astype(float)


def spread(rows):
    return np.asarray(rows).std(axis=-2).max()


def mean_gap(rows, labels):
    """Largest distance of a class mean from the mean, by the rows' spread."""
    rows = np.asarray(rows)
    center = rows.mean(-2)
    gaps = [
        np.abs(rows[..., labels == each, :].mean(-2) - center).max() for each in np.unique(labels)
    ]
    return max(gaps) / spread(rows)


def peer():
    """concept-erasure, which warns of its own accord when imported."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("concept_erasure")
