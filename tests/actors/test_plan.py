"""The placement plan is a pure function: who gets what, and the sentence when it does not fit."""

from __future__ import annotations

import pytest

from rayalign.actors.plan import check_fits, make_plan
from rayalign.config.placement import PlacementConfig
from rayalign.errors import PlacementError

EIGHT = PlacementConfig.model_validate({"policy": {"gpus": 4}, "reward": {"gpus": 2}, "rollout": {"gpus": 2}})


def test_one_worker_a_gpu_and_a_core_of_its_own() -> None:
    plan = make_plan(EIGHT)
    assert {role: g.num_workers for role, g in plan.groups.items()} == {"policy": 4, "reward": 2, "rollout": 2}
    assert all(g.bundle == {"CPU": 1, "GPU": 1} for g in plan.groups.values())
    assert plan.weight_sync == "nccl"
    check_fits(plan, [{"CPU": 8, "GPU": 8}])
    check_fits(plan, [{"CPU": 4, "GPU": 4}, {"CPU": 4, "GPU": 4}])


def test_tensor_parallel_makes_fewer_and_larger_replicas() -> None:
    placement = PlacementConfig.model_validate({"policy": {"gpus": 1}, "rollout": {"gpus": 4, "tensor_parallel": 2}})
    rollout = make_plan(placement).groups["rollout"]
    assert (rollout.num_workers, rollout.gpus) == (2, 2)
    with pytest.raises(PlacementError, match=r"rollout needs 2 bundle\(s\) of 1 CPU, 2 GPU.*number 1 fits on no node"):
        check_fits(make_plan(placement), [{"CPU": 8, "GPU": 1}] * 5)


def test_groups_that_take_turns_share_cores_and_keep_their_threads() -> None:
    placement = PlacementConfig.model_validate({role: {"cpus": 2} for role in ("policy", "reward", "rollout")})
    plan = make_plan(placement)
    assert sum(g.cpus for g in plan.groups.values()) == pytest.approx(2)
    assert {g.threads for g in plan.groups.values()} == {2}
    assert plan.weight_sync == "gloo"
    check_fits(plan, [{"CPU": 2}])


def test_groups_that_overlap_keep_to_their_own_cores() -> None:
    plan = make_plan(PlacementConfig(), max_staleness=1)
    assert [g.cpus for g in plan.groups.values()] == [1, 1, 1]
    with pytest.raises(PlacementError, match="need 3 CPU in all, the cluster has 2 CPU"):
        check_fits(plan, [{"CPU": 2}])


def test_the_sentence_names_the_missing_bundle_and_the_way_out() -> None:
    with pytest.raises(PlacementError) as error:
        check_fits(make_plan(EIGHT), [{"CPU": 16, "GPU": 7}])
    text = str(error.value)
    assert "placement.rollout needs 2 bundle(s) of 1 CPU, 1 GPU, and number 2 fits on no node" in text
    assert "the three groups need 8 CPU, 8 GPU in all, the cluster has 16 CPU, 7 GPU on 1 node(s)" in text
    assert "lower placement" in text and "\n" not in text


def test_the_sentence_where_thirds_of_cores_leave_nothing() -> None:
    """5/3 and 1/3 of a core are two, give or take a rounding error."""
    with pytest.raises(PlacementError) as error:
        check_fits(make_plan(PlacementConfig.model_validate({"policy": {"cpus": 5}})), [{"CPU": 2}])
    assert str(error.value) == (
        "placement.rollout needs 1 bundle(s) of 0.33 CPU, and number 1 fits on no node (most room left on one: 0 CPU); "
        "the three groups need 2.33 CPU in all, the cluster has 2 CPU on 1 node(s): "
        "lower placement.*.gpus, .cpus or .workers, or add nodes"
    )


def test_colocated_groups_share_each_gpu_and_copy_by_ipc() -> None:
    values = {role: {"gpus": 2} for role in ("policy", "reward", "rollout")} | {"colocate": True}
    plan = make_plan(PlacementConfig.model_validate(values))
    assert plan.colocated and plan.weight_sync == "ipc"
    check_fits(plan, [{"CPU": 8, "GPU": 2}])


def test_workers_that_contradict_gpus_are_refused() -> None:
    placement = PlacementConfig.model_validate({"policy": {"gpus": 4, "workers": 2}, "rollout": {"gpus": 1}})
    with pytest.raises(PlacementError, match="4 GPUs make 4 workers, not 2"):
        make_plan(placement)
