"""Model cards: a hub reads their metadata, they say what was measured, and no text from data becomes markup."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from rayalign.config.load import load_config
from rayalign.errors import UserError
from rayalign.sharing.card import Stated, text
from rayalign.sharing.export import export
from rayalign.storage.evaluation import content_of
from tests.sharing.runs import EVALUATE, EXAMPLES, finish, make_run, record, save_policy


def test_the_metadata_is_what_a_hub_reads(exported: Path) -> None:
    policy, reward = (ModelCard.load(exported / role / "README.md") for role in ("policy", "reward"))
    assert policy.data.license == "apache-2.0" and policy.data.base_model == "owner/base"
    assert policy.data.library_name == "transformers" and policy.data.pipeline_tag == "text-generation"
    assert policy.data.datasets == ["owner/prompts"]
    assert "reward-model" in reward.data.tags and reward.data.pipeline_tag == "text-classification"
    assert policy.data.to_dict().get("model-index") is None


def test_what_the_card_tells(rft: Path, exported: Path) -> None:
    policy, reward = ((exported / role / "README.md").read_text() for role in ("policy", "reward"))
    assert "2405.17888" in policy and "2. `rft` learned a reward from demonstrations" in policy
    assert "| demonstrations | demos.jsonl | 2 |" in policy
    assert "| models / rft / 1 / golden | 0.75 | 0.7 to 0.8 | 40 |" in policy and "called rft" in policy
    assert "score = (raw - 0.3) / 0.2" in reward and "end = 2 " in reward
    assert "valid near the policy that it was trained against" in reward
    for role in ("policy", "reward"):
        assert load_config(exported / role / "config.yaml") == load_config(rft / "config.yaml")
        assert json.loads((exported / role / "reproduce.json").read_text())["versions"]["torch"] in policy


def snippet(card: Path, after: str, folder: Path, **texts: str) -> dict[str, Any]:
    """Runs the first Python block behind some words of a card; what it defines."""
    code = card.read_text().split(after)[1].split("```python\n")[1].split("```")[0]
    code = code.replace(f'"{folder.name}"', repr(str(folder)))
    for gap, text_of in (('"content": ', "prompt"), ("tokenizer(", "response")):
        code = code.replace(f'{gap}"..."', gap + repr(texts[text_of]))
    found: dict[str, Any] = {}
    exec(compile(code, str(card), "exec"), found)  # noqa: S102 - what a reader of the card would run
    return found


def test_the_snippets_run(exported: Path) -> None:
    """As they stand in the cards; the reward's gives rayalign's score."""
    prompt, response = EXAMPLES[0]["prompt"], "thank you ."
    texts = {"prompt": str(prompt), "response": response}
    policy = snippet(exported / "policy" / "README.md", "With transformers", exported / "policy", **texts)
    assert policy["answer"].shape[1] > policy["prompt"]["input_ids"].shape[1] == 8
    reward = snippet(exported / "reward" / "README.md", "With transformers alone", exported / "reward", **texts)
    (case,) = [c for c in record(exported / "reward")["cases"] if (c["prompt"], c["response"]) == (prompt, response)]
    assert reward["score"] == pytest.approx(case["score"], abs=1e-4)


def test_suites_count_only_where_they_measured_this_model(tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs" / "tiny", [{"kind": "sft"}])
    save_policy(finish(run, "sft") / "policy")
    estimate = {"mean": 0.5, "low": 0.4, "high": 0.6, "num": 9}
    suites = {
        "ours": {"results": {"a<b>|": {"x": estimate}}, "model": {"content": content_of(run / "sft" / "policy")}},
        "theirs": {"results": {"y": estimate}, "model": {"content": {"config.json": "other"}}},
    }
    (run / "evaluation.json").write_text(json.dumps({"suites": suites}))
    export(run, tmp_path / "out")
    card = (tmp_path / "out" / "policy" / "README.md").read_text()
    assert r"| a&lt;b&gt;\| / x | 0.5 | 0.4 to 0.6 | 9 |" in card and "--suite ours" in card
    assert "theirs" not in card
    assert "license: other\nlicense_name: not-stated" in card and "Licence: not stated" in card


def test_names_from_data_stay_text(tmp_path: Path) -> None:
    """A file's name and a model's name with markup, YAML and line breaks in them."""
    evil = "<script>x</script>\n---\nlicense: mit\n| [a](b)"
    run = make_run(tmp_path / "runs" / "tiny", [{"kind": "sft", "data": {"path": f"gone/{evil}.jsonl"}}])
    save_policy(finish(run, "sft") / "policy")
    values = yaml.safe_load((run / "config.yaml").read_text())
    stages = [*values["stages"], EVALUATE | {"models": {evil: "stage:sft/policy"}}]
    (run / "config.yaml").write_text(yaml.safe_dump(values | {"stages": stages}))
    cells = {"1": {"length": {"mean": 1.0, "low": 1.0, "high": 1.0, "num": 2}}}
    (finish(run, "evaluate") / "results.json").write_text(json.dumps({"models": {evil: cells}, "examples": []}))
    export(run, tmp_path / "out")
    card = ModelCard.load(tmp_path / "out" / "policy" / "README.md")
    assert card.data.license == "other"
    assert "<script" not in card.content and "\nlicense: mit" not in card.content and r"\[a\](b)" in card.content
    assert card.content.count("\n---\n") == 1  # the end of the metadata


def test_text() -> None:
    assert text("a  b\n\u202ec") == "a b c"
    assert text("x" * 300).endswith("x ...") and len(text("x" * 300)) == 200


def test_what_only_the_user_knows() -> None:
    with pytest.raises(UserError, match="no SPDX identifier"):
        Stated("MIT\nlicense: mine")
    with pytest.raises(UserError, match="--base-model .*no hub name"):
        Stated(None, "a/b/c")
