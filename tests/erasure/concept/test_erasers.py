"""What every eraser promises, whatever its mathematics."""

import copy

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import parametrize_with_checks
from torch.testing import assert_close

from erasure.concept.affine import AffineEraser
from erasure.concept.inlp import IterativeNullspace
from erasure.concept.label_aware import OracleLeace, QuadraticLeace
from erasure.concept.leace import Leace
from erasure.concept.moments import Moments
from erasure.concept.projections import MeanDifference, RandomProjection, SpectralRemoval
from erasure.concept.rlace import RelaxedAdversarial
from evidence.arrays import RowsError
from evidence.errors import InputError
from tests.helpers.concept_rows import labelled

ERASERS = {
    "leace": Leace(),
    "leace, oas": Leace(shrinkage="oas"),
    "mean difference": MeanDifference(),
    "sal": SpectralRemoval(),
    "sal, one direction": SpectralRemoval(rank=1),
    "random": RandomProjection(rank=2, seed=3),
    "inlp, ridge": IterativeNullspace(max_probes=3),
    "inlp, logistic": IterativeNullspace("logistic", max_probes=3),
    "r-lace": RelaxedAdversarial(rank=2, steps=12, eval_every=6),
}
STREAMED = ("leace", "leace, oas", "mean difference", "sal", "inlp, ridge")
ALL = pytest.mark.parametrize("name", ERASERS)


def fitted(name, rows, labels):
    return copy.deepcopy(ERASERS[name]).fit(rows, labels)


@parametrize_with_checks(
    [
        Leace(),
        MeanDifference(),
        SpectralRemoval(),
        RandomProjection(rank=1),
        IterativeNullspace(max_probes=2),
        IterativeNullspace("logistic", max_probes=2),
        RelaxedAdversarial(steps=4, eval_every=2),
    ]
)
@pytest.mark.filterwarnings("ignore:A column-vector y was passed")
def test_scikit_learn_contract(estimator, check):
    check(estimator)


@ALL
def test_shape_type_rank_and_projection(name, rng):
    rows, labels = labelled(rng, sites=2, classes=3)
    eraser = fitted(name, rows, labels)
    after = eraser.transform(rows)
    assert isinstance(after, np.ndarray)
    assert after.shape == rows.shape
    assert after.dtype == rows.dtype
    for site, rank in enumerate(eraser.rank_):
        matrix = eraser.eraser_.matrix[site]
        assert torch.linalg.matrix_rank(matrix) == rows.shape[2] - rank
        assert_close(matrix @ matrix, matrix)
    assert_close(eraser.transform(after), after)
    assert_close(after.mean(1), rows.mean(1))


