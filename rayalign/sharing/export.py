"""`rayalign export`: a run's policy and reward as Hugging Face folders that stand alone, checked before they are there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError

from rayalign.config.load import dump_config
from rayalign.config.selection import EvaluateStage
from rayalign.data.template import Template, load_tokenizer
from rayalign.errors import UserError, is_disk_full
from rayalign.run import latest_results
from rayalign.serving.newest import ROLES, SETTINGS
from rayalign.sharing.card import CARD_FILE, About, Stated, card
from rayalign.sharing.cases import choose_cases
from rayalign.sharing.copying import copy_model
from rayalign.sharing.found import SharedModel, SharedRun, find_run, read_settings
from rayalign.sharing.heldout import heldout_examples
from rayalign.sharing.measured import of_stages, of_suites
from rayalign.sharing.reproduce import RECORD_FILE, check, record
from rayalign.sharing.words import base_model, data_used, steps
from rayalign.storage.aside import write_json, written_aside
from rayalign.storage.evaluation import PACKAGES
from rayalign.storage.run_folder import write_config
from rayalign.storage.versions import versions_of


@dataclass(frozen=True)
class Exported:
    """A folder that was written: whose it is, and what its copy was checked with."""

    role: str
    folder: Path
    stage: str
    told: str


def export(
    place: Path, to: Path, *, stage: str | None = None, stated: Stated | None = None, overwrite: bool = False
) -> dict[str, Exported]:
    """Writes `to`/policy and `to`/reward, as far as the run has them; what each is, by its role.

    Args:
        place: a run's folder.
        stage: takes the models of this stage; else the newest policy and the reward that it followed.
        stated: licence and base model, for the cards.
        overwrite: an earlier export in `to` is replaced, once the new one is whole.

    Raises UserError for what the user can mend, and RayalignError where a copy does not give what the run's model gives;
    nothing is written then.
    """
    run = find_run(place, stage=stage)
    check_target(to := to.expanduser().absolute(), overwrite=overwrite)
    stated = stated or Stated()
    stated = Stated(stated.licence, stated.base_model or base_model(run))
    try:
        with written_aside(to) as aside:
            told = {model.role: _export_one(run, model, aside / model.role, stated) for model in run.models}
    except (OSError, SafetensorError) as error:
        if is_disk_full(error):
            raise UserError(f"{to}: the disk is full; free some space, nothing was written") from error
        if isinstance(error, PermissionError):
            raise UserError(f"{error.filename or to}: {error.strerror}; give another --to") from error
        raise
    return {model.role: Exported(model.role, to / model.role, model.stage.name, told[model.role]) for model in run.models}


def check_target(to: Path, *, overwrite: bool) -> None:
    """Raises UserError where something lies at `to` that an export may not replace."""
    if not to.exists() and not to.is_symlink():
        return
    if to.is_symlink() or not to.is_dir():
        raise UserError(f"--to {to}: is there and no folder; give another one")
    there = sorted(path.name for path in to.iterdir())
    if there and not overwrite:
        raise UserError(f"--to {to}: not empty; give another folder, or --overwrite for an earlier export")
    if others := [name for name in there if not (name in ROLES and (to / name / RECORD_FILE).is_file())]:
        raise UserError(f"--to {to}: holds {others[0]}, which no export wrote; --overwrite replaces exports only")


def _export_one(run: SharedRun, model: SharedModel, target: Path, stated: Stated) -> str:
    """Writes one folder; what it was checked with."""
    settings, results = run.config.model, latest_results(run.config, run.folder)
    if model.kind != "log_ratio_reward":
        read_settings(model.folder / SETTINGS)  # damaged, the tokenizer's loader would blame the tokenizer
    template = _template(run, model)
    copy_model(model, target, settings, template)
    cases = choose_cases(template, heldout_examples(run, results), max_length=settings.max_length)
    recorded = record(model, cases, settings)
    recorded |= {"end_token_id": template.end_token_id, "versions": (found := versions_of(PACKAGES))}
    check(target, model.role, model.kind, recorded, template, settings)
    write_json(target / RECORD_FILE, recorded)
    write_config(target, dump_config(run.config))
    stages = run.stages_behind(model.stage)
    tables = [table for table in (of_stages(results), *of_suites(run, model)) if table is not None]
    about = About(run.config.name, steps(stages), data_used(run, stages), tables, _called(run, model), found)
    (target / CARD_FILE).write_text(card(model, stated, about, recorded), encoding="utf-8")
    return f"{len(cases.cases)} {cases.source}"


def _template(run: SharedRun, model: SharedModel) -> Template:
    """Of the tokenizer that lies with the model, with the run's template in it; of `implicit`, its policy's."""
    folders = [model.folder, model.folder.parent / "policy"]
    found = next((folder for folder in folders if (folder / "tokenizer_config.json").is_file()), None)
    if found is None:
        raise UserError(f"{model.folder}: no tokenizer lies beside this model; is the run's folder whole?")
    return Template(load_tokenizer(found, trust_remote_code=run.config.model.trust_remote_code))


def _called(run: SharedRun, model: SharedModel) -> list[str]:
    """The names under which the evaluate stages sampled this policy."""
    location = f"stage:{model.stage.name}/{model.role}"
    stages = [stage for stage in run.config.stages if isinstance(stage, EvaluateStage)]
    return [name for stage in stages[-1:] for name, answerer in stage.models.items() if answerer == location]
