"""A route that is answered step by step: one action to each observation, the next seen only after the right one.

As in the published environment: a right action is done and joins the history, and what is seen then is told; after a
wrong one the place stays. The rewards of a step, by the published verifier, are

- +1 for the right action, whatever else the answer says;
- -1.5 for a wrong one with an observation that is wrong about the intersection: it names one where none is seen, or
  none where one is;
- -1 for any other wrong one, one outside the action space included.

Ours: the published code looks for the word in the landmark alone, where it never stands, so that it pays -1.5 for every
wrong action beside that word and tells who is at an intersection that he is not; here what is seen counts. An answer
without the field says nothing of an intersection. One that cannot be read is worth -1.5 everywhere: it must not pay to
write something unreadable in place of a wrong observation.
"""

from __future__ import annotations

from collections.abc import Sequence

from rlheals_ray.tasks.navigation_answers import Turn
from rlheals_ray.tasks.navigation_routes import FORWARD, STOP, Route, actions, observations
from rlheals_ray.tasks.navigation_wording import Wording, directions_of
from rlheals_ray.tasks.task import Rule, Verdict

RIGHT, WRONG, WORST = 1.0, -1.0, -1.5


def judge_step(wording: Wording, route: Route, rule: Rule, place: int, given: Turn | None) -> Verdict:
    """The verdict on what was read as the answer to the observation at `place`, counted from 0."""
    right = actions(route, rule)
    if place >= len(right):
        return Verdict(WRONG, False, given is not None, wording.step_feedback("over"))
    if given is None:
        return Verdict(WORST, False, False, wording.step_feedback("illegal"))
    if given.action == right[place]:
        if place == len(right) - 1:
            return Verdict(RIGHT, True, True, "")
        return Verdict(RIGHT, False, True, wording.onward(route, rule, place), accepted=True)
    known = given.action in (*directions_of(rule), FORWARD, STOP)
    there = wording.intersection in wording.seen(observations(route)[place]).lower()
    if given.observation is not None and (wording.intersection in given.observation.lower()) != there:
        return Verdict(WORST, False, known, wording.step_feedback("unseen" if there else "nowhere"))
    return Verdict(WRONG, False, known, wording.step_feedback("wrong" if known else "unknown"))


def judge_steps(wording: Wording, route: Route, rule: Rule, given: Sequence[Turn]) -> Verdict:
    """The verdict on a whole solution: each answer taken for the next one, without second tries.

    The reward is that of the steps up to the first wrong one; one answer too few or too many is a wrong one.
    """
    if not given:
        return Verdict(WORST, False, False, wording.feedback("illegal", 0))
    right, reward = actions(route, rule), 0.0
    for place, turn in enumerate(given[: len(right)]):
        step = judge_step(wording, route, rule, place, turn)
        reward += step.reward
        if not (step.accepted or step.solved):
            kind = "wrong" if step.well_formed else "unknown"
            return Verdict(reward, False, step.well_formed, wording.feedback(kind, place + 1))
    if len(given) == len(right):
        return Verdict(reward, True, True, "")
    kind = "short" if len(given) < len(right) else "long"
    return Verdict(reward + WRONG, False, True, wording.feedback(kind, 0))
