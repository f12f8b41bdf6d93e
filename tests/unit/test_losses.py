"""Held-out losses: what they are, and how much memory the tasks that score them reserve."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from rlheals_ray.config import Study, load_study
from rlheals_ray.grid import plan_memory
from rlheals_ray.grid.losses import losses_need
from rlheals_ray.grid.model_size import model_size
from rlheals_ray.grid.plan_memory import GIB, losses_bytes, memory_lines
from rlheals_ray.models import nano
from rlheals_ray.models.chat import ChatFormat
from rlheals_ray.need import Need, Offer
from rlheals_ray.sft import losses
from rlheals_ray.sft.data import evaluation_examples
from rlheals_ray.sft.losses import held_out_losses
from rlheals_ray.tasks.general_points import GeneralPoints

TARGETS = [18, 24]
MANY = [Offer(64, memory=100 * GIB)]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("base")
    model = nano.untrained(TARGETS, seed=0)
    with torch.no_grad():
        model.lm_head.weight.mul_(30)
    nano.save(model, TARGETS, directory)
    return directory


@pytest.mark.parametrize("logits", [1, 3000, losses.LOGITS])
def test_a_loss_is_the_mean_over_the_answers_tokens_however_they_are_batched(
    base: Path, game: GeneralPoints, monkeypatch: pytest.MonkeyPatch, logits: int
) -> None:
    problems = game.problems("ood", "eval", 20)
    monkeypatch.setattr(losses, "LOGITS", logits)
    study = load_study("nano")
    (found,) = held_out_losses([base], study.task, problems)
    model, tokens = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), []
    for example in evaluation_examples(game, ChatFormat.of(base), problems):
        with torch.no_grad():
            log_p = model(input_ids=torch.tensor([example.input_ids])).logits[0, :-1].log_softmax(-1)
        answer = [(at, label) for at, label in enumerate(example.labels[1:]) if label >= 0]
        tokens += [float(log_p[at, label]) for at, label in answer]
    assert found == pytest.approx(-sum(tokens) / len(tokens), rel=1e-5)


def study_of(**memory_gib: float) -> Study:
    resources = "".join(f"{kind}: {{memory_gib: {gib}}}, " for kind, gib in memory_gib.items())
    return load_study("nano", [f"resources={{{resources}}}"])


def wanted(study: Study) -> int:
    return sum(losses_bytes(study).values())


def test_a_task_reserves_its_model_a_batch_of_logits_and_its_process() -> None:
    study = study_of()
    held = losses_bytes(study)
    assert held["weights"] == 4 * model_size(study).parameters
    # All of nano's problems are fewer logits than a batch may have; a larger vocabulary's are not.
    assert held["logits"] < 12 * losses.LOGITS
    wide = study.model_copy(update={"base": load_study("smollm2-135m").base})
    assert losses_bytes(wide)["logits"] == 12 * losses.LOGITS
    assert plan_memory._LOGITS == losses.LOGITS
    assert losses_need(study, Need(), MANY) == Need(memory=wanted(study))


def test_no_node_runs_more_of_them_than_it_has_memory_for() -> None:
    study = study_of()
    need = losses_need(study, Need(), [Offer(64, memory=5.5 * wanted(study))])
    assert 5.5 * wanted(study) // need.memory == 5


def test_a_model_as_large_as_a_node_is_scored_alone_there_and_not_never() -> None:
    study = study_of()
    offers = [Offer(64, memory=float(GIB // 4)), Offer(64, memory=float(GIB // 2))]
    need = losses_need(study, Need(), offers)
    assert need.memory == GIB // 2 and any(need.fits(offer) for offer in offers)


def test_the_nodes_that_count_are_those_that_will_do() -> None:
    small = Offer(8, memory=float(GIB // 2), labels={"role": "tasks"})
    need = losses_need(study_of(), Need(labels={"role": "tasks"}), [small, *MANY])
    assert need.memory == GIB // 2 and need.fits(small)


def test_what_the_study_reserves_by_name_holds() -> None:
    """Learners and generators may leave less than a task would ask for: it would never start."""
    assert losses_need(study_of(learner=50, generator=50), Need(), MANY) == Need()
    named = Need(memory=3 * GIB)
    assert losses_need(study_of(learner=50, generator=47, tasks=3), named, MANY) == named
    assert losses_need(study_of(tasks=3), named, MANY) == replace(
        named, memory=max(named.memory, wanted(study_of()))
    )


def test_the_plan_prints_what_they_take() -> None:
    (line,) = (line for line in memory_lines(load_study("nano")) if "held-out losses" in line)
    assert "weights 0.5 MiB" in line and "6 such tasks" in line  # two rules of three trunks