@ALL
def test_tensors_arrays_sites_and_precisions_agree(name, rng):
    rows, labels = labelled(rng, sites=2, classes=3)
    eraser = fitted(name, rows, labels)
    after = eraser.transform(rows)
    as_tensor = fitted(name, torch.from_numpy(rows), torch.from_numpy(labels))
    assert_close(as_tensor.transform(torch.from_numpy(rows)).numpy(), after)
    text = np.array(["a", "b", "c"])[labels]
    assert_close(fitted(name, rows, text).transform(rows), after)
    if name != "random":  # one site's directions are not two sites' first ones
        alone = fitted(name, rows[1], labels)
        assert_close(alone.transform(rows[1]), after[1], rtol=1e-6, atol=1e-8)
    short = eraser.transform(rows.astype(np.float32))
    assert short.dtype == np.float32
    assert_close(short, after.astype(np.float32), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", STREAMED)
def test_fitted_on_chunks_it_is_the_same(name, rng):
    rows, labels = labelled(rng, sites=2, classes=3)
    moments = Moments(classes=range(3))
    for start in range(0, 300, 70):
        part = slice(start, start + 70)
        moments.update(rows[:, part], labels[part])
    streamed = copy.deepcopy(ERASERS[name]).fit_moments(moments)
    whole = fitted(name, rows, labels)
    assert_close(streamed.transform(rows), whole.transform(rows))
    assert streamed.rank_ == whole.rank_


@ALL
def test_a_file_gives_back_the_same(name, rng, tmp_path):
    rows, labels = labelled(rng, sites=2, classes=3)
    eraser = fitted(name, rows, labels)
    eraser.save(tmp_path / "eraser.safetensors")
    loaded = type(eraser).load(tmp_path / "eraser.safetensors")
    assert np.array_equal(loaded.transform(rows), eraser.transform(rows))
    assert loaded.rank_ == eraser.rank_


@ALL
def test_rows_of_other_shapes_and_values_are_refused(name, rng):
    rows, labels = labelled(rng, classes=3)
    tensor = torch.from_numpy(rows)
    for bad in (tensor * torch.nan, tensor[None] / 0):
        with pytest.raises(RowsError, match="NaN or infinite"):
            fitted(name, bad, labels)
    with pytest.raises(RowsError, match="rows of activations"):
        fitted(name, tensor[0], labels)
    eraser = fitted(name, tensor, labels)
    with pytest.raises(RowsError, match="do not fit the eraser"):
        eraser.transform(tensor[:, :4])
    with pytest.raises(RowsError, match="no such site"):
        eraser.eraser_.at(0)
    if name != "random":
        with pytest.raises(RowsError, match="differ in number"):
            fitted(name, tensor, labels[:-1])


def test_in_a_pipeline_it_is_fitted_within_each_fold(rng):
    """Accuracies of cross-validation are those of erasing each fold by hand."""
    rows, labels = labelled(rng, n=60)
    reader = LogisticRegression()
    scores = cross_val_score(make_pipeline(Leace(), reader), rows, labels, cv=3)
    from sklearn.model_selection import StratifiedKFold

    for score, (train, test) in zip(scores, StratifiedKFold(3).split(rows, labels), strict=True):
        leace = Leace().fit(rows[train], labels[train])
        reader.fit(leace.transform(rows[train]), labels[train])
        assert score == reader.score(leace.transform(rows[test]), labels[test])


def test_a_batch_of_sequences_is_erased_as_its_rows(rng):
    rows, labels = labelled(rng, sites=2)
    eraser = Leace().fit(rows, labels).eraser_
    batch = rows.reshape(2, 30, 10, 10)
    assert_close(eraser.transform(batch).reshape(rows.shape), eraser.transform(rows))
    one = eraser.at(1)
    assert_close(one.transform(rows[1, 0]), eraser.transform(rows)[1, 0])
    assert one.transform(batch[1]).shape == (30, 10, 10)


def test_the_linear_part_alone_makes_classes_as_inseparable(rng):
    rows, labels = labelled(rng)
    eraser = Leace().fit(rows, labels).eraser_
    after = eraser.linear().transform(rows)
    assert_close(after + eraser.offset.numpy(), eraser.transform(rows))
    assert_close(after, rows @ eraser.matrix.T.numpy())


def test_names_that_do_not_fit_are_refused(rng):
    rows, labels = labelled(rng, sites=2)
    eraser = Leace().fit(rows, labels).eraser_
    assert list(eraser.edits(["resid.0", "resid.1"])) == ["resid.0", "resid.1"]
    for names in (["resid.0"], ["resid.0", "resid.0"]):
        with pytest.raises(RowsError, match="names do not fit"):
            eraser.edits(names)


def test_a_file_of_something_else_is_refused(rng, tmp_path):
    rows, labels = labelled(rng)
    path = tmp_path / "oracle.safetensors"
    OracleLeace.fit(rows, labels).save(path)
    with pytest.raises(InputError, match="Expected AffineEraser, version 1; got Orac"):
        AffineEraser.load(path)
    path.write_bytes(b"pickled")
    for kind in (AffineEraser, OracleLeace, QuadraticLeace):
        with pytest.raises(InputError, match="is not an eraser"):
            kind.load(path)
        with pytest.raises(InputError, match="there is no eraser"):
            kind.load(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("eraser", "words"),
    [
        (SpectralRemoval(rank=0), "unknown rank"),
        (RandomProjection(rank=11), "unknown rank"),
        (RandomProjection(rank=(1, 1)), "unknown rank"),
        (IterativeNullspace("svm"), "unknown probe"),
        (IterativeNullspace(max_probes=0), "out of range"),
        (IterativeNullspace("logistic", penalty=0.0), "out of range"),
        (RelaxedAdversarial(rank=0), "out of range"),
        (RelaxedAdversarial(lr=-1.0), "out of range"),
        (RelaxedAdversarial(penalty=0.0), "penalty is out of range"),
    ],
)
def test_parameters_out_of_range_are_refused(eraser, words, rng):
    with pytest.raises(RowsError, match=words):
        eraser.fit(*labelled(rng))
