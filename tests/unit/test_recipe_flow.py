"""Recipe flow against its published formula (arXiv 2502.02797), written out on a tiny model."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from rlheals_ray.config import InputError, load_study
from rlheals_ray.lineage import BASE
from rlheals_ray.models.chat import ChatFormat
from rlheals_ray.rl.rejection import SolvedSamples
from rlheals_ray.sft.data import Example, TaskExamples
from rlheals_ray.sft.recipes import RecipeContext, flow
from rlheals_ray.sft.recipes.flow import Flow, SampleWeights, sample_key, sequence_losses
from rlheals_ray.storage import StudyFiles, Unit
from rlheals_ray.tasks import Problem
from tests.toy_model import write_toy_model
from tests.toy_task import ToyOptions, ToyTask

STEPS, BATCH = 6, 8


@pytest.fixture
def context(tmp_path: Path) -> RecipeContext:
    study = load_study(
        "tiny",
        [
            f"sft.steps=[0,{STEPS}]",
            f"sft.batch_size={BATCH}",
            f"storage={tmp_path}",
            "sft.recipe=flow",
            "rl.from_steps=[0]",
            "edits=[]",
        ],
    )
    files = StudyFiles.at(study.storage, study.name)
    base = write_toy_model(files.checkpoint(BASE))
    # So that losses differ: the words of a fresh model are all as likely.
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with torch.no_grad():
        model.lm_head.weight *= 40
    model.save_pretrained(base)
    examples = TaskExamples(ToyTask(ToyOptions()), ChatFormat.of(base), seed=5)
    return RecipeContext(study, files, base, examples, 0, STEPS, 5, 0, 1)


def base_of(context: RecipeContext) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(context.start, dtype=torch.float32).eval()


def losses_of(model: PreTrainedModel, examples: Sequence[Example]) -> np.ndarray:
    """ℓ_i by transformers' own loss, one example at a time."""
    with torch.no_grad():
        return np.array(
            [
                float(model(input_ids=torch.tensor([e.input_ids]), labels=torch.tensor([e.labels])).loss)
                for e in examples
            ]
        )


def answer_tokens(example: Example) -> int:
    return sum(label >= 0 for label in example.labels)


def test_losses_of_sequences_are_those_of_transformers(context: RecipeContext) -> None:
    examples = [
        Example(None, ids := list(range(1, 4 + n)), [-100] * 2 + ids[2:]) for n in range(1, 9)
    ]  # of many lengths
    model = base_of(context)
    np.testing.assert_allclose(sequence_losses(model, examples), losses_of(model, examples), rtol=1e-5)


@pytest.mark.parametrize("temperature", [None, 0.3, 4.0])
def test_weights_are_those_of_the_formula(context: RecipeContext, temperature: float | None) -> None:
    """w_i = exp(−ℓ_i / τ), τ the median where none is set, over their mean; each sequence by its own tokens."""
    update = {"flow": context.study.sft.flow.model_copy(update={"temperature": temperature})}
    study = context.study.model_copy(update={"sft": context.study.sft.model_copy(update=update)})
    stream = list(context.examples.stream(range(STEPS * BATCH)))
    epoch = stream[: context.examples.count]  # the first time that every problem comes
    assert len(epoch) < len(stream)
    reference, losses = losses_of(model := base_of(context), epoch), losses_of(model, stream)
    tau = np.median(reference) if temperature is None else temperature
    expected = np.exp(-losses / tau) / np.exp(-reference / tau).mean()
    assert expected.max() / expected.min() > 1.2
    given = Flow(RecipeContext(**{**vars(context), "study": study})).weights(stream)
    assert given is not None
    np.testing.assert_allclose(np.array(given) * [answer_tokens(e) for e in stream], expected, rtol=1e-5)


def test_the_loss_of_an_update_is_the_mean_of_weighted_sequence_losses_however_it_is_cut(
    context: RecipeContext,
) -> None:
    """As the trainer sums it: Σ weight · Σ_tokens −log p over micro-batches, over the number of examples."""
    flow, model = Flow(context), base_of(context)
    assert flow.per_sequence
    batch = list(context.examples.stream(range(BATCH)))
    w = np.array([flow.sample_weights[e] for e in batch])
    expected = float((w * losses_of(model, batch)).mean())
    for size in (1, 3, BATCH):
        total = 0.0
        for start in range(0, BATCH, size):
            part = batch[start : start + size]
            sums = losses_of(model, part) * [answer_tokens(e) for e in part]
            total += float((np.array(flow.weights(part)) * sums).sum())
        assert total / BATCH == pytest.approx(expected, rel=1e-6)


def test_a_high_temperature_weighs_all_alike() -> None:
    keys, losses = np.arange(5, dtype=np.uint64), np.array([0.1, 0.5, 1, 3, 9])
    weights = SampleWeights.of(keys, losses, keys, 1e9)
    np.testing.assert_allclose(weights.values, 1, atol=1e-7)


def test_the_mean_weight_is_one_whatever_the_losses() -> None:
    keys, losses = np.arange(3, dtype=np.uint64), np.array([2000.0, 2001.0, 5000.0])
    weights = SampleWeights.of(keys, losses, np.array([0, 1, 1, 2], np.uint64), 1.0)
    assert weights.values[[0, 1, 1, 2]].mean() == pytest.approx(1)
    assert weights.values[2] == 0 and weights.values[0] / weights.values[1] == pytest.approx(np.e)


