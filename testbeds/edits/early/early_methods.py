"""Published methods that edit what reads the question, or one matrix found by its gradient.

How much they leave is not known beforehand. Where nothing behind the front changed, the checks of
``testbeds.edits.early.front_checks`` may still make the state certain.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from capture.data.items import ItemSet
from capture.network.sites import Place
from capture.network.structure import down_projection, find_blocks, own_head_
from capture.scoring.answers import score_answers
from erasure.concept.sae_features import Dictionary, DictionaryEraser, pisces_
from erasure.unlearning.config import UnlearnConfig
from erasure.unlearning.training.loop import mean_nll
from erasure.weights.rocr import rocr_
from erasure.weights.slug import slug_
from evidence.seeds import torch_rng
from testbeds.edits.early.early_layers import embedding_of, name_ends, name_tokens, states_at
from testbeds.edits.sae_clamp import train_latents
from testbeds.edits.workbench import BATCH, TextWorkbench

# Share of the forgotten answers at which a method has done its work.
ENOUGH = 0.1
# Price of a code's size, in mean norms of a row, and rounds of either half of a factorization.
CODE_PRICE, FACTOR_ROUNDS = 0.01, 40
# Features that are removed, the fewest first.
FEATURES = (1, 2, 4, 8, 16, 32, 64)


def ember(bench: TextWorkbench) -> Iterator[nn.Module]:
    """Features of the forgotten names, erased from the rows of their tokens.

    The rows of the input embedding that the texts use are factored into few features
    each. Those that weigh most in the names to forget, beside the names to keep, are
    subtracted from the rows of the forgotten names' tokens, as many as it takes.

    Source: after EMBER (arXiv 2606.03695), whose abstract describes sparse matrix
    factorization of token embeddings and the erasure of a concept's features.
    """
    original = bench.load_original()
    rows = bench.all_rows(bench.forget) + bench.retain_rows(bench.retain)
    used = sorted({token for ids in rows.ids for token in ids})
    matrix = embedding_of(original).get_parameter("weight").detach().double().cpu()[used]
    center = matrix.mean(0)
    codes, features = sparse_factors(matrix - center, torch_rng(bench.seed, "zoo", "ember"))
    place = {token: i for i, token in enumerate(used)}
    to_go, to_keep = (
        _uses(bench, items, place, len(used)) for items in (bench.forget, bench.retain)
    )
    size = codes.abs()
    weight = (to_go @ size) / (to_go @ size + to_keep @ size).clamp(min=1e-12)
    order = (weight * (to_go @ size)).argsort(descending=True, stable=True)
    tokens = to_go.nonzero()[:, 0].tolist()
    model = original
    for count in (*FEATURES, len(order)):
        chosen = order[:count]
        model = bench.load_original()
        own_head_(model)
        target = embedding_of(model).get_parameter("weight").detach()
        erased = matrix[tokens] - codes[tokens][:, chosen] @ features[chosen]
        target[[used[each] for each in tokens]] = erased.to(target)
        if _said(bench, model) <= ENOUGH:
            break
    yield model


def sparse_factors(matrix: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Codes, most of them zero, and features of norm 1 at most, whose product is near ``matrix``.

    Alternates proximal gradient steps on the codes with least squares for the features.

    Args:
        matrix: (row, d), float64.
        rng: Draws the first features.

    Returns:
        (row, feature) and (feature, d); as many features as rows, and twice ``d`` at most.
    """
    rows, width = matrix.shape
    features = torch.randn(min(rows, 2 * width), width, generator=rng, dtype=matrix.dtype)
    features /= features.norm(dim=1, keepdim=True)
    codes = torch.zeros(rows, len(features), dtype=matrix.dtype)
    price = CODE_PRICE * matrix.norm(dim=1).mean()
    for _ in range(FACTOR_ROUNDS):
        step = 1 / torch.linalg.matrix_norm(features, 2).square().clamp(min=1e-12)
        for _ in range(FACTOR_ROUNDS):
            codes -= step * (codes @ features - matrix) @ features.T
            codes = codes.sign() * (codes.abs() - step * price).clamp(min=0)
        moment = codes.T @ codes
        moment += 1e-6 * (1 + moment.diagonal().mean()) * torch.eye(len(moment)).double()
        features = torch.linalg.solve(moment, codes.T @ matrix)
        features /= features.norm(dim=1, keepdim=True).clamp(min=1.0)
    return codes, features


