"""Where the data lies and how rows become tokens."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rayalign.config.base import Fraction, Location, PathText, PositiveInt, Strict


class DataSource(Strict):
    """JSON, JSONL or Parquet (also .gz), a folder of them, a hub name, or stage:STAGE/NAME."""

    path: Location
    split: str = Field("train", description="of a hub data set or a folder of splits")
    columns: dict[str, str] = Field(
        default_factory=dict, description="our name: theirs, for instance {prompt: question, response: answer}"
    )
    limit: PositiveInt | None = Field(None, description="use this many rows, the first ones")
    streaming: bool = Field(False, description="sft reads it as it goes; other stages hold their rows in memory")


class DataConfig(Strict):
    """The data of a run. A stage takes what it needs and says what is missing."""

    demonstrations: DataSource | None = None
    prompts: DataSource | None = Field(None, description="prompts without answers; the demonstrations' own if unset")
    preferences: DataSource | None = Field(None, description="pairs {prompt, chosen, rejected} to learn from")
    heldout_demonstrations: DataSource | None = Field(None, description="never trained on; else a share is kept out")
    heldout_frac: Fraction = Field(0.1, description="share of the demonstrations kept out of all training")
    chat_template: PathText | None = Field(
        None, description='a .jinja file, or "plain"; the tokenizer\'s own if unset. One template trains and generates'
    )
    overlong: Literal["error", "drop", "truncate"] = Field(
        "error", description="for a prompt that leaves no room for a response: stop, leave it out, cut it on the left"
    )
