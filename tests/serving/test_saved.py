"""Scores over HTTP are those of the same samples scored directly, for every kind of reward and of template."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rayalign.config.model import LearnerConfig
from rayalign.config.service import TOKEN as VARIABLE
from rayalign.config.service import RewardServiceConfig
from rayalign.data.template import Template
from rayalign.data.tokenize import tokenize_demonstrations
from rayalign.engines.reward_service import service_reward
from rayalign.engines.scorer import RewardScorer
from rayalign.errors import ConfigError, DataError, UserError
from rayalign.models.reward import RewardModel
from rayalign.models.rewards import write_log_ratio
from rayalign.planted.tokenizer import build_tokenizer
from rayalign.ports import ScorerSetup, ServiceSetup
from rayalign.serving.places import find_reward
from rayalign.serving.saved import SavedReward
from rayalign.serving.serve import serve_reward
from rayalign.types import Demonstration, Message, Sequences
from tests.conftest import one_thread, run_rayalign
from tests.data.conftest import CHATML, make_tokenizer
from tests.models.tiny import model_config, save_tiny
from tests.services import TOKEN

WORDS = ["Nora asks opening teapot at plaza", "David asks size scarf at studio", "Leo asks shade plate at plaza"]
ANSWERS = ["what now Leo ! no clue about the plate :) anything else ? thank you .", "thank you .", "no"]
FIRST = (Message("user", "Why?"),)
CHAT = (Message("system", "Be\nbrief."), *FIRST, Message("assistant", "So."), Message("user", " And\u00e9? "))

# A shell's background jobs, which this may run in, do not heed it. No preexec_fn: it would copy this whole process.
HEEDS_CTRL_C = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from rayalign.cli import main
main()
"""


def rows(kind: str) -> list[Demonstration]:
    asked = [(Message("user", text),) for text in WORDS]
    if kind == "chatml":
        asked = [CHAT, FIRST, (Message("user", "user\nassistant\n"),)]
    return [Demonstration(prompt, answer) for prompt in asked for answer in ANSWERS]


def template(kind: str) -> Template:
    return Template(build_tokenizer() if kind == "planted" else make_tokenizer(chat_template=CHATML))


def save_reward(folder: Path, kind: str) -> None:
    """A random sequence reward with a normaliser, and its tokenizer."""
    base = save_tiny(folder.parent / "base", vocab_size=400)
    reward = RewardModel.from_backbone(base, model_config(), LearnerConfig(), pooling="last", seed=1)
    reward.mean, reward.std = 0.3, 0.2
    weights = {weight.name: weight.tensor() for weight in reward.wire_weights()}
    reward.save(folder, weights)
    template(kind).save_tokenizer(folder)


def directly(folder: Path, sequences: Sequences) -> np.ndarray:
    found = RewardScorer(ScorerSetup(str(folder), model_config(), LearnerConfig())).score_sequences(sequences)
    return found.values[np.argsort(found.rows)]


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """`rayalign serve-reward` in a process of its own; called with a folder, it gives the address."""
    monkeypatch.setenv(VARIABLE, TOKEN)
    started: list[subprocess.Popen[str]] = []

    def serve(place: Path, *options: str) -> str:
        command = [sys.executable, "-c", HEEDS_CTRL_C, "serve-reward", str(place), "--port", "0", *options]
        log = (tmp_path / "log.txt").open("w")
        pipes = {"stdout": subprocess.PIPE, "stderr": log}
        process = subprocess.Popen(command, env=one_thread(), **pipes, text=True)
        started.append(process)
        assert process.stdout is not None
        said = process.stdout.readline()
        found = re.search(r"scores at (http://127\.0\.0\.1:\d+/score)", said)
        assert found, said + (tmp_path / "log.txt").read_text()
        assert TOKEN not in said
        return found[1]

    yield serve
    for process in started:
        process.send_signal(signal.SIGINT)  # as Ctrl-C does
        process.communicate(timeout=60)
        assert process.returncode == 0 and (tmp_path / "log.txt").read_text() == "rayalign: the service has ended\n"


def test_scores_over_http_are_those_of_the_reward(served: Any, tmp_path: Path) -> None:
    folder = tmp_path / "run" / "fit" / "reward"
    save_reward(folder, "planted")
    sequences = tokenize_demonstrations(rows("planted"), template("planted"), max_length=200)
    url = served(tmp_path / "run")  # a run with one reward
    worker = service_reward(ServiceSetup(url, RewardServiceConfig(batch_size=4, retries=0), str(folder), None))
    found, expected = worker.score_sequences(sequences).values, directly(folder, sequences)
    assert found == pytest.approx(expected, abs=1e-6)
    assert np.ptp(expected) > 0.1
    assert (tmp_path / "log.txt").read_text() == ""


