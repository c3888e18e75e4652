"""Static bounds on the matching cost of untrusted regular expressions.

A backtracking engine tries all ways to match before it fails. The number of ways is bounded by a
polynomial in the length of the text: an unbounded repeat adds a degree if something after it can
fail. Patterns without a polynomial bound (repeats of variable parts, backreferences, recursion) and
unknown syntax are refused.

The syntax is the common subset of Oniguruma, which the tokenizers library uses, and Python. Where
they differ, the costlier meaning is assumed.
"""

import math
import re
from dataclasses import dataclass

MAX_LENGTH, MAX_DEPTH = 4_000, 20
MAX_COUNTED_REPEATS = 64
"""Longer counted repeats are treated as unbounded."""
Polynomial = tuple[int, ...]


class PatternError(ValueError):
    """A pattern with unknown syntax or unbounded cost."""


@dataclass(frozen=True)
class PatternCost:
    """Cost of a part of a pattern.

    Attributes:
        size: Length of the pattern with all counted repeats expanded.
        min_length: Minimum number of characters matched.
        max_length: Maximum number of characters matched; infinite for unbounded repeats.
        can_fail: Whether it can fail to match.
        ways_if_followed: Number of ways to match if something after it can fail: polynomial
            coefficients by degree in the length of the text.
        ways_if_last: The same if nothing after it can fail.
    """

    size: int = 0
    min_length: float = 0
    max_length: float = 0
    can_fail: bool = False
    ways_if_followed: Polynomial = (1,)
    ways_if_last: Polynomial = (1,)

    @property
    def is_fixed(self) -> bool:
        """Whether there is only one way to match, of one length."""
        return self.min_length == self.max_length and self.ways_if_followed == (1,)


def analyze_pattern(pattern: str, *, nested_classes: bool = True) -> PatternCost:
    """The matching cost of a pattern.

    Args:
        nested_classes: Whether character classes can be nested, as in Oniguruma.

    Raises:
        PatternError: unknown syntax or unbounded cost.
    """
    if len(pattern) > MAX_LENGTH:
        raise PatternError(f"a pattern of {len(pattern):,} characters")
    reader = _PatternParser(pattern, nested_classes)
    cost = reader.alternatives(0, ignore_case=False)
    if reader.position < len(pattern):
        raise PatternError("an unmatched closing bracket")
    return cost


def _product(a: Polynomial, b: Polynomial) -> Polynomial:
    out = [0] * (len(a) + len(b) - 1)
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            out[i + j] += x * y
    return tuple(out)


def _sum(a: Polynomial, b: Polynomial) -> Polynomial:
    length = max(len(a), len(b))
    a, b = a + (0,) * (length - len(a)), b + (0,) * (length - len(b))
    return tuple(x + y for x, y in zip(a, b, strict=True))


def _sequence(parts: list[PatternCost]) -> PatternCost:
    inside, last = (1,), (1,)
    fails = False
    for part in reversed(parts):
        inside = _product(inside, part.ways_if_followed)
        last = _product(last, part.ways_if_followed if fails else part.ways_if_last)
        fails = fails or part.can_fail
    return PatternCost(
        sum(part.size for part in parts),
        sum(part.min_length for part in parts),
        sum(part.max_length for part in parts),
        fails,
        inside,
        last,
    )


def _alternation(parts: list[PatternCost]) -> PatternCost:
    if len(parts) == 1:
        return parts[0]
    inside, last = (0,), (0,)
    for part in parts:
        inside, last = (_sum(inside, part.ways_if_followed), _sum(last, part.ways_if_last))
    return PatternCost(
        sum(part.size for part in parts),
        min(part.min_length for part in parts),
        max(part.max_length for part in parts),
        all(part.can_fail for part in parts),
        inside,
        last,
    )


def _repeat(part: PatternCost, low: int, high: float) -> PatternCost:
    if high < low:
        raise PatternError("a repeat with reversed bounds")
    size = part.size * int(high if high < math.inf else max(low, 1))
    if size > MAX_LENGTH:
        raise PatternError("repeats of repeats")
    if (low, high) == (0, 1):
        more = (1,)
        return PatternCost(
            size,
            0,
            part.max_length,
            False,
            _sum(part.ways_if_followed, more),
            _sum(part.ways_if_last, more),
        )
    if not part.is_fixed or part.max_length == 0:
        raise PatternError("a repeat of a part that can match in several ways")
    ways = high - low + 1
    inside = (0, 1) if ways > MAX_COUNTED_REPEATS else (int(ways),)
    return PatternCost(
        size, low * part.min_length, high * part.max_length, low > 0 and part.can_fail, inside, (1,)
    )


_CHARACTER = PatternCost(1, 1, 1, True)
_ANCHOR = PatternCost(1, 0, 0, True)
_CASELESS = PatternCost(1, 1, 3, True)
"""A case-insensitive letter; "ß" matches "ss"."""
_COUNT = re.compile(r"\{(\d{1,4})?(?:(,)(\d{1,4})?)?\}")
_PROPERTY = re.compile(r"[pP]\{\^?[\w ]{1,40}\}")
_CODE = re.compile(r"x\{[0-9a-fA-F]{1,6}\}|x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}")
_GROUP = re.compile(r"\?(?:(?P<flags>[ims]*(?:-[ims]+)?)(?P<end>[:)])|(?P<look><?[=!])|>)")


