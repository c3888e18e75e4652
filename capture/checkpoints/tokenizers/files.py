"""A tokenizer out of a checkpoint: its files checked, copied and only then loaded.

The library looks for a dozen files and follows names in them to others. So it is
given a folder of its own with copies of the files that were checked, and settings that
are known; nothing else of the checkpoint can be reached from there.
"""

import base64
import json
import tempfile
from collections.abc import Mapping
from os.path import lexists
from pathlib import Path
from typing import Any

from capture.checkpoints.schemas.library_errors import library_errors, silent_stderr
from capture.checkpoints.schemas.quietly import offline_hub, quiet_transformers
from capture.checkpoints.tokenizers.charsmap import charsmap_growth
from capture.checkpoints.tokenizers.schema import (
    MAX_BYTES,
    MAX_DEPTH,
    MAX_TOKENS,
    check_tokenizer,
)
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

TOKENIZER_JSON, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"
SPECIAL_TOKENS_MAP, ADDED_TOKENS = "special_tokens_map.json", "added_tokens.json"
CHAT_TEMPLATE = "chat_template.jinja"
# Vocabularies of other kinds, read where there is no tokenizer.json.
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
"""Of all tokens and of one, where the library makes merges by trying each cut."""
SMOKE_TEST_TEXT = "The capital of France is Paris; 1,234 naïve cafés\n\t漢字 🙂 don't"
# Classes that look for further files or libraries of their own.
_NOT_OPENED = frozenset(
    {"LukeTokenizer", "MLukeTokenizer", "RoFormerTokenizer", "WhisperTokenizer"}
)


def holds_tokenizer(folder: Path) -> bool:
    """Whether there is a tokenizer in a folder."""
    names = (
        TOKENIZER_JSON,
        TOKENIZER_CONFIG,
        VOCAB_JSON,
        VOCAB_TXT,
        *SENTENCEPIECE_FILES,
    )
    return any(lexists(folder / name) for name in names)


def open_tokenizer(folder: Path, config: Mapping[str, Any]) -> Any:
    """The tokenizer in a folder.

    Args:
        folder: Where its files lie.
        config: What config.json holds; it may name the tokenizer's class.

    Raises:
        InputError: there is none, it is of a kind that is not opened, or a file is
            none that the library may be given.
    """
    copies = _checked(folder)
    settings = copies.get(TOKENIZER_CONFIG, {})
    named = settings.get("tokenizer_class") or config.get("tokenizer_class")
    kind = config.get("model_type")
    _check_class(folder, named, kind)
    # The library reads these of config.json to choose a class and mend old files.
    about = {
        name: config[name]
        for name in ("transformers_version", "_name_or_path", "tokenizer_class")
        if isinstance(config.get(name), str)
    }
    if _is_type(kind):
        about["model_type"] = kind
    copies["config.json"] = about
    with (
        tempfile.TemporaryDirectory(prefix="exhume-tokenizer-") as place,
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
            path = Path(place) / name
            path.write_bytes(data if isinstance(data, bytes) else data.encode())
        tokenizer = _loaded(place)
        tokenizer.name_or_path = str(folder)
        tokenizer.init_kwargs["name_or_path"] = str(folder)
        if TOKENIZER_JSON not in copies:
            made = json.loads(tokenizer.backend_tokenizer.to_str())
            check_tokenizer(made, folder)
        _try(tokenizer)
    return tokenizer


def _loaded(place: str) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(
        place, trust_remote_code=False, local_files_only=True
    )


def _try(tokenizer: Any) -> None:
    """A text there and back, for what panics; what merely fails is said in its time."""
    try:
        tokenizer.decode(tokenizer(SMOKE_TEST_TEXT, verbose=False)["input_ids"])
    except Exception:
        return


def _is_type(kind: Any) -> bool:
    from transformers import CONFIG_MAPPING

    return isinstance(kind, str) and kind in CONFIG_MAPPING


def _check_class(folder: Path, named: Any, kind: Any) -> None:
    """Only tokenizers of the compiled library are opened."""
    from transformers import TokenizersBackend
    from transformers.models.auto.tokenization_auto import (
        TOKENIZER_MAPPING_NAMES,
        tokenizer_class_from_name,
    )

    by_type = TOKENIZER_MAPPING_NAMES.get(kind) if isinstance(kind, str) else None
    name = named or by_type
    # Mistral's own library is not used; its models have a tokenizer.json as well.
    if name is None or (name == by_type and name == "MistralCommonBackend"):
        return
    with library_errors(f"the tokenizer in {folder} is of a class that is not known"):
        found = tokenizer_class_from_name(name) if isinstance(name, str) else name
    if found is None or (
        isinstance(found, type)
        and name not in _NOT_OPENED
        and (issubclass(found, TokenizersBackend) or found.__name__ == "PythonBackend")
    ):
        return
    raise InputError(
        f"the tokenizer in {folder} is of a class that is not opened",
        expected="a fast tokenizer of transformers",
        got=str(name)[:80],
        fix="Save it as tokenizer.json, with the class PreTrainedTokenizerFast",
    )


def _checked(folder: Path) -> dict[str, Any]:
    """Name to content of the files that the library is given."""
    copies: dict[str, Any] = {}
    for name, keep in (
        (TOKENIZER_CONFIG, filter_settings),
        (SPECIAL_TOKENS_MAP, filter_special_tokens),
        (ADDED_TOKENS, filter_added_tokens),
    ):
        path = folder / name
        if lexists(path):
            copies[name] = keep(
                read_json(path, max_bytes=MAX_SETTINGS_BYTES, max_depth=12), path
            )
    if lexists(folder / CHAT_TEMPLATE):
        copies[CHAT_TEMPLATE] = read_text(
            folder / CHAT_TEMPLATE, MAX_TEMPLATE_CHARACTERS
        ).encode()
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


def _vocabularies(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    path = folder / VOCAB_JSON
    if lexists(path):
        words = read_json(path, max_bytes=MAX_VOCABULARY_BYTES, max_depth=2)
        if not all(type(i) is int and 0 <= i < MAX_ID for i in words.values()):
            raise _no_vocabulary(path, "a number of a token that is none")
        _check_words(path, words)
        found[VOCAB_JSON] = words
    for name in (MERGES_TXT, VOCAB_TXT):
        path = folder / name
        if lexists(path):
            text = read_text(path, MAX_VOCABULARY_BYTES)
            _check_words(path, text.splitlines())
            found[name] = text.encode()
    for name in SENTENCEPIECE_FILES:
        path = folder / name
        if lexists(path):
            data = read_bytes(path, MAX_VOCABULARY_BYTES)
            _check_pieces(path, data)
            found[name] = data
    return found


def _check_words(path: Path, words: Any) -> None:
    if len(words) > MAX_TOKENS or sum(map(len, words)) > MAX_VOCABULARY_CHARACTERS:
        raise _no_vocabulary(path, f"{len(words):,} lines or tokens")
    longest = max(map(len, words), default=0)
    if longest > MAX_TOKEN_CHARACTERS:
        raise _no_vocabulary(path, f"a token of {longest:,} characters")


def _check_pieces(path: Path, data: bytes) -> None:
    """Whether a file is SentencePiece's, with tokens and a table that can be used."""
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
    _check_words(path, [each.piece for each in model.pieces])


def _no_vocabulary(path: Path, got: str) -> InputError:
    return InputError(
        f"{path} is not a vocabulary that can be used",
        expected=f"at most {MAX_TOKENS:,} tokens of at most {MAX_TOKEN_CHARACTERS} characters",
        got=got,
        fix="Save the tokenizer again with save_pretrained, or pass another",
    )
