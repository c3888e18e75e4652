"""``audit.json``: build, validate and read the document."""

import json
from functools import cache
from importlib.resources import files
from pathlib import Path
from time import strftime
from typing import Any

from audits.output.manifest import code_hash, hardware, versions
from audits.run.pipeline import Findings, OpenAudit
from audits.run.upgrade import OLD_VERSION, upgrade
from audits.verdict.calibration import CalibrationNote, Estimate, estimate, shipped
from audits.verdict.rule import Verdict
from evidence.errors import InputError, printable
from evidence.storage.files import read_json, utf8_path
from evidence.storage.regular_files import file_kind, is_folder
from evidence.typed_json import to_json_object

SCHEMA_VERSION = "2.0"
NOT_CALIBRATED = Estimate(
    None,
    CalibrationNote(
        "none for images",
        ("chances were calibrated on language models; none is stated for images",),
    ),
)
AUDIT, REPORT = "audit.json", "report.html"
MAX_DEPTH = 30
"""Maximum nesting; our documents have ten levels."""


SCHEMAS = {SCHEMA_VERSION: "audit.schema.json", OLD_VERSION: "audit-1.1.schema.json"}


@cache
def schema(version: str = SCHEMA_VERSION) -> dict[str, Any]:
    """The published JSON Schema of ``audit.json``."""
    text = files("audits.run").joinpath(SCHEMAS[version]).read_text(encoding="utf-8")
    return json.loads(text)


@cache
def _validator(version: str) -> Any:
    import jsonschema

    return jsonschema.Draft202012Validator(schema(version))


def validate_document(document: dict[str, Any]) -> None:
    """Check a document against the schema of its version.

    Raises:
        InputError: naming the first mismatch.
    """
    version = document.get("schema_version") if isinstance(document, dict) else None
    validator = _validator(OLD_VERSION if version == OLD_VERSION else SCHEMA_VERSION)
    error = next(validator.iter_errors(document), None)
    if error is not None:
        place = "/".join(map(str, error.absolute_path)) or "the document"
        raise InputError(
            f"audit.json does not fit its schema at {place}: {error.message[:200]}",
            fix="it was not written by this version of exhume; run the audit again",
        )
    names = [axis["name"] for axis in document["axes"]]
    if len(set(names)) < len(names):
        raise InputError("audit.json has two axes of one name", got=", ".join(names))


def build_document(opened: OpenAudit, findings: Findings, verdict: Verdict) -> dict[str, Any]:
    """The whole document; equal runs differ in ``runtime`` alone."""
    run = opened.run
    inputs = run.inputs
    behaviour = findings.axes.get("behaviour")
    main = behaviour.main_reading if behaviour is not None else None
    chances = NOT_CALIBRATED
    if opened.modality.calibrated:
        chances = estimate(shipped(), findings.axes, findings.preflight)
    document = {
        "schema_version": SCHEMA_VERSION,
        "modality": opened.modality.name,
        "verdict": {**verdict.to_dict(), **to_json_object(chances)},
        "axes": [axis.to_json() for axis in findings.axes.values()],
        "preflight": findings.preflight,
        "behaviour": {
            "forget_original": main.ceiling if main else None,
            "forget_unlearned": main.statistic if main else None,
            "forget_floor": main.floor if main else None,
            "utility": findings.damage.shares,
        },
        "config": run.config.stated() | {"budget": run.config.budget.model_dump(mode="json")},
        "manifest": {
            "models": [
                {
                    "role": role.name,
                    "source": printable(utf8_path(role.source), None),
                    "sha256": role.weights_hash,
                }
                for role in (inputs.original, inputs.unlearned, *inputs.references)
            ],
            "items": [
                {
                    "role": role,
                    "name": printable(items.name, None),
                    "format": items.format,
                    "sha256": items.digest,
                    "items": len(items),
                    "entities": len(items.entities),
                }
                for role, items in (
                    ("forget", inputs.forget),
                    ("retain", inputs.retain),
                    ("never_taught", inputs.never_taught),
                )
                if items is not None
            ],
            "code_sha256": code_hash(),
            "versions": versions(),
            "hardware": hardware(run.device),
            "seed": run.config.seed,
        },
        "runtime": {
            "written": strftime("%Y-%m-%dT%H:%M:%S%z"),
            "seconds": sum(each["seconds"] for each in findings.cost.values()),
            "stages": findings.cost,
        },
    }
    return json.loads(json.dumps(document, allow_nan=False))


def document_text(document: dict[str, Any]) -> str:
    """The validated text of ``audit.json``."""
    validate_document(document)
    text = json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False)
    return text + "\n"


def read_document(root: Path) -> dict[str, Any]:
    """Read and validate the ``audit.json`` of an output folder, or the file itself.

    A document of schema 1.1 is upgraded.

    Raises:
        InputError: there is none, or it does not fit the schema.
    """
    path = root / AUDIT if is_folder(root) else root
    if file_kind(path) == "nothing there":
        raise InputError(
            f"{path} does not exist",
            expected="the output folder of a finished audit",
            fix="run exhume audit first",
        )
    document = read_json(path, max_depth=MAX_DEPTH)
    validate_document(document)
    upgraded = upgrade(document)
    if upgraded["schema_version"] != document["schema_version"]:
        validate_document(upgraded)
    return upgraded
