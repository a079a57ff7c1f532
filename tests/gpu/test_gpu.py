"""The GPU path on a tiny model: what benchmarks/gpu.sh times on a large one, as tests.

Each check runs in a process of its own, so that one that dies, or keeps the GPU's memory, does not fail the next.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from gpu_check import LIMIT_S, line, make_case, run_check
from gpu_checks import CHECKS, Case

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
    pytest.mark.timeout(LIMIT_S + 60),
]


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    """Random weights of a few thousand parameters."""
    yield make_case(Path(tmp_path_factory.mktemp("model")), "tiny")


@pytest.mark.parametrize("name", CHECKS)
def test_check(name: str, case: Case) -> None:
    """Passes, or is skipped with the check's own reason (a second GPU is missing, say)."""
    result = run_check(name, case)
    if result["status"] == "skipped":
        pytest.skip(result["reason"])
    assert result["status"] == "passed", line(name, result)
