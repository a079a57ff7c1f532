"""The manifests of cluster/ fit their schemas, and agree with pyproject.toml and with each other."""

from __future__ import annotations

import copy
import json
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
CLUSTER = ROOT / "cluster"
RAYJOB_SCHEMA = json.loads((Path(__file__).parent / "schemas" / "rayjob-v1.json").read_text())


def load(name: str) -> dict[str, Any]:
    return yaml.safe_load((CLUSTER / name).read_text())


def pinned(package: str) -> str:
    """The version pyproject.toml pins `package` to, extras and `.*` taken off."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    requirements = [*project["dependencies"], *sum(project["optional-dependencies"].values(), [])]
    found = [re.fullmatch(rf"{package}(?:\[.*\])?==([\d.]+?)(?:\.\*)?", text) for text in requirements]
    versions = {match.group(1) for match in found if match}
    assert len(versions) == 1, f"{package} is pinned to {versions or 'nothing'}"
    return versions.pop()


def rayjob_errors(manifest: dict[str, Any]) -> list[str]:
    return [error.message for error in jsonschema.Draft202012Validator(RAYJOB_SCHEMA).iter_errors(manifest)]


def test_rayjob_fits_the_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(RAYJOB_SCHEMA)
    assert rayjob_errors(load("rayjob.yaml")) == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("spec", "shutdownAfterJobFinished"), True),  # a misspelt field
        (("spec", "shutdownAfterJobFinishes"), False),  # a time to live without a shutdown
        (("spec", "submissionMode"), "SlurmMode"),
        (("spec", "rayClusterSpec", "authOptions", "secret"), "a-name"),
        (("spec", "rayClusterSpec", "headGroupSpec", "rayStartParams", "num-cpus"), 0),  # must be a string
        (("spec", "rayClusterSpec", "workerGroupSpecs", 0, "replicas"), "2"),
        (("spec", "rayClusterSpec", "workerGroupSpecs", 0, "template", "spec", "containers"), []),
        (("spec", "rayClusterSpec", "workerGroupSpecs", 0, "template", "spec", "volumes", 0, "emptydir"), {}),
    ],
)
def test_the_schema_rejects_mistakes(path: tuple[str | int, ...], value: object) -> None:
    manifest = copy.deepcopy(load("rayjob.yaml"))
    node: Any = manifest
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    assert rayjob_errors(manifest)


def test_rayjob_keeps_the_token_and_the_ray_version() -> None:
    cluster = load("rayjob.yaml")["spec"]["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token", "secretName": "rayalign-ray-token"}
    assert cluster["rayVersion"].startswith(pinned("ray") + ".")


def test_rayjob_mounts_what_it_declares_and_has_the_gpus_it_asks_for() -> None:
    spec = load("rayjob.yaml")["spec"]
    groups = [spec["rayClusterSpec"]["headGroupSpec"], *spec["rayClusterSpec"]["workerGroupSpecs"]]
    for pod in (group["template"]["spec"] for group in groups):
        mounted = {mount["name"] for container in pod["containers"] for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod["volumes"]}

    asked = sum(int(gpus) for gpus in re.findall(r"placement\.\w+\.gpus=(\d+)", spec["entrypoint"]))
    there = sum(
        group["replicas"] * int(group["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"])
        for group in spec["rayClusterSpec"]["workerGroupSpecs"]
    )
    assert asked == there


def test_ray_up_fits_rays_own_schema() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(load("ray-up.yaml")))
    with pytest.raises(jsonschema.ValidationError):
        validate_config(prepare_config(load("ray-up.yaml") | {"max_worker": 2}))


def test_ray_up_gives_every_node_the_token() -> None:
    config = load("ray-up.yaml")
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    for role in ("head", "worker"):
        start = config[f"{role}_start_ray_commands"][-1]
        assert "RAY_AUTH_MODE=token" in start.split("ray start")[0]


def test_dockerfile_copies_what_exists_and_what_the_context_holds() -> None:
    copies = re.findall(r"^COPY (?:--\S+ )*(.+)$", (CLUSTER / "Dockerfile").read_text(), re.MULTILINE)
    sources = {source for line in copies for source in line.split()[:-1]}
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert sources >= {"pyproject.toml", "constraints", ".make", "rayalign"}
    assert {source for source in sources if not (ROOT / source).exists()} == set()
    assert {source for source in sources if source.split("/")[0] not in kept} == set()


def test_dockerfile_installs_through_make_env_and_keeps_the_token() -> None:
    text = (CLUSTER / "Dockerfile").read_text()
    assert "make env EXTRA=${EXTRA}" in text  # so that the pins have one owner, pyproject.toml
    assert "RAY_AUTH_MODE=token" in text
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    for name in ("cluster/Dockerfile", "cluster/rayjob.yaml", "docs/cluster.md"):
        assert set(re.findall(r"rayalign:(\d\S+)", (ROOT / name).read_text())) == {version}, name


def test_no_file_switches_authentication_off() -> None:
    files = [path for path in CLUSTER.rglob("*") if path.is_file()] + [ROOT / "docs" / "cluster.md"]
    assert [path.name for path in files if re.search(r"AUTH_MODE[=:\s]+[\"']?disabled", path.read_text())] == []


def test_slurm_script_parses_and_asks_slurm_for_nodes_and_gpus() -> None:
    script = CLUSTER / "slurm.sh"
    subprocess.run(["bash", "-n", str(script)], check=True)
    lines = script.read_text().splitlines()
    options = [line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH")]
    assert all(re.fullmatch(r"--[a-z-]+(=\S+)?", option) for option in options)
    assert {option.split("=")[0] for option in options} >= {"--nodes", "--gpus-per-node", "--ntasks-per-node", "--time"}
    # sbatch stops reading options at the first command.
    first_command = next(number for number, line in enumerate(lines) if line and not line.startswith("#"))
    assert max(number for number, line in enumerate(lines) if line.startswith("#SBATCH")) < first_command
