"""Parts of the PGA suite that are of one world: the published toy, claims, the world.

A part is named by world size and seed, such as "claims:small:0", and can be measured
where a GPU is, many at once, each into a file of its own:

    python -m benchmarks pga --only curve:two_hundred:0 --device cuda --resume
        --result DIR/curve-two_hundred-0.json
    python -m benchmarks pga --only others --source DIR
"""

from collections.abc import Iterator

from benchmarks.harness.results import Row, at_least, at_most, row
from benchmarks.harness.runner import Run
from experiments.pga.config import make_config
from experiments.pga.erasers import ERASERS
from experiments.pga.run import criterion, measure_published, pga
from testbeds.memorized_codes.config import SIZES
from testbeds.memorized_codes.world import build_codes

NEAR = 0.08
EPOCHS = 100
"""Of the alignments on forty keys or more; some of the curve take four times that."""
SHARES = {"two_hundred": 0.3, "large": 0.3}
"""Of the keys that an eraser sees; half where nothing is said. 140 + 140 sequences can
show equivalence to chance within 0.2, 100 + 100 only half of the time."""
BASELINE = (0.656, 0.739, 0.883, 1.0, 1.0)
PUBLISHED = {"pga": (0.65, 0.55, 0.29, 0.22, 0.19), "isotropic": (0.66, 0.69, 0.68, 0.67, 0.62)}
LEFT = {"output distillation": 0.92, "gradient ascent": 1.0, "npo": 1.0, "rmu": 1.0, "idk": 1.0}
"""Highest probe the paper's baselines leave on its toy."""
SOUND = ("pga", "isotropic", "md-pga", "gradient ascent")


def toy(run: Run) -> Iterator[Row]:
    """The published toy: every eraser scored on the keys it saw."""
    seed, root, progress = int(run.key[1]), run.args.root, run.progress
    settings = {"size": "published", "seed": seed, "device": run.clock.device}
    config = make_config(settings)
    before = measure_published(config, root, None, progress)
    models = [{"seed": seed, "eraser": None, **before}]
    rows = [
        _near(f"baseline, depth {depth}", before["true"][depth], expected, seed)
        for depth, expected in enumerate(BASELINE)
    ]
    for name in ERASERS:
        if name == "leace":  # the paper has none on its toy
            continue
        found = measure_published(config, root, name, progress)
        models.append({"seed": seed, "eraser": name, **found})
        true = found["true"]
        if name in PUBLISHED:
            rows += [
                _near(f"{name}, depth {depth}", true[depth], expected, seed)
                for depth, expected in enumerate(PUBLISHED[name])
            ]
            met = criterion(found)
            figure = f"{name}: terms of the paper's criterion met, of 4"
            rows.append(row(figure, sum(met.values()), at_least(), seed=seed, met=met))
        if name in LEFT:
            figure = f"{name}, highest probe left"
            rows.append(_near(figure, max(true), LEFT[name], seed))
        run.payload = {"models": models, "finished": False}
        run.keep(rows)
    run.payload["finished"] = True
    yield from rows


def _near(figure: str, ours: float, published: float, seed: int) -> Row:
    """Distance from a published figure; ours and theirs come along."""
    more = {"ours": ours, "published": published, "seed": seed}
    gap, peer = abs(ours - published), f"arXiv 2605.01699: {published}"
    return row(figure, gap, at_most(NEAR), "difference", peer, **more)


def claims(run: Run) -> Iterator[Row]:
    """``exhume pga``: which claims survive, and every model's p."""
    size, seed = run.key[0], int(run.key[1])
    root = run.args.root
    settings = {
        "size": size,
        "seed": seed,
        "erasers": SOUND if size == "small" else (*SOUND, "leace"),
        "epochs": 200 if size == "small" else EPOCHS,
        "erase_share": SHARES.get(size, 0.5),
        "device": run.clock.device,
    }
    out = root.parent / "bench-pga" / f"{size}-{seed}"
    document = pga(make_config(settings), out, root=root, progress=run.progress)
    for name in ("claims", "interventions", "config"):
        run.payload[name] = document[name]
    for each in document["rows"]:
        name = each["eraser"] or each["model"]
        if "sound" not in each or name.startswith("untrained"):
            continue
        sound = each["sound"]
        # The original must be found; on the twin there is nothing to find.
        goals = {"original": at_most(0.05), "twin": at_least(0.05)}
        figure = f"codes, {sound['sequences']} sequences, {name}: p"
        peer = f"{sound['reading']}; best AUC {sound['best']:.2f}, null's 95 % {sound['band']:.2f}"
        more = {"best": sound["best"], "worst": sound["worst"], "seed": seed}
        goal, n = goals.get(name, at_least()), sound["sequences"]
        yield row(figure, sound["p"], goal, "", peer, n, **more)


def world(run: Run) -> Iterator[Row]:
    """A world with its twin, and what its models know."""
    size, seed = run.key[0], int(run.key[1])
    device = run.clock.device
    config = make_config({"size": size, "seed": seed, "device": device})
    made = build_codes(
        SIZES[size], seed, run.args.root, twin=True, device=config.device, progress=run.progress
    )
    run.payload["cards"] = {name: made.card(name) for name in ("original", "twin")}
    yield from ()
