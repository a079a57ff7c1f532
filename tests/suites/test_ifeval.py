"""`rayalign evaluate --suite ifeval`: the checks are lm_eval's, the accuracies those of its marks, bad rows one line."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from rayalign.config.data import DataSource
from rayalign.errors import DataError, UserError
from rayalign.evaluate.statistics import proportion_interval
from rayalign.storage.evaluation import record
from rayalign.suites.compare import compare
from rayalign.suites.ifeval import accuracies, evaluate_ifeval
from rayalign.suites.ifeval_table import table
from rayalign.suites.instructions import followed, read_asked
from tests.conftest import run_rayalign
from tests.suites.policies import save_policy
from tests.suites.test_reward import write_rows

pytest.importorskip("lm_eval", reason="needs rayalign[evals]")
SHARED = Path(__file__).resolve().parents[3] / "shared" / "data" / "prompts" / "ifeval_541.jsonl.gz"
COMMA, WORDS, KEYS = "punctuation:no_comma", "length_constraints:number_words", "keywords:existence"
ROWS = [
    {"key": 7, "prompt": "Nora asks teapot", "instruction_id_list": [COMMA], "kwargs": [{"num_words": None}]},
    {
        "key": 8,
        "prompt": "Leo asks plate",
        "instruction_id_list": [COMMA, WORDS, KEYS],
        "kwargs": [{}, {"relation": "at least", "num_words": 3}, {"keywords": ["plaza"]}],
    },
    {
        "key": 9,
        "prompt": "David asks shade",
        "instruction_id_list": ["length_constraints:number_sentences", "change_case:capital_word_frequency"],
        "kwargs": [{"relation": "less than", "num_sentences": 2}, {"capital_relation": "at least", "capital_frequency": 1}],
    },
]
ANSWERS = ["no, thank you", "Sure, here it is:\nat the Plaza", "Ask Dr. NO about it."]


@pytest.fixture(autouse=True)
def sentences(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """nltk's data in its own form, with two abbreviations: the whole is no part of a package, and no test downloads it."""
    import nltk

    folder = tmp_path / "nltk" / "tokenizers" / "punkt_tab" / "english"
    folder.mkdir(parents=True)
    for name in ("collocations.tab", "sent_starters.txt", "ortho_context.tab"):
        (folder / name).write_text("")
    (folder / "abbrev_types.txt").write_text("dr\nmr\n")
    monkeypatch.setenv("NLTK_DATA", str(tmp_path / "nltk"))
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path / "nltk")])
    return folder


@pytest.fixture
def prompts(tmp_path: Path) -> DataSource:
    return write_rows(tmp_path / "prompts.jsonl", ROWS)


def test_marks_and_accuracies(prompts: DataSource) -> None:
    """By hand: strict and loose, of prompts, of instructions, of families."""
    asked = read_asked(prompts)
    marks = followed(asked, ANSWERS)
    assert marks["strict"] == [[False], [False, True, True], [True, True]]
    assert marks["loose"] == [[False], [True, True, True], [True, True]]  # without its first line it has no comma
    found = accuracies(asked, marks)
    assert found["prompt_strict"] == proportion_interval(1, 3).as_dict()
    assert found["prompt_loose"]["mean"] == pytest.approx(2 / 3)
    assert found["instruction_strict"]["mean"] == pytest.approx(4 / 6) and found["num_instructions"] == 6
    assert found["instruction_loose"]["mean"] == pytest.approx(5 / 6)
    assert found["families"]["punctuation"] | {"strict": 0, "loose": 0} == {"num": 2, "strict": 0, "loose": 0}
    assert found["families"]["punctuation"]["strict"]["mean"] == 0
    assert found["families"]["length_constraints"]["loose"]["mean"] == 1
    assert found["by_prompt"] == {"strict": "0 011 11", "loose": "0 111 11"}
    assert followed(asked, [""] * 3)["loose"] == [[False], [False] * 3, [False] * 2]  # silence follows nothing


def test_on_the_command_line(tmp_path: Path, prompts: DataSource) -> None:
    save_policy(tmp_path / "run" / "sft" / "policy")
    options = ["--max-new-tokens", "8", "--threads", "1", "--kv-cache-gib", "0.05"]
    command = ["evaluate", str(tmp_path / "run"), "--suite", "ifeval", "--prompts", prompts.path]
    done = run_rayalign(*command, *options)
    assert done.returncode == 0, done.stderr
    saved = json.loads((tmp_path / "run" / "evaluation.json").read_text())["suites"]["ifeval"]
    rows = [json.loads(line) for line in (tmp_path / "run" / "ifeval.jsonl").read_text().splitlines()]
    marks = followed(read_asked(prompts), [row["response"] for row in rows])
    assert [row["strict"] for row in rows] == saved["results"]["by_prompt"]["strict"].split()
    assert accuracies(read_asked(prompts), marks).items() <= saved["results"].items()
    assert "3 prompts" in done.stdout and "  punctuation (2)" in done.stdout
    assert saved["versions"]["lm_eval"] and saved["data"]["num_rows"] == 3 and [row["key"] for row in rows] == [7, 8, 9]


