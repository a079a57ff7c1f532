"""Strategies for configs as people write them: YAML, `key.sub=value` overrides, `extends`, and paths of every kind."""

from __future__ import annotations

import itertools
import os
import re
import socket
import tempfile
from functools import cache
from pathlib import Path

from hypothesis import strategies as st

from rayalign.config.load import load_config
from tests.hostile.configs import FILES, place_values, use
from tests.hostile.judge import Case

numbers = itertools.count()


@cache
def folder() -> Path:
    """Where the cases of a process lie."""
    return Path(tempfile.mkdtemp(prefix="hostile-"))


def new_file(content: bytes, name: str = "{}.yaml") -> Path:
    """A file of its own."""
    file = folder() / name.format(next(numbers))
    file.write_bytes(content)
    return file


def loaded(kind: str, file: Path, damage: str, *overrides: str, pattern: str = "", **known: object) -> Case:
    """A case of a file and overrides."""
    return Case(kind, damage, lambda: use(load_config(file, overrides)), pattern=pattern, **known)


def in_file(file: Path) -> str:
    """A pattern: the message begins with the file, or, from the checks before a run, with a key."""
    return rf"{re.escape(str(file))}:|[a-z_.0-9]+(:| \(tokenizer\):)"


SNIPPETS = (
    '!!python/object/apply:os.system ["true"]', "!!python/name:os.system", "!!binary aGVsbG8=", "!!binary '!'",
    "!!set {a, b}",
    "!!timestamp 2026-13-45", "2026-13-45", "2026-02-30", "2026-02-28", "12:30:59", "!!omap [a: 1]", "!!pairs [a: 1]",
    "!!float abc", "!!int ''", "!!int 0b", "!!bool maybe", "!!null x", "!!str", "!local x", "!<tag:x> y", "*undefined",
    "&a [*a]", "&a {b: *a}", "<<: 3", "{<<: *x}", "{<<: [1]}", "{<<: {a: 1}}", "? [a]\n: b", "{[a]: b}",
    "{{a: b}: c}", "{? : }",
    "0x_", "0o9", "0b2", "1__0", "1_000", "+.inf", "-.NaN", ".e1", "yes", "no", "on", "~", "=", "'", '"', "[", "{",
    "}", "]", "|",
    ">", "|9", "@x", "`x", "%x", "- - -", "---", "...", "--- a\n--- b", "\t- x", "\t", "'\\ud800'", '"\\ud800"',
    '"\\0"', '"\\x"',
    '"\\U00110000"', "9" * 5000, "-" + "9" * 400, "1e99999", "[" * 600, "{a: " * 500, "- " * 500, "x" * 200_000,
    "\u2028", "\x85",
    "\x00", "\x07", "\ufeff", "\ud83d\ude00".encode("utf-16", "surrogatepass").decode("utf-16"), "a: b: c", "[a, b",
    "#", "",
    "&x", "& x", "*", "!", "!!", "? ?", ": :", "{,}", "[,]", "!!merge x", "!!value x",
)  # fmt: skip


def bomb(depth: int = 9, width: int = 10) -> str:
    """Aliases of aliases: a few hundred letters that stand for ten to the `depth` values."""
    lines = ["a0: &a0 [x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * width)}]" for i in range(1, depth + 1)]
    return "\n".join(lines) + "\n"


def merge_bomb(depth: int = 9, width: int = 10) -> str:
    """The same with merge keys."""
    lines = ["a0: &a0 {x: 1}"]
    lines += [f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * width)}], k{i}: *a{i - 1}}}" for i in range(1,
    depth + 1)]
    return "\n".join(lines) + "\n"


@st.composite
def with_a_snippet(draw: st.DrawFn) -> Case:
    """One value, or one line, of a file in the way of YAML's traps."""
    text = draw(st.sampled_from(FILES)).read_text()
    lines = text.splitlines()
    number = draw(st.integers(0, len(lines) - 1))
    snippet = draw(st.sampled_from(SNIPPETS))
    key, colon, _ = lines[number].partition(":")
    whole = draw(st.booleans()) or not colon
    lines[number] = snippet if whole else f"{key}: {snippet}"
    file = new_file("\n".join(lines).encode("utf-8", "surrogatepass"))
    return loaded("YAML's traps", file, f"line {number + 1}: {lines[number]!r:.200}", pattern=in_file(file))


