"""Claims of the published protocol, and whether the held-out protocol supports them."""

from collections.abc import Sequence

import numpy as np

from evidence.hypothesis_tests import is_equivalent
from experiments.pga.published_protocol import PROBE_TARGET, RECALL_TARGET
from experiments.pga.results import Claim, HeldOutScores, ModelRow, PublishedScores

LEVEL = 0.05
YES, NO, OPEN = "survives", "does not survive", "cannot be decided here"


def claims_of(rows: Sequence[ModelRow], margin: float = 0.2) -> list[Claim]:
    """One row per claim, with the evidence of each protocol.

    Args:
        rows: As measured by ``experiments.pga.run``.
        margin: Equivalence margin on |AUC - 0.5|.

    Returns:
        Only claims that the published protocol would make.
    """
    published = {_name(row): row["published"] for row in rows if "published" in row}
    held_out = {_name(row): row["sound"] for row in rows if "sound" in row}
    original = held_out["original"]
    random = [name for name in published if name.startswith("untrained")]
    claims = [
        _signature(published["original"], original, held_out["twin"]),
        _untrained([published[name] for name in random], [held_out[name] for name in random]),
    ]
    for name in dict.fromkeys(row["eraser"] for row in rows if row["eraser"]):
        claims += _of_eraser(name, published[name], held_out[name], original, margin)
    return claims


def _name(row: ModelRow) -> str:
    """The eraser, or the model that no eraser changed."""
    return row["eraser"] or row["model"]


def _signature(published: PublishedScores, held_out: HeldOutScores, floor: HeldOutScores) -> Claim:
    """Claim: a signature of memorization is shared across sequences."""
    if held_out["smallest_p"] > LEVEL / 2:
        outcome, why = OPEN, f"{held_out['sequences']} sequences cannot give a small p"
    elif held_out["reading"] == "present" and floor["reading"] != "present":
        outcome, why = YES, "found in sequences no probe saw, and not in the twin"
    elif held_out["reading"] == "present":
        outcome, why = NO, "the twin, which memorised nothing, shows it as well"
    else:
        outcome, why = OPEN, "not found at this number of sequences"
    return {
        "claim": "memorised sequences share a signature",
        "published": f"probes up to {max(published['true']):.2f}, rule: {published['reading']}",
        "sound": _tested(held_out),
        "outcome": outcome,
        "why": why,
    }


def _untrained(published: Sequence[PublishedScores], held_out: Sequence[HeldOutScores]) -> Claim:
    """Claim: an untrained network has no such signature."""
    count = len(published)
    best = [max(scores["true"]) for scores in published]
    hits = sum(scores["p"] <= LEVEL for scores in held_out)
    # Under the null, hits are binomial; this bound is three standard deviations above the mean.
    bound = int(np.floor(LEVEL * count + 3 * np.sqrt(LEVEL * count)))
    return {
        "claim": "an untrained network has no such signature",
        "published": f"one network, best probe {best[0]:.2f}; over {count} "
        f"networks {min(best):.2f} to {max(best):.2f}",
        "sound": f"p at or under {LEVEL:g} in {hits} of {count} networks",
        "outcome": YES if hits <= bound else NO,
        "why": "a single network's probes say nothing: they differ that much between networks",
    }


