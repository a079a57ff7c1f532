"""Best of n, and RAFT on what it chose: the rows, the curve, and stored samples as data for SFT."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from rayalign.config.data import DataSource
from rayalign.config.selection import BestOf
from rayalign.data.template import Template, load_tokenizer
from rayalign.errors import DataError, UserError
from rayalign.planted.tokenizer import save_tokenizer
from rayalign.preflight.rows import first_rows
from rayalign.stages.answerers import check_answerers
from rayalign.stages.inputs import load_samples, sequences_of
from tests.stages.conftest import NUM_CHOSEN, N, rows_of

SAMPLE_KEYS = {"prompt", "response", "ended", "sampler_logprob", "prompt_tokens", "response_tokens"}


def test_a_policy_in_a_rewards_place(planted_base: Path) -> None:
    """Told in one line when the stage begins, before a sample is drawn."""
    base = planted_base / "base" / "policy"
    template = Template(load_tokenizer(base))
    config = SimpleNamespace(model=SimpleNamespace(trust_remote_code=False))
    context: Any = SimpleNamespace(config=config, locate=str, tokenizer_path=str(base), template=lambda: template)
    with pytest.raises(UserError, match=f"{base}: a language model, and no reward; name one") as error:
        check_answerers(context, {"x": BestOf(policy=str(base), reward=str(base), best_of=2)})
    assert "\n" not in str(error.value)


def test_the_best_of_each_prompt_as_a_sample_stage_stores_it(selection: Path) -> None:
    rows = rows_of(selection / "best_of_n" / "best.jsonl")
    assert len(rows) == NUM_CHOSEN and all(row.keys() == SAMPLE_KEYS for row in rows)
    assert len({row["prompt"] for row in rows}) == NUM_CHOSEN
    samples = load_samples(str(selection / "best_of_n" / "best.jsonl"))
    assert [len(row["response_tokens"]) for row in rows] == samples.response_lengths.tolist()


def test_the_curve(selection: Path) -> None:
    """Rising in the reward that chooses; the largest n is what was chosen; KL is log n - (n - 1)/n; intervals all over."""
    curve = json.loads((selection / "best_of_n" / "curve.json").read_text())
    points = curve["points"]
    assert [point["n"] for point in points] == sorted(N)
    assert [point["kl_bound"] for point in points] == pytest.approx([math.log(n) - (n - 1) / n for n in sorted(N)])
    rewards = [point["reward"]["mean"] for point in points]
    assert rewards == sorted(rewards) and rewards[-1] > rewards[0] + 1
    for point in points:
        for measure in ("reward", "golden"):
            assert point[measure]["low"] < point[measure]["mean"] < point[measure]["high"]
            assert point[measure]["num"] == curve["num_prompts"] == NUM_CHOSEN
    assert curve["expert"] == {"golden": None}  # the world is another run's


def test_the_largest_n_is_what_was_chosen(selection: Path) -> None:
    """Its golden reward, read off the texts, is the curve's last point but for ties."""
    from rayalign.planted.golden import golden_reward

    rows = rows_of(selection / "best_of_n" / "best.jsonl")
    mean = np.mean([golden_reward(row["prompt"], row["response"], row["ended"]) for row in rows])
    curve = json.loads((selection / "best_of_n" / "curve.json").read_text())
    assert mean == pytest.approx(curve["points"][-1]["golden"]["mean"], abs=0.01)


def test_the_picture_and_the_line(selection: Path) -> None:
    assert (selection / "best_of_n" / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert "best_of_n: best of 4 against best of 1: learned reward " in (selection / "said.txt").read_text()


def test_raft_distils_the_choice(selection: Path) -> None:
    """Fitted to what was chosen, the policy's own samples are worth more to the reward that chose: intervals apart."""
    models = json.loads((selection / "evaluate" / "results.json").read_text())["models"]
    assert models["raft"]["1"]["reward"]["low"] > models["sft"]["1"]["reward"]["high"]
    assert models["raft"]["1"]["ended_frac"] > 0.9


def test_the_closed_form_reward_names_folders_of_the_run(selection: Path) -> None:
    found = json.loads((selection / "ratio" / "reward" / "log_ratio.json").read_text())
    assert found["policy"] == "../../sft/policy" and found["scale"] == 1.0


# Stored samples as data, without a run.


@pytest.fixture
def context(tmp_path: Path) -> Any:
    """A run with the planted tokenizer, that says what it leaves out."""
    folder = save_tokenizer(tmp_path / "tokenizer")
    template = Template(load_tokenizer(folder))
    said: list[str] = []
    config = SimpleNamespace(
        model=SimpleNamespace(max_length=24), data=SimpleNamespace(overlong="error"), response_room=None
    )
    return SimpleNamespace(
        config=config, locate=str, template=lambda: template, progress=SimpleNamespace(say=said.append), said=said
    )


def sample(context: Any, prompt: str, tokens: list[int], *, ended: bool = True) -> dict[str, Any]:
    """A stored row whose response has these tokens, whatever they read as."""
    prompt_tokens = context.template().encode_prompts([f"<bos>{prompt} <ans>"])[0]
    text = context.template().decode_prompt(prompt_tokens)
    return {"prompt": text, "response": "not read", "ended": ended, "prompt_tokens": prompt_tokens,
            "response_tokens": tokens}  # fmt: skip


def stored(folder: Path, rows: list[dict[str, Any]]) -> DataSource:
    """As a source."""
    file = folder / "best.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return DataSource(path=str(file))


def test_tokens_go_through_as_they_were_drawn(context: Any, tmp_path: Path) -> None:
    """Even special tokens in the middle, which no text would give back; and what did not end is left out, and told."""
    rows = [
        sample(context, "Anna asks", [9, 0, 3, 2]),
        sample(context, "Anna asks", [8, 9], ended=False),
        sample(context, "Ben asks", [7, 2]),
        sample(context, "Anna asks", [5, 2]),
    ]
    source = stored(tmp_path, rows)
    found = sequences_of(context, source)
    assert [r.tolist() for r in found.responses()] == [[9, 0, 3, 2], [7, 2], [5, 2]]
    assert found.ended.all() and found.prompt_ids.tolist() == [0, 1, 0]
    assert context.said == [
        f"{source.path}: 3 rows used, 1 left out (1 x sample that did not end, first at best.jsonl: sample 2)"
    ]
    limited = sequences_of(context, source.model_copy(update={"limit": 1}))
    assert len(limited) == 1
    assert len(list(first_rows("demonstrations", source) or ())) == 3


def test_bad_samples_are_one_line(context: Any, tmp_path: Path) -> None:
    good = sample(context, "Anna asks", [5, 2])
    cases = {
        "no row is left": [sample(context, "Anna asks", [5], ended=False)],
        "a sample of 33 tokens, over max_length 24": [sample(context, "Anna asks", [5] * 29)],
        "best.jsonl:2: not a sample": [good, {"prompt": "a", "response": "b"}],
        "best.jsonl:2: 'response_tokens' of a stored sample is a list": [good, {**good, "response_tokens": "5 2"}],
        "drawn with another tokenizer": [{**good, "prompt": "what ?"}],
    }
    for message, rows in cases.items():
        with pytest.raises(DataError) as error:
            sequences_of(context, stored(tmp_path, rows))
        assert message in str(error.value) and "\n" not in str(error.value)