class _PatternParser:
    """Recursive descent parser that computes the cost of a pattern."""

    def __init__(self, pattern: str, nested: bool):
        self.pattern, self.nested, self.position = pattern, nested, 0

    def peek(self) -> str:
        return self.pattern[self.position : self.position + 1]

    def take(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        match = pattern.match(self.pattern, self.position)
        if match:
            self.position = match.end()
        return match

    def alternatives(self, depth: int, ignore_case: bool) -> PatternCost:
        if depth > MAX_DEPTH:
            raise PatternError("brackets nested too deeply")
        parts: list[PatternCost] = []
        row: list[PatternCost] = []
        while self.peek() not in ("", ")"):
            if self.peek() == "|":
                self.position += 1
                parts.append(_sequence(row))
                row = []
                continue
            if self.pattern.startswith("(?", self.position):
                start = self.position
                self.position += 1
                flags = self.take(_GROUP)
                if flags and flags["end"] == ")":  # valid for the rest of the group
                    ignore_case = self._ignores_case(flags["flags"], ignore_case)
                    continue
                self.position = start
            row.append(self.repeats(self.atom(depth, ignore_case)))
        parts.append(_sequence(row))
        return _alternation(parts)

    def _ignores_case(self, flags: str, ignore_case: bool) -> bool:
        on, _, off = flags.partition("-")
        return "i" in on or (ignore_case and "i" not in off)

    def repeats(self, part: PatternCost) -> PatternCost:
        sign = self.peek()
        if sign and sign in "*+?":
            self.position += 1
            low, high = {"*": (0, math.inf), "+": (1, math.inf), "?": (0, 1)}[sign]
            if self.peek() and self.peek() in "?+":  # lazy, possessive
                self.position += 1
        elif sign == "{":
            count = self.take(_COUNT)
            if count is None or not (count[1] or count[3]):
                raise PatternError("a brace that is not a count")
            low = int(count[1] or 0)
            high = low if count[2] is None else float(count[3] or math.inf)
            # Oniguruma and Python differ on a sign after an exact count, and on a plus
            # after any count.
            if self.peek() == "+" or (self.peek() == "?" and count[2] is None):
                raise PatternError("a repeat of a repeat")
            if self.peek() == "?":
                self.position += 1
        else:
            return part
        if self.peek() and self.peek() in "*+?{":
            raise PatternError("a repeat of a repeat")
        return _repeat(part, low, high)

    def atom(self, depth: int, ignore_case: bool) -> PatternCost:
        sign = self.peek()
        self.position += 1
        if sign == "(":
            return self.group(depth, ignore_case)
        if sign == "[":
            return self.character_class(ignore_case)
        if sign == "\\":
            return self.escaped(ignore_case)
        if sign in "^$":
            return _ANCHOR
        if sign in "*+?{":
            raise PatternError("a repeat of nothing")
        return _CASELESS if ignore_case and sign.isalpha() else _CHARACTER

    def group(self, depth: int, ignore_case: bool) -> PatternCost:
        is_lookaround = False
        if self.peek() == "?":
            kind = self.take(_GROUP)
            if kind is None:
                raise PatternError("a group of an unknown kind")
            ignore_case = self._ignores_case(kind["flags"] or "", ignore_case)
            is_lookaround = kind["look"] is not None
        inner = self.alternatives(depth + 1, ignore_case)
        if self.peek() != ")":
            raise PatternError("a bracket that is not closed")
        self.position += 1
        if not is_lookaround:
            return inner
        # A lookaround is atomic (no backtracking into it), but is tried every time.
        return PatternCost(inner.size + 1, 0, 0, True, inner.ways_if_last, inner.ways_if_last)

    def character_class(self, ignore_case: bool) -> PatternCost:
        """Parse a character class up to and including its closing bracket."""
        depth, has_letter, first = 1, False, True
        while depth:
            sign = self.peek()
            self.position += 1
            if not sign:
                raise PatternError("a bracket that is not closed")
            if sign == "\\":
                has_letter = self.escaped(ignore_case) is _CASELESS or has_letter
            elif sign == "[" and self.nested:
                depth, first = depth + 1, True
                continue
            elif sign == "]" and not first:
                depth -= 1
            elif sign == "^" and first:
                continue
            has_letter = has_letter or (ignore_case and sign.isalpha())
            first = False
        return _CASELESS if has_letter else _CHARACTER

    def escaped(self, ignore_case: bool) -> PatternCost:
        if self.take(_PROPERTY):
            return _CHARACTER
        if self.take(_CODE):
            return _CASELESS if ignore_case else _CHARACTER
        sign = self.peek()
        self.position += 1
        if sign and sign in "bBAzZ":
            return _ANCHOR
        if sign and (sign in "sSdDwWnrtfv" or not sign.isalnum()):
            return _CHARACTER
        raise PatternError(f"the escape \\{sign}")