def test_any_number_of_workers_gives_the_same_weights(
    context: RecipeContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each worker scores its share; put together they are one worker's. (The gathering alone is replaced.)"""
    alone = Flow(context).sample_weights
    workers = 3
    gathered: list[dict[int, np.ndarray]] = []

    def gather(parts: list[np.ndarray], mine: np.ndarray) -> None:
        """What rank 0 gets of all ranks: their keys, then their losses."""
        others = [
            RecipeContext(**{**vars(context), "rank": rank, "workers": workers}) for rank in range(workers)
        ]
        positions = range(STEPS * BATCH)
        if not gathered:
            found = [
                np.array(
                    [sample_key(e) for e in context.examples.stream(positions[rank::workers])], np.uint64
                )
                for rank in range(workers)
            ]
        else:
            distinct = list(np.sort(np.unique(_dealt(gathered[0]), return_index=True)[1]))
            found = [flow._score(other, distinct) for other in others]
        np.testing.assert_array_equal(found[0], mine)
        gathered.append(dict(enumerate(found)))
        parts[:] = found

    monkeypatch.setattr(flow.dist, "all_gather_object", gather)
    shutil.rmtree(context.files.root / "flow")
    together = Flow(RecipeContext(**{**vars(context), "workers": workers})).sample_weights
    assert len(gathered) == 2
    np.testing.assert_array_equal(together.keys, alone.keys)
    np.testing.assert_allclose(together.values, alone.values, rtol=1e-6)


def _dealt(parts: dict[int, np.ndarray]) -> np.ndarray:
    return np.array([parts[at % len(parts)][at // len(parts)] for at in range(sum(map(len, parts.values())))])


def test_a_restarted_run_and_a_control_weigh_a_sample_as_the_trunk_did(
    context: RecipeContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    trunk = Flow(context).sample_weights
    control = Flow(
        RecipeContext(**{**vars(context), "first_position": 2 * BATCH, "updates": 3})
    ).sample_weights
    for example in context.examples.stream(range(2 * BATCH, 5 * BATCH)):
        assert control[example] == pytest.approx(trunk[example], rel=1e-6)
    monkeypatch.setattr(flow, "_score", None)  # what was scored is not scored again
    assert np.array_equal(Flow(context).sample_weights.values, trunk.values)


def with_sft(context: RecipeContext, **sft: object) -> RecipeContext:
    settings = context.study.sft.model_copy(update=sft)
    study = context.study.model_copy(update={"sft": settings})
    return RecipeContext(**{**vars(context), "study": study})


def weigh_as_if_alone(context: RecipeContext, positions: range) -> None:
    """The weights are those of a study in which nothing was scored before."""
    found = Flow(context).sample_weights
    shutil.rmtree(context.files.root / "flow")
    alone = Flow(context).sample_weights
    np.testing.assert_array_equal(found.keys, alone.keys)
    np.testing.assert_array_equal(found.values, alone.values)
    assert all(found[example] > 0 for example in context.examples.stream(positions))


class ReworkedTask(ToyTask):
    """The same options, problems and declared fingerprint; other words. What a version bump or an edit leaves."""

    def prompt(self, problem: Problem) -> str:
        return f"say {super().prompt(problem)}"


def test_a_task_that_was_edited_is_scored_anew(context: RecipeContext) -> None:
    Flow(context)
    assert isinstance(context.examples, TaskExamples)
    edited = TaskExamples(ReworkedTask(ToyOptions()), context.examples.chat, seed=5)
    weigh_as_if_alone(RecipeContext(**{**vars(context), "examples": edited}), range(STEPS * BATCH))


def test_scores_of_one_precision_are_not_those_of_another(context: RecipeContext) -> None:
    single = Flow(context).sample_weights
    half = with_sft(context, precision="bfloat16")
    assert not np.array_equal(Flow(half).sample_weights.values, single.values)
    weigh_as_if_alone(half, range(STEPS * BATCH))


def test_solved_samples_that_were_drawn_again_are_scored_anew(context: RecipeContext) -> None:
    """A control's own samples: as many, the same seed and stretch, but other answers."""
    task = ToyTask(ToyOptions())

    def drawn(last: int) -> RecipeContext:
        pool = [Example(None, [1, 3, at, last, 2], [-100, -100, -100, last, 2]) for at in range(6, 14)]
        samples = SolvedSamples([pool], [0], (5, 0), task)
        return RecipeContext(**{**vars(context), "examples": samples})

    Flow(drawn(15))
    weigh_as_if_alone(drawn(16), range(STEPS * BATCH))


def test_another_base_is_asked_anew(context: RecipeContext) -> None:
    before = Flow(context).sample_weights
    model = base_of(context)
    with torch.no_grad():
        model.lm_head.weight *= 0.5  # type: ignore[union-attr]
    model.save_pretrained(context.start)
    context.files.stamp(context.start, Unit("base", "another"))
    assert not np.array_equal(Flow(context).sample_weights.values, before.values)


def test_an_example_that_was_not_scored_has_no_weight() -> None:
    example = Example(None, [1, 2], [-100, 2])
    weights = SampleWeights.of(
        np.array([sample_key(example)]), np.array([1.0]), np.array([sample_key(example)]), 1
    )
    assert weights[example] == 1
    with pytest.raises(KeyError):
        weights[Example(None, [1, 3], [-100, 3])]


def test_a_base_that_knows_everything_needs_a_temperature() -> None:
    keys = np.arange(2, dtype=np.uint64)
    with pytest.raises(InputError, match=r"sft\.flow\.temperature"):
        SampleWeights.of(keys, np.zeros(2), keys, None)