def _of_eraser(
    name: str,
    published: PublishedScores,
    held_out: HeldOutScores,
    original: HeldOutScores,
    margin: float,
) -> list[Claim]:
    """Claims about one eraser: signature removed, recall removed, utility kept."""
    # Measured of every eraser.
    assert "utility" in published
    assert "utility" in held_out and "recall" in held_out and "recall_test" in held_out
    claims: list[Claim] = []
    if max(published["true"]) <= PROBE_TARGET:
        lowest = min(published["true"])
        if held_out["reading"] == "inverted":
            outcome, why = NO, "sequences are still told apart, the other way round"
        elif held_out["reading"] == "present":
            outcome, why = NO, "fresh readers find it in sequences it was not fitted on"
        elif original["reading"] != "present":
            outcome, why = OPEN, "the original shows nothing here that could have gone"
        elif held_out["utility"]["role_swap"]:
            outcome, why = NO, "the clean texts were memorised in its place"
        else:
            outcome, why = absence_outcome(held_out, original, margin)
        claims.append(
            {
                "claim": f"{name} removes the signature",
                "published": f"probes {lowest:.2f} to {max(published['true']):.2f}"
                + (" (below chance)" if lowest < 0.4 else "")
                + _worst_of_six(published),
                "sound": _tested(held_out),
                "outcome": outcome,
                "why": why,
            }
        )
    if published["recall"]["least"] <= RECALL_TARGET:
        unseen_recall = held_out["recall_test"]["mean"]
        claims.append(
            {
                "claim": f"{name} removes recall",
                "published": f"least probable code {published['recall']['least']:.1e}",
                "sound": f"mean code {held_out['recall']['mean']:.1e} where erased, "
                f"{unseen_recall:.2f} where not",
                "outcome": YES if held_out["recall"]["mean"] <= 0.01 else NO,
                "why": "measured on every erased code, not on the least probable",
            }
        )
    utility = published["utility"]
    if utility["perplexity"][1] <= 1.1 * utility["perplexity"][0]:
        sound_utility = held_out["utility"]
        swapped = utility["role_swap"] or sound_utility["role_swap"]
        claims.append(
            {
                "claim": f"{name} keeps utility",
                "published": f"perplexity {utility['ratio']:.3f} times",
                "sound": f"perplexity {utility['ratio']:.3f} times, "
                f"{sound_utility['ratio']:.3f} on part of the keys; clean texts "
                + ("memorised instead" if swapped else "as unknown as before"),
                "outcome": YES if utility["kept"] and sound_utility["kept"] else NO,
                "why": "perplexity within 1.05 times in both, no exchange of roles",
            }
        )
    return claims


def absence_outcome(
    held_out: HeldOutScores, original: HeldOutScores, margin: float
) -> tuple[str, str]:
    """Test whether a signature that is no longer found is absent.

    Two one-sided tests of |AUC - 0.5| < margin for every classifier, view and depth that found
    it in the original. All must pass (intersection-union), so no correction is needed. Failure
    to find the signature is no such test.
    """
    detected = np.asarray(original["p_column"]) <= LEVEL
    low, high = (np.asarray(bound)[detected] for bound in held_out["interval"])
    worst = float(np.maximum(np.abs(low - 0.5), np.abs(high - 0.5)).max())
    detectors = f"{int(detected.sum())} readers that found it in the original"
    if all(is_equivalent((a, b), margin) for a, b in zip(low - 0.5, high - 0.5, strict=True)):
        return YES, f"equivalent to chance: all {detectors} within {worst:.2f} of 0.5"
    center, half = np.abs((low + high) / 2 - 0.5), (high - low) / 2
    count = held_out["sequences"]
    if float(center.max()) >= margin:
        return OPEN, (
            f"no longer found, nor equivalent to chance: of the {detectors} one is at "
            f"{float(center.max()):.2f} from 0.5, the margin is {margin:g}"
        )
    # Interval widths scale with 1 / sqrt(number of sequences).
    needed = int(np.ceil(count * float(((half / (margin - center)) ** 2).max())))
    return OPEN, (
        f"no longer found, and {count} sequences cannot show equivalence to chance "
        f"within {margin:g}: the {detectors} reach {worst:.2f} from 0.5; about {needed} "
        "would do"
    )


def _worst_of_six(published: PublishedScores) -> str:
    if "six" not in published:
        return ""
    name, worst = max(published["six"].items(), key=lambda item: max(item[1]))
    return f", worst of six variants {max(worst):.2f} ({name})"


def _tested(held_out: HeldOutScores) -> str:
    band = held_out["band"]
    limit = "" if band is None else f" (null's 95 %: {band:.2f})"
    return f"best AUC {held_out['best']:.2f}{limit}, p {held_out['p']:.3g}, {held_out['reading']}"