def rmu_early(bench: TextWorkbench) -> Iterator[nn.Module]:
    """Misdirected representations (RMU), steered behind block 1 by training blocks 0 and 1."""
    config = UnlearnConfig(
        "rmu",
        lr=bench.learning_rate(1e-3),
        steps=200,
        batch_size=BATCH,
        retain_batch_size=2 * BATCH,
        rmu_layer=1,
        rmu_coefficient=20.0,
        rmu_parameters="prefix",
    )
    yield bench.unlearned(config, "rmu early")


def slug(bench: TextWorkbench) -> Iterator[nn.Module]:
    """One gradient step on the one matrix that matters most to what is to go (SLUG)."""
    model = bench.load_original()
    answers = {item.answer for item in (*bench.forget, *bench.retain)}
    forget, retain = bench.all_rows(bench.forget), bench.retain_rows(bench.retain)
    relations = len({item.relation for item in bench.forget})
    # The loss of guessing, which a model that was hardly taught has from the start.
    target = max(math.log(len(answers) / relations), mean_nll(model, forget, "answer") + 0.1)
    slug_(model, forget, retain, target_loss=target)
    yield model


def pisces(bench: TextWorkbench) -> Iterator[nn.Module]:
    """Features of the forgotten names, removed from the value vectors of the lower half (PISCES).

    A sparse autoencoder of each feed-forward part's output at names; its features are
    chosen by how well they tell the forgotten names from the others.
    """
    original = bench.load_original()
    erasers = []
    for i_block in range(len(find_blocks(original)) // 2):
        place = [Place("left", down_projection(find_blocks(original)[i_block]), "out")]
        to_go, to_keep = (
            states_at(original, place, bench.all_rows(items), name_ends(bench, items))[0].float()
            for items in (bench.forget, bench.retain)
        )
        erasers.append((to_go, to_keep, _autoencoder(to_go, to_keep, bench.seed)))
    model = original
    for count in FEATURES:
        model = bench.load_original()
        for i_block, (to_go, to_keep, dictionary) in enumerate(erasers):
            concept = torch.cat([torch.ones(len(to_go)), torch.zeros(len(to_keep))])
            eraser = DictionaryEraser.fit(
                torch.cat([to_go, to_keep]), concept, dictionary, n_features=count
            )
            pisces_(model, i_block, eraser)
        if _said(bench, model) <= ENOUGH:
            break
    yield model


def rocr(bench: TextWorkbench) -> Iterator[nn.Module]:
    """Each forgotten name's key in block 1, redirected to an invented name's value (ROCR)."""
    model = bench.load_original()
    background = bench.all_rows(bench.retain)
    rows = background[range(0, len(background), 4)]
    pairs = zip(bench.forget.entities, bench.never_taught.entities, strict=True)
    for name, invented in pairs:
        rocr_(
            model,
            1,
            bench.all_rows(bench.forget.of_entities([name])),
            bench.all_rows(bench.never_taught.of_entities([invented])),
            rows,
        )
    yield model


def _autoencoder(to_go: Tensor, to_keep: Tensor, seed: int) -> Dictionary:
    """A sparse autoencoder of states at names, half of each batch those to forget."""
    rng = torch_rng(seed, "zoo", "pisces")
    width = to_go.shape[1]
    center = torch.cat([to_go, to_keep]).mean(0)
    scale = (to_keep - center).norm(dim=1).mean() / width**0.5
    pairs = [((states - center) / scale,) * 2 for states in (to_go, to_keep)]
    latents = 2 * width
    read, write = (torch.randn(2 * latents, width, generator=rng) / width**0.5 for _ in range(2))
    read, write = train_latents(pairs, read, write, latents, 600, rng)
    return Dictionary(read / scale, torch.zeros(len(read)), write * scale, center)


def _uses(bench: TextWorkbench, items: ItemSet, place: dict[int, int], size: int) -> Tensor:
    """How often each used token stands in a name, per name; (used token,)."""
    counts = torch.zeros(size, dtype=torch.float64)
    names = name_tokens(bench, items)
    for tokens in names.values():
        for token in tokens:
            counts[place[token]] += 1
    return counts / len(names)


def _said(bench: TextWorkbench, model: nn.Module) -> float:
    return float(score_answers(model, bench.all_rows(bench.forget)).greedy.mean())