def write_evaluation(folder: Path, asked: Any, answers: list[str], fingerprint: str = "f", max_new_tokens: int = 9) -> Path:
    results: dict[str, Any] = accuracies(asked, followed(asked, answers)) | {"ended_frac": 1.0}
    results["sampling"] = {"temperature": 0.0, "max_new_tokens": max_new_tokens, "seed": 0}
    data = {"path": "prompts.jsonl", "fingerprint": fingerprint * 32, "num_rows": len(asked)}
    record(folder / "evaluation.json", "ifeval", results, model=folder, data=data)
    return folder


def test_side_by_side(tmp_path: Path, prompts: DataSource) -> None:
    asked = read_asked(prompts)
    one = write_evaluation(tmp_path / "a", asked, ANSWERS)
    two = write_evaluation(tmp_path / "b", asked, ["no", *ANSWERS[1:]])
    lines = compare([one, two])
    assert "b minus a, prompt by prompt, of prompts, strict: +0.333" in lines[-1]
    assert any("instructions, loose" in line and "1.000 (1.000-1.000)" in line for line in lines)
    other = write_evaluation(tmp_path / "c", asked, ANSWERS, "0")
    assert "measured on other prompts, and so without a difference" in compare([one, other])[-1]
    longer = write_evaluation(tmp_path / "d", asked, ANSWERS, max_new_tokens=10)
    assert "d: drawn with max_new_tokens 10 and not 9, and so without a difference" in compare([one, longer])[-1]
    found = json.loads((two / "evaluation.json").read_text())
    found["suites"]["ifeval"]["results"]["by_prompt"]["strict"] = "0 x"
    (two / "evaluation.json").write_text(json.dumps(found))
    with pytest.raises(UserError, match="an evaluation of suite ifeval is not whole"):
        compare([one, two])
    results = json.loads((one / "evaluation.json").read_text())["suites"]["ifeval"]["results"]
    assert "answers that ended: 100.0%" in table(results)[-1]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": "Why?"}, r"prompts\.jsonl:1: no prompt of IFEval; a row is \{key"),
        ({"prompt": "Why?", "instruction_id_list": [], "kwargs": []}, "no prompt of IFEval"),
        ({"prompt": ["Why?"], "instruction_id_list": [COMMA], "kwargs": [{}]}, "no prompt of IFEval"),
        ({"prompt": "Why?", "instruction_id_list": [COMMA], "kwargs": []}, "1 instructions and 0 kwargs"),
        ({"prompt": "Why?", "instruction_id_list": ["new:one"], "kwargs": [{}]}, "'new:one' is not an instruction"),
        ({"prompt": "Why?", "instruction_id_list": [3], "kwargs": [{}]}, "3 is not an instruction"),
        ({"prompt": "Why?", "instruction_id_list": [COMMA], "kwargs": ["x"]}, "kwargs of punctuation:no_comma: no object"),
        ({"prompt": "Why?", "instruction_id_list": [WORDS], "kwargs": [{"words": 3}]}, "kwargs of length.*'words'"),
        ({"prompt": "Why?", "instruction_id_list": [WORDS], "kwargs": [{"relation": "near"}]}, "kwargs of length"),
    ],
)
def test_bad_rows(tmp_path: Path, row: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=words) as error:
        read_asked(write_rows(tmp_path / "prompts.jsonl", [row]))
    assert "\n" not in str(error.value)


def test_what_is_not_here(
    tmp_path: Path, prompts: DataSource, sentences: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A place, a package, nltk's data: one line, before anything is loaded, and nothing is downloaded."""
    with pytest.raises(UserError, match="no such folder"):
        evaluate_ifeval(tmp_path / "nowhere", prompts)
    save_policy(tmp_path / "policy")
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "langdetect", None)
        with pytest.raises(UserError, match=r"needs langdetect, not installed here; pip install 'rayalign\[evals\]'"):
            evaluate_ifeval(tmp_path / "policy", prompts)
    sentences.parent.rename(tmp_path / "moved")
    with pytest.raises(UserError, match="punkt_tab, which tells sentences apart, is not here; run `python -m nltk.dow"):
        evaluate_ifeval(tmp_path / "policy", prompts)


@pytest.mark.data
@pytest.mark.skipif(not SHARED.exists(), reason="needs shared/data/prompts beside the checkout")
def test_the_541_prompts() -> None:
    """Every instruction of IFEval's own file is known and whole; a short answer is marked the same twice."""
    asked = read_asked(DataSource(path=str(SHARED)))
    assert len(asked) == 541 and sum(len(one.instructions) for one in asked) == 834
    few = asked[:40]
    assert followed(few, ["HERE IS NONE. So."] * 40) == followed(few, ["HERE IS NONE. So."] * 40)
