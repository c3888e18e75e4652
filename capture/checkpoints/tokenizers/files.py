"""Loading of a checkpoint's tokenizer from validated copies of its files.

The library looks for a dozen files and follows names in them to others. It therefore reads a
temporary folder that holds only validated copies and known settings.
"""

import base64
import json
import tempfile
from collections.abc import Mapping
from os.path import lexists
from pathlib import Path
from typing import Any

from capture.checkpoints.schemas.library_errors import (
    library_errors,
    offline_hub,
    quiet_transformers,
    silent_stderr,
)
from capture.checkpoints.tokenizers.charsmap import charsmap_growth
from capture.checkpoints.tokenizers.schema import MAX_BYTES, MAX_DEPTH, MAX_TOKENS, check_tokenizer
from capture.checkpoints.tokenizers.settings import (
    MAX_TEMPLATE_CHARACTERS,
    filter_added_tokens,
    filter_settings,
    filter_special_tokens,
)
from capture.checkpoints.tokenizers.steps import MAX_ID
from evidence.errors import InputError
from evidence.storage.files import read_json
from evidence.storage.regular_files import read_bytes, read_text
from evidence.storage.strict_json import parse_json
from evidence.typed_json import Json

TOKENIZER_JSON, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"
SPECIAL_TOKENS_MAP, ADDED_TOKENS = "special_tokens_map.json", "added_tokens.json"
CHAT_TEMPLATE = "chat_template.jinja"
# Other vocabulary formats, used if there is no tokenizer.json.
VOCAB_JSON, MERGES_TXT, VOCAB_TXT = "vocab.json", "merges.txt", "vocab.txt"
SENTENCEPIECE_FILES = (
    "tokenizer.model",
    "spiece.model",
    "spm.model",
    "sentencepiece.model",
    "sentencepiece.bpe.model",
)
MAX_SETTINGS_BYTES, MAX_VOCABULARY_BYTES = 32 << 20, 64 << 20
MAX_VOCABULARY_CHARACTERS, MAX_TOKEN_CHARACTERS = 16 << 20, 512
"""Of all tokens, and of one token: the library derives merges by trying all splits."""
SMOKE_TEST_TEXT = "The capital of France is Paris; 1,234 naïve cafés\n\t漢字 🙂 don't"
# Classes that need further files or libraries.
_UNSUPPORTED_CLASSES = frozenset(
    {"LukeTokenizer", "MLukeTokenizer", "RoFormerTokenizer", "WhisperTokenizer"}
)

_Content = bytes | Mapping[str, Json]
"""Content of a file: as it is, or an object to write as JSON."""


def holds_tokenizer(folder: Path) -> bool:
    """Whether a folder contains a tokenizer."""
    names = (TOKENIZER_JSON, TOKENIZER_CONFIG, VOCAB_JSON, VOCAB_TXT, *SENTENCEPIECE_FILES)
    return any(lexists(folder / name) for name in names)


def open_tokenizer(folder: Path, config: Mapping[str, Any]) -> Any:
    """Load the tokenizer in a folder.

    Args:
        config: Content of config.json, which may name the tokenizer's class.

    Raises:
        InputError: there is no tokenizer, its class is not supported, or a file is invalid.
    """
    copies = _checked_files(folder)
    settings = copies.get(TOKENIZER_CONFIG)
    stated = settings.get("tokenizer_class") if isinstance(settings, Mapping) else None
    named = stated or config.get("tokenizer_class")
    kind = config.get("model_type")
    _check_class(folder, named, kind)
    # The library uses these fields to choose a class and to fix old files.
    config_subset = {
        name: config[name]
        for name in ("transformers_version", "_name_or_path", "tokenizer_class")
        if isinstance(config.get(name), str)
    }
    if _is_type(kind):
        config_subset["model_type"] = kind
    copies["config.json"] = config_subset
    with (
        tempfile.TemporaryDirectory(prefix="exhume-tokenizer-") as folder_copy,
        library_errors(
            f"the tokenizer in {folder} could not be read",
            expected="tokenizer.json and tokenizer_config.json, without code",
        ),
        quiet_transformers(),
        offline_hub(),
        silent_stderr(),
    ):
        for name, content in copies.items():
            data = content if isinstance(content, bytes) else json.dumps(content)
            path = Path(folder_copy) / name
            path.write_bytes(data if isinstance(data, bytes) else data.encode())
        tokenizer = _load(folder_copy)
        tokenizer.name_or_path = str(folder)
        tokenizer.init_kwargs["name_or_path"] = str(folder)
        if TOKENIZER_JSON not in copies:
            built = json.loads(tokenizer.backend_tokenizer.to_str())
            check_tokenizer(built, folder)
        _smoke_test(tokenizer)
    return tokenizer


def _load(folder: str) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)


def _smoke_test(tokenizer: Any) -> None:
    """Encode and decode a text to provoke panics; exceptions are reported on later use."""
    try:
        tokenizer.decode(tokenizer(SMOKE_TEST_TEXT, verbose=False)["input_ids"])
    except Exception:
        return


def _is_type(kind: Any) -> bool:
    from transformers import CONFIG_MAPPING

    return isinstance(kind, str) and kind in CONFIG_MAPPING


