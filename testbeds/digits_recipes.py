"""Settings that make the method models of the digits world.

Each method's settings come as a short list, from the mildest: the zoo takes the first
model that names at most a tenth of the forgotten class and keeps nine tenths of the
rest, or the last one. The authors' loss weights, temperatures and thresholds are kept;
learning rates and step counts are for networks of 80 thousand weights under AdamW.
"""

from collections.abc import Sequence

from erasure.unlearning.training.image_config import ImageUnlearnConfig as Config

DIGITS_RECIPES: dict[str, Sequence[Config]] = {
    "collapse": [Config("grad_ascent", lr=r, steps=60) for r in (1e-3, 3e-3, 1e-2)],
    "grad_ascent": [Config("grad_ascent", lr=r, steps=20) for r in (1e-4, 3e-4)],
    "grad_diff": [Config("grad_diff", lr=r) for r in (3e-4, 1e-3)],
    "relabel": [Config("relabel", lr=r) for r in (5e-4, 1e-3)],
    "salun": [Config("salun", lr=r) for r in (5e-4, 1e-3)],
    # The authors' alpha is 10. At a tenth of the images every ratio of importances is
    # at most 10, so nothing would be chosen, which is why alpha is scaled.
    "ssd": [Config("ssd", dampen_above=a) for a in (6.0, 4.0, 2.0)],
    "scrub": [
        Config("scrub", lr=r, steps=60, retain_batch_size=128) for r in (5e-4, 1e-3)
    ],
    # Temperature 1 is the authors'.
    "bad_teacher": [Config("bad_teacher", lr=r, temperature=1.0) for r in (5e-4, 1e-3)],
    "boundary_shrink": [
        Config("boundary_shrink", lr=r, steps=20) for r in (1e-4, 2e-4, 4e-4)
    ],
    "duck": [Config("duck", lr=r, retain_weight=1.4) for r in (4e-4, 1e-3)],
    "famr": [Config("famr", lr=r, steps=20, anchor=0.01) for r in (2e-4, 4e-4, 8e-4)],
    "cf_k": [Config("cf_k", lr=3e-3, steps=60)],
    "eu_k": [Config("eu_k", lr=5e-3, steps=100)],
    "rmu": [
        Config("rmu", coefficient=c, retain_weight=4.0, steps=40)
        for c in (1.0, 2.0, 4.0)
    ],
    "l1_sparse": [Config("l1_sparse", lr=2e-3, steps=80, anchor=3e-4)],
}
