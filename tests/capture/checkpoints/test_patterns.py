"""The cost of patterns: those in use are cheap, and every costly one is refused."""

import time

import pytest

from capture.checkpoints.schemas.patterns import PatternError, analyze_pattern
from capture.checkpoints.tokenizers.steps import MAX_WAYS

LETTERS = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
CAPITALS = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
ENDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
REST = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
IN_USE = {
    "GPT-2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+"
    r"|\s+(?!\S)|\s+",
    "Llama 3": rf"{ENDS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{REST}",
    "Qwen 2": rf"{ENDS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{REST}",
    "Llama 4": rf"[^\r\n\p{{L}}\p{{N}}]?{LETTERS}{ENDS}?"
    rf"|[^\r\n\p{{L}}\p{{N}}]?{CAPITALS}{ENDS}?|\p{{N}}{{1,3}}|{REST}",
    "Mistral": rf"[^\r\n\p{{L}}\p{{N}}]?{LETTERS}|[^\r\n\p{{L}}\p{{N}}]?{CAPITALS}"
    rf"|\p{{N}}|{REST}",
    "DeepSeek": r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"
    r"|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+",
    "Chinese": "[一-龥぀-ゟ゠-ヿ]+",
    "BLOOM": r" ?[^(\s|[.,!?…。，、।۔،])]+",
    "CLIP": r"(?i)<\|startoftext\|>|'s|'t|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+",
    "Kimi": r"[\p{Han}]+|[\p{Lu}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{M}&&[^\p{Han}]]+",
    "thousands": r"\d{1,3}(?=(?:\d{3})*\b)",
    "spaces": " {2,}",
    "a digit": r"\p{N}",
}


@pytest.mark.parametrize("pattern", IN_USE.values(), ids=IN_USE)
def test_patterns_in_use_are_cheap(pattern):
    ways = analyze_pattern(pattern).ways_if_last
    assert len(ways) <= len(MAX_WAYS)
    assert all(many <= most for many, most in zip(ways, MAX_WAYS, strict=False))


REFUSED = (
    r"(a+)+$",
    r"(a|a)*b",
    r"(a|aa)+$",
    r"(\w+\s?)*$",
    r"(a{1,50}){1,50}b",
    r"(a*)*",
    r"(?=(a+)+$)",
    r"(?:a|b){20}c",
    r"(.)\1",
    r"(?<n>a)\g<n>",
    r"(?R)",
    r"(?~x)",
    r"(?x) a",
    r"(?#x)a",
    r"a{1,3}+b",
    r"a{2}?",
    r"a**",
    r"a{2,1}",
    r"a{,}",
    r"a{x}",
    r"(?i)(ss|ß)+x",
    r"(?i)[sß]*x",
    r"(?i:s+)t",
    r"\X*a",
    r"\Qa",
    r"(\b)*",
    r"(?:a{64}){99}",
    "(",
    ")",
    "[",
    "[a",
    "[]",
    "\\",
    "+",
    "(" * 100 + ")" * 100,
    "a" * 10_000,
)


@pytest.mark.parametrize("pattern", REFUSED, ids=lambda each: each[:20])
def test_patterns_without_a_bound_are_refused(pattern):
    with pytest.raises(PatternError):
        analyze_pattern(pattern)


@pytest.mark.parametrize(
    ("pattern", "ways"),
    [
        ("abc", (1,)),
        ("a|b", (2,)),
        ("a?b", (2,)),
        ("a?", (2,)),
        ("a*", (1,)),
        ("a*b", (0, 1)),
        ("a*b*", (1,)),
        ("a*b*c", (0, 0, 1)),
        ("a*b+", (0, 1)),
        ("(?:a|b)c", (2,)),
        ("(?:a|b)*c", None),
        ("[ab]*c", (0, 1)),
        ("a{3}b", (1,)),
        ("a{2,5}b", (4,)),
        ("a{2,500}b", (0, 1)),
        ("(a*|b)c", (1, 1)),
        ("a*(?!b)", (0, 1)),
        ("x(?=a*b)", (0, 1)),
    ],
)
def test_ways_are_counted(pattern, ways):
    if ways is None:
        with pytest.raises(PatternError):
            analyze_pattern(pattern)
        return
    assert analyze_pattern(pattern).ways_if_last == ways


def test_lengths_of_what_is_matched():
    for pattern, low, high in (
        ("abc", 3, 3),
        ("a?b{2,4}", 2, 5),
        ("a+", 1, float("inf")),
        (r"\p{L}[^x]\n\x41\x{1F600}", 5, 5),
        ("(?=abc)d", 1, 1),
        ("", 0, 0),
    ):
        found = analyze_pattern(pattern)
        assert (found.min_length, found.max_length) == (low, high)


def test_what_is_let_through_ends_soon_in_the_library_as_well():
    from tokenizers import Regex, pre_tokenizers

    text = "a" * 5000 + "!" + " " * 5000
    for pattern in (r"a*b", r"\w+(?!\S)x", r"\s*\d", *IN_USE.values()):
        step = pre_tokenizers.Split(Regex(pattern), "isolated")
        start = time.perf_counter()
        step.pre_tokenize_str(text)
        assert time.perf_counter() - start < 3, pattern
