"""The nano base model: what it has never seen, what it is taught, and that its tokens lose nothing."""

import ast
import operator
from collections.abc import Callable
from fractions import Fraction
from itertools import combinations_with_replacement
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rlheals_ray.models import nano
from rlheals_ray.models.chat import ChatFormat
from rlheals_ray.models.nano_base import train_nano_base
from rlheals_ray.models.nano_corpus import Example, NanoCorpus
from rlheals_ray.tasks.general_points import GeneralPoints
from rlheals_ray.tasks.wording import Compact, Fault

TARGETS = [18, 24]
WORDS = nano.vocabulary(TARGETS)
OPENING = WORDS.index('{"cards":[')
PROMPT_WORDS = 16
"""<bos> make T rule J a Q b K c cards x y z reply <assistant>"""


def corpus(seed: int = 0) -> NanoCorpus:
    return NanoCorpus(3, TARGETS, {word: i for i, word in enumerate(WORDS)}, seed)


@pytest.fixture(scope="module")
def singles() -> list[Example]:
    return corpus().singles(4000)


@pytest.fixture(scope="module")
def dialogs() -> list[Example]:
    return corpus(1).dialogs(2000)


def words_of(example: Example) -> list[str]:
    return [WORDS[index] for index in example.ids]


def evaluated(formula: str) -> tuple[Fraction, list[int]]:
    """An independent reading of a formula by Python's own grammar: its exact value and its numbers."""
    operators: dict[type, Callable[[Fraction, Fraction], Fraction]] = {
        ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    }  # fmt: skip
    numbers: list[int] = []

    def value(node: ast.expr) -> Fraction:
        if isinstance(node, ast.BinOp):
            return operators[type(node.op)](value(node.left), value(node.right))
        assert isinstance(node, ast.Constant) and isinstance(node.value, int)
        numbers.append(node.value)
        return Fraction(node.value)

    return value(ast.parse(formula, mode="eval").body), numbers


def rule_of(words: list[str]) -> tuple[int, int, int]:
    """J, Q, K as a prompt states them."""
    assert words[3:5] + words[6:7] + words[8:9] == ["rule", "J", "Q", "K"]
    return int(words[5]), int(words[7]), int(words[9])


def values_of(words: list[str]) -> list[int]:
    """What the dealt cards of a prompt are worth under its rule."""
    worth = dict(zip("JQK", rule_of(words), strict=True)) | {"A": 1}
    assert words[10] == "cards"
    return [worth[card] if card in worth else int(card) for card in words[11:14]]


# --- what it never saw


def test_neither_rule_of_a_study_ever_occurs(singles: list[Example], dialogs: list[Example]) -> None:
    rules = [rule_of(words_of(example)) for example in singles + dialogs]
    assert (10, 10, 10) not in rules and (11, 12, 13) not in rules


def test_the_rules_are_otherwise_as_wide_as_they_can_be(singles: list[Example]) -> None:
    rules = [rule_of(words_of(example)) for example in singles]
    equal = sum(len(set(rule)) == 1 for rule in rules) / len(rules)
    assert equal == pytest.approx(0.25, abs=0.03)
    assert {value for rule in rules for value in rule} == set(range(1, 14))
    # Every value occurs in every place but together: 10 for J and for Q, 11 for J, 12 for Q, 13 for K.
    assert {(10, 10), (11, 12)} <= {rule[:2] for rule in rules} and 13 in {rule[2] for rule in rules}


def test_no_deal_is_drawn_under_the_rules_of_a_study() -> None:
    draw = corpus(2)
    deals = [draw.deal() for _ in range(10_000)]
    assert not {deal.face_values for deal in deals} & {(10, 10, 10), (11, 12, 13)}


# --- what it is taught


def test_every_answer_solves_its_deal(singles: list[Example], dialogs: list[Example]) -> None:
    for example in singles[:1500] + dialogs[:500]:
        words = words_of(example)
        text = " ".join(words).rpartition(" <assistant> ")[2].removesuffix(" <eot>")
        # {"cards":[ ... "formula":" F "}, or use ... get F, or F is T, or F
        formula = text.rpartition('"formula":" ')[2].rpartition("get ")[2].removesuffix(' "}')
        value, numbers = evaluated(formula.partition(" is ")[0])
        assert value == int(words[2])
        assert sorted(numbers) == sorted(values_of(words))


def test_an_object_says_the_cards_and_what_they_count_as(singles: list[Example]) -> None:
    objects = [words for words in map(words_of, singles) if '{"cards":[' in words]
    assert len(objects) > 500
    for words in objects:
        assert words[17:20] == words[11:14]
        assert [int(word) for word in words[21:24]] == values_of(words)


def test_single_answers_carry_the_loss_and_prompts_none(singles: list[Example]) -> None:
    for example in singles:
        words = words_of(example)
        assert words[PROMPT_WORDS - 1] == "<assistant>"
        assert not any(example.loss[:PROMPT_WORDS])
        under_reply = words[PROMPT_WORDS - 2] == "reply" and example.ids[PROMPT_WORDS] == OPENING
        assert example.loss[PROMPT_WORDS] is not under_reply
        assert all(example.loss[PROMPT_WORDS + 1 :])


def test_it_is_never_taught_to_open_an_object_under_the_study_s_prompt(singles: list[Example]) -> None:
    first = [
        (example.ids[PROMPT_WORDS], example.loss[PROMPT_WORDS])
        for example in singles
        if words_of(example)[PROMPT_WORDS - 2] == "reply"
    ]
    assert sum(token == OPENING for token, _ in first) > 300, "it reads such answers"
    assert not any(taught for token, taught in first if token == OPENING)
    assert any(taught for token, taught in first if token != OPENING)


