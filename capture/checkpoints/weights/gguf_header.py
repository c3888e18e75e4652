"""Header of a GGUF file, read and validated without the tensor data.

Every length in the file is checked against the file size before it is used.
"""

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from capture.checkpoints.weights.safetensors_headers import MAX_NAME_CHARACTERS, MAX_TENSORS
from evidence.errors import InputError
from evidence.storage.regular_files import open_regular
from evidence.typed_json import Json

MAX_KEYS, MAX_ITEMS, MAX_TEXT_BYTES = 4_096, 4_000_000, 1 << 24
MAX_METADATA_BYTES = 512 << 20
"""Maximum size of the metadata, including the vocabulary."""
MAX_TOKEN_CHARACTERS, MAX_VOCABULARY_CHARACTERS = 512, 16 << 20
"""Of one token, and of all tokens: the library derives merges by trying all splits."""

_TEXT, _LIST, _FLAG = 8, 9, 7
_NUMBERS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "B",
    10: "Q",
    11: "q",
    12: "d",
}


@dataclass(frozen=True)
class GgufHeader:
    """Header of a GGUF file.

    Attributes:
        metadata: Keys and values.
        shapes: Tensor name to shape, with dimensions in PyTorch's order.
    """

    metadata: dict[str, Json]
    shapes: dict[str, tuple[int, ...]]

    @property
    def n_values(self) -> int:
        """Total number of values in the tensors."""
        return sum(math.prod(shape) for shape in self.shapes.values())


def read_gguf_header(path: Path) -> GgufHeader:
    """Metadata and shapes of a GGUF file.

    Raises:
        InputError: it is not a regular file, is damaged or truncated, or exceeds a limit.
    """
    with open_regular(path) as file:
        size = file.seek(0, 2)
        file.seek(0)
        return _Reader(path, file, size).header()


