"""Every benchmark of the project.

python -m benchmarks --list               suites and their parts
python -m benchmarks SUITE [--only PART]  measure, keep the result, write the pages
python -m benchmarks SUITE --dry          say what would be measured
python -m benchmarks SUITE --help         options of a suite
python -m benchmarks pages                write every page of docs/ again from the results
"""

import sys
from importlib import import_module

from benchmarks.harness.pages import Page
from benchmarks.harness.runner import Suite
from evidence.errors import ExhumeError, InputError

SUITES = {
    "probes": "benchmarks.suites.probes",
    "erasers": "benchmarks.suites.erasers",
    "circuits": "benchmarks.suites.circuits.suite",
    "restoration": "benchmarks.suites.restoration.suite",
    "vision": "benchmarks.suites.vision.suite",
    "causal-depth": "benchmarks.suites.causal_depth",
    "verdict": "benchmarks.suites.verdict.suite",
    "known-pairs": "benchmarks.suites.verdict.known_pairs",
    "bad-inputs": "benchmarks.suites.bad_inputs",
    "pga": "benchmarks.pga.suite",
    "pga-reasons": "benchmarks.pga.recipes",
    "house": "benchmarks.suites.house",
    "contract": "benchmarks.suites.contract",
    "real-inputs": "benchmarks.suites.real_inputs.suite",
    "early": "benchmarks.suites.early",
    "conformance": "benchmarks.suites.conformance.suite",
}


def suite(name: str) -> Suite:
    """A suite by its name.

    Raises:
        InputError: there is none.
    """
    if name not in SUITES:
        raise InputError("there is no such suite", expected=", ".join((*SUITES, "pages")), got=name)
    return import_module(SUITES[name]).SUITE


def every_page() -> dict[str, Page]:
    """Pages of all suites by name."""
    pages = (page for name in SUITES for page in suite(name).pages)
    return {page.name: page for page in pages}


def main(arguments: list[str]) -> int:
    """Run what is asked for; the exit code."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(__doc__)
        return 0
    first, *rest = arguments
    try:
        if first == "--list":
            for name in SUITES:
                print(f"{name}: {suite(name).about}", *suite(name).lines(), sep="\n")
        elif first == "pages":
            for page in every_page().values():
                page.write()
                print(page.path)
        else:
            suite(first).run(rest)
    except ExhumeError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
