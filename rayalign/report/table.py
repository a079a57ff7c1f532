"""The end of a run on the terminal: rewards, the learned reward's accuracy, examples, what they show."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from rayalign.report.results import Estimate, Results, number, title
from rayalign.report.verdict import verdict

MAX_EXAMPLES = 3
MAX_ANSWER = 300  # characters

_ACCURACY_NAMES = {
    "heldout_pairs": "held-out preference pairs",
    "policy_samples": "pairs of the policy's own samples",
}
_BESIDE = {
    "reward": "learned reward",
    "length": "length (tokens)",
    "ended_frac": "ended",
    "parsed_frac": "parsed",
}


def print_report(console: Console, results: Mapping[str, Any], artifacts: Mapping[str, str]) -> None:
    """Prints all of it; parts that the run did not measure are left out."""
    read = Results(results)
    for part in _parts(read):
        console.print(part)
    console.print(Text(verdict(results), style="bold"))
    console.print()
    for line in saved_lines(artifacts):
        console.print(line, soft_wrap=True)  # a path that is broken over lines cannot be copied


def reward_table(read: Results, quantity: str, heading: str) -> Table:
    """The quantity by model (rows) and temperature (columns), with intervals; the demonstrator's row last."""
    table = Table(title=heading, title_style="bold", title_justify="left", box=SIMPLE_HEAD)
    table.add_column("model")
    for temperature in read.temperatures:
        table.add_column(f"T = {number(temperature)}")
    for model in read.models:
        curve = read.curve(model, quantity)
        table.add_row(title(model), *(shown(curve.get(t)) for t in read.temperatures))
    if quantity == "golden" and read.expert_golden is not None:
        own = [f"{read.expert_golden:.3f}" if t == read.main_temperature else "" for t in read.temperatures]
        table.add_row("demonstrator", *own, style="dim")
    return table


def beside_table(read: Results) -> Table | None:
    """What else was measured of each model, at the main temperature."""
    temperature = read.main_temperature
    if temperature is None:
        return None
    cells = {model: read.cell(model, temperature) for model in read.models}
    names = [name for name in _BESIDE if any(Estimate.parse(cell.get(name)) for cell in cells.values())]
    if not names:
        return None
    table = Table(
        title=f"Answers at T = {number(temperature)}",
        title_style="bold",
        title_justify="left",
        box=SIMPLE_HEAD,
    )
    table.add_column("model")
    for name in names:
        table.add_column(_BESIDE[name], justify="right")
    for model, cell in cells.items():
        table.add_row(title(model), *(_brief(name, Estimate.parse(cell.get(name))) for name in names))
    return table


def shown(estimate: Estimate | None) -> str:
    """Example: "0.751 ±0.016"; "-" where nothing was measured."""
    if estimate is None:
        return "-"
    known = estimate.half_width == estimate.half_width
    return f"{estimate.mean:.3f} ±{estimate.half_width:.3f}" if known else f"{estimate.mean:.3f}"


def saved_lines(artifacts: Mapping[str, str]) -> list[Text]:
    """One aligned line for each thing saved."""
    width = max((len(name) for name in artifacts), default=0)
    return [Text.assemble((f"{name:<{width}}  ", "dim"), path) for name, path in artifacts.items()]


def _parts(read: Results) -> Iterator[RenderableType]:
    if read.has("golden"):
        yield reward_table(read, "golden", "Golden reward (95% intervals)")
    elif read.has("reward"):
        yield reward_table(read, "reward", "Learned reward (95% intervals)")
    beside = beside_table(read)
    if beside is not None:
        yield beside
    if read.reward_accuracy:
        yield Text("Accuracy of the learned reward", style="bold")
        yield from (_accuracy_line(name, accuracy) for name, accuracy in read.reward_accuracy.items())
        yield Text()
    for place, example in enumerate(read.examples[:MAX_EXAMPLES], start=1):
        yield Text(f"Example {place}", style="bold")
        yield _example(example)


def _accuracy_line(name: str, accuracy: Estimate) -> Text:
    pairs = f" ({accuracy.num} pairs)" if accuracy.num else ""
    return Text(f"  on {_ACCURACY_NAMES.get(name, name.replace('_', ' '))}: {shown(accuracy)}{pairs}")


def _example(example: Mapping[str, Any]) -> Padding:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    rows = [("prompt", example.get("prompt")), ("demonstrator", example.get("demonstration"))]
    rows += [(title(model), answer) for model, answer in (example.get("answers") or {}).items()]
    for name, text in rows:
        if text is not None:
            grid.add_row(name, Text(_cut(text) or "(nothing)"))
    return Padding(grid, (0, 0, 1, 2))


def _brief(name: str, estimate: Estimate | None) -> str:
    if estimate is None:
        return "-"
    if name.endswith("_frac"):
        return f"{100 * estimate.mean:.1f}%"
    return f"{estimate.mean:.1f}" if name == "length" else shown(estimate)


def _cut(text: str) -> str:
    """At most MAX_ANSWER characters, without control characters."""
    clean = "".join(c if c.isprintable() or c == "\n" else " " for c in text).strip()
    return clean if len(clean) <= MAX_ANSWER else clean[: MAX_ANSWER - 4].rstrip() + " ..."
