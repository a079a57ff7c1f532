"""What a run's numbers show and what they do not, in two sentences computed from the numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rayalign.report.results import Estimate, Results, number, title

_MEASURES = {"golden": "golden reward", "reward": "learned reward"}
_LESS_OFTEN = 0.05  # a drop of the share of ended answers worth a word
_CHANCE = 0.5

_PLANTED_CAVEAT = "one run with one seed is no proof: benchmarks/claims.py rft has seeds and controls"
_CAVEAT = "one run with one seed is no proof"
_JUDGE_CAVEAT = "the learned reward is what {new} was trained on, so a gain in it may be over-optimisation"


def verdict(results: Mapping[str, Any]) -> str:
    """Two plain sentences on results.json: the learned policy against its start, and what is not shown.

    Compares rft with sft where both are there, else the last model with the one before it; on the golden
    reward where there is one, else on the learned reward.
    """
    read = Results(results)
    measure = next((name for name in _MEASURES if read.has(name)), None)
    if measure is None:
        return "No reward was measured, so these numbers compare nothing."
    measured = [model for model in read.models if read.curve(model, measure)]
    if len(measured) == 1:
        return f"Only {title(measured[0])} was evaluated, so these numbers compare nothing."
    old, new = ("sft", "rft") if {"sft", "rft"} <= set(measured) else measured[-2:]
    contrast = _Contrast(read, measure, old, new)
    if not contrast.temperatures:
        return f"{title(old)} and {title(new)} share no temperature, so they cannot be compared."
    return f"{_comparison(contrast)}. {_reservations(contrast)}."


class _Contrast:
    """Two models on one measure at their common temperatures, sorted by who is clearly ahead."""

    def __init__(self, results: Results, measure: str, old: str, new: str) -> None:
        self.results, self.measure, self.old, self.new = results, measure, old, new
        self.old_curve, self.new_curve = results.curve(old, measure), results.curve(new, measure)
        self.temperatures = [t for t in self.new_curve if t in self.old_curve]
        self.better = [t for t in self.temperatures if self.new_curve[t].is_above(self.old_curve[t])]
        self.worse = [t for t in self.temperatures if self.old_curve[t].is_above(self.new_curve[t])]
        self.level = [t for t in self.temperatures if t not in self.better and t not in self.worse]

    @property
    def main(self) -> float:
        """The temperature to quote: 1 where it is common to both."""
        main = self.results.main_temperature
        return main if main in self.temperatures else self.temperatures[0]

    def ended(self, model: str) -> Estimate | None:
        return self.results.estimate(model, self.main, "ended_frac")


def _comparison(contrast: _Contrast) -> str:
    new, old = contrast.new_curve[contrast.main], contrast.old_curve[contrast.main]
    figures = (
        f"{_MEASURES[contrast.measure]} at {number(contrast.main)}: {new.mean:.3f} against {old.mean:.3f}"
    )
    return f"{_who_is_ahead(contrast)} ({figures}){_colder(contrast)}{_ending(contrast)}"


def _who_is_ahead(contrast: _Contrast) -> str:
    new, old = title(contrast.new), title(contrast.old)
    better, worse, level = contrast.better, contrast.worse, contrast.level
    if not better and not worse:
        return f"{new} and {old} cannot be told apart: their intervals overlap {_at(level, contrast)}"
    if not level and not worse:
        return f"{new} beats {old} {_at(better, contrast)}, with the intervals apart"
    if not level and not better:
        return f"{new} is worse than {old} {_at(worse, contrast)}, with the intervals apart"
    parts = [f"beats {old} {_at(better, contrast)}"] if better else []
    parts += [f"is worse{'' if better else f' than {old}'} {_at(worse, contrast)}"] if worse else []
    rest = f"; the intervals overlap {_at(level, contrast)}" if level else ""
    return f"{new} {' and '.join(parts)}, with the intervals apart{rest}"


def _at(temperatures: Sequence[float], contrast: _Contrast) -> str:
    if len(temperatures) == len(contrast.temperatures) > 1:
        return "at every temperature"
    names = [number(t) for t in temperatures]
    listed = f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else names[0]
    return f"at temperature{'s' if len(names) > 1 else ''} {listed}"


def _colder(contrast: _Contrast) -> str:
    """The control that a gain must be read beside: the old model, decoded at its best temperature."""
    if contrast.main not in contrast.better or len(contrast.old_curve) == 1 or contrast.measure != "golden":
        return ""
    best = max(contrast.old_curve, key=lambda t: contrast.old_curve[t].mean)
    at_best, new = contrast.old_curve[best], contrast.new_curve[contrast.main]
    place = f"{title(contrast.old)} at its best temperature ({number(best)}: {at_best.mean:.3f})"
    if new.is_above(at_best):
        return f", and {place} too" if best != contrast.main else ""
    reaches = "is above that" if at_best.is_above(new) else "reaches as much"
    new_best = max(contrast.new_curve, key=lambda t: contrast.new_curve[t].mean)
    then = f" ({title(contrast.new)} at its own best, {number(new_best)}: {contrast.new_curve[new_best].mean:.3f})"
    return f", but {place} {reaches} with no reward at all{then if new_best != contrast.main else ''}"


def _ending(contrast: _Contrast) -> str:
    new, old = contrast.ended(contrast.new), contrast.ended(contrast.old)
    if new is None or old is None or new.mean > old.mean - _LESS_OFTEN:
        return ""
    return f"; its answers end by themselves less often ({new.mean:.2f} against {old.mean:.2f})"


def _reservations(contrast: _Contrast) -> str:
    if contrast.measure != "golden":
        parts = [_JUDGE_CAVEAT.format(new=title(contrast.new)), _CAVEAT]
    else:
        caveat = _PLANTED_CAVEAT if (contrast.old, contrast.new) == ("sft", "rft") else _CAVEAT
        parts = [_against_demonstrator(contrast), _blind_reward(contrast), caveat]
    sentence = "; ".join(part for part in parts if part)
    return sentence[0].upper() + sentence[1:]


def _against_demonstrator(contrast: _Contrast) -> str:
    expert, new = contrast.results.expert_golden, contrast.new_curve[contrast.main]
    if expert is None:
        return ""
    name, demonstrator = title(contrast.new), f"the demonstrator ({expert:.3f})"
    if new.low > expert and contrast.old_curve[contrast.main].low > expert:
        return f"{name} is above {demonstrator}, and so is {title(contrast.old)}"
    if new.low > expert:
        return (
            f"{name} is above {demonstrator}: IRL with a small beta (KL weight) extrapolates past its "
            "demonstrations, which is not imitation"
        )
    if new.high < expert:
        return f"{name} stays below {demonstrator}"
    return f"{name} is level with {demonstrator}"


def _blind_reward(contrast: _Contrast) -> str:
    """A reason, where there is one, for no gain."""
    accuracy = contrast.results.reward_accuracy.get("policy_samples")
    if contrast.main in contrast.better or accuracy is None or not accuracy.low <= _CHANCE:
        return ""
    return f"the reward ranks the policy's own samples no better than chance ({accuracy.mean:.2f})"
