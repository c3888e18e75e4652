"""One bad input: a valid example and what was changed in it, as data."""

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Edit:
    """One change.

    Attributes:
        file: What is changed, relative to the case's folder; "" for an argument.
        how: Kind of change, one of ``edits.HOWS``.
        where: Keys and numbers down to a field, or byte positions.
        value: Name of a value, a text or numbers, as ``how`` needs it.
    """

    file: str
    how: str
    where: tuple[Any, ...] = ()
    value: Any = None


@dataclass(frozen=True)
class Case:
    """An input of one kind with its edits; none of them for the valid example."""

    kind: str
    edits: tuple[Edit, ...] = ()

    def text(self) -> str:
        """One line of JSON that ``Case.of`` reads back."""
        edits = [
            {name: value for name, value in asdict(each).items() if value not in ((), None)}
            for each in self.edits
        ]
        return json.dumps({"kind": self.kind, "edits": edits}, sort_keys=True)

    @property
    def key(self) -> str:
        """A short name that depends on the content alone."""
        return hashlib.sha256(self.text().encode()).hexdigest()[:12]

    @classmethod
    def of(cls, text: str) -> "Case":
        """The case that ``text`` was written from."""
        found = json.loads(text)
        edits = tuple(
            Edit(each["file"], each["how"], tuple(each.get("where", ())), each.get("value"))
            for each in found["edits"]
        )
        return cls(found["kind"], edits)
