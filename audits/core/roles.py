"""Roles of the models of an audit."""

import re
from typing import Any, ClassVar

from pydantic_core import core_schema

from evidence.errors import InputError

_NAMES = re.compile(r"original|unlearned|planted|reference-[1-9]\d*")


class Role(str):
    """Role of a model, stored as its name.

    Raises:
        InputError: there is no such role.
    """

    ORIGINAL: ClassVar["Role"]
    """The model before unlearning."""
    CANDIDATE: ClassVar["Role"]
    """The model under audit."""
    PLANTED: ClassVar["Role"]
    """The original with a known suppression: the positive control."""

    __slots__ = ()

    def __new__(cls, name: str) -> "Role":
        """The role of this name."""
        if not _NAMES.fullmatch(name):
            raise InputError(
                "this is no role of a model",
                expected="original, unlearned, planted, or reference-1, reference-2, ...",
                got=repr(name),
            )
        return super().__new__(cls, name)

    @classmethod
    def reference(cls, number: int) -> "Role":
        """The role of the ``number``-th model retrained without the forget set, from 1."""
        return cls(f"reference-{number}")

    @property
    def is_reference(self) -> bool:
        """Whether the model was retrained without the forget set."""
        return self.startswith("reference-")

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> core_schema.CoreSchema:
        return core_schema.no_info_after_validator_function(cls, core_schema.str_schema())


Role.ORIGINAL = Role("original")
Role.CANDIDATE = Role("unlearned")
Role.PLANTED = Role("planted")
