#!/bin/sh
# Makes .venv-trl, once: TRL in an environment of its own, beside the same torch and transformers as ours. POSIX sh.
#
#   PYTHON=python3   the interpreter to build it with
#   TRL=1.16.*       TRL's version
#
# Prints the interpreter's path on its last line. The stamp is written last, so an interrupted install is made anew.
set -eu
cd "$(dirname "$0")/.."

venv=$(pwd -P)/.venv-trl
stamp=$venv/.stamp
log=$venv/install.log
torch=2.13.0
cpu_wheels=https://download.pytorch.org/whl/cpu
want="torch $torch, trl ${TRL:=1.16.*}, transformers 5.19.*"

if [ "$(cat "$stamp" 2>/dev/null || true)" != "$want" ]; then
    echo "setting up .venv-trl ($want; log: .venv-trl/install.log)" >&2
    rm -rf "$venv"
    "${PYTHON:-python3}" -m venv "$venv"
    pip() { "$venv/bin/python" -m pip --disable-pip-version-check install "$@" >>"$log" 2>&1; }
    # The CPU build first and alone, as in .make/env.sh: what follows would bring a CUDA build of several GB.
    pip "torch==$torch+cpu" || pip "torch==$torch" --index-url "$cpu_wheels" && pip "trl==$TRL" "transformers==5.19.*" || {
        echo "trl_env.sh: TRL cannot be installed; the end of $log:" >&2
        tail -n 10 "$log" >&2
        exit 2
    }
    echo "$want" >"$stamp"
fi
echo "$venv/bin/python"