@st.composite
def with_damaged_bytes(draw: st.DrawFn) -> Case:
    """A file cut off, in another encoding, with lines lost, doubled or indented otherwise, or bytes from elsewhere."""
    content = draw(st.sampled_from(FILES)).read_bytes()
    place = draw(st.integers(0, len(content)))
    lines = content.split(b"\n")
    line = draw(st.integers(0, len(lines) - 1))
    damage = draw(st.sampled_from(sorted(DAMAGES)))
    content = DAMAGES[damage](content, place, lines, line, draw(st.binary(min_size=1, max_size=12)))
    file = new_file(content)
    return loaded("a damaged file", file, f"{damage} at byte {place}, line {line + 1}", pattern=in_file(file))


DAMAGES = {
    "cut off": lambda content, place, lines, line, more: content[:place],
    "bytes put in": lambda content, place, lines, line, more: content[:place] + more + content[place:],
    "bytes overwritten": lambda content, place, lines, line,
    more: content[:place] + more + content[place + len(more) :],
    "a NUL": lambda content, place, lines, line, more: content[:place] + b"\0" + content[place:],
    "a byte order mark": lambda content, place, lines, line, more: b"\xef\xbb\xbf" + content,
    "two marks": lambda content, place, lines, line, more: b"\xef\xbb\xbf" * 2 + content,
    "UTF-16": lambda content, place, lines, line, more: content.decode().encode("utf-16"),
    "Latin-1": lambda content, place, lines, line, more: content[:place] + b"\xe9\xff" + content[place:],
    "CRLF": lambda content, place, lines, line, more: content.replace(b"\n", b"\r\n"),
    "CR": lambda content, place, lines, line, more: content.replace(b"\n", b"\r"),
    "tabs": lambda content, place, lines, line, more: content.replace(b"  ", b"\t"),
    "a tab": lambda content, place, lines, line, more: b"\n".join([*lines[:line], b"\t" + lines[line],
    *lines[line + 1 :]]),
    "a line lost": lambda content, place, lines, line, more: b"\n".join(lines[:line] + lines[line + 1 :]),
    "a line doubled": lambda content, place, lines, line, more: b"\n".join(lines[: line + 1] + lines[line:]),
    "a line indented": lambda content, place, lines, line, more: b"\n".join([*lines[:line], b"   " + lines[line],
    *lines[line + 1 :]]),
    "two documents": lambda content, place, lines, line, more: content + b"\n---\n" + content,
    "twice": lambda content, place, lines, line, more: content + b"\n" + content,
    "alias bomb": lambda content, place, lines, line, more: bomb().encode() + content,
    "merge bomb": lambda content, place, lines, line, more: merge_bomb().encode() + content,
    "nothing": lambda content, place, lines, line, more: b"",
    "gzip": lambda content, place, lines, line, more: b"\x1f\x8b\x08" + content,
    "a list": lambda content, place, lines, line, more: b"- " + more.hex().encode(),
}


parts = st.sampled_from(
    ["stages", "model", "data", "placement", "sft", "world", "irl", "0", "-1", "99999999999999999999", "\u0663",
    "\u00b2", "seed", "name",
     "policy", "path", "optimizer", "betas", "extends", "", " ", "*", "<<", "__class__", "\0", "\ud800", "\n",
     "learning_rate"]
)  # fmt: skip
shapes = (
    st.lists(parts, min_size=1, max_size=5).map(".".join)
    | st.text(max_size=12)
    | st.sampled_from(["a." * 3000 + "b", "stages." * 2000, ".", "=", "==", "stages.0." * 900 + "x", "x" * 100_000])
)


@st.composite
def with_an_override(draw: st.DrawFn) -> Case:
    """key.sub=value of every shape: the message quotes it, or names its key."""
    key = draw(shapes)
    value = draw(st.sampled_from(SNIPPETS) | st.text(max_size=8) | st.just(bomb()))
    override = key + draw(st.sampled_from(["=", "=", "=", "", "==", ": "])) + value
    file = draw(st.sampled_from(FILES))
    pattern = r"override |'|\"|[^:]+: "
    return loaded("an override", file, f"{file.name} {override!r:.200}", override, pattern=pattern)


