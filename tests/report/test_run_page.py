"""The report of runs: what it says in every state of a run, and that it works in a real browser."""

from __future__ import annotations

import contextlib
import json
import random
import re
from pathlib import Path

import pytest
import yaml
from plotly.offline import get_plotlyjs

from rayalign.cli import main
from rayalign.errors import UserError
from rayalign.report.answers import sources
from rayalign.report.page import Picture, Section, page
from rayalign.report.run_files import read_run
from rayalign.report.run_page import run_report, write_run_report
from rayalign.storage.evaluation import record
from rayalign.storage.run_folder import held
from tests.report.browser import chromium, opened
from tests.report.run_folder import HOSTILE, PROMPTS, ROUNDS, STEPS, write_run

PIXEL = b"GIF89a\x01\x00\x01\x00\x80\x00\x00\x00\x00\x00\xff\xff\xff,\x00\x00\x00\x00\x01\x00\x01\x00\x00\x02\x02D\x01\x00;"
FIGURE = re.compile(r'<div class="chart"><script type="application/json">(.*?)</script>', re.DOTALL)


def figures(html: str) -> list[dict]:
    return [json.loads(found) for found in FIGURE.findall(html)]


def measured(figure: dict) -> str:
    """The title of the vertical axis, on one line."""
    return figure["layout"]["yaxis"]["title"].get("text", "").replace("<br>", " ")


def headings(html: str) -> list[str]:
    return re.findall("<h2>(.*?)</h2>", html)


def test_a_finished_run_shows_every_part(tmp_path: Path) -> None:
    html = write_run_report([write_run(tmp_path / "run", alarm=True)]).read_text()

    assert headings(html) == [
        "Held-out prompts",
        "Stage sft: by step",
        "Stage rft: by step",
        "Stage rft: sampler against trainer",
        "Stage rft: rewards of demonstrations and samples",
        "Stage best: best of n",
        "Stage rft: where the time went",
        "Samples",
        "The watch for reward hacking",
        "Environment",
        "Settings",
    ]
    verdict = re.search('<div class="verdict">(.*?)</div>', html).group(1)
    assert verdict.count("<p>") == 3
    assert "sft → rft → best → evaluate, from org/model, seed 0" in verdict and "finished" in verdict
    assert "RFT beats SFT" in verdict and "kl_growth" in verdict and "2e-06 nats a token" in verdict
    assert "the KL to the reference grows: stop" in html


def test_every_axis_of_every_chart_says_what_it_is(tmp_path: Path) -> None:
    drawn = figures(run_report([read_run(write_run(tmp_path / "run"))]))

    assert len(drawn) > 12
    for figure in drawn:
        for axis in ("xaxis", "yaxis"):
            named_rows = any(trace.get("orientation") == "h" for trace in figure["data"]) and axis == "yaxis"
            assert named_rows or figure["layout"][axis]["title"]["text"], figure["layout"][axis]


def test_curves_are_the_recorded_numbers(tmp_path: Path) -> None:
    drawn = figures(run_report([read_run(write_run(tmp_path / "run"))]))

    [kl] = [figure for figure in drawn if measured(figure).startswith("KL")]
    [curve] = kl["data"]
    assert curve["x"] == [float(step) for step in range(ROUNDS * STEPS)]
    assert curve["y"] == pytest.approx([0.05 * (step % STEPS) for step in range(ROUNDS * STEPS)])


def test_seeds_of_one_experiment_become_a_curve_with_a_band(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / f"run{seed}", seed=seed) for seed in range(3)]
    drawn = figures(run_report([read_run(run) for run in runs]))

    [golden] = [figure for figure in drawn if measured(figure).startswith("golden reward of fresh")]
    band, curve = golden["data"]
    assert curve["y"] == pytest.approx([0.32, 0.42, 0.52])  # the middle seed's, which is the mean
    half = 4.302653 * 0.02 / 3**0.5  # t quantile of two degrees of freedom, deviation 0.02
    assert band["y"][:3] == pytest.approx([0.32 + half, 0.42 + half, 0.52 + half], rel=1e-4)


def test_other_experiments_stand_side_by_side_with_what_differs(tmp_path: Path) -> None:
    first = write_run(tmp_path / "first")
    second = write_run(tmp_path / "second", model={"path": "org/other", "dtype": "float32"})
    html = write_run_report([first, second]).read_text()

    assert (tmp_path / "report.html").exists()
    assert "<td>model.path</td><td>org/model</td><td>org/other</td>" in html
    [kl] = [figure for figure in figures(html) if measured(figure).startswith("KL")]
    assert [trace["name"] for trace in kl["data"]] == ["first", "second"]
    assert "Samples of first" in headings(html) and "Samples of second" in headings(html)


