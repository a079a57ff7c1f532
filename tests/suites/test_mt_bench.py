"""MT-Bench: answers by vLLM, graded by a real vLLM server and by judges that fail in every way; nothing is asked twice."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
import torch

from rayalign.cli import main
from rayalign.errors import DataError, UserError
from rayalign.suites import judge as judge_module
from rayalign.suites.compare import compare
from rayalign.suites.judge import JudgeDown, JudgeOptions
from rayalign.suites.mt_bench.answers import Drawing
from rayalign.suites.mt_bench.questions import read_questions
from rayalign.suites.mt_bench.suite import Bench, evaluate_mt_bench
from rayalign.suites.mt_bench.tables import table
from rayalign.suites.options import ModelOptions
from rayalign.suites.record import content_of
from rayalign.types import Message
from tests.conftest import one_thread, run_rayalign
from tests.models.tiny import load_plain
from tests.services import Reply, Service, serving, status
from tests.serving.test_saved import template
from tests.suites.policies import save_policy

KEY = "s3cret-key-of-the-tests"
QUESTIONS: list[dict[str, Any]] = [
    {"question_id": 81, "category": "writing", "turns": ["Write about {braces}.", "Again, with the letter A."]},
    {"question_id": 111, "category": "math", "turns": ["1 + 1?", "And twice that?"], "reference": ["It is 2.", "4, sure"]},
    {"question_id": 112, "category": "math", "turns": ["2 + 2?", "And half?"]},
    {"question_id": 91, "category": "roleplay", "turns": ["Be a tree.", "Be another."]},
]
OPTIONS = ["--threads", "1", "--kv-cache-gib", "0.05", "--max-new-tokens", "8"]
DRAWING = Drawing(8, 0, ModelOptions(threads=1, kv_cache_gib=0.05))
USAGE = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}


def says(text: Any, usage: Any = USAGE, finish: str = "stop") -> Reply:
    message = {"choices": [{"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": text}}]}
    return status(200, json.dumps(message | ({"usage": usage} if usage else {})).encode())


def prompt(asked: dict[str, Any]) -> str:
    return asked["messages"][-1]["content"]


def by_kind(handler: BaseHTTPRequestHandler, asked: dict[str, Any]) -> None:
    """7 for a first turn, 4 for a second; of two answers always the one shown first."""
    pair = "Assistant B" in prompt(asked)
    says("[[A]]" if pair else "Rating: [[4]]" if "### User" in prompt(asked) else "Good. Rating: [[7]]")(handler, asked)


@dataclass
class Drawn:
    """A finished run of the command: two policies, their answers, and what the judge was asked."""

    policy: Path
    other: Path
    questions: Path
    done: subprocess.CompletedProcess[str]
    asked: list[dict[str, Any]]
    headers: list[dict[str, str]]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Drawn:
    root = tmp_path_factory.mktemp("mt-bench")
    policy = save_policy(root / "run" / "irl" / "policy", "chatml", max_length=256)
    other = save_policy(root / "other", "chatml", seed=1, max_length=256)
    questions = root / "question.jsonl"
    questions.write_text("".join(json.dumps(one) + "\n" for one in QUESTIONS))
    with serving(by_kind) as service:
        place = ["evaluate", str(root / "run"), "--suite", "mt-bench", "--questions", str(questions), *OPTIONS]
        judge = ["--judge", f"{service.url[:-6]}/v1/", "--judge-model", "strict", "--judge-key-env", "JUDGE_KEY"]
        prices = ["--judge-price-in", "3", "--judge-price-out", "15"]
        done = run_rayalign(*place, *judge, *prices, "--pairwise", str(other), JUDGE_KEY=KEY)
        return Drawn(policy, other, questions, done, service.asked, service.headers)


@pytest.fixture
def run(drawn: Drawn, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """The suite in this process with the answers that are drawn, so that only judging is left; the results."""
    shutil.copytree(drawn.policy.parents[1] / "mt-bench", tmp_path / "mt-bench", dirs_exist_ok=True)
    (tmp_path / "mt-bench" / "judgements.jsonl").unlink()

    def evaluate(service: Service | str, against: bool = False, **judge: Any) -> dict[str, Any]:
        url = service if isinstance(service, str) else f"{service.url[:-6]}/v1"
        options = JudgeOptions(url=url, **{"model": "strict", "timeout_s": 5.0, "concurrency": 1, **judge})
        bench = Bench(read_questions(drawn.questions), drawn.questions, options, DRAWING, drawn.other if against else None)
        file, results = evaluate_mt_bench(drawn.policy, bench, out=tmp_path / "evaluation.json", tell=lambda _: None)
        assert json.loads(file.read_text())["suites"]["mt-bench"]["results"] == json.loads(json.dumps(results))
        return results

    return evaluate


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judge_module, "FIRST_PAUSE_S", 0.01)


def test_on_the_command_line(drawn: Drawn) -> None:
    """Numbers, what is printed, what is kept, and the requests: both orders, and the key in the header only."""
    assert drawn.done.returncode == 0, drawn.done.stderr
    run = drawn.policy.parents[1]
    saved = json.loads((run / "evaluation.json").read_text())["suites"]["mt-bench"]
    results, pairs = saved["results"], saved["results"]["pairwise"]
    assert results["score"] == {"mean": 5.5, "low": 5.5, "high": 5.5, "num": 4}
    assert [results["turns"][turn]["mean"] for turn in ("1", "2")] == [7, 4]
    assert list(results["categories"]) == ["writing", "math", "roleplay"] and results["categories"]["math"]["num"] == 2
    # The judge always prefers the answer shown first: in both orders that is a tie.
    assert (pairs["wins"], pairs["ties"], pairs["losses"], pairs["num_order_decides"]) == (0, 8, 0, 8)
    assert pairs["win_rate"]["mean"] == 0.5 and pairs["against"]["path"] == str(drawn.other)
    assert results["usage"] == {
        "num_asks": 24,
        "num_asks_without_usage": 0,
        "prompt_tokens": 2400,
        "completion_tokens": 240,
        "cost": pytest.approx(2400 * 3e-6 + 240 * 15e-6),
    }
    assert results["num_without_reference"] == 2 and results["seed"] == 0 and results["judge"]["model"] == "strict"
    assert saved["data"]["num_rows"] == 4 and saved["model"]["path"] == str(drawn.policy)
    assert "grade" in drawn.done.stdout and f"evaluation: {run / 'evaluation.json'}" in drawn.done.stdout
    assert {header["Authorization"] for header in drawn.headers} == {f"Bearer {KEY}"} and len(drawn.asked) == 24
    assert all(one["temperature"] == 0 and one["max_tokens"] == 2048 for one in drawn.asked)
    files = [file for file in run.rglob("*") if file.is_file() and file.suffix in (".json", ".jsonl")]
    assert not any(KEY in file.read_text(errors="replace") for file in files)
    assert KEY not in drawn.done.stdout + drawn.done.stderr


def texts_of(drawn: Drawn, policy: Path) -> dict[str, list[str]]:
    """A policy's kept answers: both turns, by question."""
    for file in (drawn.policy.parents[1] / "mt-bench").glob("answers-*.jsonl"):
        head, *rows = [json.loads(line) for line in file.read_text().strip().split("\n")]
        if content_of(policy).items() <= head["drawn_from"]["model"].items():
            return {row["id"]: row["answers"]["texts"] for row in rows}
    raise AssertionError("no answers are kept")


