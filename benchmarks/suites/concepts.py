"""What concept vectors and autoencoders cost, and how good the latter are."""

import time
import warnings
from collections.abc import Callable, Iterator

import numpy as np
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression

from attribution.sae.autoencoder import Sae
from attribution.sae.files import sae_lens
from attribution.sae.measures import loss_recovered, measure_quality
from attribution.sae.splicing import spliced
from attribution.sae.training import SaeConfig, StoredRows, train_sae
from benchmarks.harness.fixtures import python_texts, token_rows
from benchmarks.harness.results import Row, at_least, at_most, once, ratio, row
from benchmarks.harness.runner import Run
from capture.activations.capture import capture_activations
from capture.activations.store import ActivationStore
from capture.checkpoints.open import open_checkpoint
from capture.data.sequences import batches
from capture.network.sites import find_sites
from probes.concepts.labels import concepts_of
from probes.concepts.vectors import concept_vectors
from testbeds.worlds.smollm2 import fetch_smollm2

Fit = Callable[[np.ndarray, np.ndarray], np.ndarray]
SITE, LENGTH, TOKENS, HELD_OUT = "resid.15", 128, 200_000, 20_000
SETTINGS = SaeConfig(kind="topk", expansion=8, k=32, epochs=1, batch_size=256)


def autoencoder(run: Run) -> Iterator[Row]:
    """Train on 200k tokens of SmolLM2's layer 15; judge on texts it has not seen."""
    root = run.args.work
    checkpoint = open_checkpoint(fetch_smollm2())
    texts = token_rows(checkpoint.tokenizer, python_texts(), LENGTH)
    count, other = TOKENS // (LENGTH - 1) + 1, HELD_OUT // (LENGTH - 1) + 1
    model = checkpoint.load()
    kept = ActivationStore(root).activations(
        checkpoint, texts[range(count)], [SITE], range(1, LENGTH), model
    )
    start = time.process_time()
    sae = train_sae(
        StoredRows(kept, SITE),
        SITE,
        root / "saes",
        SETTINGS,
        model=checkpoint.weights_hash,
        progress=run.progress,
    )
    # Found trained it takes no time, so its seconds are kept beside it.
    trained = once(root / "trained.json", lambda: time.process_time() - start)
    seconds = {"trained": trained}
    fresh = texts[range(count, count + other)]
    # Captured rows may come from the store: a tenth as many are captured for the clock.
    start = time.process_time()
    seen = capture_activations(model, fresh, [SITE], range(1, LENGTH))
    seen_tokens = other * (LENGTH - 1)
    seconds["captured"] = (time.process_time() - start) * count / other
    found = measure_quality(sae, _without_sinks(StoredRows(seen, SITE)))
    recovered = loss_recovered(model, sae, fresh[range(40)])
    tokens, n = count * (LENGTH - 1), found.rows
    about = {
        "tokens": tokens,
        "text": "topics and documentation strings of Python's standard library",
        "seconds": seconds,
        "l0": found.l0,
        "loss": [recovered.plain, recovered.spliced, recovered.ablated],
    }
    what = f"SmolLM2 {SITE}, {tokens} tokens, 8x, k=32"
    unseen = "tokens it was not trained on"
    yield row(f"FVU, {what}", found.fvu, at_most(0.3), "share", unseen, n, **about)
    dead = len(sae.metadata["dead"]) / sae.d_sae
    yield row(f"dead latents, {what}", dead, at_most(0.1), "share", "training tokens", n)
    figure, peer = (f"loss recovered when spliced in, {what}", "the mean state in its place")
    value, n = recovered.recovered, 40 * (LENGTH - 1)
    yield row(figure, value, at_least(), "share", peer, n)
    figure = f"minutes to capture and train, {what}"
    value = (seconds["captured"] + seconds["trained"]) / 60
    peer = f"two cores allowed, one used; capture from {seen_tokens} tokens"
    yield row(figure, value, at_most(15), "CPU minutes", peer)


def _without_sinks(rows: StoredRows):
    """Chunks without the rows ten times as long as usual, as in training."""
    for start in range(0, len(rows), 8192):
        chunk = rows[start : start + 8192]
        length = np.linalg.norm(chunk - np.median(chunk, axis=0), axis=1)
        yield chunk[length <= 10 * np.median(length)]


