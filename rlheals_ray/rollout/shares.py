"""Who runs what: the episodes of one lease dealt over a team, each finished exactly once whoever is lost.

Pure: places in the batch are all it knows, neither Ray nor engines.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rlheals_ray.rollout.episode import Episode, EpisodeRequest, Weights


class NotExactlyOnce(RuntimeError):
    """A batch came back with an episode missing, double, foreign, or made by other weights than asked for."""


class Shares:
    """The places 0 … count - 1 of a batch over `members`; each is waiting, running or finished.

    Dealt `i::n`: consecutive requests, which are often of one problem and of like length, go to
    different members.
    """

    def __init__(self, count: int, members: int) -> None:
        self._waiting: list[list[int]] = [list(range(count))[member::members] for member in range(members)]
        self._running: list[set[int]] = [set() for _ in range(members)]
        self._down: set[int] = set()
        self._unfinished = set(range(count))

    @property
    def done(self) -> bool:
        return not self._unfinished

    def take(self, member: int) -> list[int]:
        """What `member` is to run now, in ascending order; empty when nothing waits for it."""
        places, self._waiting[member] = sorted(self._waiting[member]), []
        self._running[member].update(places)
        return places

    def finish(self, member: int, places: Iterable[int]) -> None:
        """`member` has finished `places`; raises NotExactlyOnce when it was not running one of them."""
        for place in places:
            if place not in self._running[member]:
                raise NotExactlyOnce(f"member {member} finished place {place}, which it was not running")
            self._running[member].remove(place)
            self._unfinished.remove(place)

    def end(self, member: int) -> None:
        """`member` says that its run is over; raises NotExactlyOnce when it left something out."""
        if left := self._running[member]:
            raise NotExactlyOnce(f"member {member} ended its run without places {sorted(left)}")

    def lose(self, member: int) -> None:
        """`member` is down: what it has not finished is dealt over those that are up, if there are any."""
        self._waiting[member] += self._running[member]
        self._running[member].clear()
        self._down.add(member)
        self._deal_what_waits_for_the_lost()

    def return_(self, member: int) -> None:
        """`member` is up again; it takes over what waited for the lost when nobody was up."""
        self._down.discard(member)
        self._deal_what_waits_for_the_lost()

    def _deal_what_waits_for_the_lost(self) -> None:
        up = [member for member in range(len(self._waiting)) if member not in self._down]
        if not up:
            return
        orphans = sorted(place for member in self._down for place in self._waiting[member])
        for member in self._down:
            self._waiting[member] = []
        for turn, member in enumerate(up):
            self._waiting[member] += orphans[turn :: len(up)]


def merge(requests: Sequence[EpisodeRequest], weights: Weights, episodes: Iterable[Episode]) -> list[Episode]:
    """The episodes in the order of their requests.

    Raises NotExactlyOnce unless there is one for each request, no more, every turn of it made by `weights`.
    """
    found: dict[str, Episode] = {}
    for episode in episodes:
        if episode.id in found:
            raise NotExactlyOnce(f"episode {episode.id} came twice")
        if any(held != weights for held in (episode.weights, *(turn.weights for turn in episode.turns))):
            raise NotExactlyOnce(f"episode {episode.id} was not made by {weights} alone")
        found[episode.id] = episode
    ordered = [found.pop(request.id, None) for request in requests]
    missing = [request.id for request, episode in zip(requests, ordered, strict=True) if episode is None]
    if missing or found:
        raise NotExactlyOnce(f"episodes missing: {missing}; not asked for: {list(found)}")
    return [episode for episode in ordered if episode is not None]
