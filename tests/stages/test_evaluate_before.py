"""The evaluate stage looks at what it will write to before it samples for hours."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rayalign.config.selection import EvaluateStage
from rayalign.errors import UserError
from rayalign.stages.evaluate import run_evaluate


def test_a_damaged_evaluation_is_told_before_anything_is_read(tmp_path: Path) -> None:
    (tmp_path / "evaluation.json").write_text("{")
    stage = EvaluateStage.model_validate({"models": {"rft": "owner/model"}, "prompts": {"path": "owner/prompts"}})
    context: Any = SimpleNamespace(folder=tmp_path)  # nothing else of it is asked
    with pytest.raises(UserError, match="cannot be read as an evaluation .*; move it away$"):
        run_evaluate(context, stage)