def test_dialogues_are_scored_as_they_were_in_training(tmp_path: Path) -> None:
    save_reward(tmp_path / "reward", "chatml")
    chat = template("chatml")
    sequences = tokenize_demonstrations(rows("chatml"), chat, max_length=200)
    texts = [chat.decode_prompt(prompt) for prompt in sequences.prompts()]
    answers = [chat.decode_response(response) for response in sequences.responses()]
    assert SavedReward(tmp_path / "reward")(texts, answers) == directly(tmp_path / "reward", sequences).tolist()


def test_a_log_ratio_is_served_too(tmp_path: Path) -> None:
    sides = [save_tiny(tmp_path / name, seed=seed, vocab_size=400) for seed, name in enumerate(("policy", "base"))]
    folder = tmp_path / "reward"
    write_log_ratio(folder, *sides, scale=0.1)
    template("planted").save_tokenizer(folder)
    sequences = tokenize_demonstrations(rows("planted"), template("planted"), max_length=200)
    texts = [template("planted").decode_prompt(prompt) for prompt in sequences.prompts()]
    answers = [template("planted").decode_response(response) for response in sequences.responses()]
    assert SavedReward(folder)(texts, answers) == pytest.approx(directly(folder, sequences), abs=1e-5)
    assert SavedReward(folder)([], []) == []
    with pytest.raises(DataError, match=r"prompts\[1\] and its response are \d+ tokens, over 256"):
        SavedReward(folder)(texts[:2], [answers[0], "no " * 300])


def test_which_reward_is_meant(tmp_path: Path) -> None:
    for name in ("one", "two"):
        save_reward(tmp_path / "run" / name / "reward", "planted")
    assert find_reward(tmp_path / "run" / "two" / "reward") == tmp_path / "run" / "two" / "reward"
    base = tmp_path / "run" / "one" / "base"
    for place, words in {
        tmp_path / "run": "2 rewards are in this run",
        tmp_path / "nowhere": "no such folder",
        tmp_path: "no reward in this folder",
    }.items():
        with pytest.raises(UserError, match=words):
            find_reward(place)
    with pytest.raises(UserError, match="a language model, and no reward"):
        SavedReward(base)
    (base / "config.json").write_text("[]")
    with pytest.raises(UserError, match="cannot be read as a model's settings"):
        SavedReward(base)


def test_a_reward_without_a_template_asks_for_one(tmp_path: Path) -> None:
    save_reward(tmp_path / "reward", "planted")
    (tmp_path / "reward" / "chat_template.jinja").unlink()
    with pytest.raises(ConfigError, match="no chat template"):
        SavedReward(tmp_path / "reward")
    SavedReward(tmp_path / "reward", chat_template="plain")


def test_it_does_not_start_without_a_token() -> None:
    """One line, before anything is loaded."""
    done = run_rayalign("serve-reward", "nowhere", **{VARIABLE: "  "})
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and f"{VARIABLE} is not set" in done.stderr


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"host": "0.0.0.0"}, "others would send the token to it in clear"),
        ({"host": "::"}, "in clear"),
        ({"host": "rewards.example"}, "in clear"),
        ({"host": "0.0.0.0", "cert": Path("none.pem")}, "--cert none.pem: cannot be used"),
    ],
)
def test_beyond_this_machine_it_wants_a_certificate(
    options: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(VARIABLE, TOKEN)
    with pytest.raises(UserError, match=words) as error:
        serve_reward(tmp_path, **{"port": 0, **options})
    assert TOKEN not in str(error.value) and "\n" not in str(error.value)


def test_a_port_that_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_reward(tmp_path / "reward", "planted")
    monkeypatch.setenv(VARIABLE, TOKEN)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        for port, words in ((taken.getsockname()[1], "Address already in use"), (99_999, "must be 0-65535")):
            with pytest.raises(UserError, match=rf"cannot listen on 127.0.0.1, port {port} \(.*{words}"):
                serve_reward(tmp_path / "reward", host="127.0.0.1", port=port)


def test_code_of_the_folder_is_not_run(tmp_path: Path) -> None:
    """A reward from elsewhere may bring code (auto_map), and weights that are pickles."""
    save_reward(tmp_path / "reward", "planted")
    file, ran = tmp_path / "reward" / "config.json", tmp_path / "ran"
    settings = json.loads(file.read_text())
    (tmp_path / "reward" / "own.py").write_text(f"open({str(ran)!r}, 'w')\n")
    auto = {"AutoConfig": "own.Config", "AutoModelForSequenceClassification": "own.Model"}
    file.write_text(json.dumps(settings | {"model_type": "theirs", "auto_map": auto}))
    with pytest.raises(UserError, match="cannot be loaded"):
        SavedReward(tmp_path / "reward")
    assert not ran.exists() and os.listdir(tmp_path / "reward").count("own.py") == 1