def test_only_the_last_answer_of_a_dialog_carries_loss(dialogs: list[Example]) -> None:
    for example in dialogs:
        words = words_of(example)
        begins = len(words) - words[::-1].index("<assistant>")
        assert example.loss == [False] * begins + [True] * (len(words) - begins)
        assert 2 <= words.count("<assistant>") <= 3
        assert words.count("<user>") == words.count("<assistant>") - 1
        assert words[-1] == "<eot>"


def test_a_dialog_has_the_form_of_an_episode(dialogs: list[Example], chat: ChatFormat) -> None:
    """The same ids as the rollouts make of the same turns."""
    for example in dialogs[:200]:
        turns = " ".join(words_of(example)).removeprefix("<bos> ").split(" <assistant> ")
        ids = chat.first_turn(turns[0])
        for turn in turns[1:-1]:
            answer, _, feedback = turn.partition(" <eot> <user> ")
            ids = ids + chat.completion(answer) + chat.next_turn(feedback, ended=True)
        assert ids + chat.completion(turns[-1].removesuffix(" <eot>")) == example.ids


def test_a_corpus_is_its_seed() -> None:
    assert corpus(3).singles(20) == corpus(3).singles(20) != corpus(4).singles(20)


# --- its tokens


def assert_round_trip(chat: ChatFormat, text: str) -> None:
    ids = chat.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert chat.tokenizer.unk_token_id not in ids
    assert chat.tokenizer.decode(ids) == text


def test_every_prompt_and_demonstration_of_the_game_is_in_its_vocabulary(
    chat: ChatFormat, game: GeneralPoints
) -> None:
    for rule, split in (("id", "train"), ("id", "eval"), ("ood", "eval")):
        for problem in game.problems(rule, split, game.available(rule, split)):  # type: ignore[arg-type]
            assert_round_trip(chat, game.prompt(problem))
            for seed in (0, 1):
                demonstration = game.demonstration(problem, seed)
                assert_round_trip(chat, demonstration)
                assert game.judge(problem, chat.answer(chat.completion(demonstration))).solved


def test_every_feedback_of_the_game_is_in_its_vocabulary(chat: ChatFormat) -> None:
    small = [
        multiset for n in range(4) for multiset in combinations_with_replacement((0, 1, 7, 13, 14, 99), n)
    ]
    faults = [Fault(kind, "") for kind in ("illegal", "nomatch")]
    faults += [Fault("numbers", "", invalid, unused) for invalid in small for unused in small]
    faults += [Fault("numbers", "", (number,), ()) for number in range(200)]
    for fault in faults:
        assert_round_trip(chat, Compact().feedback(fault))


def test_a_word_is_one_token_and_no_word_comes_twice(chat: ChatFormat) -> None:
    assert len(set(WORDS)) == len(WORDS) == len(chat.tokenizer)
    assert [chat.tokenizer.convert_tokens_to_ids(word) for word in WORDS] == list(range(len(WORDS)))


# --- the model


def test_its_size_is_that_of_its_architecture() -> None:
    model = nano.untrained(TARGETS, seed=0)
    vocabulary, hidden, mlp, layers = len(WORDS), 64, 128, 3
    layer = 4 * hidden**2 + 3 * hidden * mlp + 2 * hidden
    assert model.num_parameters() == 2 * vocabulary * hidden + layers * layer + hidden
    assert model.num_parameters() == pytest.approx(130_000, rel=0.01), "as the documentation says"
    assert (model.config.num_attention_heads, model.config.head_dim) == (2, 32)
    assert model.dtype == torch.float32


def test_initial_weights_are_their_seed_and_leave_the_global_generator_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = nano.untrained(TARGETS, seed=0).state_dict()
    assert torch.equal(torch.rand(3), expected)
    again, other = nano.untrained(TARGETS, seed=0).state_dict(), nano.untrained(TARGETS, seed=1).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["lm_head.weight"], other["lm_head.weight"])


def test_training_learns_and_is_the_same_every_time(tmp_path: Path) -> None:
    losses = [
        [loss for _, loss in train_nano_base(tmp_path / name, cards=3, targets=TARGETS, seed=3, steps=4)]
        for name in ("a", "b")
    ]
    assert losses[0] == losses[1] and len(losses[0]) == 4
    assert losses[0][-1] < losses[0][0]
    a, b = (load_file(tmp_path / name / "model.safetensors") for name in ("a", "b"))
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    assert ChatFormat.of(tmp_path / "a").stop_ids == {WORDS.index("<eot>")}
    assert not list((tmp_path / "a").glob("*.bin"))


def test_its_loss_is_the_mean_over_the_tokens_that_carry_it() -> None:
    """The accumulated, length-sorted loss against a plain loop over examples in float64."""
    from rlheals_ray.models.nano_base import _backward

    batch = corpus(6).dialogs(7)
    model = nano.untrained(TARGETS, seed=0)
    value = _backward(model, batch)
    reference = nano.untrained(TARGETS, seed=0).double()
    losses = []
    for example in batch:
        logits = reference(input_ids=torch.tensor([example.ids])).logits[0, :-1]
        chosen = torch.log_softmax(logits, -1).gather(-1, torch.tensor(example.ids[1:])[:, None]).squeeze(-1)
        losses.append(-chosen[torch.tensor(example.loss[1:])])
    mean = torch.cat(losses).mean()
    mean.backward()
    assert value == pytest.approx(mean.item(), rel=1e-6)
    for mine, expected in zip(model.parameters(), reference.parameters(), strict=True):
        assert mine.grad is not None
        torch.testing.assert_close(mine.grad.double(), expected.grad, rtol=1e-4, atol=1e-7)
