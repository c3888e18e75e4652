"""TransformerLens and nnsight see what our hooks see, and their models are accepted.

Each library runs in a process of its own (see ``crosscheck``).
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from capture.checkpoints.cache import cache_root

TOLERANCE = 3e-4
ROOT = Path(__file__).parents[2]


def crosscheck(*arguments):
    quiet = {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.helpers.activation_peers", *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | quiet,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def nnsight():
    return crosscheck("nnsight")


@pytest.fixture(scope="module")
def transformer_lens():
    return crosscheck("transformer_lens")


@pytest.mark.parametrize("family", ["llama", "gpt2", "neox", "bert", "vit", "cnn"])
def test_nnsight_agrees(nnsight, family):
    assert nnsight[family] < TOLERANCE
    assert nnsight[f"{family} unwrapped"] < 1e-6
    assert nnsight[f"{family} hooks"] == 0


@pytest.mark.parametrize("family", ["llama", "gpt2", "neox", "bert", "vit"])
def test_transformer_lens_agrees(transformer_lens, family):
    assert transformer_lens[family] < TOLERANCE
    assert transformer_lens[f"{family} unwrapped"] < 1e-6


@pytest.mark.parametrize("family", ["llama", "gpt2", "neox", "vit"])
def test_nnsight_has_the_values_under_the_names_of_the_table(nnsight, family):
    assert nnsight[f"{family} names"] < 1e-5


@pytest.mark.parametrize("family", ["llama", "gpt2", "neox", "gemma2", "bert", "hooked"])
def test_transformer_lens_has_the_values_under_the_names_of_the_table(transformer_lens, family):
    assert transformer_lens[f"{family} names"] < 1e-5


@pytest.mark.parametrize("family", ["llama", "gpt2", "neox", "bert", "vit"])
def test_a_bridge_gives_its_original_model_back(transformer_lens, family):
    assert transformer_lens[f"{family} rebuilt"] == 0
    assert transformer_lens[f"{family} hash"] == 0


def test_a_bridge_with_folded_weights_is_refused(transformer_lens):
    assert transformer_lens["compatibility mode refused"] == 0


def test_a_hooked_transformer_is_read_at_its_own_hook_points(transformer_lens):
    assert transformer_lens["hooked"] < 1e-5
    assert transformer_lens["hooked logits"] == 0


def test_neither_library_is_imported_before_it_is_used():
    code = (
        "import sys, capture.checkpoints.open\n"
        "import capture.activations.store, capture.activations.capture\n"
        "heavy = {'transformer_lens', 'nnsight', 'peft', 'zarr', 'sae_lens'}\n"
        "sys.exit(str(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def smol_folder():
    notes = sorted((cache_root() / "smol").glob("*.txt"))
    folders = [cache_root() / "gguf" / note.read_text().strip() for note in notes]
    return next((folder for folder in folders if folder.is_dir()), None)


@pytest.mark.slow
@pytest.mark.parametrize("library", ["nnsight", "transformer_lens"])
def test_they_agree_on_a_real_model(library):
    folder = smol_folder()
    if folder is None:
        pytest.skip("SmolLM2 is not in the cache: run `exhume fetch smollm2-135m`")
    far = crosscheck(library, folder)
    assert len(far) == 92  # embed, final, and three sites in each of 30 layers
    assert max(far.values()) < TOLERANCE, max(far, key=far.get)
