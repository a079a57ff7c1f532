"""`rayalign export` and `rayalign push`."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from rayalign.cli.parser import Parser, add_command


def add_export(commands: argparse._SubParsersAction[Parser]) -> None:
    """`rayalign export`."""
    export = add_command(
        commands,
        "export",
        "write a run's policy and reward as Hugging Face folders with model cards",
        "Writes DIR/policy and DIR/reward: safetensors, tokenizer and chat template, a model card, the config, and\n"
        "reproduce.json, what the model says of a few texts. Each folder is loaded back and must say the same, else\n"
        "nothing is written. Without --stage: the newest policy, and the reward that it was trained on.",
        about="",
    )
    export.add_argument("place", type=Path, metavar="RUN", help="a run's folder")
    export.add_argument("--to", type=Path, required=True, metavar="DIR", help="a new folder, or an empty one")
    _add_stated(export)
    export.add_argument("--overwrite", action="store_true", help="replace an earlier export in DIR")
    export.set_defaults(run=_export)


def add_push(commands: argparse._SubParsersAction[Parser]) -> None:
    """`rayalign push`."""
    push = add_command(
        commands,
        "push",
        "send an export to a model hub",
        "Sends what `rayalign export` wrote to the Hugging Face hub, or to the one at HF_ENDPOINT: one folder as\n"
        "REPO_ID; of a policy and a reward, the policy as REPO_ID and the reward as REPO_ID-reward. Of a run, an export\n"
        "is made first. What goes where is printed before anything is sent. The token is HF_TOKEN, or that of\n"
        "`hf auth login`.",
        about="",
    )
    push.add_argument("place", type=Path, metavar="DIR_OR_RUN", help="an export, one of its folders, or a run")
    push.add_argument("repo_id", metavar="REPO_ID", help="OWNER/NAME; made if it is not there")
    push.add_argument("--private", action="store_true", help="make it private; refuses one that is there and public")
    push.add_argument("--dry-run", action="store_true", help="print what would be sent, and send nothing")
    _add_stated(push)
    push.set_defaults(run=_push)


def _add_stated(command: argparse.ArgumentParser) -> None:
    command.add_argument("--stage", metavar="NAME", help="the models of this stage")
    command.add_argument("--license", metavar="SPDX", help='for the cards, such as Apache-2.0; "not stated" if unset')
    command.add_argument("--base-model", metavar="NAME", help="for the cards; the run's model.path where it is a hub name")


def _export(parsed: argparse.Namespace) -> None:
    _export_to(parsed, parsed.to, overwrite=parsed.overwrite)


def _export_to(parsed: argparse.Namespace, to: Path, *, overwrite: bool = False) -> None:
    from rayalign.sharing.found import find_run

    find_run(parsed.place, stage=parsed.stage)  # told before anything heavy is imported
    from rayalign.sharing.card import Stated
    from rayalign.sharing.export import export

    stated = Stated(parsed.license, parsed.base_model)
    found = export(parsed.place, to, stage=parsed.stage, stated=stated, overwrite=overwrite)
    for exported in found.values():
        print(f"{exported.role}: {exported.folder} (of stage {exported.stage}; checked: {exported.told})")


def _push(parsed: argparse.Namespace) -> None:
    from rayalign.errors import UserError
    from rayalign.sharing.push import check_hub, is_run

    if not parsed.dry_run:
        check_hub()
    if not is_run(parsed.place):
        if given := [name for name in ("stage", "license", "base_model") if getattr(parsed, name) is not None]:
            raise UserError(f"--{given[0].replace('_', '-')}: is for a run; {parsed.place} is exported already")
        _send(parsed, parsed.place)
        return
    with tempfile.TemporaryDirectory(prefix="rayalign-push-") as folder:
        _export_to(parsed, Path(folder) / "export")
        _send(parsed, Path(folder) / "export")


def _send(parsed: argparse.Namespace, place: Path) -> None:
    from rayalign.sharing.push import parcels, push

    found = parcels(place, parsed.repo_id)
    for parcel in found:
        print("\n".join(parcel.lines()), flush=True)
    for parcel in found if not parsed.dry_run else []:
        print(f"sent: {push(parcel, private=parsed.private)}", flush=True)
