"""`rayalign evaluate PLACE --suite lm-eval`: tasks of lm-evaluation-harness, the Open LLM Leaderboard's among them."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rayalign.config.model import ModelConfig
from rayalign.data.fingerprint import fingerprint
from rayalign.data.template import Template, load_tokenizer
from rayalign.evaluate.statistics import bootstrap_interval
from rayalign.ports import SamplerSetup
from rayalign.serving.places import find_policy, max_length_of, settings_of
from rayalign.serving.saved import num_threads, pin_threads
from rayalign.storage.evaluation import packed, record
from rayalign.suites.answers import MAX_LENGTH
from rayalign.suites.extras import need
from rayalign.suites.harness_tasks import check_names, check_tasks, find_tasks
from rayalign.suites.options import ModelOptions
from rayalign.suites.place import evaluation_file

SUITE = "lm-eval"
FEWSHOT_SEED = 1234  # lm_eval's own: with another, the examples before a question are others, and so are the numbers
STANDARD_ERRORS = 1.959963984540054  # either side, of a 95% interval


@dataclass(frozen=True)
class Harness:
    """What is measured, and how the questions are put.

    Args:
        tasks: names of tasks, groups (`leaderboard`) or tags.
        include_path: a folder with tasks of your own; their YAML may name Python functions, which are run.
        num_fewshot: examples before a question; None is each task's own. A task that fixes 0 keeps it.
        apply_chat_template: put questions as dialogues, by the policy's chat template.
    """

    tasks: tuple[str, ...]
    include_path: Path | None = None
    limit: int | None = None
    num_fewshot: int | None = None
    apply_chat_template: bool = False
    backend: Literal["vllm", "hf"] = "vllm"
    batch_size: int = 8  # of backend hf
    seed: int = FEWSHOT_SEED


def evaluate_harness(
    place: Path, settings: Harness, options: ModelOptions | None = None, *, out: Path | None = None
) -> tuple[Path, dict[str, Any]]:
    """Runs the tasks, and adds what lm_eval reports to evaluation.json; that file, and the results.

    Raises UserError for a place without a policy, a task that is not known, and data that a task cannot get.
    """
    need(f"suite {SUITE}", "lm_eval")
    options = options or ModelOptions()
    folder = find_policy(place)
    file = evaluation_file(place, out)
    template = _template(folder, settings, options)
    manager = find_tasks(settings.tasks, settings.include_path)
    check_names(manager, settings.tasks)
    check_tasks(manager, settings.tasks)  # their data too, before the model is loaded
    pin_threads(options.threads)
    with _model(folder, template, settings, options) as model:
        reported = _run(model, manager, settings)
    results = summary(reported) | {
        "settings": {
            "backend": settings.backend,
            "limit": settings.limit,
            "num_fewshot": settings.num_fewshot,
            "chat_template": settings.apply_chat_template,
            "seed": settings.seed,
        }
    }
    hashes = [found["hash"] for found in results["tasks"].values()]
    num = sum(found["num"] for found in results["tasks"].values())
    data = {"path": ",".join(settings.tasks), "fingerprint": fingerprint(hashes), "num_rows": num}
    record(file, SUITE, results, model=folder, data=data)
    return file, results


def _template(folder: Path, settings: Harness, options: ModelOptions) -> str | None:
    if not settings.apply_chat_template:
        return None
    tokenizer = load_tokenizer(folder, trust_remote_code=options.trust_remote_code)
    return Template(tokenizer, options.chat_template).chat_template


def _run(model: Any, manager: Any, settings: Harness) -> dict[str, Any]:
    import lm_eval

    seed = settings.seed
    reported: dict[str, Any] = lm_eval.simple_evaluate(
        model=model,
        tasks=list(settings.tasks),
        task_manager=manager,
        num_fewshot=settings.num_fewshot,
        limit=settings.limit,
        apply_chat_template=settings.apply_chat_template,
        random_seed=seed,
        numpy_random_seed=seed,
        torch_random_seed=seed,
        fewshot_random_seed=seed,
    )
    return reported


@contextlib.contextmanager
def _model(folder: Path, template: str | None, settings: Harness, options: ModelOptions) -> Iterator[Any]:
    kept = settings_of(folder)
    max_length = min(max_length_of(kept), options.max_length or MAX_LENGTH)
    dtype: Literal["bfloat16", "float32"] = "float32"
    if (kept.get("dtype") or kept.get("torch_dtype")) in ("bfloat16", "float16"):
        dtype = "bfloat16"
    if settings.backend == "hf":
        yield _of_transformers(folder, template, dtype, max_length, settings, options)
        return
    from rayalign.engines.vllm_backend.harness import close_harness_model, harness_model

    setup = SamplerSetup(
        path=str(folder),
        tokenizer=str(folder),
        chat_template=template,
        model=ModelConfig(
            path=str(folder), dtype=dtype, max_length=max_length, trust_remote_code=options.trust_remote_code
        ),
        end_token_ids=(),
        threads=num_threads(options.threads),
        seed=settings.seed,
        tensor_parallel=options.tensor_parallel,
        gpu_memory_frac=options.gpu_memory_frac,
        kv_cache_gib=options.kv_cache_gib,
    )
    model = harness_model(setup)
    try:
        yield model
    finally:
        close_harness_model(model)


def _of_transformers(
    folder: Path, template: str | None, dtype: str, max_length: int, settings: Harness, options: ModelOptions
) -> Any:
    import torch
    from lm_eval.models.huggingface import HFLM

    model = HFLM(
        pretrained=str(folder),
        dtype=dtype,
        max_length=max_length,
        batch_size=settings.batch_size,
        device="cuda" if torch.cuda.is_available() else "cpu",
        trust_remote_code=options.trust_remote_code,
    )
    if template is not None:
        model.tokenizer.chat_template = template
    return model


def summary(reported: dict[str, Any]) -> dict[str, Any]:
    """lm_eval's report in this program's form: intervals, and a value a document where a metric has one."""
    from lm_eval.utils import hash_string

    tasks = {}
    for name, samples in reported["samples"].items():
        told = "".join(sample["doc_hash"] + sample["prompt_hash"] + sample["target_hash"] for sample in samples)
        values = _by_document(samples)
        tasks[name] = {
            "metrics": _metrics(reported["results"][name], values),
            "higher_is_better": reported["higher_is_better"].get(name, {}),
            "num": reported["n-samples"][name]["effective"],
            "num_in_task": reported["n-samples"][name]["original"],
            "num_fewshot": reported["n-shot"].get(name),
            "version": reported["versions"].get(name),
            "hash": hash_string(told),  # as lm_eval's own task_hashes
            "by_document": {metric: packed(own) for metric, own in values.items()},
        }
    groups = {name: _metrics(found, {}) for name, found in (reported.get("groups") or {}).items()}
    kept = {key: reported.get(key) for key in ("lm_eval_version", "transformers_version", "git_hash")}
    return {"tasks": tasks, "groups": groups} | kept


def _metrics(found: dict[str, Any], values: dict[str, list[float]]) -> dict[str, Any]:
    """By `metric,filter`: lm_eval's value and standard error, with an interval.

    Of a mean over documents it is bootstrapped over them, and stays where accuracies can be; else 1.96 standard errors.
    """
    metrics = {}
    for name, value in found.items():
        metric, _, kind = name.partition(",")
        if not kind or metric.endswith("_stderr") or isinstance(value, str) or not math.isfinite(value):
            continue
        error = found.get(f"{metric}_stderr,{kind}")
        error = float(error) if isinstance(error, float) and math.isfinite(error) else None
        own = bootstrap_interval(values.get(name, []))
        if math.isclose(own.mean, value, abs_tol=1e-9):
            metrics[name] = own.as_dict() | {"stderr": error}
            continue
        ends = (None, None) if error is None else (value - STANDARD_ERRORS * error, value + STANDARD_ERRORS * error)
        metrics[name] = {"mean": float(value), "low": ends[0], "high": ends[1], "stderr": error}
    return metrics


def _by_document(samples: list[dict[str, Any]]) -> dict[str, list[float]]:
    """By `metric,filter`: a value for each document, in the task's order; metrics of the whole set have none."""
    values: dict[str, dict[int, float]] = {}
    for sample in samples:
        for metric in sample["metrics"]:
            if isinstance(sample.get(metric), bool | int | float):
                values.setdefault(f"{metric},{sample['filter']}", {})[sample["doc_id"]] = float(sample[metric])
    return {name: [found[place] for place in sorted(found)] for name, found in values.items()}