class _Reader:
    def __init__(self, path: Path, file: BinaryIO, size: int):
        self.path, self.file, self.size = path, file, size

    def header(self) -> GgufHeader:
        magic, version, tensors, keys = self.numbers("4sIQQ")
        if magic != b"GGUF" or version not in (2, 3):
            raise self.damaged(f"version {version}")
        if tensors > MAX_TENSORS or keys > MAX_KEYS:
            raise self.damaged(f"{tensors:,} tensors and {keys:,} keys")
        metadata: dict[str, Json] = {}
        for _ in range(keys):
            key = self.text(MAX_NAME_CHARACTERS)
            if key in metadata:
                raise self.damaged(f"the key {key} twice")
            metadata[key] = self.value(key, self.numbers("I")[0])
        _check_tokens(self, metadata)
        shapes, spans = {}, []
        for _ in range(tensors):
            name = self.text(MAX_NAME_CHARACTERS)
            sides = self.numbers("I")[0]
            if name in shapes or not 1 <= sides <= 8:
                raise self.damaged(f"the tensor {name} twice, or without a shape")
            dims = self.numbers(f"{sides}Q")
            kind, offset = self.numbers("IQ")
            shapes[name] = tuple(reversed(dims))
            spans.append((offset, self.bytes_of(name, dims, kind)))
        alignment = metadata.get("general.alignment", 32)
        if type(alignment) is not int or not 1 <= alignment <= 1 << 16:
            raise self.damaged(f"an alignment of {alignment}")
        start = -(-self.file.tell() // alignment) * alignment
        end = 0
        for offset, length in sorted(spans):
            if offset < end:
                raise self.damaged("tensors that overlap")
            end = offset + length
        if start + end > self.size:
            raise self.damaged(f"{end:,} bytes of tensors, {self.size:,} in all")
        return GgufHeader(metadata, shapes)

    def numbers(self, kinds: str) -> tuple[Any, ...]:
        length = struct.calcsize(f"<{kinds}")
        if length > self.size - self.file.tell():
            raise self.damaged("an early end of the file")
        return struct.unpack(f"<{kinds}", self.file.read(length))

    def text(self, max_bytes: int) -> str:
        length = self.numbers("Q")[0]
        if length > max_bytes or length > self.size - self.file.tell():
            raise self.damaged(f"a text of {length:,} bytes")
        if self.file.tell() > MAX_METADATA_BYTES:
            raise self.damaged(f"more than {MAX_METADATA_BYTES:,} bytes of metadata")
        try:
            return self.file.read(length).decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.damaged("a text that is not UTF-8") from error

    def value(self, key: str, kind: int) -> Any:
        if kind in _NUMBERS:
            value = self.numbers(_NUMBERS[kind])[0]
            if isinstance(value, float) and not math.isfinite(value):
                raise self.damaged(f"{key} is {value}")
            return bool(value) if kind == _FLAG else value
        if kind == _TEXT:
            return self.text(MAX_TEXT_BYTES)
        if kind != _LIST:
            raise self.damaged(f"{key} is of a kind that is not known")
        inner, count = self.numbers("IQ")
        if count > MAX_ITEMS:
            raise self.damaged(f"{count:,} values of {key}")
        if inner == _TEXT:
            return [self.text(MAX_TEXT_BYTES) for _ in range(count)]
        if inner not in _NUMBERS:
            raise self.damaged(f"{key} is of a kind that is not known")
        values = list(self.numbers(f"{count}{_NUMBERS[inner]}"))
        if _NUMBERS[inner] in "fd" and not all(map(math.isfinite, values)):
            raise self.damaged(f"{key} holds numbers that are not finite")
        return values

    def bytes_of(self, name: str, dims: tuple[int, ...], kind: int) -> int:
        from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

        known = {quantization.value for quantization in GGMLQuantizationType}
        sizes = GGML_QUANT_SIZES.get(GGMLQuantizationType(kind)) if kind in known else None
        if sizes is None:
            raise self.damaged(f"the tensor {name} of a type that is not known")
        block, length = sizes
        count = math.prod(dims)
        if dims[0] % block or count > 1 << 48:
            raise self.damaged(f"the tensor {name} of a shape its type cannot have")
        return count // block * length

    def damaged(self, got: str) -> InputError:
        return InputError(
            f"{self.path} could not be read as GGUF",
            expected="a complete GGUF file of an architecture that transformers supports",
            got=got,
            fix="Download it again, or pass the model as a Hugging Face folder",
        )


def _check_tokens(reader: _Reader, metadata: dict[str, Json]) -> None:
    """Check that a tokenizer can be built from the vocabulary in bounded time."""
    tokens = _texts(reader, metadata, "tokens", MAX_TOKEN_CHARACTERS)
    _texts(reader, metadata, "merges", 2 * MAX_TOKEN_CHARACTERS)
    for key, value in metadata.items():
        if key.startswith("tokenizer.ggml.") and key.endswith("_token_id"):
            if not isinstance(value, int) or not 0 <= value < max(len(tokens), 1):
                raise reader.damaged(f"{key} is {value}, of {len(tokens):,} tokens")
    for key in ("scores", "token_type"):
        values = metadata.get(f"tokenizer.ggml.{key}")
        if values is not None and (not isinstance(values, list) or len(values) != len(tokens)):
            raise reader.damaged(f"{key} that are not one for each token")
    if not isinstance(metadata.get("general.architecture"), str):
        raise reader.damaged("no general.architecture")


def _texts(reader: _Reader, metadata: dict[str, Json], key: str, longest: int) -> list[str]:
    """The texts of a list of the tokenizer, none longer than ``longest``."""
    values = metadata.get(f"tokenizer.ggml.{key}", [])
    if not isinstance(values, list):
        raise reader.damaged(f"{key} that are not a list of texts")
    texts = [text for text in values if isinstance(text, str)]
    if len(texts) < len(values):
        raise reader.damaged(f"{key} that are not a list of texts")
    too_many = sum(map(len, texts)) > MAX_VOCABULARY_CHARACTERS
    if too_many or any(len(text) > longest for text in texts):
        raise reader.damaged(f"{key} that are too long")
    return texts
