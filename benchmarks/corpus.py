"""Hunts for inputs that rayalign does not refuse well: damaged configs, data files and run folders.

    python -m benchmarks.corpus --cases 5000 --seed 1              # from the repository's root
    python -m benchmarks.corpus --kind "config YAML" --kind "data bytes"

The cases are those of tests/hostile with another seed. A fault is printed with its input, and the exit code is then 1:
make a test of it before you mend it.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections import Counter

from tests.hostile.corpus import KINDS, run_cases
from tests.hostile.judge import Outcome, Verdict

COLUMNS: dict[Outcome, str] = {
    "refused": "refused with a place",
    "accepted": "accepted",
    "no place": "without a place",
    "not refused": "nonsense accepted",
    "left behind": "left behind",
    "traceback": "tracebacks",
    "hang": "hangs",
}
MAX_SHOWN = 3  # faults of a kind


def main() -> None:
    """Runs the kinds, prints a row for each, and then the faults."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=5000, help="of all kinds together, shared as the tests share theirs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", action="append", choices=list(KINDS), help="these only; may be given several times")
    arguments = parser.parse_args()
    kinds = arguments.kind or list(KINDS)
    share = arguments.cases / sum(KINDS[kind][1] for kind in kinds)
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.chdir(tempfile.mkdtemp(prefix="corpus-"))
    print(f"{'kind':<24}{'cases':>8}" + "".join(f"{name:>22}" for name in COLUMNS.values()) + f"{'slowest, s':>12}")
    faults: list[Verdict] = []
    for kind in kinds:
        verdicts = run_cases(kind, max(1, round(KINDS[kind][1] * share)), arguments.seed)
        counts = Counter(verdict.outcome for verdict in verdicts)
        numbers = "".join(f"{counts[outcome]:>22}" for outcome in COLUMNS)
        slowest = max(verdict.seconds for verdict in verdicts)
        print(f"{kind:<24}{len(verdicts):>8}{numbers}{slowest:>12.2f}", flush=True)
        faults += [verdict for verdict in verdicts if verdict.is_fault][:MAX_SHOWN]
    for fault in faults:
        print(f"\n{fault}")
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
