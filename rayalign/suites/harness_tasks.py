"""Tasks of lm-evaluation-harness by name: which there are, and what keeps one from running, in one line each."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rayalign.data.files import one_line
from rayalign.data.hub import quiet_hub
from rayalign.errors import UserError


def find_tasks(names: Sequence[str], include_path: Path | None) -> Any:
    """lm_eval's manager, which knows them by name. Raises UserError for a folder that is not there, or not of tasks."""
    if include_path is not None and not include_path.expanduser().is_dir():
        raise UserError(f"--include-path {include_path}: no such folder; give one that holds tasks as YAML")
    from lm_eval.tasks import TaskManager

    with task_errors(f"--include-path {include_path}"):
        own = str(include_path.expanduser()) if include_path else None
        if own is not None:
            # lm_eval's own are thousands of files, which take longer to read than many a task to run.
            manager = TaskManager(include_path=own, include_defaults=False)
            if all(_is_whole(manager, name) for name in names):
                return manager
        return TaskManager(include_path=own)


def check_names(manager: Any, names: Sequence[str]) -> None:
    """Raises UserError for a task, group or tag that is not there, with those that are called nearly so."""
    known = set(manager.all_tasks)
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3)
            told = f"; near it are {', '.join(near)}" if near else ""
            listed = "`lm-eval ls tasks` lists them"
            raise UserError(f"--tasks {name}: lm_eval has no task, group or tag of that name{told}; {listed}")


def _is_whole(manager: Any, name: object) -> bool:
    """Whether a task, or a group with all of its members, is among those that a manager knows."""
    entry = manager.task_index.get(name) if isinstance(name, str) else None
    if entry is None:
        return False
    members = (entry.cfg or {}).get("task") if name in manager.all_groups else None
    return all(_is_whole(manager, member) for member in members) if isinstance(members, list) else True


def check_tasks(manager: Any, names: Sequence[str]) -> None:
    """Loads each with its data, and puts its first question.

    Raises UserError where the data, a column of it or a package is not here, and for a task that runs a policy's code.
    """
    for name in names:
        with task_errors(name):
            loaded = manager.load([name])["tasks"]
            for task in loaded.values():
                _put_a_question(task)
        unsafe = [own for own, task in loaded.items() if task.config.unsafe_code]
        if unsafe:
            raise UserError(f"--tasks {name}: {unsafe[0]} runs the code that a policy writes, as this program does not")


def _put_a_question(task: Any) -> None:
    document = next(iter(task.eval_docs))
    task.doc_to_text(document)
    task.doc_to_target(document)
    if task.OUTPUT_TYPE == "multiple_choice":
        task.doc_to_choice(document)


@contextlib.contextmanager
def task_errors(name: str) -> Iterator[None]:
    """What a task, its data or lm_eval cannot do becomes one line."""
    import datasets
    import jinja2
    import yaml

    try:
        with quiet_hub():
            yield
    except ImportError as error:
        raise UserError(f"--tasks {name}: needs a package that is not installed ({one_line(error)})") from None
    except (
        OSError, ValueError, RuntimeError, LookupError, TypeError, AttributeError, AssertionError,
        yaml.YAMLError, jinja2.TemplateError, datasets.exceptions.DatasetsError,
    ) as error:  # fmt: skip
        raise UserError(
            f"--tasks {name}: cannot be run ({one_line(error)}); where its data comes from the Hugging Face hub, that has "
            "to be in reach, or in its cache already"
        ) from None
