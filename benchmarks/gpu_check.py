"""Runs the checks of gpu_checks.py on this machine's GPU, each in a process of its own, and prints one table.

    python benchmarks/gpu_check.py --out gpu.json

The model has random weights of Qwen2.5-0.5B's architecture; nothing is fetched. A check that fails does not stop the
others, and the file of numbers is written after each. Exit code 0 when all passed or were skipped, 1 when one failed,
2 when there is no GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import workload
from gpu_checks import CHECKS, Case, Skipped

HERE = Path(__file__).resolve().parent
LIMIT_S = 900.0
WORK = {"0.5b": workload.GPU, "tiny": workload.CORES}


def main() -> None:
    """One check (in a child), or all of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="0.5b", choices=list(WORK))
    parser.add_argument("--only", nargs="+", choices=list(CHECKS), default=list(CHECKS))
    parser.add_argument("--limit-s", type=float, default=LIMIT_S, help="seconds that one check may take")
    parser.add_argument("--out", type=Path, help="where the numbers go, as JSON")
    parser.add_argument("--child", metavar="MODEL", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        run_here(arguments.only[0], Case(arguments.child, arguments.size, WORK[arguments.size]), arguments.out)
        return
    if reason := why_not():
        print(f"gpu_check.py: {reason}")
        sys.exit(2)
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as folder:
        case = make_case(Path(folder), arguments.size)
        results = {}
        for name in arguments.only:
            results[name] = run_check(name, case, limit_s=arguments.limit_s)
            print(line(name, results[name]), flush=True)
            if arguments.out:
                arguments.out.write_text(json.dumps({"size": arguments.size, "checks": results}, indent=2) + "\n")
    print(comparison(results))
    sys.exit(any(result["status"] == "failed" for result in results.values()))


def why_not() -> str | None:
    """Why this machine cannot run the checks; None if it can."""
    try:
        import torch
    except ImportError:
        return f"{sys.executable} has no torch; name another interpreter, as in PYTHON=python3.12 benchmarks/gpu.sh"
    if not torch.cuda.is_available():
        return f"no CUDA GPU here (torch {torch.__version__}); nothing was checked"
    return None


def make_case(folder: Path, size: str) -> Case:
    """Random weights in bfloat16, tokenizer and prompts."""
    case = Case(str(folder), size, WORK[size])
    workload.make_model(folder, size, case.work, dtype=case.dtype)
    return case


def run_check(name: str, case: Case, *, limit_s: float = LIMIT_S) -> dict[str, Any]:
    """One check in a child process: {status, wall_s, numbers or reason}."""
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        out, log = Path(folder) / "result.json", Path(folder) / "log"
        command = [
            sys.executable,
            __file__,
            "--child",
            case.model,
            "--size",
            case.size,
            "--only",
            name,
            "--out",
            str(out),
        ]
        # Ray's workers import our modules too.
        paths = [str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
        with log.open("wb") as output:
            child = subprocess.Popen(
                command, stdout=output, stderr=subprocess.STDOUT, env=environment, start_new_session=True
            )
            try:
                child.wait(limit_s)
            except subprocess.TimeoutExpired:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
        if out.exists():
            result = json.loads(out.read_text())
        else:
            late = (
                f"not done within {limit_s:g} s" if child.returncode == -signal.SIGKILL else f"exit {child.returncode}"
            )
            result = {"status": "failed", "reason": late}
        if result["status"] == "failed":
            result["log"] = log.read_text(errors="replace").splitlines()[-30:]
    return result | {"wall_s": round(time.perf_counter() - started, 1)}


def run_here(name: str, case: Case, out: Path) -> None:
    """The child's part: whatever a check raises becomes its result."""
    try:
        result: dict[str, Any] = {"status": "passed", "numbers": CHECKS[name](case)}
    except Skipped as reason:
        result = {"status": "skipped", "reason": str(reason)}
    except Exception as error:  # noqa: BLE001 - a check that fails is a line of the table, not the end of it
        import traceback

        traceback.print_exc()
        result = {"status": "failed", "reason": f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"}
    out.write_text(json.dumps(result))


def line(name: str, result: dict[str, Any]) -> str:
    """One row of the table; the log's end below a failed one."""
    said = result.get("reason") or ", ".join(f"{key} {_short(value)}" for key, value in result["numbers"].items())
    row = f"{name:<17}{result['status']:<9}{result['wall_s']:>6.0f} s  {said}"
    return "\n    ".join([row, *result.get("log", [])])


def comparison(results: dict[str, Any]) -> str:
    """Generation in the loop against bare vLLM, where both were measured."""
    numbers = {name: result["numbers"] for name, result in results.items() if result["status"] == "passed"}
    bare = numbers.get("bare_generation")
    loops = [name for name in ("ipc_colocated", "nccl_separate", "in_process") if name in numbers]
    if bare is None or not loops:
        return "generation in the loop against bare vLLM: not measured"
    shares = ", ".join(f"{name} {numbers[name]['tokens_per_s'] / bare['tokens_per_s']:.1%}" for name in loops)
    return f"generation in the loop, of bare vLLM's {bare['tokens_per_s']:,} tokens/s: {shares} (wanted at least 95%)"


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
