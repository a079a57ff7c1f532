"""Pushing to a hub, a real server on the loopback: what is sent is what lies there, and every refusal is one line."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from rayalign.cli import main
from rayalign.errors import RayalignError, UserError
from rayalign.sharing.push import parcels, push
from tests.conftest import run_rayalign
from tests.sharing.hub import TOKEN, Hub, hub


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that this process asks, with a token."""
    with hub() as found:
        monkeypatch.setattr(constants, "ENDPOINT", found.url)  # what HF_ENDPOINT sets, when the library starts
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # the store of the real hub; ours has LFS alone
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield found


def content(folder: Path) -> dict[str, bytes]:
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_policy_and_reward_go_to_two_repositories(exported: Path) -> None:
    """The command in a process of its own, with its environment alone; and again, which changes nothing."""
    with hub() as found:
        environment = {"HF_ENDPOINT": found.url, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": ""}
        done = run_rayalign("push", str(exported), "me/tiny", "--private", **environment)
        assert done.returncode == 0, done.stderr
        assert found.repositories == {
            "me/tiny": content(exported / "policy"),
            "me/tiny-reward": content(exported / "reward"),
        }
        assert found.private == {"me/tiny", "me/tiny-reward"}
    assert f"{exported / 'policy'} -> me/tiny: 9 files" in done.stdout and TOKEN not in done.stdout + done.stderr
    assert done.stdout.index("-> me/tiny-reward") < done.stdout.index("sent: ")
    assert [line for line in done.stdout.splitlines() if line.startswith("sent")] == [
        f"sent: {found.url}/me/tiny", f"sent: {found.url}/me/tiny-reward",
    ]  # fmt: skip


def test_a_run_is_exported_first_and_a_dry_run_asks_nobody(
    rft: Path, server: Hub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    main(["push", str(rft), "me/tiny", "--stage", "sft", "--license", "MIT"])
    card = server.repositories["me/tiny"]["README.md"].decode()
    assert "license: mit" in card and "stage `sft`" in card and "me/tiny-reward" not in server.repositories
    assert not os.listdir(tmp_path)
    num_asked = len(server.asked)
    monkeypatch.delenv("HF_TOKEN")
    main(["push", str(rft), "me/other", "--stage", "sft", "--dry-run"])
    assert len(server.asked) == num_asked and "model.safetensors" in capsys.readouterr().out


def test_weights_of_an_earlier_push_go(exported: Path, server: Hub) -> None:
    """Shards, an index or heads beside the new weights would be loaded with them; what the user put there stays."""
    (policy,) = parcels(exported / "policy", "me/tiny")
    stale = ("model-00001-of-00002.safetensors", "model.safetensors.index.json", "pytorch_model.bin",
             "rayalign_heads/model.safetensors", "reference/config.json", "log_ratio.json")  # fmt: skip
    server.repositories["me/tiny"] = dict.fromkeys((*stale, "config.json", "picture.png", ".gitattributes"), b"old")
    push(policy)
    kept = {"picture.png": b"old", ".gitattributes": b"old"}
    assert server.repositories["me/tiny"] == content(exported / "policy") | kept
    assert "go: *.safetensors, " in policy.lines()[-1]


def test_what_the_hub_refuses_is_one_line(exported: Path, server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    (policy,) = parcels(exported / "policy", "me/tiny")
    for part, status, kind, told in (
        ("/repos/create", 401, UserError, "does not take your token"),
        ("/repos/create", 403, UserError, "me/tiny: your token may not write there"),
        ("/preupload/", 403, UserError, "me/tiny: your token may not write there"),
        ("/commit/", 403, UserError, "me/tiny: your token may not write there"),
        ("/lfs/objects/batch", 404, UserError, "me/tiny: not found"),
        ("/lfs/", 403, UserError, "me/tiny: your token may not write there"),
        ("/commit/", 501, RayalignError, "failed .501"),
    ):
        server.refuses = {part: status}
        with pytest.raises(kind, match=told) as error:
            push(policy)
        assert "\n" not in str(error.value) and TOKEN not in str(error.value)
        assert not any("model.safetensors" in files for files in server.repositories.values())
    server.refuses = {}
    push(policy)
    with pytest.raises(UserError, match="is there and public"):
        push(policy, private=True)
    assert server.repositories["me/tiny"] == content(exported / "policy")


def test_a_hub_that_cannot_be_asked(exported: Path, server: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (policy,) = parcels(exported / "policy", "me/tiny")
    with monkeypatch.context() as other:
        other.setattr(constants, "HF_HUB_OFFLINE", True)
        with pytest.raises(UserError, match="HF_HUB_OFFLINE .* is set"):
            push(policy)
    with monkeypatch.context() as other:
        other.delenv("HF_TOKEN")
        other.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        with pytest.raises(UserError, match="no token for .*hf auth login"):
            push(policy)
    for address in ("http://hub.example", "http://127.0.0.1.example"):
        monkeypatch.setattr(constants, "ENDPOINT", address)
        with pytest.raises(UserError, match="travel in clear"):
            push(policy)
    with socket.socket() as nobody:  # bound, and not listening
        nobody.bind(("127.0.0.1", 0))
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{nobody.getsockname()[1]}")
        with pytest.raises(UserError, match="cannot be reached"):
            push(policy)
    assert server.asked == []


def test_what_is_no_export_is_not_sent(exported: Path, rft: Path, server: Hub, tmp_path: Path) -> None:
    for name in ("tiny", "a/b/c", "me/../you", "me/", "-me/x", "me/a--b"):
        with pytest.raises(UserError, match="give OWNER/NAME"):
            parcels(exported, name)
    for place in (tmp_path, tmp_path / "nowhere", rft / "sft" / "policy"):
        with pytest.raises(UserError, match="neither a run nor an export"):
            parcels(place, "me/tiny")
    copy = shutil.copytree(exported / "policy", tmp_path / "policy")
    (copy / ".env").write_text("SECRET=1")
    (copy / "more[1].txt").write_text("mine")
    (parcel,) = parcels(copy, "me/tiny")
    push(parcel)
    sent = server.repositories["me/tiny"]
    assert ".env" not in sent and sent["more[1].txt"] == b"mine" and len(sent) == len(content(copy)) - 1
    (copy / "link").symlink_to("/etc/hostname")
    with pytest.raises(UserError, match="a link, which no export writes"):
        parcels(copy, "me/tiny")


def test_bad_commands_are_one_line(exported: Path, capsys: pytest.CaptureFixture[str], server: Hub) -> None:
    for options, told in (
        ([str(exported), "me/tiny", "--stage", "sft"], "--stage: is for a run"),
        (["nowhere", "me/tiny"], "nowhere: neither a run nor an export"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(["push", *options])
        said = capsys.readouterr().err
        assert ended.value.code == 2 and told in said and said.count("\n") == 1
    assert server.asked == []