def test_a_run_that_died_in_the_middle_still_opens_and_says_so(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", died=True)
    html = write_run_report([run]).read_text()

    assert "did not finish: it ended in stage rft, round 2, step 12" in html
    assert "the golden reward of fresh samples went from 0.3 to 0.4" in html
    with held(run):
        assert "running, in stage rft, round 2" in write_run_report([run], running=[run]).read_text()


def test_a_run_that_has_only_begun(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", died=True)
    for name in ("metrics.jsonl", "rounds.jsonl", "environment.json"):
        (run / name).unlink()
    html = write_run_report([run]).read_text()

    assert "in stage rft, before its first record" in html and "there is nothing to conclude yet" in html


def test_a_run_of_an_older_version_shows_what_it_has(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    for name in ("rounds.jsonl", "environment.json"):
        (run / name).unlink()
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for line in records:
        del line["time_s"]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in records) + "no JSON\n")
    (run / "best" / "curve.json").write_text("{")
    html = write_run_report([run]).read_text()

    assert "Stage rft: by step" in headings(html) and "Stage rft: rewards of demonstrations" not in html
    assert f"metrics.jsonl, line {len(records) + 1}: left out (no JSON object)" in html
    assert "best/curve.json: left out (no JSON object)" in html


def test_what_is_no_run_gets_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    control = tmp_path / "control"
    control.mkdir()
    (control / "config.yaml").write_text("environment: {id: Pendulum-v1}\n")
    for place, words in (
        ("missing", "holds no config.yaml; give a run's folder"),
        ("empty", "holds no config.yaml"),
        ("control", "a control run; use rayalign control report"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(["report", str(tmp_path / place)])
        assert stopped.value.code == 2 and words in capsys.readouterr().err
    with pytest.raises(UserError, match="cannot be written"):
        write_run_report([write_run(tmp_path / "run")], tmp_path / "run" / "config.yaml" / "report.html")


def test_text_cannot_become_markup_nor_end_a_script() -> None:
    html = page("<b>name</b>", ["<i>"], [])
    assert "&lt;b&gt;name" in html and "<b>name" not in html


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    chromium()
    return write_run_report([write_run(tmp_path_factory.mktemp("report") / "run", tokens=True)])


def test_in_a_browser_it_is_quiet_and_asks_no_network(report: Path) -> None:
    with opened(report) as shown:
        assert shown.errors == []
        assert [url for url in shown.requests if not url.startswith(("file:", "data:", "blob:"))] == []
        assert shown.page.locator("img[src=x]").count() == 0  # of a prompt that tries to be markup


def test_in_a_browser_samples_are_sorted_searched_and_coloured(report: Path) -> None:
    with opened(report) as shown:
        order, prompts = shown.page.locator("select.order"), ".sample .prompt"
        assert shown.texts(".samples + .more") == ["show more"] and len(shown.texts(prompts)) == 10
        shown.page.click("button.more")
        assert len(shown.texts(prompts)) == PROMPTS and not shown.page.locator("button.more").is_visible()
        order.select_option(label="reward at the end, highest first")
        assert [text.split()[1] for text in shown.texts(prompts)[:3]] == ["11", "9", "7"]
        order.select_option(label="change of reward, largest fall first")
        assert [text.split()[1] for text in shown.texts(prompts)[:3]] == ["10", "8", "6"]
        shown.page.fill("input.search", "question 7")
        assert [text.split()[1] for text in shown.texts(prompts)] == ["7"]
        colour = shown.page.locator(".token").first.evaluate("(one) => getComputedStyle(one).backgroundColor")
        assert colour == "rgba(213, 94, 0, 0.3)"  # -0.4, where the largest is 0.8
        shown.page.locator("select.source").select_option(index=1)
        shown.page.fill("input.search", "")
        assert "rft says 0" in shown.page.locator(".sample").first.inner_text()
        assert shown.errors == []


def test_in_a_browser_it_fits_a_phone_and_follows_the_dark(report: Path) -> None:
    with opened(report, width=390, height=800, dark=True) as shown:
        assert shown.page.evaluate("document.documentElement.scrollWidth") <= 390
        ink = "getComputedStyle(document.querySelector('.chart .xtitle')).fill"
        paper = "getComputedStyle(document.body).backgroundColor"
        assert shown.page.evaluate(ink) == "rgb(230, 230, 230)" and shown.page.evaluate(paper) == "rgb(22, 24, 27)"
        shown.page.emulate_media(color_scheme="light")
        shown.page.wait_for_function(f"{ink} === 'rgb(34, 34, 34)'")
        assert shown.errors == []


def test_a_report_of_control_is_quiet_too(tmp_path: Path) -> None:
    """Pictures, tables and folded text, without charts of plotly."""
    chromium()
    picture = Picture.of_bytes(PIXEL, "gif", "a picture")
    file = tmp_path / "report.html"
    file.write_text(page("Pendulum-v1", ["A verdict."], [Section("An episode", pictures=[picture], text="a: 1")]))
    assert file.stat().st_size < 20_000  # no library of charts
    with opened(file) as shown:
        assert shown.errors == [] and shown.page.locator("img").evaluate("(one) => one.naturalWidth") == 1


def mutated(value: object, rng: random.Random) -> object:
    """A parsed file with one thing in it replaced by something odd, or taken away."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice(list(value))
        if rng.random() < 0.2:
            return {name: inner for name, inner in value.items() if name != key}
        return {**value, key: mutated(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.9:
        place = rng.randrange(len(value))
        return [*value[:place], mutated(value[place], rng), *value[place + 1 :]]
    return rng.choice([None, "odd", -1, 10**400, 1e308, True, [], {}, [[1]], {"mean": "x"}])


@pytest.mark.parametrize("seed", range(4))
def test_whatever_stands_in_the_files_the_report_is_written(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only a config that is none is refused; the rest is left out, and told."""
    monkeypatch.setattr("rayalign.report.page.get_plotlyjs", lambda: "")  # five megabytes of no interest here
    rng = random.Random(seed)
    run = write_run(tmp_path / "run", alarm=True, tokens=True)
    files = ["metrics.jsonl", "rounds.jsonl", "alarms.jsonl", "environment.json", "best/curve.json", "evaluate/results.json",
             "evaluate/samples.jsonl", "config.yaml"]  # fmt: skip
    whole = {name: (run / name).read_text() for name in files}
    for _ in range(12):
        name = rng.choice(files)
        if name.endswith(".jsonl"):
            lines = [json.loads(line) for line in whole[name].splitlines()]
            (run / name).write_text("".join(json.dumps(line) + "\n" for line in mutated(lines, rng) or []))
        else:
            (run / name).write_text(json.dumps(mutated(yaml.safe_load(whole[name]), rng)))
        with contextlib.suppress(UserError):
            write_run_report([run])
        if rng.random() < 0.5:
            (run / name).write_text(whole[name])


def test_what_a_suite_found_stands_in_the_report(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    accuracy = {"mean": 0.8, "low": 0.75, "high": 0.85, "num": 200}
    found = {"accuracy": accuracy, "sections": {"Chat": {"accuracy": {"mean": 1.0}}}}
    record(run / "evaluation.json", "reward", found, model=run, data={})
    record(run / "evaluation.json", "stage:evaluate", found, model=run, data={})
    html = write_run_report([run]).read_text()
    assert "<td>accuracy</td><td>0.800 ±0.050</td><td>200</td>" in html and "sections / Chat / accuracy" in html
    assert [title for title in headings(html) if title.startswith("Suite")] == ["Suite reward"]


def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    runs = [read_run(write_run(tmp_path / place / "run", epochs=number)) for number, place in enumerate(("a", "b", "c"))]
    drawn = figures(run_report(runs))
    [kl] = [figure for figure in drawn if measured(figure).startswith("KL")]
    assert [trace["name"] for trace in kl["data"]] == ["a/run", "b/run", "c/run"]


def test_nothing_in_data_ends_its_script(tmp_path: Path) -> None:
    run = write_run(tmp_path / f"run{HOSTILE.replace('/', '')}", name=HOSTILE, alarm=True)
    alarm = json.loads((run / "alarms.jsonl").read_text())
    (run / "alarms.jsonl").write_text(json.dumps(alarm | {"line": HOSTILE, "name": HOSTILE}) + "\n")
    html = run_report([read_run(run), read_run(write_run(tmp_path / "other", seed=1))])
    without_plotly = html.replace(get_plotlyjs(), "")
    assert "onerror=alert(1)" in without_plotly and "<img src=x" not in without_plotly
    assert without_plotly.count("</script>") == without_plotly.count("<script")


def test_margins_to_the_demonstration_are_what_rounds_are_compared_by(tmp_path: Path) -> None:
    """A reward model of another scale each round: the browser is given the demonstration's reward of each."""
    run = write_run(tmp_path / "run")
    [first, *_] = sources(read_run(run))
    row = first["rows"][3]
    assert row["bases"] == [None, 1.65, 1.65, 1.65]
    assert [answer["reward"] for answer in row["answers"][2]] == pytest.approx([0.6, 0.61])


def test_a_page_does_not_grow_with_the_samples(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    line = {"model": "sft", "temperature": 1.0, "prompt": "question 0", "response": "a\u2028b", "ended": True}
    (run / "evaluate" / "samples.jsonl").write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for _ in range(500)))
    source = sources(read_run(run))[-1]
    assert len(source["rows"]) == 1 and len(source["rows"][0]["answers"][0]) == 4
    assert source["rows"][0]["answers"][0][0]["text"] == "a\u2028b"