def overhead(run: Run) -> Iterator[Row]:
    """A forward pass of SmolLM2 with and without an autoencoder spliced in."""
    checkpoint = open_checkpoint(fetch_smollm2())
    model = checkpoint.load().eval()
    where, library = find_sites(model), sae_lens()
    # What it learned does not matter for the time it takes.
    size = library.TopKSAEConfig(
        d_in=where.d_model, d_sae=SETTINGS.expansion * (where.d_model or 0), k=SETTINGS.k
    )
    sae = Sae(library.TopKSAE(size).eval(), SITE)
    part = token_rows(checkpoint.tokenizer, python_texts()[:40], LENGTH)[range(4)]

    def plain() -> None:
        with torch.no_grad():
            for batch in batches(part):
                model(**batch.model_inputs, use_cache=False)

    def through() -> None:
        with spliced(model, sae, keep_error=False, known_sites=where):
            plain()

    plain()
    # In turns, so that a neighbour's load falls on both.
    times = run.clock.times
    pairs = [(times(plain, 1)[0], times(through, 1)[0]) for _ in range(5)]
    ratios = [b / a for a, b in pairs]
    middle = float(np.median(ratios))
    yield row(
        f"pass with encode and decode at {SITE} over the plain pass, 8x",
        middle,
        at_most(1.5),
        "times",
        "the same pass without",
        len(ratios),
        (max(ratios) - min(ratios)) / 2 / middle,
        seconds=[float(np.median(each)) for each in zip(*pairs, strict=True)],
        tokens=len(part) * LENGTH,
    )


def vectors(run: Run) -> Iterator[Row]:
    """All concepts at a site at once against one at a time.

    Sites cost the same on both sides and share nothing, so ours is measured on some of
    them and the loops on some pairs of site and concept.
    """
    clock, some, fits = run.clock, 4, 12
    sites, concepts, n, width = 31, 50, 1000, 576
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.arange(n) % concepts)
    places = rng.standard_normal((concepts, width))
    x = rng.standard_normal((some, n, width)) + places[labels]
    known = concepts_of(labels)
    pairs = [divmod(int(i), concepts) for i in np.linspace(0, some * concepts - 1, fits)]
    peers: dict[str, list[tuple[str, Fit]]] = {
        "lda": [("scikit-learn LinearDiscriminantAnalysis", _by_discriminant)],
        "logistic": [("scikit-learn LogisticRegression", _by_sklearn)],
    }
    captum = _captum_fit()
    if captum is not None:
        name = "captum TCAV's default classifier (other answers: hinge, 2/3 of rows)"
        peers["logistic"].append((name, captum))
    for method, loops in peers.items():
        found = concept_vectors(x[:1], known, method).vectors
        own = []
        for _ in range(3):
            start = clock.now()
            found = concept_vectors(x, known, method).vectors
            own.append((clock.now() - start) * sites / some)
        for name, fit_one in loops:
            seconds, worst = [], 1.0
            for site, concept in pairs:
                start = clock.now()
                weights = fit_one(x[site], labels == concept)
                seconds.append((clock.now() - start) * sites * concepts)
                cosine = found[site, concept] @ weights / np.linalg.norm(weights)
                worst = min(worst, float(cosine))
            yield ratio(
                f"{method} concept vectors, {sites} sites x {concepts} concepts, n={n}, d={width}",
                seconds,
                own,
                50,
                f"{name}, one at a time; ours from {some} sites, theirs from {fits} fits",
                least_cosine=worst,
            )


def _by_discriminant(x: np.ndarray, mark: np.ndarray) -> np.ndarray:
    model = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.1)
    return model.fit(x, mark).coef_[0]


def _by_sklearn(x: np.ndarray, mark: np.ndarray) -> np.ndarray:
    scale = x.std(0)
    model = LogisticRegression(C=0.1, tol=1e-8, max_iter=5000, class_weight="balanced")
    return model.fit((x - x.mean(0)) / scale, mark).coef_[0] / scale


def _captum_fit():
    """Fits one concept with the classifier that captum's TCAV brings; None without."""
    try:
        from captum.concept._utils.classifier import DefaultClassifier  # pyright: ignore
    except ImportError:
        return None
    from torch.utils.data import DataLoader, TensorDataset

    def fit_one(x: np.ndarray, mark: np.ndarray) -> np.ndarray:
        table = TensorDataset(torch.from_numpy(x).float(), torch.from_numpy(mark).long())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            classifier = DefaultClassifier()
            classifier.train_and_eval(DataLoader(table, batch_size=len(table)))
        weights = classifier.weights().numpy()
        order = list(classifier.classes())
        return (weights[order.index(1)] - weights[order.index(0)]).astype(float)

    return fit_one