def test_the_second_turn_sees_the_first_answer(drawn: Drawn) -> None:
    """The policy's prompt and the judge's; and the judge sees the reference where there is one."""
    first, second = texts_of(drawn, drawn.policy)["111"]
    turns = [Message("user", "1 + 1?"), Message("assistant", first), Message("user", "And twice that?")]
    chat = template("chatml")
    (tokens,) = chat.encode_prompts([chat.prompt_text(tuple(turns))])
    asked = torch.tensor([tokens])
    ends = list(chat.end_token_ids)
    greedy = load_plain(str(drawn.policy)).generate(asked, max_new_tokens=8, do_sample=False, eos_token_id=ends)
    assert chat.decode_response(greedy[0, len(tokens) :].tolist()).strip() == second
    texts = [prompt(asked) for asked in drawn.asked]
    alone = [text for text in texts if "Assistant B" not in text and first in text and second in text]
    assert any(text.index(first) < text.rindex("And twice that?") < text.rindex(second) for text in alone)
    assert any("4, sure" in text and "Reference answer" in text for text in texts)
    assert not any("Reference" in text for text in texts if "2 + 2?" in text)
    assert sum("Write about {braces}." in text for text in texts) == 6


def test_a_real_server_judges(drawn: Drawn, run: Callable[..., Any], judge_url: str) -> None:
    """vLLM's own OpenAI server: what a random model says is no grade; held to a choice, it gives one."""
    free = run(judge_url, model="tiny", max_tokens=8, asks=2, timeout_s=300.0)
    assert free["score"]["mean"] is None and free["num_unparsed"] == 8
    assert sum(free["unparsed"].values()) == 8 and all("no rating" in why for why in free["unparsed"])
    assert free["usage"]["num_asks"] == 16 and free["usage"]["prompt_tokens"] > 8 * 100
    assert any("unparsed, and so in no number above: 8" in line for line in table(free))
    held = {"structured_outputs": {"choice": ["[[7]]"]}}
    assert run(judge_url, model="tiny", extra=held, timeout_s=300.0)["score"]["mean"] == 7
    chosen = {"structured_outputs": {"choice": ["[[B]]"]}}
    pairs = run(judge_url, against=True, model="tiny", extra=chosen, timeout_s=300.0)["pairwise"]
    assert (pairs["ties"], pairs["num_order_decides"], pairs["num_unparsed"]) == (8, 8, 0)
    with pytest.raises(UserError, match="status 404: .* see that it serves nobody"):
        run(judge_url, model="nobody", timeout_s=300.0)


