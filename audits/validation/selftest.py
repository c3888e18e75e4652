"""``exhume selftest``: does this installation distinguish deleted from suppressed?

A small world and models of known state are made on the spot, and every model is audited. The
result is a confusion matrix for this machine and these library versions. It is no calibration:
the published error rates are in docs/results/verdict.md.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from audits.output.outputs import hold_folder
from audits.validation.error_page import page
from audits.validation.error_rates import Case, ablation, case_of, confusion, figures
from audits.validation.trials import FLOORS, AuditPlan, run_plan
from evidence.errors import InputError, quoted
from evidence.machine.devices import choose_device
from evidence.progress import AUTO, Progress, as_progress
from evidence.seeds import check_seed
from evidence.storage.files import write_files_atomic
from evidence.storage.regular_files import as_path
from evidence.typed_json import Json
from testbeds.worlds.biographies import STANDARD, BiosConfig
from testbeds.worlds.random_models import Family, known_families

# Seed of a world that is in neither part of the zoo.
SEED = 100
MAX_JOBS = 1024
# Maximum share of inconclusive audits.
MAX_UNDECIDED = 0.25
# Files and folders written into its folder, including those of the zoo and the audits.
PARTS = ("selftest.json", "selftest.html", "worlds", "models", "audits", "manifest.json")
KINDS = (
    "untouched",
    "retain_tuned",
    "last_block_relabel",
    "head_only",
    "twin",
    "retrain_1",
    "collapse",
    "noise",
)


@dataclass(frozen=True)
class SelfTest:
    """Result of the self-test.

    Attributes:
        cases: One per audit.
        rows: Figures, as in docs/results/verdict.md.
        without: Confusion counts with each axis left out.
        failed: Models that could not be made or audited, in sentences.
        page: The HTML page.
    """

    cases: tuple[Case, ...]
    rows: tuple[dict[str, Json], ...]
    without: tuple[dict[str, Json], ...]
    failed: tuple[str, ...]
    page: Path

    @property
    def wrong(self) -> list[Case]:
        """Decided audits with the wrong verdict."""
        return [c for c in self.cases if c.verdict != "inconclusive" and not c.right]

    @property
    def undecided(self) -> list[Case]:
        """Inconclusive audits."""
        return [c for c in self.cases if c.verdict == "inconclusive"]

    @property
    def passed(self) -> bool:
        """Whether all audits ran, none is wrong, and few enough are inconclusive.

        The last condition matters because an audit that never decides is never wrong.
        """
        enough = len(self.undecided) <= MAX_UNDECIDED * len(self.cases)
        return bool(self.cases) and enough and not self.wrong and not self.failed


def selftest(
    out: Path,
    *,
    families: tuple[Family, ...] = ("llama",),
    seed: int = SEED,
    kinds: tuple[str, ...] = KINDS,
    config: BiosConfig = STANDARD,
    device: str = "cpu",
    jobs: int = 1,
    progress: Progress = AUTO,
) -> SelfTest:
    """Make models of known state, audit them, and write the error rates.

    Args:
        out: Folder for models, audits, ``selftest.json`` and ``selftest.html``; the same call
            resumes there.
        families: Architectures.
        seed: Of the world.
        kinds: Kinds of models of known state.
        config: Size of the world.
        jobs: Number of processes.

    Raises:
        InputError: an argument that cannot be used, or ``out`` cannot be written to.
    """
    out = as_path(out, "the output folder")
    check_seed(seed)
    families = known_families(families)
    device = choose_device(device)
    if isinstance(jobs, bool) or not isinstance(jobs, int) or not 1 <= jobs <= MAX_JOBS:
        raise InputError(
            "invalid number of processes",
            expected=f"a whole number from 1 to {MAX_JOBS}",
            got=quoted(jobs),
        )
    with hold_folder(out, "selftest", PARTS, {}):
        worlds: list[tuple[Family, int]] = [(name, seed) for name in families]
        plan = AuditPlan(out, tuple(worlds), kinds, device=device, config=config)
        audited, failed, tracebacks = [], [], []
        total = len(worlds) * len(kinds) * len(FLOORS)
        with as_progress(progress).task("self-test: models made and audited", total) as advance:
            for line in run_plan(plan, jobs):
                if "failed" in line:
                    failed.append(f"{line['model']}: {line['failed']}")
                    tracebacks.append(line.get("traceback"))
                else:
                    audited.append(line)
                advance(1)
        cases = sorted(map(case_of, audited), key=lambda case: (case.model, case.floor))
        done = SelfTest(
            tuple(cases),
            tuple(figures(cases)) if cases else (),
            tuple(ablation(audited)),
            tuple(failed),
            out / "selftest.html",
        )
        text = {
            "passed": done.passed,
            "confusion": confusion(cases),
            "rows": done.rows,
            "without_axis": done.without,
            "failed": done.failed,
            "tracebacks": tracebacks,
            "cases": [asdict(case) for case in cases],
        }
        title = (
            f"exhume selftest: {'passed' if done.passed else 'FAILED'}, "
            f"{len(cases)} audits, {len(done.wrong)} wrong verdicts, "
            f"{len(done.undecided)} inconclusive"
        )
        write_files_atomic(
            {
                out / "selftest.json": json.dumps(text, indent=1) + "\n",
                done.page: page(cases, title),
            }
        )
        return done
