"""What a pattern from a file can cost, known before any engine sees it.

Engines that backtrack try every way in which a pattern can match before they give up.
The number of ways is bounded here as a polynomial in the length of the text: a repeat
without an end adds a degree where something after it can still fail. Patterns whose
cost is no polynomial at all (repeats of what itself varies, references to what was
matched, recursion) are refused, and so is all that is not understood.

The syntax is that of Oniguruma, which the tokenizer library uses, as far as it agrees
with Python's; where they differ, what is read here is the costlier.
"""

import math
import re
from dataclasses import dataclass

MAX_LENGTH, MAX_DEPTH = 4_000, 20
MAX_COUNTED_REPEATS = 64
"""A repeat of more than this many counts as one without an end."""
Polynomial = tuple[int, ...]


class PatternError(ValueError):
    """A pattern that is not understood, or whose cost has no bound."""


@dataclass(frozen=True)
class PatternCost:
    """What is known of a part of a pattern.

    Attributes:
        size: Characters of the pattern with all counted repeats written out.
        min_length: Fewest characters of text it matches.
        max_length: Most characters; infinite for repeats without an end.
        can_fail: Whether it can fail to match.
        ways_if_followed: Ways to match, coefficients by degree in the length of the text, where
            something after it can fail.
        ways_if_last: The same where nothing after it can.
    """

    size: int = 0
    min_length: float = 0
    max_length: float = 0
    can_fail: bool = False
    ways_if_followed: Polynomial = (1,)
    ways_if_last: Polynomial = (1,)

    @property
    def is_fixed(self) -> bool:
        """Whether there is one way to match it, of one length."""
        return self.min_length == self.max_length and self.ways_if_followed == (1,)


def analyze_pattern(pattern: str, *, nested_classes: bool = True) -> PatternCost:
    """The cost of a pattern.

    Args:
        pattern: The pattern.
        nested_classes: Whether a class of characters may hold another one, as in Oniguruma.

    Raises:
        PatternError: it is not understood, or its cost has no bound.
    """
    if len(pattern) > MAX_LENGTH:
        raise PatternError(f"a pattern of {len(pattern):,} characters")
    reader = _Reader(pattern, nested_classes)
    found = reader.alternatives(0, fold=False)
    if reader.at < len(pattern):
        raise PatternError("a bracket that closes nothing")
    return found


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


def _in_a_row(parts: list[PatternCost]) -> PatternCost:
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


def _one_of(parts: list[PatternCost]) -> PatternCost:
    if len(parts) == 1:
        return parts[0]
    inside, last = (0,), (0,)
    for part in parts:
        inside, last = (
            _sum(inside, part.ways_if_followed),
            _sum(last, part.ways_if_last),
        )
    return PatternCost(
        sum(part.size for part in parts),
        min(part.min_length for part in parts),
        max(part.max_length for part in parts),
        all(part.can_fail for part in parts),
        inside,
        last,
    )


def _repeated(part: PatternCost, low: int, high: float) -> PatternCost:
    if high < low:
        raise PatternError("a repeat whose bounds are the wrong way round")
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
        raise PatternError("a repeat of what can match in several ways")
    ways = high - low + 1
    inside = (0, 1) if ways > MAX_COUNTED_REPEATS else (int(ways),)
    return PatternCost(
        size,
        low * part.min_length,
        high * part.max_length,
        low > 0 and part.can_fail,
        inside,
        (1,),
    )


_CHARACTER = PatternCost(1, 1, 1, True)
_PLACE = PatternCost(1, 0, 0, True)
_FOLDED = PatternCost(1, 1, 3, True)
"""A letter whose case does not count: "ß" is "ss"."""
_COUNT = re.compile(r"\{(\d{1,4})?(?:(,)(\d{1,4})?)?\}")
_PROPERTY = re.compile(r"[pP]\{\^?[\w ]{1,40}\}")
_CODE = re.compile(r"x\{[0-9a-fA-F]{1,6}\}|x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}")
_GROUP = re.compile(
    r"\?(?:(?P<flags>[ims]*(?:-[ims]+)?)(?P<end>[:)])|(?P<look><?[=!])|>)"
)


