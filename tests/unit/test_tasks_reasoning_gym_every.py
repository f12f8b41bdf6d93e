"""Every dataset of reasoning-gym that is not refused, in its default configuration (`pytest -m slow`)."""

from functools import partial

import pytest

from rlheals_ray.grid.preflight import OF_THE_JUDGE
from rlheals_ray.tasks import Verdict
from rlheals_ray.tasks.conformance import Effort, check_task
from rlheals_ray.tasks.reasoning_gym import ReasoningGym, ReasoningGymOptions, ReasoningGymProblem
from rlheals_ray.tasks.reasoning_gym_config import names
from rlheals_ray.tasks.reasoning_gym_draw import Draw, drawn
from rlheals_ray.tasks.reasoning_gym_here import DrawnHere
from rlheals_ray.tasks.reasoning_gym_verify import MAX_EXTRA
from tests.cpu_time import cpu_seconds

DATASETS = [
    "ab", "acre", "advanced_geometry", "aiw", "arc_1d", "arc_agi", "base_conversion", "basic_arithmetic", "bf",
    "binary_alternation", "binary_matrix", "bitwise_arithmetic", "caesar_cipher", "calendar_arithmetic",
    "chain_sum", "circuit_logic", "coin_flip", "color_cube_rotation", "complex_arithmetic", "count_bits",
    "count_primes", "countdown", "course_schedule", "cryptarithm", "decimal_arithmetic", "decimal_chain_sum",
    "dice", "emoji_mystery", "family_relationships", "figlet_font", "fraction_simplification", "futoshiki",
    "game_of_life", "game_of_life_halting", "gcd", "group_anagrams", "gsm_symbolic", "intermediate_integration",
    "isomorphic_strings", "jugs", "kakurasu", "knight_swap", "knights_knaves", "largest_island", "lcm",
    "leg_counting", "letter_counting", "letter_jumble", "list_functions", "mahjong_puzzle", "manipulate_matrix",
    "maze", "mini_sudoku", "modulo_grid", "n_queens", "needle_haystack", "number_filtering", "number_format",
    "number_sequence", "number_sorting", "palindrome_generation", "palindrome_partitioning", "path_star",
    "polynomial_equations", "polynomial_multiplication", "pool_matrix", "power_function", "prime_factorization",
    "products", "puzzle24", "quantum_lock", "ransom_note", "rearc", "rectangle_count", "rotate_matrix",
    "rotten_oranges", "self_reference", "sentence_reordering", "shortest_path", "simple_equations",
    "simple_geometry", "simple_integration", "sokoban", "spell_backward", "spiral_matrix", "string_insertion",
    "string_manipulation", "string_splitting", "string_synthesis", "sudoku", "survo", "syllogism",
    "time_intervals", "tower_of_hanoi", "tsumego", "word_ladder", "word_sequence_reversal", "word_sorting",
    "zebra_puzzles",
]  # fmt: skip

# Item times of seconds: a few will do.
FEW = {"sokoban": 1, "futoshiki": 2, "knight_swap": 2, "zebra_puzzles": 3, "puzzle24": 4, "sudoku": 4}


def hostile(answer: str, most: int) -> list[str]:
    """Texts as long as are read at all, each shaped to cost some reader most."""
    units = [
        "9", "(", "[", "{", "-", "9**", "1/", "1 ", "1,", "\n", "0 1\n", "A=1,", "ABC", "RLUD", "right ", "9×", "é",
        '{"a":', "\x00", '"fill A",', "Move disk 1 from Peg 1 to Peg 2\n", "x**", "sin(", "x is a knight ", "1e9,",
        f"{answer} ",
    ]  # fmt: skip
    longest = [(unit * most)[:most] for unit in units]
    lists = [f"[{text[: most - 2].rstrip(',')}]" for text in longest]
    return [
        *longest,
        *lists,
        "",
        "nan",
        "inf",
        "1e999999999",
        "٣",
        "None",
        "True",
        "(1/(1-1))",
        "__import__('os')",
    ]


def test_the_datasets_tested_slowly_are_all_there_are() -> None:
    assert names() == DATASETS


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("dataset", DATASETS)
def test_every_dataset_has_problems_that_its_demonstrations_solve_and_its_judge_is_total(
    dataset: str,
) -> None:
    one = ReasoningGym(ReasoningGymOptions.model_construct(dataset=dataset, id={}, ood={}))
    items = drawn(Draw(dataset, {}, "slow", 0.5, True, FEW.get(dataset, 10)))
    assert len(items) == FEW.get(dataset, 10)
    for number, item in enumerate(items):
        problem = ReasoningGymProblem(
            str(number), "id", str(number), item.question, item.answer, item.metadata
        )
        assert one.prompt(problem).startswith(item.question.rstrip())
        assert one.judge(problem, one.demonstration(problem)) == Verdict(5.0, True, True, "")
        for text in hostile(item.answer, MAX_EXTRA + 4 * len(item.answer)) if number < 3 else []:
            judge = partial(one.judge, problem, f"<answer>{text}</answer>")
            assert cpu_seconds(judge, 0.05) < 0.05, text[:40]
            verdict = judge()
            assert verdict.well_formed and verdict.solved == (verdict.reward == 5.0)
        for text in ("nan", "None", "__import__('os')", "(1/(1-1))"):
            assert not one.judge(problem, f"<answer>{text}</answer>").solved
        assert problem.metadata == item.metadata


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("dataset", DATASETS)
def test_no_dataset_is_refused_by_the_check_of_a_study(dataset: str) -> None:
    few = min(FEW.get(dataset, 10), 3)
    options = ReasoningGymOptions.model_construct(
        dataset=dataset, id={}, ood={}, train_problems=few, eval_problems=few
    )
    found = check_task(DrawnHere(options), effort=Effort.of_configurations())
    print(
        f"\n{dataset}: {found.calls} answers, the slowest {found.slowest * 1000:.1f} ms ({found.slowest_answer})"
    )
    assert not [breach for breach in found.breaches if breach.law in OF_THE_JUDGE]
    assert found.checked["bounded"] > 100
