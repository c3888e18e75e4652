"""Certificates as other processors compute them: libraries told to use other kernels.

Which kernels NumPy's, torch's and numba's libraries choose hangs on the processor, and
with them the last digits of every sum. A fit once was certified on one processor and
not on the next. The settings have to be there before the libraries are loaded, hence
the processes.
"""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
FILES = ("solvers/test_certificates.py", "test_newton.py")
TELLING = "certified_probes or told or few or long"
"""Of their tests, those that were lost to last digits."""
OLDEST = {
    "ATEN_CPU_CAPABILITY": "default",
    "OPENBLAS_CORETYPE": "Nehalem",
    "MKL_CBWR": "COMPATIBLE",
}
AMD = {"ATEN_CPU_CAPABILITY": "avx2", "OPENBLAS_CORETYPE": "Zen", "MKL_CBWR": "AVX2"}
# Threads that wait for each other take a minute beside other tests.
THREADS = {"OMP_NUM_THREADS": "2", "OPENBLAS_CORETYPE": "Haswell"}

pytestmark = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64"),
    reason="the settings name kernels of x86 processors",
)


def run(settings, *which):
    """These tests in a process of their own, under ``settings``."""
    if settings is not OLDEST and torch.backends.cpu.get_cpu_capability() == "DEFAULT":
        pytest.skip("the processor has no AVX2")
    options = ["-q", "-n", "0", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *which],
        env={**os.environ, "OMP_NUM_THREADS": "1", **settings},
        cwd=HERE.parent.parent,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
    assert " passed" in done.stdout and "skipped" not in done.stdout


@pytest.mark.parametrize(
    "settings",
    [OLDEST, AMD, pytest.param(THREADS, marks=pytest.mark.slow)],
    ids=["oldest", "amd", "threads"],
)
def test_every_fit_is_certified_with_other_kernels(settings):
    run(settings, *(str(HERE / file) for file in FILES), "-k", TELLING)


@pytest.mark.slow
def test_every_fit_is_certified_as_compiled_for_any_processor(tmp_path):
    """Compiling anew takes most of a minute; what it misses the last resort has."""
    settings = {"NUMBA_CPU_NAME": "generic", "NUMBA_CACHE_DIR": str(tmp_path)}
    files = ("solvers/test_conformance.py", "solvers/test_jacobi.py", "solvers/test_optimum.py")
    run(settings | OLDEST, *(str(HERE / file) for file in files))
