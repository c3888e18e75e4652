"""The same erasers on CUDA as on the CPU, and nothing asked of CUDA it would refuse."""

import pytest
import torch
from torch.testing import assert_close

from erasure.concept.label_aware import OracleLeace, QuadraticLeace
from erasure.concept.leace import Leace
from erasure.concept.moments import Moments
from tests.erasure.concept.test_erasers import ALL, fitted
from tests.helpers.concept_rows import labelled
from tests.helpers.fake_cuda import PretendCuda, there_and_pretended


@pytest.fixture(params=there_and_pretended(PretendCuda))
def there(request):
    return request.param


def activations(rng, **options):
    rows, labels = labelled(rng, classes=3, **options)
    return torch.from_numpy(rows), torch.from_numpy(labels)


@ALL
@pytest.mark.parametrize("sites", [None, 2])
def test_every_eraser(name, sites, rng, there, tmp_path):
    x, z = activations(rng, sites=sites)
    want = fitted(name, x, z).transform(x)
    with there():
        eraser = fitted(name, x.to("cuda"), z.to("cuda"))
        found = eraser.transform(x.to("cuda"))
        assert found.device.type == "cuda"
        # Fitted there, used here, and the other way round.
        assert_close(eraser.transform(x), found.cpu())
        elsewhere = eraser.eraser_.to("cpu")
        assert_close(elsewhere.transform(x.to("cuda")).cpu(), found.cpu())
        eraser.save(tmp_path / "eraser.safetensors")
        found = found.cpu()
    # Rounding grows with every turn of R-LACE's game: a change of 1e-15 in the rows has
    # moved its answer by 1e-4.
    near = 1e-3 if name == "r-lace" else 1e-6
    assert_close(found, want, rtol=near, atol=near / 10)


def test_chunks_half_precision_and_dependent_features(rng, there):
    x, z = activations(rng, sites=3)
    x[1, :, 2] = x[1, :, 3]
    x = x.half()
    want = Leace().fit(x, z).transform(x)
    with there():
        moments = Moments(classes=range(3))
        for start in (0, 100):
            stop = start + 100 if not start else 300
            moments.update(x[:, start:stop].to("cuda"), z[start:stop].to("cuda"))
        leace = Leace(shrinkage=0.0).fit_moments(moments)
        found = leace.transform(x.to("cuda")).cpu()
    assert_close(found, want, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("kind", [OracleLeace, QuadraticLeace])
@pytest.mark.parametrize("sites", [None, 2])
def test_erasers_that_take_labels(kind, sites, rng, there):
    x, z = activations(rng, sites=sites)
    want = kind.fit(x, z).transform(x, z)
    with there():
        eraser = kind.fit(x.to("cuda"), z.to("cuda"))
        found = eraser.transform(x.to("cuda"), z.to("cuda")).cpu()
        assert_close(eraser.transform(x, z), found)
    assert_close(found, want, rtol=1e-7, atol=1e-8)
