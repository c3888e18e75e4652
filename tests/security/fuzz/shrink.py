"""The smallest part of a bad input that still has the same fault."""

from collections.abc import Callable
from dataclasses import replace

from tests.security.fuzz.inputs.case import Case
from tests.security.fuzz.judge import Outcome


def smallest(
    case: Case, outcome: Outcome, tried: Callable[[Case], Outcome]
) -> tuple[Case, Outcome]:
    """Leave out edits one by one for as long as the first fault stays.

    Args:
        case: An input that has faults.
        outcome: Its outcome.
        tried: Tries an input.
    """
    fault = outcome.faults[0]
    place = 0
    while len(case.edits) > 1 and place < len(case.edits):
        shorter = replace(case, edits=case.edits[:place] + case.edits[place + 1 :])
        found = tried(shorter)
        if fault in found.faults:
            case, outcome = shorter, found
        else:
            place += 1
    return case, outcome
