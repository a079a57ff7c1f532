"""`rayalign report`."""

from __future__ import annotations

import argparse
from pathlib import Path

from rayalign.cli.parser import Parser, add_command


def add_report(commands: argparse._SubParsersAction[Parser]) -> None:
    """Adds the command."""
    report = add_command(
        commands,
        "report",
        "show what runs learned, as one HTML file",
        "Writes report.html to the run's folder, or for several runs to the folder above the first: rewards, curves with\n"
        "bands over seeds, where the time went, alarms, a browser of samples, settings. It opens without a network. Runs\n"
        "write their own when they end; this makes it anew, also of one that is running or died in the middle.",
        about="",
    )
    report.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run's folder (RUN_DIR/NAME)")
    report.add_argument("--out", type=Path, metavar="FILE", help="writes there instead")
    report.set_defaults(run=_report)


def _report(parsed: argparse.Namespace) -> None:
    from rayalign.report.run_page import write_run_report
    from rayalign.storage.run_folder import is_held

    running = [run for run in parsed.runs if run.is_dir() and is_held(run)]
    print(f"report: {write_run_report(parsed.runs, parsed.out, running=running)}")
