"""What the published protocol would claim, and whether the sound one bears it out."""

from typing import Any

import numpy as np

from audits.pga_published import PROBE_TARGET, RECALL_TARGET

LEVEL = 0.05
YES, NO, OPEN = "survives", "does not survive", "cannot be decided here"


def claims_of(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One claim a line, with what each protocol says of it.

    Args:
        rows: As ``audits.pga`` measures them.

    Returns:
        Rows of ``claim``, ``published``, ``sound``, ``outcome`` (one of three) and
        ``why``; only what the published protocol would claim is listed.
    """
    untouched = {row["model"]: row for row in rows if row["eraser"] is None}
    original, twin = untouched["original"], untouched["twin"]
    random = [row for name, row in untouched.items() if name.startswith("untrained")]
    found = [_signature(original, twin), _untrained(random)]
    names = dict.fromkeys(row["eraser"] for row in rows if row["eraser"])
    for name in names:
        mine = [row for row in rows if row["eraser"] == name]
        published = next(row["published"] for row in mine if "published" in row)
        sound = next(row["sound"] for row in mine if "sound" in row)
        found += _of_eraser(name, published, sound, original["sound"])
    return found


def _signature(original: dict[str, Any], twin: dict[str, Any]) -> dict[str, Any]:
    """A signature of memorisation that holds across sequences."""
    shown, tested, floor = original["published"], original["sound"], twin["sound"]
    if tested["smallest_p"] > LEVEL / 2:
        outcome, why = OPEN, f"{tested['sequences']} sequences cannot give a small p"
    elif tested["reading"] == "present" and floor["reading"] != "present":
        outcome, why = YES, "found in sequences no probe saw, and not in the twin"
    elif tested["reading"] == "present":
        outcome, why = NO, "the twin, which memorised nothing, shows it as well"
    else:
        outcome, why = OPEN, "not found at this number of sequences"
    return {
        "claim": "memorised sequences share a signature",
        "published": f"probes up to {max(shown['true']):.2f}, rule: {shown['reading']}",
        "sound": _tested(tested),
        "outcome": outcome,
        "why": why,
    }


def _untrained(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """An untrained network shows none."""
    best = [max(row["published"]["true"]) for row in rows]
    shown = [row["sound"]["p"] for row in rows]
    hits = sum(p <= LEVEL for p in shown)
    # Under the null hits are binomial; more than this many are no accident.
    bound = int(np.floor(LEVEL * len(rows) + 3 * np.sqrt(LEVEL * len(rows))))
    return {
        "claim": "an untrained network has no such signature",
        "published": f"one network, best probe {best[0]:.2f}; over {len(rows)} "
        f"networks {min(best):.2f} to {max(best):.2f}",
        "sound": f"p at or under {LEVEL:g} in {hits} of {len(rows)} networks",
        "outcome": YES if hits <= bound else NO,
        "why": "a single network's probes say nothing: they differ that much between "
        "networks",
    }


def _of_eraser(
    name: str,
    published: dict[str, Any],
    sound: dict[str, Any],
    original: dict[str, Any],
) -> list[dict[str, Any]]:
    """What would be said of one eraser: signature gone, recall gone, utility kept."""
    found = []
    if max(published["true"]) <= PROBE_TARGET:
        lowest = min(published["true"])
        if sound["reading"] == "inverted":
            outcome, why = NO, "sequences are still told apart, the other way round"
        elif sound["reading"] == "present":
            outcome, why = NO, "fresh readers find it in sequences it was not fitted on"
        elif original["reading"] != "present":
            outcome, why = OPEN, "the original shows nothing here that could have gone"
        elif sound["utility"]["role_swap"]:
            outcome, why = NO, "the clean texts were memorised in its place"
        else:
            outcome, why = (
                OPEN,
                "no longer found; that is no proof of absence at "
                f"{sound['sequences']} sequences",
            )
        found.append(
            {
                "claim": f"{name} removes the signature",
                "published": f"probes {lowest:.2f} to {max(published['true']):.2f}"
                + (" (below chance)" if lowest < 0.4 else "")
                + _worst_of_six(published),
                "sound": _tested(sound),
                "outcome": outcome,
                "why": why,
            }
        )
    if published["recall"]["least"] <= RECALL_TARGET:
        other = sound["recall_test"]["mean"]
        found.append(
            {
                "claim": f"{name} removes recall",
                "published": f"least probable code {published['recall']['least']:.1e}",
                "sound": f"mean code {sound['recall']['mean']:.1e} where erased, "
                f"{other:.2f} where not",
                "outcome": YES if sound["recall"]["mean"] <= 0.01 else NO,
                "why": "measured on every erased code, not on the least probable",
            }
        )
    utility = published["utility"]
    if utility["perplexity"][1] <= 1.1 * utility["perplexity"][0]:
        other = sound["utility"]
        swapped = utility["role_swap"] or other["role_swap"]
        found.append(
            {
                "claim": f"{name} keeps utility",
                "published": f"perplexity {utility['ratio']:.3f} times",
                "sound": f"perplexity {utility['ratio']:.3f} times, "
                f"{other['ratio']:.3f} on part of the keys; clean texts "
                + ("memorised instead" if swapped else "as unknown as before"),
                "outcome": YES if utility["kept"] and other["kept"] else NO,
                "why": "perplexity within 1.05 times in both, no exchange of roles",
            }
        )
    return found


def _worst_of_six(published: dict[str, Any]) -> str:
    if "six" not in published:
        return ""
    name, worst = max(published["six"].items(), key=lambda item: max(item[1]))
    return f", worst of six variants {max(worst):.2f} ({name})"


def _tested(sound: dict[str, Any]) -> str:
    band = sound["band"]
    limit = "" if band is None else f" (null's 95 %: {band:.2f})"
    return (
        f"best AUC {sound['best']:.2f}{limit}, p {sound['p']:.3g}, {sound['reading']}"
    )
