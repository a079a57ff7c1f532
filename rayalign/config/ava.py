"""AVA (paper 4): a token-level reward and a policy from one variational objective, on demonstrations or preferences."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from rayalign.config.base import Location, NonNegative, Number, Positive, PositiveInt
from rayalign.config.data import DataConfig
from rayalign.config.model import OptimizerConfig
from rayalign.config.stage_base import Held, Input, PairSource, StageBase, demonstrations_of


class AvaStage(StageBase):
    """AVA-d on demonstrations, AVA-p on preferences: reward head, Q and language model in one pass, no sampling.

    Artifacts: `reward` (token-level: its rewards are dense), `policy` (the language model behind Q: direct optimisation).
    """

    ARTIFACTS: ClassVar[tuple[str, ...]] = ("reward", "policy", "report.json")

    kind: Literal["ava"] = "ava"
    name: str = "ava"
    init: Location = Field(description="the language model to start from")
    variant: Literal["demonstrations", "preferences"] = Field(
        "preferences", description="demonstrations: AVA-d (4.2); preferences: AVA-p (4.3) with the contrastive term (4.4)"
    )
    pairs: PairSource | None = Field(None, description="stored samples as preferences; data.preferences if unset")
    epochs: PositiveInt = 1
    max_steps: PositiveInt | None = None
    batch_size: PositiveInt = Field(32, description="demonstrations or pairs of one optimiser step")
    heldout_frac: Number = Field(
        0.1, ge=0, lt=1, description="share of the pairs' prompts kept out; demonstrations have data.heldout_frac"
    )

    lambda_td: NonNegative = Field(0.5, description="weight of the TD error's likelihood; 1 in AVRIL, the flat border (T28)")
    gamma: Number = Field(1.0, ge=0, le=1)
    beta: Positive = Field(1.0, description="of the Boltzmann policy exp(beta Q)")
    alpha: Positive = Field(10.0, description="temperature of the pre-trained Q: log softmax(alpha pi)")
    sigma_floor: NonNegative = Field(0.1, description="least deviation of the reward; without it lambda > 1 diverges (T28)")
    end_term: bool = Field(True, description="trains the last token too; the paper's sum leaves the end out (T29)")
    negative_cap: Number | None = Field(
        -6.0, lt=0, description="least log-prob under the policy of a rejected token that is pushed down; none in (4.3)"
    )
    td_on: Literal["both", "chosen"] = Field("both", description="whose TD and KL terms count; the paper does not say")
    contrast: Literal["sum", "last"] = Field("sum", description="what the contrastive term compares; last in (4.4)")
    contrast_link: Literal["log_sigmoid", "sigmoid"] = Field("log_sigmoid", description="sigmoid in the paper (4.4)")
    contrast_weight: NonNegative = Field(50.0, description="1 in the paper, where it is lost among the tokens' terms")

    reward_weights: bool = Field(True, description="attention's weights on mean and deviation; false: ablation w/o rwt")
    weights_scale: Literal["length", "one"] = Field("length", description="what the weights sum to; one in the paper")
    negatives: bool = Field(True, description="the likelihood of rejected tokens; false: ablation w/o neg")
    irl: bool = Field(True, description="TD and KL terms; false: ablation w/o irl")
    contrastive: bool = Field(True, description="the contrastive term; false: ablation w/o cer")
    pretrained_q: bool = Field(True, description="Q from the language model; false: a Q head from nothing, w/o ptq")
    optimizer: OptimizerConfig = OptimizerConfig()

    @model_validator(mode="after")
    def _sigma_has_a_floor(self) -> AvaStage:
        if self.irl and self.lambda_td > 1 and not self.sigma_floor:
            raise ValueError(
                f"lambda_td ({self.lambda_td:g}) above 1 has no maximum without a sigma_floor: the deviation goes to 0 "
                "(T28); set sigma_floor above 0, or lambda_td to at most 1"
            )
        return self

    @model_validator(mode="after")
    def _something_is_learned(self) -> AvaStage:
        if self.variant == "demonstrations" and self.pairs is not None:
            raise ValueError("pairs are for variant preferences; remove them, or set variant to preferences")
        return self

    def inputs(self) -> dict[str, Input]:
        found = {"init": Input("model", self.init)}
        return found | (self.pairs.inputs("pairs") if self.pairs else {})

    def shared_inputs(self, data: DataConfig) -> dict[str, Input]:
        if self.variant == "demonstrations" or (self.pairs and self.pairs.reads_demonstrations):
            return dict(demonstrations_of(data))
        return {} if self.pairs else {"data.preferences": Input("preferences", data.preferences)}

    def holds(self) -> list[Held]:
        return [Held("policy", self.init)]  # both are one model

    def trains(self) -> dict[Literal["policy", "reward"], Location]:
        return {"reward": self.init, "policy": self.init}
