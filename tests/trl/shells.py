"""TRL's trainers without their constructors: each holds what the method under test reads, and nothing else.

So the numbers come from TRL's own code, on log-probs that it shares with ours. An attribute that a newer TRL reads as
well is an AttributeError, not a guess. Where TRL would run a model, sample, or talk to other processes, a stand-in
answers.

Shapes: B sequences, L longest response; TRL pads on the right and masks.
"""

from collections import defaultdict
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor

PROMPT_LENGTH = 2


def shell(trainer: type, **attributes: Any) -> Any:
    """An instance of the trainer with these attributes only."""
    bare = object.__new__(trainer)
    one_process = SimpleNamespace(
        device=torch.device("cpu"),
        num_processes=1,
        process_index=0,
        reduce=lambda x, reduction: x,
        gather=lambda x: x,
        gather_for_metrics=lambda x: x,
    )
    vars(bare).update(
        accelerator=one_process,
        model=torch.nn.Module(),
        aux_loss_enabled=False,
        _metrics={"train": defaultdict(list)},
        **attributes,
    )
    bare.model.is_gradient_checkpointing = False
    return bare


def padded(values: Tensor, lengths: Tensor) -> Tensor:
    """Flat ragged values[T], lengths[B] -> [B, L], zeros behind."""
    return torch.nn.utils.rnn.pad_sequence(list(values.split(lengths.tolist())), batch_first=True)


def mask_of(lengths: Tensor) -> Tensor:
    return padded(torch.ones(int(lengths.sum()), dtype=torch.long), lengths)


def trl_dpo_loss(
    trl: ModuleType, policy: Tensor, ref: Tensor, lengths: Tensor, *, loss_type: str, beta: float
) -> Tensor:
    """DPOTrainer's loss, a mean over pairs: token log-probs [T] of all chosen, then of all rejected; lengths [B]."""
    mask = torch.cat([torch.zeros(len(lengths), PROMPT_LENGTH, dtype=torch.long), mask_of(lengths)], -1)

    def model(logprobs: Tensor) -> Any:
        per_token = padded(logprobs, lengths)
        per_token = torch.cat([per_token.new_zeros(len(lengths), PROMPT_LENGTH - 1), per_token], -1)
        unused = torch.zeros_like(per_token)
        outputs = SimpleNamespace(
            log_probs=per_token, entropy=unused, mean_logits=unused, is_top1=unused.bool(), log_sum_sq_probs=unused
        )
        return lambda **_: outputs

    bare = shell(
        trl.DPOTrainer,
        args=SimpleNamespace(gradient_checkpointing_kwargs=None),
        ref_model=model(ref),
        precompute_ref_logps=False,
        ld_alpha=None,
        f_divergence_type="reverse_kl",
        loss_types=[loss_type],
        loss_weights=[1.0],
        beta=beta,
        label_smoothing=0.0,
        use_weighting=False,
        _total_train_tokens=0,
        _tp_size=1,
    )
    inputs = {"input_ids": torch.zeros_like(mask), "attention_mask": torch.ones_like(mask), "completion_mask": mask}
    return bare._compute_loss(model(policy), inputs, False)


def _batch(lengths: Tensor) -> dict[str, Tensor]:
    prompts = torch.ones(len(lengths), PROMPT_LENGTH, dtype=torch.long)
    mask = mask_of(lengths)
    return {
        "prompt_ids": prompts,
        "prompt_mask": prompts,
        "completion_ids": torch.zeros_like(mask),
        "completion_mask": mask,
    }


def _forward(logprobs: Tensor, lengths: Tensor) -> Any:
    """In the place of the model's forward pass: log-probs, entropies, auxiliary loss."""
    per_token = padded(logprobs, lengths)
    return lambda *_, **__: (per_token, torch.zeros_like(per_token), None)


def trl_grpo_loss(
    trl: ModuleType,
    policy: Tensor,
    old: Tensor,
    lengths: Tensor,
    advantages: Tensor,
    *,
    clips: tuple[float, float],
    beta: float = 0.0,
    ref: Tensor | None = None,
) -> tuple[Tensor, float]:
    """GRPOTrainer's loss of type dr_grpo, a sum over tokens divided by B times the longest length allowed, which is
    1 here, and its share of clipped tokens: three [T], lengths [B], advantages [B].
    """
    bare = shell(
        trl.GRPOTrainer,
        args=SimpleNamespace(delta=None, use_bias_correction_kl=False),
        _get_per_token_logps_and_entropies=_forward(policy, lengths),
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        importance_sampling_level="token",
        loss_type="dr_grpo",
        epsilon_low=clips[0],
        epsilon_high=clips[1],
        beta=beta,
        use_vllm=False,
        max_completion_length=1,
        current_gradient_accumulation_steps=1,
        _entropy_bonus_enabled=False,
    )
    inputs = _batch(lengths) | {"advantages": advantages, "old_per_token_logps": padded(old, lengths)}
    if ref is not None:
        inputs["ref_per_token_logps"] = padded(ref, lengths)
    loss = bare._compute_loss(bare.model, inputs)
    return loss, bare._metrics["train"]["clip_ratio/region_mean"][0]


def trl_rloo_loss(
    trl: ModuleType,
    policy: Tensor,
    old: Tensor,
    lengths: Tensor,
    advantages: Tensor,
    *,
    clips: tuple[float, float],
) -> Tensor:
    """RLOOTrainer's loss, a mean over sequences of clipped ratios of whole responses: two [T], lengths [B], [B]."""
    bare = shell(
        trl.RLOOTrainer,
        _get_per_token_logps_and_entropies=_forward(policy, lengths),
        epsilon_low=clips[0],
        epsilon_high=clips[1],
    )
    old_sums = padded(old, lengths).sum(1)
    return bare._compute_loss(bare.model, _batch(lengths) | {"advantages": advantages, "old_logps": old_sums})


def trl_advantages(trainer: type, rewards: Tensor, *, group_size: int, **settings: Any) -> Tensor:
    """What a trainer makes of the rewards [B] of groups that lie one after another: advantages [B]."""
    num = len(rewards)
    completions = [[0]] * num
    nothing = SimpleNamespace(extend=lambda _: None)
    generated: tuple = ([[0]] * num, completions, ["a"] * num)
    if trainer.__name__ == "GRPOTrainer":  # tool masks, sampler's log-probs, extra fields, images
        generated = (generated[0], completions, None, generated[2], None, {}, None, None)
    bare = shell(
        trainer,
        args=SimpleNamespace(
            per_device_train_batch_size=num,
            gradient_accumulation_steps=1,
            steps_per_generation=1,
            gradient_checkpointing_kwargs=None,
        ),
        _generate=lambda _: generated,
        _calculate_rewards=lambda *_: rewards[:, None],
        _get_per_token_logps_and_entropies=_forward(torch.zeros(num), torch.ones(num, dtype=torch.long)),
        _tokenizer=SimpleNamespace(pad_token_id=0),
        pad_to_multiple_of=None,
        mask_truncated_completions=False,
        reward_weights=torch.ones(1, dtype=rewards.dtype),
        reward_func_names=["ours"],
        num_generations=group_size,
        beta=0.0,
        _logs=defaultdict(lambda: nothing, rewards={"ours": nothing}),
        _pending_extra_logs={},
        _pending_metrics={},
        **settings,
    )
    return bare._generate_and_score_completions([{"prompt": "x"}] * num)["advantages"]
