"""`make env`, with a stand-in for pip: what is installed, in which order, and when nothing is."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]

# Stands for the interpreter that makes the environment and for the one in it: `-m venv` makes little, `-m pip` is recorded,
# and fails where its arguments contain what the file `fail` holds; everything else is the real Python.
PYTHON = """#!/bin/sh
case "$1 $2" in
"-m venv")
    mkdir -p "$3/bin" && cp "$0" "$3/bin/python" && echo "command = python -m venv $3" >"$3/pyvenv.cfg" ;;
"-m pip")
    shift 3
    echo "$*" >>"{root}/pip.log"
    if [ -s "{root}/fail" ] && echo "$*" | grep -qF -- "$(cat "{root}/fail")"; then
        echo "ERROR: no such thing"
        exit 1
    fi ;;
*)
    exec "{real}" "$@" ;;
esac
"""


class Checkout:
    """A folder that holds what `make env` reads."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for name in (".make", "constraints"):
            shutil.copytree(ROOT / name, root / name)
        for name in ("pyproject.toml", "Makefile"):
            shutil.copy(ROOT / name, root / name)
        self.write("python", PYTHON.format(root=root, real=sys.executable))

    def write(self, name: str, text: str) -> None:
        (self.root / name).write_text(text)
        (self.root / name).chmod(0o755)

    def env(self, extra: str = "cpu", python: str = "./python") -> tuple[int, str, list[str]]:
        """Runs `make env`: its status, what it said, and what pip was asked for."""
        (self.root / "pip.log").write_text("")
        done = subprocess.run(
            ["make", "--no-print-directory", "env", f"PYTHON={python}", f"EXTRA={extra}"],
            cwd=self.root,
            env={"PATH": f"{self.root}:/usr/bin:/bin", "HOME": str(self.root)},
            capture_output=True,
            text=True,
        )
        return done.returncode, done.stdout + done.stderr, (self.root / "pip.log").read_text().splitlines()


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


CPU_STEPS = [
    "install torch==2.13.0+cpu",
    "install -c constraints/cpu.txt -e .[cpu,control,evals,dev]",
    "uninstall -y torchvision torchaudio torchcodec",
]


def test_cpu_torch_comes_first_and_a_second_run_installs_nothing(checkout: Checkout) -> None:
    assert checkout.env()[2] == CPU_STEPS
    status, said, asked = checkout.env()
    assert (status, said, asked) == (0, "", [])


def test_touching_files_installs_nothing_and_changing_them_does(checkout: Checkout) -> None:
    checkout.env()
    (checkout.root / "pyproject.toml").touch()
    assert checkout.env()[2] == []
    with (checkout.root / "constraints" / "cpu.txt").open("a") as file:
        file.write("\n# changed\n")
    assert checkout.env()[2] == CPU_STEPS


def test_torch_comes_from_pytorchs_index_where_pip_does_not_find_it(checkout: Checkout) -> None:
    (checkout.root / "fail").write_text("torch==2.13.0+cpu")
    status, _, asked = checkout.env()
    assert status == 0
    assert asked[1] == "install torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu"
    assert [asked[0], *asked[2:]] == CPU_STEPS


def test_a_failed_install_shows_its_log_and_is_taken_up_again(checkout: Checkout) -> None:
    checkout.env()
    with (checkout.root / "pyproject.toml").open("a") as file:
        file.write("\n# changed\n")
    (checkout.root / "fail").write_text("-e .[cpu,control,evals,dev]")
    status, said, _ = checkout.env()
    assert status != 0
    assert "ERROR: no such thing" in said
    assert not (checkout.root / ".venv" / ".stamp").exists()
    (checkout.root / "fail").unlink()
    assert checkout.env()[2] == CPU_STEPS
    assert checkout.env()[2] == []


def test_a_gpu_is_noticed_and_gets_an_environment_of_its_own(checkout: Checkout) -> None:
    checkout.env()
    (checkout.root / ".venv" / "left-over").touch()
    checkout.write("nvidia-smi", "#!/bin/sh\necho 'GPU 0: a card (UUID: GPU-1)'\n")
    status, said, asked = checkout.env(extra="")
    assert (status, asked) == (0, ["install -e .[gpu,control,evals,dev]"])
    assert "making it anew" in said
    assert not (checkout.root / ".venv" / "left-over").exists()
    assert checkout.env(extra="")[2] == []


def test_an_environment_of_another_place_is_made_anew(checkout: Checkout) -> None:
    checkout.env()
    config = checkout.root / ".venv" / "pyvenv.cfg"
    config.write_text("command = python -m venv /somewhere/else/.venv\n")
    assert checkout.env()[2] == []  # nothing changed, nothing is looked at
    (checkout.root / ".venv" / ".stamp").unlink()
    status, said, asked = checkout.env()
    assert (status, asked) == (0, CPU_STEPS)
    assert "making it anew" in said


@pytest.mark.parametrize(
    ("python", "extra", "sentence"),
    [
        ("./old", "cpu", "rayalign needs Python 3.11 or newer and ./old is 3.9.2"),
        ("./absent", "cpu", "there is no ./absent"),
        ("./python", "tpu", "EXTRA is 'tpu': it is cpu or gpu"),
    ],
)
def test_what_the_user_can_mend_is_one_line(checkout: Checkout, python: str, extra: str, sentence: str) -> None:
    checkout.write("old", '#!/bin/sh\ncase "$2" in *exit*) exit 1 ;; *) echo 3.9.2 ;; esac\n')
    status, said, asked = checkout.env(extra=extra, python=python)
    assert status == 2
    assert asked == []
    lines = [line for line in said.splitlines() if not line.startswith("make: ***")]
    assert len(lines) == 1 and sentence in lines[0]


@pytest.mark.parametrize("target", ["help", "env", "demo", "check", "docs", "test", "clean"])
def test_every_target_parses(target: str) -> None:
    done = subprocess.run(["make", "-n", target, "ARGS=-k x"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_constraints_hold_a_version_that_fits_for_every_direct_dependency() -> None:
    lines = (ROOT / "constraints" / "cpu.txt").read_text().splitlines()
    pairs = (line.split("==") for line in lines if line and not line.startswith("#"))
    pins = {canonicalize_name(name): version for name, version in pairs}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    installed = [text for extra, texts in extras.items() if extra != "gpu" for text in texts]
    for text in [*project["dependencies"], *installed]:
        requirement = Requirement(text)
        version = pins[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(Version(version)), f"{text} against {version}"


def test_what_the_package_imports_is_named() -> None:
    """Not only brought along by something else."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    named = {canonicalize_name(Requirement(r).name) for r in [*project["dependencies"], *sum(extras.values(), [])]}
    names_of = metadata.packages_distributions()
    modules = {module for file in (ROOT / "rayalign").rglob("*.py") for module in imports_of(file)}
    foreign = modules - set(sys.stdlib_module_names) - {"rayalign"}
    assert {"torch", "grpc"} <= foreign
    assert [m for m in sorted(foreign) if not {canonicalize_name(n) for n in names_of.get(m, [m])} & named] == []


def imports_of(file: Path) -> set[str]:
    """The packages that a file imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(str(node.module).partition(".")[0])
    return found


def test_constraints_name_versions_only() -> None:
    lines = [line for line in (ROOT / "constraints" / "cpu.txt").read_text().splitlines() if not line.startswith("#")]
    assert [line for line in lines if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", line)] == []
    assert not {line.split("==")[0] for line in lines} & {"torchvision", "torchaudio", "torchcodec", "rayalign"}