class _Reader:
    """Reads a pattern from left to right."""

    def __init__(self, pattern: str, nested: bool):
        self.pattern, self.nested, self.at = pattern, nested, 0

    def peek(self) -> str:
        return self.pattern[self.at : self.at + 1]

    def take(self, what: re.Pattern[str]) -> re.Match[str] | None:
        found = what.match(self.pattern, self.at)
        if found:
            self.at = found.end()
        return found

    def alternatives(self, depth: int, fold: bool) -> PatternCost:
        if depth > MAX_DEPTH:
            raise PatternError("brackets too deep")
        parts: list[PatternCost] = []
        row: list[PatternCost] = []
        while self.peek() not in ("", ")"):
            if self.peek() == "|":
                self.at += 1
                parts.append(_in_a_row(row))
                row = []
                continue
            if self.pattern.startswith("(?", self.at):
                start = self.at
                self.at += 1
                flags = self.take(_GROUP)
                if flags and flags["end"] == ")":  # for all that follows
                    fold = self._folds(flags["flags"], fold)
                    continue
                self.at = start
            row.append(self.repeats(self.one(depth, fold)))
        parts.append(_in_a_row(row))
        return _one_of(parts)

    def _folds(self, flags: str, fold: bool) -> bool:
        on, _, off = flags.partition("-")
        return "i" in on or (fold and "i" not in off)

    def repeats(self, part: PatternCost) -> PatternCost:
        sign = self.peek()
        if sign and sign in "*+?":
            self.at += 1
            low, high = {"*": (0, math.inf), "+": (1, math.inf), "?": (0, 1)}[sign]
            if self.peek() and self.peek() in "?+":  # lazy, possessive
                self.at += 1
        elif sign == "{":
            count = self.take(_COUNT)
            if count is None or not (count[1] or count[3]):
                raise PatternError("a brace that is no count")
            low = int(count[1] or 0)
            high = low if count[2] is None else float(count[3] or math.inf)
            # Oniguruma and Python read a sign after an exact count, and a plus after
            # any, differently.
            if self.peek() == "+" or (self.peek() == "?" and count[2] is None):
                raise PatternError("a repeat of a repeat")
            if self.peek() == "?":
                self.at += 1
        else:
            return part
        if self.peek() and self.peek() in "*+?{":
            raise PatternError("a repeat of a repeat")
        return _repeated(part, low, high)

    def one(self, depth: int, fold: bool) -> PatternCost:
        sign = self.peek()
        self.at += 1
        if sign == "(":
            return self.group(depth, fold)
        if sign == "[":
            return self.members(fold)
        if sign == "\\":
            return self.escaped(fold)
        if sign in "^$":
            return _PLACE
        if sign in "*+?{":
            raise PatternError("a repeat of nothing")
        return _FOLDED if fold and sign.isalpha() else _CHARACTER

    def group(self, depth: int, fold: bool) -> PatternCost:
        look = False
        if self.peek() == "?":
            kind = self.take(_GROUP)
            if kind is None:
                raise PatternError("a group of a kind that is not known")
            fold = self._folds(kind["flags"] or "", fold)
            look = kind["look"] is not None
        inner = self.alternatives(depth + 1, fold)
        if self.peek() != ")":
            raise PatternError("a bracket that is not closed")
        self.at += 1
        if not look:
            return inner
        # Nothing after it sends the engine back into it, but it is tried each time.
        return PatternCost(
            inner.size + 1, 0, 0, True, inner.ways_if_last, inner.ways_if_last
        )

    def members(self, fold: bool) -> PatternCost:
        """A class of characters; it is left behind its closing bracket."""
        depth, letters, first = 1, False, True
        while depth:
            sign = self.peek()
            self.at += 1
            if not sign:
                raise PatternError("a bracket that is not closed")
            if sign == "\\":
                letters = self.escaped(fold) is _FOLDED or letters
            elif sign == "[" and self.nested:
                depth, first = depth + 1, True
                continue
            elif sign == "]" and not first:
                depth -= 1
            elif sign == "^" and first:
                continue
            letters = letters or (fold and sign.isalpha())
            first = False
        return _FOLDED if letters else _CHARACTER

    def escaped(self, fold: bool) -> PatternCost:
        if self.take(_PROPERTY):
            return _CHARACTER
        if self.take(_CODE):
            return _FOLDED if fold else _CHARACTER
        sign = self.peek()
        self.at += 1
        if sign and sign in "bBAzZ":
            return _PLACE
        if sign and (sign in "sSdDwWnrtfv" or not sign.isalnum()):
            return _CHARACTER
        raise PatternError(f"the escape \\{sign}")
