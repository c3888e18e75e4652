"""Memory that a step frees is there for the next one."""

import os
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
from evidence.machine.memory import keep_freed_memory
kept = sys.argv[1] == "keep" and keep_freed_memory()
import torch
def step():
    return [torch.ones(2**24) for _ in range(4)]
step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    step()
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="settings of glibc")
def test_freed_memory_is_taken_again():
    found = {}
    for how in ("keep", "plain"):
        done = subprocess.run(
            [sys.executable, "-c", FAULTS, how],
            capture_output=True,
            text=True,
            check=True,
            env={k: v for k, v in os.environ.items() if k != "THP_MEM_ALLOC_ENABLE"},
        )
        kept, faults = done.stdout.split()
        assert kept == str(how == "keep")
        found[how] = int(faults)
    assert found["plain"] > 100_000
    assert found["keep"] < found["plain"] / 10
