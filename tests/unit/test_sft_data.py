"""The trunk's data: in a fixed order whatever the workers, response-only, and never of the OOD rule."""

from collections import Counter

import pytest
from accelerate.data_loader import BatchSamplerShard
from torch.utils.data import BatchSampler, SequentialSampler

from rlheals_ray.config import SFTSettings
from rlheals_ray.models.chat import ChatFormat
from rlheals_ray.sft.data import IGNORE, Example, evaluation_examples, training_examples
from rlheals_ray.tasks import Problem
from rlheals_ray.tasks.general_points import GeneralPoints

SETTINGS = SFTSettings(steps=(0, 10, 30), batch_size=48)
AVAILABLE = 648
"""ID training deals of the nano study."""


@pytest.fixture(scope="module")
def examples(game: GeneralPoints, chat: ChatFormat) -> list[Example]:
    return training_examples(game, chat, SETTINGS, seed=0)


def test_there_are_exactly_as_many_as_the_last_step_needs(
    examples: list[Example], game: GeneralPoints
) -> None:
    assert game.available("id", "train") == AVAILABLE
    assert len(examples) == 30 * 48 > 2 * AVAILABLE


def test_the_order_is_the_seed_s(game: GeneralPoints, chat: ChatFormat, examples: list[Example]) -> None:
    assert training_examples(game, chat, SETTINGS, seed=0) == examples
    other = training_examples(game, chat, SETTINGS, seed=1)
    assert [e.problem for e in other] != [e.problem for e in examples]


def test_a_longer_trunk_begins_like_a_shorter_one(
    game: GeneralPoints, chat: ChatFormat, examples: list[Example]
) -> None:
    shorter = training_examples(game, chat, SETTINGS.model_copy(update={"steps": (0, 10)}), seed=0)
    assert shorter == examples[: len(shorter)]


def test_every_epoch_is_every_problem_once_in_another_order(examples: list[Example]) -> None:
    epochs = [[e.problem for e in examples[at : at + AVAILABLE]] for at in (0, AVAILABLE)]
    assert len(set(epochs[0])) == AVAILABLE
    assert set(epochs[0]) == set(epochs[1]) and epochs[0] != epochs[1]
    rest = [e.problem for e in examples[2 * AVAILABLE :]]
    assert len(set(rest)) == len(rest)


def test_an_epoch_demonstrates_afresh(examples: list[Example]) -> None:
    shown: dict[Problem, set[tuple[int, ...]]] = {}
    for example in examples:
        shown.setdefault(example.problem, set()).add(tuple(example.input_ids))
    assert max(map(len, shown.values())) == 2, "the shortest and the second-shortest formula"


@pytest.mark.parametrize("workers", [1, 2, 3, 4])
def test_any_number_of_workers_sees_the_same_global_batches(
    game: GeneralPoints, chat: ChatFormat, examples: list[Example], workers: int
) -> None:
    """Sharded as the trainer does it: sequential sampling, and accelerate deals batches to the ranks in turn."""
    settings = SETTINGS.model_copy(update={"workers": workers})
    assert training_examples(game, chat, settings, seed=0) == examples
    batches = BatchSampler(SequentialSampler(examples), settings.batch_size // workers, drop_last=True)
    shards = [
        list(BatchSamplerShard(batches, num_processes=workers, process_index=r)) for r in range(workers)
    ]
    assert {len(shard) for shard in shards} == {settings.steps[-1]}
    for step in range(settings.steps[-1]):
        together = [index for shard in shards for index in shard[step]]
        assert together == list(range(step * 48, (step + 1) * 48))


def test_no_problem_is_of_the_ood_rule_or_probed(examples: list[Example], game: GeneralPoints) -> None:
    assert {example.problem.rule for example in examples} == {"id"}
    probed = game.problems("id", "eval", game.available("id", "eval"))
    probed += game.problems("ood", "eval", game.available("ood", "eval"))
    assert not {p.group for p in probed} & {e.problem.group for e in examples}
    assert not {game.prompt(p) for p in probed} & {game.prompt(e.problem) for e in examples}


def test_no_token_says_what_ood_says(examples: list[Example], chat: ChatFormat) -> None:
    for example in examples:
        words = str(chat.tokenizer.decode(example.input_ids)).split()
        assert words[3:10] == ["rule", "J", "10", "Q", "10", "K", "10"]


def test_only_the_response_carries_labels(
    examples: list[Example], game: GeneralPoints, chat: ChatFormat
) -> None:
    for example in examples[:200]:
        prompt = chat.first_turn(game.prompt(example.problem))
        assert len(example.labels) == len(example.input_ids)
        assert example.input_ids[: len(prompt)] == prompt
        assert example.labels[: len(prompt)] == [IGNORE] * len(prompt)
        response = example.input_ids[len(prompt) :]
        assert example.labels[len(prompt) :] == response
        assert response[-1] in chat.stop_ids
        assert game.judge(example.problem, chat.answer(response)).solved


def test_fewer_problems_can_be_asked_for(game: GeneralPoints, chat: ChatFormat) -> None:
    settings = SFTSettings(steps=(0, 4), batch_size=48, examples=50)
    counts = Counter(example.problem for example in training_examples(game, chat, settings, seed=0))
    assert len(counts) == 50 and set(counts.values()) <= {3, 4}
    assert set(counts) == set(game.problems("id", "train", 50))


def test_held_out_losses_are_of_the_same_demonstrations_every_time(
    game: GeneralPoints, chat: ChatFormat
) -> None:
    problems: list[Problem] = game.problems("ood", "eval", 20)
    made = evaluation_examples(game, chat, problems)
    assert [example.problem for example in made] == problems
    for example in made:
        response = [label for label in example.labels if label != IGNORE]
        assert chat.answer(response) == game.demonstration(example.problem, seed=0)