@pytest.fixture(scope="module")
def judge_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`vllm serve` with a random model, in a process of its own."""
    folder = save_policy(tmp_path_factory.mktemp("judge") / "judge", "chatml", max_length=4096)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder), "--port", port]
    options = ["--host", "127.0.0.1", "--served-model-name", "tiny", "--dtype", "float32", "--enforce-eager"]
    kept = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_NO_USAGE_STATS": "1"}
    log = folder.parent / "log.txt"
    with log.open("w") as file:
        process = subprocess.Popen(
            [*command, *options], env=one_thread() | kept, stdout=file, stderr=file, start_new_session=True
        )
    try:
        _wait(f"http://127.0.0.1:{port}/health", process, log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(60)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(1200):
        assert process.poll() is None, log.read_text()[-3000:]
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5) as found:
            if found.status == 200:
                return
        time.sleep(0.5)
    raise AssertionError(log.read_text()[-3000:])


def test_busy_then_good_and_retry_after(run: Callable[..., Any]) -> None:
    busy, broken = status(429, b"later", Retry_After="1"), status(503)
    with serving(busy, broken, by_kind) as service:
        started = time.monotonic()
        assert run(service)["score"]["mean"] == 5.5
        assert time.monotonic() - started > 0.9 and len(service.asked) == 10


@pytest.mark.parametrize("concurrency", [1, 3])
def test_down_is_one_line_and_what_is_judged_is_kept(run: Callable[..., Any], concurrency: int) -> None:
    """Down from the sixth request on; then up: only what is missing is asked."""
    down = status(500, b"out of memory " * 100)
    with serving(*[by_kind] * 5, down) as service, pytest.raises(JudgeDown) as error:
        run(service, retries=1, concurrency=concurrency)
    assert "no answer after 2 tries (the last: status 500: out of memory" in str(error.value)
    assert len(str(error.value)) < 600 and "\n" not in str(error.value)
    with serving(by_kind) as service:
        assert run(service, concurrency=concurrency)["score"]["mean"] == 5.5
        assert len(service.asked) == 3


def test_nothing_listens(run: Callable[..., Any]) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        with pytest.raises(JudgeDown, match=r"no answer after 3 tries \(the last: Connection refused"):
            run(f"http://127.0.0.1:{closed.getsockname()[1]}", retries=2)


def test_slow(run: Callable[..., Any]) -> None:
    """A judge that hangs is left after the timeout of a request, and all of it by the deadline."""
    release = threading.Event()

    def hangs(handler: BaseHTTPRequestHandler, asked: dict[str, Any]) -> None:
        release.wait(60)

    with serving(hangs) as service:
        started = time.monotonic()
        with pytest.raises(JudgeDown, match=r"no answer after 2 tries \(the last: nothing within 0.3 s"):
            run(service, retries=1, timeout_s=0.3)
        with pytest.raises(JudgeDown, match="not done within 0.5 s .*--judge-deadline"):
            run(service, retries=10**6, timeout_s=0.2, deadline_s=0.5)
        assert time.monotonic() - started < 30
        release.set()


@pytest.mark.parametrize(
    ("reply", "why"),
    [
        (says("no grade here"), "no rating"),
        (says("Rating: [[11]]"), "a rating out of 1 to 10"),
        (says("[[0]]"), "a rating out of 1 to 10"),
        (says("[[3]] or rather [[8]]"), "more than one rating"),
        (says("[[nan]] [[]] [[1e400]]"), "no rating"),
        (says("thinking", finish="length"), "no rating, cut at max_tokens"),
        (says(""), "no words"),
        (says(None), "no words"),
        (status(200), "no JSON: "),
        (status(200, b"<html>"), "no JSON: <html>"),
        (status(200, b'{"choices": []}'), 'no choices[0].message: {"choices": []}'),
        (status(200, b"[" * 100_000), "no JSON: "),
        (status(200, b'"' + b"x" * 5 * 2**20 + b'"'), f"more than {4 * 2**20} bytes"),
    ],
)
def test_malformed_is_asked_again_and_never_a_score(run: Callable[..., Any], reply: Reply, why: str) -> None:
    """Twice bad and then good: a grade. Always bad: counted, and not asked again by a second start."""

    def first_question(handler: BaseHTTPRequestHandler, asked: dict[str, Any]) -> None:
        (reply if "1 + 1?" in prompt(asked) else by_kind)(handler, asked)

    with serving(first_question) as service:
        results = run(service, asks=2)
        assert results["num_unparsed"] == 2 and len(service.asked) == 6 + 2 * 2
        (told,) = results["unparsed"]
        assert told.startswith(why) and results["unparsed"][told] == 2 and len(told) < 300
        assert results["score"] == {"mean": 5.5, "low": 5.5, "high": 5.5, "num": 3}
        assert results["grades"]["111"] == (None, None) and results["categories"]["math"]["num"] == 1
        run(service, asks=2)
        assert len(service.asked) == 10
    with serving(reply, reply, by_kind) as service:
        assert run(service, model="another", asks=3)["num_unparsed"] == 0


def test_a_grade_said_twice_is_one(run: Callable[..., Any]) -> None:
    with serving(says("[[ 6.5 ]], and so: [[6.50]]")) as service:
        assert run(service)["score"]["mean"] == 6.5


def test_usage_that_is_not_told(run: Callable[..., Any]) -> None:
    with serving(says("[[5]]", usage=None), says("[[5]]", usage={"prompt_tokens": "x"}), says("[[5]]")) as service:
        results = run(service, price_in=1.0, price_out=1.0)
    assert results["usage"]["num_asks_without_usage"] == 2 and results["usage"]["cost"] is None
    assert any("unknown for 2 asks; cost unknown" in line for line in table(results))


def test_conversations_that_the_judge_does_not_take(run: Callable[..., Any]) -> None:
    """One that is too long is counted; where none is taken, the request is wrong, and that is one line."""
    too_long = status(400, b"maximum context length")

    def some(handler: BaseHTTPRequestHandler, asked: dict[str, Any]) -> None:
        (too_long if "Write about" in prompt(asked) else by_kind)(handler, asked)

    with serving(some) as service:
        results = run(service)
        assert results["unparsed"] == {"refused (status 400: maximum context length)": 2} and len(service.asked) == 8
    with serving(too_long) as service:
        with pytest.raises(UserError, match=r"it takes no request: refused \(status 400: maximum"):
            run(service, model="another")
        num = len(service.asked)
        assert num in (3, 4)  # the thread that asks may be one ahead of the one that gives up
        with pytest.raises(UserError, match="takes no request"):
            run(service, model="another")
        assert len(service.asked) > num  # a refusal of everything is not kept


@pytest.mark.parametrize(("code", "words"), [(401, "--judge-key-env"), (404, "it serves strict"), (307, "redirect")])
def test_refusals_end_at_once(run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, code: int, words: str) -> None:
    monkeypatch.setenv("JUDGE_KEY", KEY)
    with serving(status(code, f"no: Bearer {KEY}".encode(), Location="http://127.0.0.1:1/")) as service:
        with pytest.raises(UserError, match=f"status {code}: .*{words}") as error:
            run(service, key_env="JUDGE_KEY")
        assert len(service.asked) == 1 and KEY not in str(error.value)


def test_a_judge_that_repeats_the_key(run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("JUDGE_KEY", KEY)
    with serving(says(f"{KEY} [[5]]")) as service:
        run(service, key_env="JUDGE_KEY")
    kept = (tmp_path / "mt-bench" / "judgements.jsonl").read_text()
    assert "*** [[5]]" in kept and KEY not in kept


def test_the_rate_holds(run: Callable[..., Any]) -> None:
    with serving(by_kind) as service:
        started = time.monotonic()
        run(service, requests_per_minute=600, concurrency=4)
        assert time.monotonic() - started >= 0.7  # 8 requests, a tenth of a second apart


def test_killed_in_the_middle(drawn: Drawn, tmp_path: Path) -> None:
    """SIGKILL after some judgements, with a line half written: the next start asks for the others alone."""
    run = tmp_path / "run"
    shutil.copytree(drawn.policy.parents[1], run)
    file = run / "mt-bench" / "judgements.jsonl"
    file.unlink()
    release = threading.Event()

    def hangs(handler: BaseHTTPRequestHandler, asked: dict[str, Any]) -> None:
        release.wait(120)

    command = ["evaluate", str(run), "--suite", "mt-bench", "--questions", str(drawn.questions), *OPTIONS]
    options = ["--judge-model", "strict", "--judge-concurrency", "1"]
    with serving(*[by_kind] * 5, hangs) as service:
        url = ["--judge", f"{service.url[:-6]}/v1"]
        process = subprocess.Popen([sys.executable, "-m", "rayalign.cli", *command, *options, *url], env=one_thread())
        for _ in range(3000):
            if len(service.asked) == 6:
                break
            time.sleep(0.1)
        process.kill()
        process.wait()
        release.set()
    assert len(file.read_text().splitlines()) == 5
    with file.open("a") as stream:
        stream.write('{"key": "half of a li')
    with serving(by_kind) as service:
        done = run_rayalign(*command, *options, "--judge", f"{service.url[:-6]}/v1")
        assert done.returncode == 0, done.stderr
        assert len(service.asked) == 3 and "judged 8 of 8" in done.stdout


def test_wins_count_where_both_orders_agree(drawn: Drawn, run: Callable[..., Any]) -> None:
    """A judge that knows whose answer is whose: it prefers ours in the first turn of writing, theirs elsewhere."""
    ours = texts_of(drawn, drawn.policy)["81"][0]

    def fair(handler: BaseHTTPRequestHandler, asked: dict[str, Any]) -> None:
        text = prompt(asked)
        if "Assistant B" not in text:
            return says("[[5]]")(handler, asked)
        if "### User" not in text and "Write about" in text:
            return says("[[A]]" if text.index(ours) < text.index("Assistant B") else "[[B]]")(handler, asked)
        return says("[[C]]" if "1 + 1?" in text else "no verdict" if "2 + 2?" in text else "[[B]]")(handler, asked)

    with serving(fair) as service:
        pairs = run(service, against=True, asks=1)["pairwise"]
    assert pairs["categories"]["writing"]["wins"] == 1 and pairs["wins"] == 1 and pairs["losses"] == 0
    assert pairs["categories"]["math"]["ties"] == 2 and pairs["num_unparsed"] == 2  # "[[B]]" in both orders is a tie too
    assert pairs["ties"] == 5 and pairs["num_order_decides"] == 3


def test_compare(run: Callable[..., Any], tmp_path: Path) -> None:
    places = []
    for name, grades in (("a", "[[5]]"), ("b", "[[8]]")):
        (tmp_path / name).mkdir()
        with serving(says(grades)) as service:
            run(service)
        (tmp_path / "mt-bench" / "judgements.jsonl").unlink()
        shutil.copy(tmp_path / "evaluation.json", tmp_path / name / "evaluation.json")
        places.append(tmp_path / name)
    lines = compare(places)
    assert lines[0] == "mt-bench: 4 questions, judged by strict"
    assert "  b minus a, over 4 questions: +3.00 (95% interval +3.00 to +3.00)" in lines
    with serving(says("[[8]]")) as service:
        run(service, model="kind")
    shutil.copy(tmp_path / "evaluation.json", tmp_path / "b" / "evaluation.json")
    assert "another judge, and so without a difference: b" in compare(places)[1]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"url": "judge.example/v1"}, "no address; write it as"),
        ({"url": "http://me:pass@127.0.0.1/v1"}, "--judge: a user, a password"),
        ({"url": "http://127.0.0.1/v1?key=pass"}, "--judge: a user, a password"),
        ({"url": "http://judge.example/v1", "key_env": "JUDGE_KEY"}, "the key would travel in clear"),
        ({"key_env": "NOT_SET"}, "NOT_SET: holds no key"),
        ({"key_env": f"sk-{KEY}"}, "give the name of an environment variable"),
    ],
)
def test_a_judge_that_cannot_be_asked(drawn: Drawn, monkeypatch: Any, options: dict[str, Any], words: str) -> None:
    """Told before anything is drawn."""
    monkeypatch.setenv("JUDGE_KEY", KEY)
    judge = replace(JudgeOptions("http://127.0.0.1:1/v1", "strict"), **options)
    bench = Bench(read_questions(drawn.questions), drawn.questions, judge, replace(DRAWING, seed=99))
    with pytest.raises(UserError, match=words) as error:
        evaluate_mt_bench(drawn.policy, bench)
    assert "pass@" not in str(error.value) and KEY not in str(error.value)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([], "holds no questions"),
        ([{"question_id": 1, "category": "x", "turns": ["one"]}], "1: turns must be two texts"),
        ([{"question_id": 1, "category": "x", "turns": ["one", 2]}], "1: turns must be two texts"),
        ([{"question_id": None, "category": "x", "turns": ["a", "b"]}], "question_id must be"),
        ([{"question_id": 1, "turns": ["a", "b"]}], "category must be"),
        ([{"question_id": 1, "category": "x", "turns": ["a", "b"]}] * 2, "2: question_id 1 is there twice"),
    ],
)
def test_questions_that_are_none(tmp_path: Path, rows: list[dict[str, Any]], words: str) -> None:
    file = tmp_path / "question.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match=words):
        read_questions(file)
    with pytest.raises(DataError, match="no such file; MT-Bench's question.jsonl is in FastChat"):
        read_questions(tmp_path / "nothing.jsonl")


def test_references_of_another_file(drawn: Drawn, tmp_path: Path) -> None:
    file = tmp_path / "gpt-4.jsonl"
    file.write_text(json.dumps({"question_id": 112, "choices": [{"index": 0, "turns": ["4", "2"]}]}) + "\n")
    found = {one.id: one for one in read_questions(drawn.questions, file, limit=3)}
    assert found["112"].reference(2) == ("4", "2") and found["111"].reference(1) == ("It is 2.", "4, sure")
    assert list(found) == ["81", "111", "112"] and found["81"].temperature == 0.7 and found["112"].temperature == 0
    file.write_text('{"question_id": 112, "choices": []}\n')
    with pytest.raises(DataError, match="1: no reference answer"):
        read_questions(drawn.questions, file)


def test_options_of_another_suite(capsys: pytest.CaptureFixture[str]) -> None:
    for words, told in {
        ("--suite", "mt-bench", "--pairs", "p"): "--pairs goes with --suite reward, not with mt-bench",
        ("--suite", "reward", "--judge=x"): "--judge goes with --suite mt-bench, not with reward",
        ("--suite", "mt-bench", "--judge", "x"): "the following arguments are required: --questions, --judge-model",
        ("--suite", "mt-bench", "--judge-extra", "[1]"): "argument --judge-extra: give a JSON object",
        ("--suite", "reward", "--pairs", "p", "--pears", "q"): "unrecognized arguments: --pears q",
        ("--suite", "other"): "argument --suite: invalid choice: 'other'",
    }.items():
        with pytest.raises(SystemExit) as ended:
            main(["evaluate", "place", *words])
        printed = capsys.readouterr()
        assert ended.value.code == 2 and printed.err.count("\n") == 1 and printed.out == ""
        assert told in printed.err
