"""Settings that make the method models of the digits world.

Each method's settings come as a short list, from the mildest: the zoo takes the first
model that names at most a tenth of the forgotten class and keeps nine tenths of the
rest, or the last one. The authors' loss weights, temperatures and thresholds are kept;
learning rates and step counts are for networks of 80 thousand weights under AdamW.
"""

from collections.abc import Sequence

from erasure.image_config import ImageUnlearnConfig as Config

DIGITS_RECIPES: dict[str, Sequence[Config]] = {
    "collapse": [Config("grad_ascent", lr=r, steps=60) for r in (1e-3, 3e-3, 1e-2)],
    "grad_ascent": [Config("grad_ascent", lr=r, steps=20) for r in (1e-4, 2e-4, 4e-4)],
    "grad_diff": [Config("grad_diff", lr=r, steps=40) for r in (2e-4, 5e-4)],
    "relabel": [Config("relabel", lr=r, steps=60) for r in (5e-4, 1e-3)],
    "salun": [Config("salun", lr=r, steps=60) for r in (5e-4, 1e-3)],
    # The authors' alpha is 10; at a tenth of the images every ratio is at most 10, so
    # nothing would be chosen, which is why alpha is scaled.
    "ssd": [Config("ssd", dampen_above=a) for a in (8.0, 6.0, 4.0, 3.0, 2.0)],
    "scrub": [
        Config("scrub", lr=r, steps=s, batch_size=64, retain_batch_size=64)
        for r, s in ((5e-4, 120), (1e-3, 120))
    ],
    # Temperature 1 is the authors'.
    "bad_teacher": [
        Config("bad_teacher", lr=r, steps=60, temperature=1.0) for r in (5e-4, 1e-3)
    ],
    "boundary_shrink": [
        Config("boundary_shrink", lr=r, steps=s)
        for r, s in ((1e-4, 20), (2e-4, 20), (3e-4, 40))
    ],
    "duck": [Config("duck", lr=r, steps=60, retain_weight=1.4) for r in (4e-4, 1e-3)],
    "famr": [
        Config("famr", lr=r, steps=s, anchor=0.01)
        for r, s in ((1e-4, 30), (2e-4, 40), (4e-4, 60))
    ],
    "cf_k": [Config("cf_k", lr=r, steps=s) for r, s in ((1e-3, 200), (3e-3, 300))],
    "eu_k": [Config("eu_k", lr=3e-3, steps=200)],
    "rmu": [
        Config("rmu", lr=1e-3, steps=80, coefficient=c, retain_weight=w)
        for c, w in ((1.0, 4.0), (2.0, 4.0), (4.0, 4.0))
    ],
    "l1_sparse": [
        Config("l1_sparse", lr=r, steps=s, anchor=a)
        for r, s, a in ((1e-3, 150, 1e-3), (2e-3, 300, 1e-3), (3e-3, 300, 3e-3))
    ],
}
