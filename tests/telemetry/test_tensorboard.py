"""TensorBoard's own reader and its own Markdown find what a run wrote."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from rayalign.config.telemetry import TelemetryConfig
from rayalign.telemetry.tables import Table, markdown
from tests.telemetry.trackers import COLUMNS, CURVES, RESOLVED, ROWS, run_twice


def test_curves_config_and_tables_are_read_back(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.text.metadata import PLUGIN_NAME

    run_twice(tmp_path, TelemetryConfig())
    found = EventAccumulator(str(tmp_path / "tensorboard"))
    found.Reload()
    scalars = {tag: [(event.step, event.value) for event in found.Scalars(tag)] for tag in found.Tags()["scalars"]}
    assert scalars == CURVES
    assert set(found.PluginTagToContent(PLUGIN_NAME)) == {"config", "irl/samples"}
    written = found.Tensors("config")[0].tensor_proto.string_val[0].decode()
    assert all(line.startswith("    ") for line in written.splitlines())  # a block of code
    assert yaml.safe_load(written) == RESOLVED
    (table,) = found.Tensors("irl/samples")
    assert table.step == 3
    assert table.tensor_proto.string_val[0].decode() == markdown(Table(COLUMNS, ROWS))


@pytest.mark.filterwarnings("ignore:html5lib's sanitizer is deprecated")
def test_a_table_shows_text_as_it_is() -> None:
    from html import unescape

    from tensorboard.plugin_util import markdown_to_safe_html

    html = markdown_to_safe_html(markdown(Table(COLUMNS, ROWS)))
    cells = [cell.split("</td>")[0] for cell in html.split("<td>")[1:]]
    assert len(cells) == 8
    texts = [unescape(cell.replace("<br>", "\n")) for cell in cells]
    assert texts == ["" if cell is None else cell if isinstance(cell, str) else "0.5" for row in ROWS for cell in row]
    assert not any(mark in html for mark in ("<b>", "<em>", "<code>", "<a "))


def test_a_long_cell_is_cut_and_a_short_row_is_refused() -> None:
    assert len(markdown(Table(("a",), [("x" * 10**6,)]))) < 5000
    with pytest.raises(ValueError, match="row 1 has 1 cells for 2 columns"):
        Table(("a", "b"), [(1, 2), (3,)])
