#!/bin/sh
# Builds, checks and times the GPU path on a machine with one GPU and no network. POSIX sh, no arguments.
#
#   PYTHON=python3     has torch with CUDA, transformers, peft and pytest
#   WHEELS=            a folder of wheels for what PYTHON lacks (vllm, deepspeed, ray and what they need)
#   OUT=gpu.json       where the numbers go
#   SIZE=0.5b          the model's size; tiny for a first look
#   LIMIT_S=900        seconds that one check may take
#   ONLY=              names of checks, where not all of them; leaves the tests out
#
# Works in .venv-gpu, which sees PYTHON's packages; PYTHON's own environment stays as it is. Exit code 2: no GPU.
set -eu
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
venv=$(pwd -P)/.venv-gpu

command -v "$python" >/dev/null 2>&1 || {
    echo "gpu.sh: there is no $python; name the interpreter that has torch, as in PYTHON=python3.12 benchmarks/gpu.sh"
    exit 2
}
"$python" - <<'PY' || exit 2
import sys
sys.path.insert(0, "benchmarks")
from gpu_check import why_not
reason = why_not()
if reason:
    sys.exit(print(f"gpu.sh: {reason}") or 2)
PY

# PYTHON's packages are seen through a path file: that works for an interpreter in an environment of its own too.
if [ ! -x "$venv/bin/python" ]; then
    "$python" -m venv --without-pip "$venv"
    "$python" -c 'import site; print("\n".join(site.getsitepackages()))' >"$(echo "$venv"/lib/python3*/site-packages)/outer.pth"
fi
pip() { "$venv/bin/python" -m pip --disable-pip-version-check install -q --no-index "$@"; }
if [ -n "${WHEELS:-}" ]; then
    for package in vllm deepspeed "ray[default,train,rllib]" datasets peft pytest; do
        name=${package%%\[*}
        "$venv/bin/python" -c "import importlib.util as u, sys; sys.exit(u.find_spec('$name') is None)" ||
            pip --find-links "$WHEELS" "$package" || echo "gpu.sh: no $package from $WHEELS; what needs it is skipped or fails"
    done
fi
# vLLM's worker processes find our weight transfer through the package's entry point. What it needs is there already.
pip --no-deps --no-build-isolation -e . ||
    echo "gpu.sh: rayalign is not installed (no setuptools?): tensor parallel will not know its weight transfer"
export PYTHONPATH="$(pwd -P)${PYTHONPATH:+:$PYTHONPATH}"

status=0
# Without our settings of pytest: they need plugins that such a machine may lack.
[ -n "${ONLY:-}" ] ||
    "$venv/bin/python" -m pytest -c /dev/null --rootdir . -W ignore::pytest.PytestUnknownMarkWarning -q -rs -m gpu tests/gpu ||
    status=1
# shellcheck disable=SC2086 # names of checks are words
"$venv/bin/python" benchmarks/gpu_check.py --size "${SIZE:-0.5b}" --limit-s "${LIMIT_S:-900}" \
    ${ONLY:+--only $ONLY} --out "${OUT:-gpu.json}" || status=1
exit $status
