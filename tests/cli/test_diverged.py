"""Numbers that stop being finite in a real run: it ends, says where, and leaves the last good weights behind."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from rayalign.api import train
from rayalign.errors import Diverged
from tests.cli.conftest import Workplace

PAIRS = [
    {"prompt": f"what is the color of {word} ?", "chosen": f"the {word} is red .", "rejected": f"the {word} is ."}
    for word in ("sky", "sea")
] * 8


def breaks_at_a_margin(chosen: torch.Tensor, rejected: torch.Tensor) -> torch.Tensor:
    """Bradley-Terry until the sides are apart, then infinity: pure, and finite at the start."""
    margins = chosen - rejected
    return (torch.nn.functional.softplus(-margins) / (margins.detach() < 5)).sum()


def test_a_reward_that_diverged_is_saved_as_it_was_before(workplace: Workplace) -> None:
    (workplace.folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PAIRS))
    stage = {"kind": "fit_reward", "init": workplace.values["model"]["path"], "batch_size": 4, "epochs": 50}
    stage |= {"heldout_frac": 0, "optimizer": {"learning_rate": 1e-2}}
    values = workplace.values | {"data": {"preferences": {"path": "pairs.jsonl"}}, "stages": [stage]}
    with pytest.raises(Diverged) as caught:
        train(values, reward_loss=breaks_at_a_margin)
    saved = workplace.run_folder / "reward" / "reward"
    assert str(caught.value).startswith("stage reward: loss or gradient is not finite at optimiser step ")
    assert str(caught.value).endswith(f"Saved: {saved}")
    weights, start = (load_file(f"{folder}/model.safetensors") for folder in (saved, stage["init"]))
    assert all(torch.isfinite(tensor).all() for tensor in weights.values())
    assert not torch.equal(weights["model.norm.weight"], start["model.norm.weight"])
    assert (saved / "tokenizer.json").is_file()
    rows = [json.loads(line) for line in (workplace.run_folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["num_skipped"] for row in rows[-2:]] == [1, 1] and "num_skipped" not in rows[-3]
    with pytest.raises(Diverged):  # it is not taken for a finished stage
        train(values, reward_loss=breaks_at_a_margin)
