"""Pages on the formats of item files: ``python -m tests.repository.formats_page``.

docs/reference/formats.md has a section a format, and docs/guide/data.md a table of them, both from
the registry. They are committed, so that they can be read in the repository; a test compares them
with the registry as it is.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from textwrap import fill as _fill

from capture.data.formats import passages
from capture.data.formats.registry import FORMATS, Format

DOCS = Path(__file__).parents[2] / "docs"
PAGE = DOCS / "reference" / "formats.md"
GUIDE = DOCS / "guide" / "data.md"
START, END = "<!-- formats: written by tests/repository/formats_page.py -->\n", "<!-- end -->\n"
COMMAND = "exhume validate forget.jsonl retain.jsonl"
HEAD = f"""# Formats of item files

Written by `python -m tests.repository.formats_page` from `capture/data/formats/registry.py`; edits
are lost.

A format is recognized by its fields, whose case does not matter. The first that matches, in the
order of this page, is used. `{COMMAND}` shows how two files were understood. Where a format fits
but a column has another meaning, or no format fits, `--columns` says which column is which.

## How texts are cut

A passage has a prompt of {passages.N_PROMPT_WORDS} words and a continuation of
{passages.N_ANSWER_WORDS}, verbatim, within one paragraph where one is long enough. Text that is
written without spaces is counted in characters. A text gives at most {passages.CUTS_PER_TEXT}
passages, spread evenly, and is one entity. In a file of fewer than {passages.FEW_TEXTS} texts,
those of {passages.LONG_WORDS:,} words or more give up to {passages.SECTIONS_PER_TEXT} passages at
least {passages.SECTION_WORDS} words apart, each an entity of its own. Of more than
{passages.MAX_TEXTS} texts, {passages.MAX_TEXTS} are cut, and the name of the format says so.

## How entities and relations are found

A column that names the entity is used in every format: `entity`, `author`, `subject`, `name`,
`title`, `edge` and the like. Without one, questions in runs of twenty about one author are grouped
as TOFU's; otherwise, names that recur in the file are the entities. A row that names no entity of
the file is an entity of its own, and the name of the format counts such rows. The relation of a
question is the template that questions about at least four entities share, such as
`Where was _ born?`.
"""


def page() -> str:
    """The reference page."""
    return _wrapped(HEAD) + "".join(map(_section, FORMATS))


def _wrapped(text: str) -> str:
    """Paragraphs in lines of at most 100 columns."""
    parts = (
        part
        if "#" in part[:1]
        else _fill(part, 100, break_on_hyphens=False, break_long_words=False)
        for part in text.strip().split("\n\n")
    )
    return "\n\n".join(parts) + "\n"


def _section(each: Format) -> str:
    about = f"Fields: {each.fields}. Entity: {each.entity}."
    kind = "Prompt and answer" if each.example else "Refused"
    text = f"\n## {each.name}\n\n" + _wrapped(f"{about}\n\n{kind}: {each.becomes}.")
    if not each.example:
        return text
    example = json.dumps(each.example, ensure_ascii=False)
    return f"{text}\n```json\n{example}\n```\n\n```sh\n{COMMAND}\n```\n"


def guide(text: str) -> str:
    """The guide with its table written again."""
    before, _, rest = text.partition(START)
    _, _, after = rest.partition(END)
    return before + START + "".join(_table()) + END + after


def _table() -> Iterator[str]:
    yield "| format | fields | entity |\n|---|---|---|\n"
    for each in FORMATS:
        anchor = each.name.replace(" ", "-")
        cells = f"{each.fields} | {each.entity}"
        yield f"| [{each.name}](../reference/formats.md#{anchor}) | {cells} |\n"


def example_rows(each: Format, start: int, stop: int) -> Iterator[Mapping[str, object]]:
    """Rows like the example of a format, each about another person and place."""
    for at in range(start, stop):
        text = json.dumps(each.example)
        for old, new in (
            ("Anna Keller", f"{_name(at)} {_name(7 * at + 3)}"),
            ("Lisbon", f"{_name(3 * at + 1)}ton"),
            ("0007sc1", f"{at:04}sc1"),
            ("f-001", f"f-{at}"),
            ('"idx": 0', f'"idx": {20 * at}'),
        ):
            text = text.replace(old, new)
        yield json.loads(text)


def _name(at: int) -> str:
    """An invented capitalized word, another for each number below 1,000."""
    parts = "ba de fi go lu ma ne pi ro su".split()
    return "".join(parts[int(digit)] for digit in f"{at % 1000:03}").capitalize()


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    GUIDE.write_text(guide(GUIDE.read_text(encoding="utf-8")), encoding="utf-8")
