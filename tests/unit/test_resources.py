"""What a study asks of a cluster: by default as little as ever, else exactly what its `resources` say."""

from __future__ import annotations

from typing import Any

import pytest

from rlheals_ray.config import InputError, load_study
from rlheals_ray.grid.resources import Resources, check_cluster, check_local, check_work, resources_of
from rlheals_ray.grid.units import StudyUnits
from rlheals_ray.need import Need, Offer, selects, side_by_side

GIB = 2**30
ROOM: dict[str, Any] = {"cpus": 100, "memory_bytes": 1000 * GIB}


def asked(*overrides: str) -> Resources:
    return resources_of(load_study("tiny", ["rollout.generators=2", *overrides]))


def test_without_resources_every_process_reserves_one_cpu_and_nothing_else() -> None:
    needed = asked()
    assert needed.needs(0) == {"learner": Need(), "generator": Need(), "tasks": Need()}
    assert needed.cpus == 2 + needed.groups * needed.workers + 1


def test_gpus_are_taken_by_all_learners_and_generators_or_by_none() -> None:
    needed = asked()
    enough = needed.generators + needed.groups * needed.workers
    assert [need.gpus for need in needed.needs(enough).values()] == [1, 1, 0]
    assert [need.gpus for need in needed.needs(enough - 1).values()] == [0, 0, 0]


def test_fractions_of_gpus_let_a_learner_and_its_generator_share_one() -> None:
    needed = asked(
        "rollout.generators=1", "resources.learner.gpus=0.5", "resources.generator.gpus=0.5", "rl.workers=1"
    )
    assert needed.named_gpus == needed.groups * 0.5 + 0.5
    check_cluster(needed, gpus=1, **ROOM)
    with pytest.raises(InputError, match=r"asks for 1 GPUs.*but the cluster has 0.5.*nodes_seconds"):
        check_cluster(needed, gpus=0.5, **ROOM)
    with pytest.raises(InputError, match="this machine has 0"):
        check_local(needed)


def test_who_names_no_gpus_takes_of_those_that_are_left() -> None:
    needed = asked("resources.generator.gpus=0.5")
    left = needed.groups * needed.workers
    assert needed.needs(1 + left)["learner"].gpus == 1
    assert needed.needs(0.5 + left)["learner"].gpus == 0
    assert needed.needs(0)["generator"].gpus == 0.5


def test_what_is_named_is_what_ray_is_asked_for() -> None:
    needed = asked(
        "resources.generator={cpus: 2, gpus: 1, memory_gib: 3, labels: {market: spot}}",
        "resources.tasks.cpus=4",
    )
    need = needed.needs(0)["generator"]
    assert need.bundle == {"CPU": 2, "GPU": 1, "memory": 3 * GIB}
    assert need.options() == {
        "num_cpus": 2,
        "num_gpus": 1,
        "memory": 3 * GIB,
        "label_selector": {"market": "spot"},
    }
    assert needed.cpus == 2 * 2 + needed.groups * needed.workers + 4
    assert "2 generators x 2 CPUs" in needed.explain() and "4 for tasks" in needed.explain()


def test_a_node_may_have_fewer_cores_than_it_offers_cpus() -> None:
    assert Offer(8, labels={"cores": "2"}).cores == 2
    assert (
        Offer(8, labels={"cores": "16"}).cores
        == Offer(8).cores
        == Offer(8, labels={"cores": "many"}).cores
        == 8
    )


def test_tasks_that_compute_are_as_many_as_their_nodes_have_cores() -> None:
    def node(cpus: float, alive: bool = True, **labels: str) -> dict[str, Any]:
        return {"Alive": alive, "Resources": {"CPU": cpus}, "Labels": labels}

    nodes = [node(0), node(8, cores="2"), node(5, role="learner"), node(64, alive=False)]
    assert side_by_side(nodes) == 2 + 5
    assert side_by_side(nodes, Need(2)) == 1 + 2, "no task is divided among nodes"
    assert side_by_side(nodes, Need(0.5)) == 4 + 10
    assert side_by_side(nodes, Need(labels={"role": "learner"})) == 5
    assert side_by_side(nodes[:1]) == 1, "whoever asks for none would wait for ever"


def test_labels_that_no_node_has_are_refused_at_once() -> None:
    needed = asked("resources.learner.labels={role: learner}")
    other, mine = Offer(8, labels={"role": "generator"}), Offer(8, labels={"role": "learner"})
    with pytest.raises(InputError, match=r"resources\.learner .*no node.*nodes_seconds"):
        check_cluster(needed, offers=[other, Offer(8)], **ROOM)
    check_cluster(needed, offers=[other, mine], **ROOM)
    with pytest.raises(InputError, match="on this machine alone"):
        check_local(needed)


@pytest.mark.parametrize(
    "asks",
    [
        "resources.learner.cpus=16",
        "resources.generator.memory_gib=64",
        "resources.generator={gpus: 1, labels: {a: b}}",
    ],
)
def test_a_process_that_no_single_node_can_hold_is_refused_whatever_the_sum(asks: str) -> None:
    nodes = [Offer(8, 0, 16 * GIB, {"a": "b"}), Offer(8, 4, 16 * GIB)] * 20
    with pytest.raises(InputError, match=r"asks for .*no node of the cluster has that"):
        check_cluster(asked(asks), gpus=80, offers=nodes, **ROOM)
    check_cluster(
        asked("resources.learner.cpus=8", "resources.generator.memory_gib=16"), offers=nodes, **ROOM
    )


def test_memory_that_ray_will_not_reserve_here_is_refused() -> None:
    with pytest.raises(InputError, match="5000 GiB by memory_gib"):
        check_local(asked("resources.tasks.memory_gib=5000"))


def test_two_ranks_of_a_group_share_no_gpu() -> None:
    with pytest.raises(InputError, match=r"resources\.learner\.gpus .*NCCL"):
        load_study("tiny", ["resources.learner.gpus=0.5", "rl.workers=2", "sft.workers=2"])


@pytest.mark.parametrize(
    ("labels", "of_node", "selected"),
    [
        ({}, {}, True),
        ({"role": "a"}, {"role": "a", "zone": "b"}, True),
        ({"role": "a"}, {"role": "b"}, False),
        ({"role": "a"}, {}, False),
        ({"role": "!a"}, {"role": "b"}, True),
        ({"role": "!a"}, {}, True),
        ({"role": "in(a,b)"}, {"role": "b"}, True),
        ({"role": "!in(a,b)"}, {"role": "b"}, False),
        ({"role": "a", "zone": "z"}, {"role": "a"}, False),
    ],
)
def test_labels_select_as_ray_documents(
    labels: dict[str, str], of_node: dict[str, str], selected: bool
) -> None:
    assert selects(labels, of_node) == selected


def test_where_things_run_changes_no_fingerprint() -> None:
    plain, placed = (
        StudyUnits(load_study("tiny", overrides))
        for overrides in ([], ["resources.learner.cpus=2", "resources.tasks.labels={role: any}"])
    )
    assert plain.base == placed.base
    assert list(plain.branches()) == list(placed.branches())


def test_a_study_at_a_uri_needs_a_directory_that_all_nodes_see() -> None:
    at_uri = load_study("tiny", ["storage=s3://bucket/runs"])
    with pytest.raises(InputError, match=r"work \(got null\).*all 3 nodes.*work=DIR"):
        check_work(at_uri, 3)
    check_work(at_uri, 1)
    check_work(load_study("tiny", ["storage=s3://bucket/runs", "work=/shared"]), 3)
    check_work(load_study("tiny"), 3)
