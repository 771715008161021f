"""`python -m bench`: measure, print, write."""

from __future__ import annotations

import json
import shutil
import sys

from bench import machine, options, profile, report, rows
from bench.processes import ROOT, NotReadyError, end_all_on_signals
from bench.stage import Stage

DOCUMENT = ROOT / "docs" / "benchmarks.md"


def main() -> int:
    """Return 0 where meshd was measured: a missed goal is a finding, not a failure."""
    given = options.read()
    end_all_on_signals()
    described = None
    try:
        stage = Stage(given)
    except NotReadyError as error:
        print(error, file=sys.stderr)
        return 1
    try:
        described = machine.description(stage.cores)
        if given.is_profile:
            return profile.show(stage)
        measured, evidence = rows.measure(stage)
    finally:
        stage.close()
        if given.keeps_logs:
            stage.say(f"configurations and logs are in {stage.folder}")
        else:
            shutil.rmtree(stage.folder, ignore_errors=True)
    settings = f"{given.rounds} rounds of {given.seconds} s, medians"
    text = report.document(measured, described, stage.versions, stage.absent, settings)
    if evidence:
        text += f"\n\nThe policy was on: {evidence}."
    print(text)
    if given.json:
        values = {"machine": described, "versions": stage.versions, "absent": stage.absent, "run": settings}
        given.json.write_text(json.dumps(values | {"rows": [row.values() for row in measured]}, indent=1))
    if given.is_written and "meshd" not in stage.absent:
        DOCUMENT.write_text(report.replaced(DOCUMENT.read_text(), text))
        print(f"\nwritten: {DOCUMENT.relative_to(ROOT)}", file=sys.stderr)
    if "meshd" in stage.absent:
        print(f"\nmeshd was not measured: {stage.absent['meshd']}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