@st.composite
def extending(draw: st.DrawFn) -> Case:
    """`extends` of what is no config: itself, circles, folders, other types; long chains."""
    number = next(numbers)
    here = folder()
    (here / "folder.yaml").mkdir(exist_ok=True)
    name, long = f"extends{number}.yaml", f"chain{number}_"
    target = draw(
        st.sampled_from(
            [name, f"./{name}", f"../{here.name}/{name}", "folder.yaml", "nothing.yaml", ".", "", "~",
            "~nobody-is-called-so/x.yaml",
             "[a, b]", "{a: b}", "3", "null", "yes", '"\\0"', "/dev/null", "/dev/zero", "/proc/self/mem", "x" * 5000,
             "a/" * 2000,
             "circle", "chain", '"\\ud800"', "fifo.yaml", "socket.yaml", "loop.yaml", "!!binary aGVsbG8="]
        )
    )  # fmt: skip
    strange_paths()
    if target == "circle":
        target = f"circle{number}.yaml"
        (here / target).write_text(f"extends: {name}\n")
    if target == "chain":
        target = f"{long}0.yaml"
        for i in range(1500):
            (here / f"{long}{i}.yaml").write_text(f"extends: {long}{i + 1}.yaml\n")
    file = here / name
    file.write_text(f"extends: {target}\nname: x\n")
    pattern = rf"{re.escape(str(here))}|/dev|/proc"  # the config, or the file that it extends
    return loaded("extends", file, f"extends: {target:.100}", pattern=pattern, must="refuse")


@cache
def strange_paths() -> tuple[str, ...]:
    """Paths that are there and are no file and no folder to use, and some that cannot be."""
    here = folder()
    os.mkfifo(here / "fifo.yaml")
    os.mkfifo(here / "fifo.jsonl")
    for name in ("socket.yaml", "socket.jsonl"):
        with socket.socket(socket.AF_UNIX) as made:
            cwd = os.open(".", os.O_RDONLY)
            os.chdir(here)  # the system takes short names only
            made.bind(name)
            os.fchdir(cwd)
            os.close(cwd)
    for name in ("loop.yaml", "loop.jsonl", "loop"):
        (here / name).symlink_to(name)
    (here / "dangling.jsonl").symlink_to("nowhere")
    (here / "zero.jsonl").symlink_to("/dev/zero")
    (here / "empty").mkdir()
    (here / "rows.jsonl").mkdir()
    (here / "closed").mkdir(mode=0)
    (here / "closed.jsonl").write_text("{}")
    (here / "closed.jsonl").chmod(0)
    (here / "file").write_text("x")
    made_here = ("fifo.jsonl", "socket.jsonl", "loop.jsonl", "loop", "loop/x.jsonl", "dangling.jsonl", "zero.jsonl",
    "empty",
                 "rows.jsonl", "closed", "closed/x.jsonl", "closed.jsonl", "file", "file/x",
                 "fifo.jsonl/x")  # fmt: skip
    others = ("/dev/null", "/dev/zero", "/dev/stdin/x", "/proc/self/mem", "/proc/none", "~nobody-is-called-so/x",
    "~nobody", ".", "/",
              "//", " ", "\t", "x" * 300, "x" * 5000, "a/" * 3000, "x" * 300 + ".jsonl", "\0", "a\0.jsonl", "\ud800",
              "\ud800.jsonl",
              "C:\\data", "s3://bucket/x.jsonl", "https://example.invalid/x.jsonl", "file:///x", "a/b/c", "-",
              "$HOME/x", "*.jsonl", "\u202e.jsonl",
              "\x1b[2J")  # fmt: skip
    return (*(str(here / name) for name in made_here), *others)


PATHS = ("path", "policy", "init", "reward", "reference", "tokenizer", "chat_template", "run_dir", "better", "worse")


@st.composite
def with_a_strange_path(draw: st.DrawFn) -> Case:
    """Every place that takes a path, with something else behind it."""
    location = draw(st.sampled_from(strange_paths()))
    return draw(place_values("a strange path", PATHS, st.just(location)))


@st.composite
def configs_that_are_none(draw: st.DrawFn) -> Case:
    """The path of the config itself."""
    path = draw(st.sampled_from(strange_paths()))
    return loaded("no config there", Path(path), path[:100], must="refuse")


def names() -> st.SearchStrategy[Case]:
    """Names of runs and stages that would not be folders of their own."""
    given = st.sampled_from(
        ["..", ".", "a/b", "/", "a\\b", "a b", "", " ", "-", "a.", "tensorboard", "config.yaml", "metrics.jsonl",
        ".lock", "CON", "n" * 300,
         "n" * 5000, "\u0430bc", "a\0", "a\n", "\ud800", "..a", "summary.json", "plot.png"]
    )  # fmt: skip
    return place_values("a name", ("name",), given)

