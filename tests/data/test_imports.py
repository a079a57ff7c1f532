"""The layer rule, and that importing the package costs nothing that reading JSONL does not need."""

from __future__ import annotations

import subprocess
import sys

MODULES = (
    "cursor dialogues files fingerprint hub ragged shapes sources splits tally template tokenize".split()
)


def test_no_heavy_module_is_imported():
    program = "\n".join(
        [
            *(f"import rayalign.data.{module}" for module in MODULES),
            "import sys",
            "print(sorted({'torch', 'ray', 'transformers', 'datasets', 'pyarrow'} & sys.modules.keys()))",
        ]
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