def _check_class(folder: Path, named: Any, kind: Any) -> None:
    """Check that the class is a tokenizer of the compiled library."""
    from transformers import TokenizersBackend
    from transformers.models.auto.tokenization_auto import (
        TOKENIZER_MAPPING_NAMES,
        tokenizer_class_from_name,
    )

    by_type = TOKENIZER_MAPPING_NAMES.get(kind) if isinstance(kind, str) else None
    name = named or by_type
    # Models of Mistral's own tokenizer library have a tokenizer.json as well.
    if name is None or (name == by_type and name == "MistralCommonBackend"):
        return
    with library_errors(f"the tokenizer in {folder} has an unknown class"):
        model_cls = tokenizer_class_from_name(name) if isinstance(name, str) else name
    if model_cls is None or (
        isinstance(model_cls, type)
        and name not in _UNSUPPORTED_CLASSES
        and (issubclass(model_cls, TokenizersBackend) or model_cls.__name__ == "PythonBackend")
    ):
        return
    raise InputError(
        f"the tokenizer in {folder} has an unsupported class",
        expected="a fast tokenizer of transformers",
        got=str(name)[:80],
        fix="Save it as tokenizer.json, with the class PreTrainedTokenizerFast",
    )


def _checked_files(folder: Path) -> dict[str, _Content]:
    """Name to validated content of the files for the library."""
    copies: dict[str, _Content] = {}
    for name, keep in (
        (TOKENIZER_CONFIG, filter_settings),
        (SPECIAL_TOKENS_MAP, filter_special_tokens),
        (ADDED_TOKENS, filter_added_tokens),
    ):
        path = folder / name
        if lexists(path):
            copies[name] = keep(read_json(path, max_bytes=MAX_SETTINGS_BYTES, max_depth=12), path)
    if lexists(folder / CHAT_TEMPLATE):
        copies[CHAT_TEMPLATE] = read_text(folder / CHAT_TEMPLATE, MAX_TEMPLATE_CHARACTERS).encode()
    if lexists(folder / TOKENIZER_JSON):
        text = read_text(folder / TOKENIZER_JSON, MAX_BYTES)
        value = parse_json(text, str(folder / TOKENIZER_JSON), max_depth=MAX_DEPTH)
        check_tokenizer(value, folder / TOKENIZER_JSON)
        return copies | {TOKENIZER_JSON: text.encode()}
    plain = _vocabularies(folder)
    if not plain:
        raise InputError(
            f"{folder} holds settings of a tokenizer, but no vocabulary",
            expected=f"{TOKENIZER_JSON}, or one of "
            + ", ".join((VOCAB_JSON, VOCAB_TXT, *SENTENCEPIECE_FILES)),
            fix="Copy the tokenizer's other files, or pass another tokenizer",
        )
    return copies | plain


def _vocabularies(folder: Path) -> dict[str, _Content]:
    contents: dict[str, _Content] = {}
    path = folder / VOCAB_JSON
    if lexists(path):
        vocabulary = read_json(path, max_bytes=MAX_VOCABULARY_BYTES, max_depth=2)
        if not all(type(i) is int and 0 <= i < MAX_ID for i in vocabulary.values()):
            raise _no_vocabulary(path, "an invalid token id")
        _check_words(path, vocabulary)
        contents[VOCAB_JSON] = vocabulary
    for name in (MERGES_TXT, VOCAB_TXT):
        path = folder / name
        if lexists(path):
            text = read_text(path, MAX_VOCABULARY_BYTES)
            _check_words(path, text.splitlines())
            contents[name] = text.encode()
    for name in SENTENCEPIECE_FILES:
        path = folder / name
        if lexists(path):
            data = read_bytes(path, MAX_VOCABULARY_BYTES)
            _check_pieces(path, data)
            contents[name] = data
    return contents


def _check_words(path: Path, tokens: Any) -> None:
    if len(tokens) > MAX_TOKENS or sum(map(len, tokens)) > MAX_VOCABULARY_CHARACTERS:
        raise _no_vocabulary(path, f"{len(tokens):,} lines or tokens")
    longest = max(map(len, tokens), default=0)
    if longest > MAX_TOKEN_CHARACTERS:
        raise _no_vocabulary(path, f"a token of {longest:,} characters")


def _check_pieces(path: Path, data: bytes) -> None:
    """Check the tokens and the character map of a SentencePiece model."""
    from transformers.convert_slow_tokenizer import import_protobuf

    with library_errors(f"{path} is not a vocabulary of SentencePiece"):
        proto: Any = import_protobuf()
        model = proto.ModelProto()
        model.ParseFromString(data)
        table = model.normalizer_spec.precompiled_charsmap
        if table:
            charsmap_growth(base64.b64encode(table).decode())
    if not model.pieces:
        raise _no_vocabulary(path, "no tokens of SentencePiece")
    _check_words(path, [piece.piece for piece in model.pieces])


def _no_vocabulary(path: Path, got: str) -> InputError:
    return InputError(
        f"{path} is not a valid vocabulary",
        expected=f"at most {MAX_TOKENS:,} tokens of at most {MAX_TOKEN_CHARACTERS} characters",
        got=got,
        fix="Save the tokenizer again with save_pretrained, or pass another",
    )
