"""What the runner of the GPU checks does by itself; this needs no GPU."""

from gpu_check import WORK, line, run_check
from gpu_checks import Case


def test_a_check_that_takes_too_long_is_ended_and_told():
    result = run_check("versions", Case("nowhere", "tiny", WORK["tiny"]), limit_s=0.1)
    assert result["status"] == "failed"
    assert result["reason"] == "not done within 0.1 s"
    assert line("versions", result).startswith("versions         failed")
