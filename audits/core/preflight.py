"""Checks before any axis: compatible tokenizers, and the candidate's utility."""

from dataclasses import dataclass, replace

import numpy as np

from audits.core.answers import distinct_share
from audits.core.baseline_scores import GeneralText, Utility
from audits.core.config import Rule
from capture.checkpoints.open import Checkpoint
from capture.checkpoints.schemas.library_errors import library_errors
from evidence.errors import InputError

# Each measure of utility and its limit in ``Rule``.
LIMITS = {
    "retain accuracy": "utility",
    "general text, probability a token": "utility",
    "distinct words in free text": "distinct",
    "effective rank of retain states": "effective_rank",
}


@dataclass(frozen=True)
class Damage:
    """Signs that the candidate is broken rather than unlearned.

    Attributes:
        shares: Each measure of utility as a share of the original's.
        reasons: Measures below their limit, in words.
    """

    shares: dict[str, float]
    reasons: tuple[str, ...]

    @property
    def found(self) -> bool:
        """Whether a measure is below its limit."""
        return bool(self.reasons)


def check_embedding_rows(model: Checkpoint) -> None:
    """Check that the embedding has a row for every token of the vocabulary.

    Added tokens may lack one as long as no text contains them.

    Raises:
        InputError: the tokenizer belongs to another model.
    """
    rows = model.config.get("vocab_size")
    backend = getattr(model.tokenizer, "backend_tokenizer", None)
    if not isinstance(rows, int) or backend is None:
        return
    last = max(backend.get_vocab(with_added_tokens=False).values(), default=0)
    if last < rows:
        return
    raise InputError(
        f"{model.name} has no row in its embedding for every token of its tokenizer",
        expected=f"token numbers below {rows:,}",
        got=f"{last:,}",
        fix="Check that the tokenizer files belong to these weights",
    )


def with_shared_tokenizer(original: Checkpoint, other: Checkpoint) -> tuple[Checkpoint, str]:
    """The checkpoint as it is asked beside the original, and a note; "" if nothing differs.

    Both are asked with the original's tokenizer if they split text equally. The other may add
    special tokens to its vocabulary, whose rows are then left out, or around a text.

    Raises:
        InputError: the vocabularies differ otherwise, or a test text is split differently.
    """
    a, b = original.tokenizer, other.tokenizer
    text = "The capital city of France is Paris; 1,234 naïve cafés — done?\n\tend"
    with library_errors(f"the tokenizer of {other.name} cannot read every text"):
        whole = [tokenizer(text, verbose=False)["input_ids"] for tokenizer in (a, b)]
        inner = [
            tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
            for tokenizer in (a, b)
        ]
    known, vocabulary = a.get_vocab(), b.get_vocab()
    if known == vocabulary and whole[0] == whole[1]:
        return other, ""
    more = {token: row for token, row in vocabulary.items() if token not in known}
    same_rows = all(vocabulary.get(token) == row for token, row in known.items())
    added = {
        str(token) for token in getattr(b, "added_tokens_decoder", {}).values() if token.special
    }
    if same_rows and inner[0] == inner[1] and set(more) <= added:
        asked = replace(other, tokenizer=a)
        if more:
            asked = replace(asked, vocabulary=_embedding_rows(original))
            what = f"adds special tokens to the vocabulary ({len(more)}, such as {min(more)!r})"
        else:
            what = "adds other special tokens around a text"
        return asked, f"the tokenizer of {other.name} {what}: it is asked with the original's"
    if more and same_rows:
        got = f"{len(more)} tokens more, such as {min(more)!r}, which a text can contain"
    elif known != vocabulary:
        token = min(set(known.items()) ^ set(vocabulary.items()))[0]
        got = f"{len(b)} tokens, of which {token!r} is not at the same number"
    else:
        got = "the same tokens, with another way to split text into them"
    raise InputError(
        f"{other.name} and {original.name} have different tokenizers",
        expected=f"the same {len(a)} tokens",
        got=got,
        fix="Audit checkpoints of one base model; if only the tokenizer file is "
        "wrong, replace it with the original's",
    )


def check_same_tokenizer(original: Checkpoint, other: Checkpoint) -> None:
    """Check that both models can be asked with the original's tokenizer.

    Raises:
        InputError: as ``with_shared_tokenizer``.
    """
    with_shared_tokenizer(original, other)


def _embedding_rows(model: Checkpoint) -> int | None:
    rows = model.config.get("vocab_size")
    return rows if isinstance(rows, int) else None


def compare_utility(original: Utility, candidate: Utility, rule: Rule) -> Damage:
    """Compare the utility of both models, on items where the original has it.

    Args:
        candidate: The candidate's, for the same rows.
        rule: Limits.
    """
    shares: dict[str, float] = {}
    reasons = []
    original_hits = np.array(original.retain, dtype=float)
    candidate_hits = np.array(candidate.retain, dtype=float)
    shares["retain accuracy"] = float(candidate_hits[original_hits > 0].mean())
    if original.general is not None and candidate.general is not None and _speaks(original.general):
        gap = candidate.general.logprob_per_token - original.general.logprob_per_token
        shares["general text, probability a token"] = float(np.exp(min(gap, 5.0)))
    for name, share in shares.items():
        if share < rule.utility:
            reasons.append(f"{name} is {share:.0%} of the original's (limit {rule.utility:.0%})")
    before, after = (distinct_share(original.texts), distinct_share(candidate.texts))
    if before > 0:
        shares["distinct words in free text"] = after / before
        if after < rule.distinct * before:
            reasons.append(f"free text repeats itself ({after:.2f} distinct words)")
    ranks = [
        after.effective_rank / before.effective_rank
        for before, after in zip(original.ranks, candidate.ranks, strict=True)
    ]
    if ranks:
        shares["effective rank of retain states"] = float(min(ranks))
        if min(ranks) < rule.effective_rank:
            reasons.append(
                f"states of retain prompts collapsed to {min(ranks):.0%} of the "
                "original's effective rank"
            )
    return Damage(shares, tuple(reasons))


def _speaks(general: GeneralText) -> bool:
    """Whether a model's score on general text is far better than a uniform guess."""
    return general.logprob_per_token > 0.75 * general.logprob_of_guessing


def effective_rank(states: np.ndarray) -> float:
    """Participation ratio of the rows of ``states``, a measure of their effective rank.

    The squared sum of variances over the sum of squared variances; 1.0 for states that are
    constant or not finite.

    Args:
        states: (item, d_model).
    """
    if not np.isfinite(states).all():
        return 1.0
    centered = states.astype(np.float64) - states.mean(0, dtype=np.float64)
    variances = np.linalg.svd(centered, compute_uv=False) ** 2
    total = variances.sum()
    if total <= 0:
        return 1.0
    return float(total**2 / (variances**2).sum())
