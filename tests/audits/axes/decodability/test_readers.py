"""Readers of hidden states: at scikit-learn's optimum, and on degenerate sites."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from audits.axes.decodability.site_probes import fit_site_probes
from capture.activations.capture import capture_activations
from capture.checkpoints.open import open_checkpoint
from capture.data.items import ItemSet, read_items
from capture.data.questions import build_questions
from capture.data.sequences import Sequences
from capture.data.tokenization import encode
from capture.network.sites import find_sites
from evidence.progress import SILENT
from testbeds.worlds.biographies import STANDARD, make_people, new_model
from testbeds.worlds.biography_text import make_tokenizer

CLOSE = 1e-6
"""Largest difference of held-out scores, in the largest of them."""


def states(rows=90, width=20, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(3, 2, size=(3, rows, width)).astype(np.float32)


def reference(x, labels, penalty, others):
    """Held-out scores of scikit-learn's fit, brought to its optimum."""
    x, others = x.astype(np.float64), others.astype(np.float64)
    scaler = StandardScaler().fit(x)
    model = LogisticRegression(C=penalty, solver="newton-cholesky", tol=1e-12, max_iter=500)
    model.fit(scaler.transform(x), labels)
    found = model.decision_function(scaler.transform(others))
    return found[:, None] if found.ndim == 1 else found


def agree(x, labels, held_out, penalty):
    """Both readers on rows they were not fitted on, at every site that varies."""
    (reader,) = fit_site_probes(x, [labels], penalty, SILENT)
    ours = reader.scores(held_out)
    compared = 0
    for site, here in enumerate(x):
        if here.astype(np.float64).std(0).max() <= 1e-6 * np.abs(here).max():
            continue
        theirs = reference(here, labels, penalty, held_out[site])
        mine = ours[site]
        if mine.shape[1] > 1:
            # A softmax does not feel what its classes share.
            mine = mine - mine.mean(1, keepdims=True)
            theirs = theirs - theirs.mean(1, keepdims=True)
            # Where rows are equal so are the scores of several classes: any may win.
            top = np.take_along_axis(theirs, mine.argmax(1)[:, None], 1)[:, 0]
            assert (theirs.max(1) - top <= CLOSE * np.abs(theirs).max()).all()
        assert np.abs(mine - theirs).max() <= CLOSE * np.abs(theirs).max()
        compared += 1
    assert compared


def read(model, tokenizer, items: ItemSet, relation: str):
    """(site, row, d_model) states of a relation's prompts, answers and entities."""
    asked = build_questions([item for item in items if item.relation == relation], 2)
    rows: Sequences = encode(tokenizer, asked.prompts)
    names = [
        name for name in find_sites(model).names if name == "embed" or name.startswith("resid.")
    ]
    values = capture_activations(model, rows, names, "last").values
    return np.asarray(values), np.array(asked.answers), np.array(asked.entities)


def split(x, answers, entities):
    """Fit on four fifths of the entities, with the classes seen there."""
    names = np.unique(entities)
    chosen = np.isin(entities, names[np.arange(len(names)) % 5 > 0])
    classes, codes = np.unique(answers[chosen], return_inverse=True)
    other = ~chosen & np.isin(answers, classes)
    return x[:, chosen], codes, x[:, other]


@pytest.mark.parametrize("penalty", [0.003, 0.3])
def test_a_small_world_is_read_as_scikit_learn_reads_it(world, penalty):
    checkpoint = open_checkpoint(world.original)
    retain = read_items(world.retain)
    model, relation = checkpoint.load(), retain.items[0].relation
    x, codes, held_out = split(*read(model, checkpoint.tokenizer, retain, relation))
    agree(x, codes, held_out, penalty)
    agree(x, codes % 2, held_out, penalty)


@pytest.mark.parametrize("penalty", [0.003, 0.3])
def test_twenty_answers_of_the_standard_world(penalty):
    """Its size and tokens, in a model of random weights: training takes minutes."""
    _, retain, _ = make_people(STANDARD, 0)
    tokenizer = make_tokenizer()
    model = new_model(STANDARD, tokenizer, 0).eval()
    x, codes, held_out = split(*read(model, tokenizer, retain, retain.items[0].relation))
    assert len(np.unique(codes)) == 20
    # Every other site: the peer's Newton steps on twenty classes take a second each.
    agree(x[::2], codes, held_out[::2], penalty)


def test_many_label_vectors_are_read_as_one_at_a_time():
    x, rng = states(), np.random.default_rng(1)
    labels = [rng.permutation(np.arange(90) % 6) for _ in range(5)]
    for one, many in zip(labels, fit_site_probes(x, labels, 0.3, SILENT), strict=True):
        (alone,) = fit_site_probes(x, [one], 0.3, SILENT)
        np.testing.assert_allclose(many.scores(x), alone.scores(x), atol=1e-7)


@pytest.mark.parametrize("classes", [2, 20])
def test_a_site_of_equal_rows_reads_nothing(classes):
    """An embedding read at one and the same token, in float32."""
    x = states(216, 128)
    rng = np.random.default_rng(2)
    x[0] = rng.normal(0, 0.1, size=128).astype(np.float32)
    # In float32 such rows seem to vary, which once stopped the solver.
    assert x[0].std(0).max() > 1e-6 * np.abs(x[0]).max()
    (reader,) = fit_site_probes(x, [np.arange(216) % classes], 0.003, SILENT)
    assert not reader.weights[0].any() and not reader.bias[0].any()
    assert reader.weights[1].any()


@pytest.mark.parametrize("classes", [2, 20])
def test_columns_that_hardly_vary_do_no_harm(classes):
    """Equal to float32's last digit but for one row, and equal in all rows."""
    x = states(216, 128)[:1]
    x[:, :, 3] = np.float32(7.1)
    x[:, 5, 3] = np.nextafter(np.float32(7.1), np.float32(8))
    x[:, :, 4] = np.float32(-0.3)
    labels = np.arange(216) % classes
    agree(x[:, :180], labels[:180], x[:, 180:], 0.03)
