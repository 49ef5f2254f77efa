"""The order in which flakes are visited again: a short open path from where the stage stands.

Nearest neighbour gives a start, 2-opt and Or-opt over near neighbours improve it until no single
change helps, then small random double bridges are tried and kept when the repaired path is no
longer (iterated local search: Martin, Otto and Felten 1991; Johnson and McGeoch 1997 put it 1 to
3 % over the Held-Karp bound). Cost is TIME with the stage's kinematics, not distance: with both
axes moving at once, the slower one counts, and short moves are all ramp.

The end is open: behind the last flake stands a place at no distance from everywhere. Deterministic
for a seed, and no clock: effort is counted in tries.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from controller.search.tiling import FloatArray, MoveTime

_NEAREST = 6
_PER_QUADRANT = 3
_LONGEST_SEGMENT = 3
_WALK_STEPS = 3
_MOST_TRIES = 5_000  # about a second on one core (EPYC, 2026), whatever the number of places


@dataclass(frozen=True, slots=True)
class Tour:
    """Indices of the places in the order of visit; the time of all moves, the first included."""

    order: tuple[int, ...]
    travel_s: float


def visit_order(
    places_um: Sequence[tuple[float, float]],
    start_um: tuple[float, float],
    move_time: MoveTime,
    *,
    tries_per_place: int = 20,
    seed: int = 0,
) -> Tour:
    """Order places for a short open path from `start_um`.

    tries_per_place: random kicks after the first local optimum, per place; 0 for none.
    Raises ValueError if a coordinate is not finite.
    """
    xy_um = np.array([start_um, *places_um], dtype=np.float64)  # (n + 1, 2), 0 is the start
    if not np.all(np.isfinite(xy_um)):
        message = "every place of a tour must be finite"
        raise ValueError(message)
    if len(places_um) == 0:
        return Tour((), 0.0)
    cost_s = move_time(xy_um[:, None, 0] - xy_um[None, :, 0], xy_um[:, None, 1] - xy_um[None, :, 1])
    path = _OpenPath(cost_s, _neighbours(xy_um, cost_s))
    path.improve(list(range(len(xy_um))))
    path.kick(min(tries_per_place * len(places_um), _MOST_TRIES), random.Random(seed))
    order = path.order[1:-1]
    return Tour(tuple(node - 1 for node in order), path_time_s(cost_s, path.order[:-1]))


def path_time_s(cost_s: FloatArray, order: Sequence[int]) -> float:
    """Sum the costs along a path."""
    indices = np.asarray(order)
    return float(np.sum(cost_s[indices[:-1], indices[1:]]))


def _neighbours(xy_um: FloatArray, cost_s: FloatArray) -> list[list[int]]:
    """Nodes worth trying beside each node, the cheapest first.

    The nearest ones, and the nearest in each quadrant: where flakes lie in clusters, all the
    nearest are in the same one, and the links between clusters would never be tried.
    """
    chosen = []
    for node, row in enumerate(np.argsort(cost_s, axis=1, kind="stable")):
        others = row[row != node]
        east = xy_um[others, 0] >= xy_um[node, 0]
        north = xy_um[others, 1] >= xy_um[node, 1]
        picked = [others[:_NEAREST]]
        picked += [
            others[(east == e) & (north == n)][:_PER_QUADRANT] for e in (0, 1) for n in (0, 1)
        ]
        unique = np.unique(np.concatenate(picked))
        chosen.append(unique[np.argsort(cost_s[node, unique], kind="stable")].tolist())
    return chosen


class _OpenPath:
    """A path that begins with node 0 and ends with a node at no distance from everywhere."""

    def __init__(self, cost_s: FloatArray, near: list[list[int]]) -> None:
        count = len(cost_s)
        self._near = near  # by node, the cheapest first
        padded = np.zeros((count + 1, count + 1))
        padded[:count, :count] = cost_s
        self._cost: list[list[float]] = padded.tolist()  # lists: scalar reads are what this does
        self._end = count
        self._least = 1e-9 * float(np.max(cost_s))  # gains below this are rounding, and would cycle
        self.order = self._nearest_first()
        self._place = [0] * (count + 1)
        self._renumber(0, count)

    def _nearest_first(self) -> list[int]:
        left = set(range(1, self._end))
        order = [0]
        while left:
            here = order[-1]
            close = [node for node in self._near[here] if node in left]
            row = self._cost[here]
            following = close[0] if close else min(left, key=lambda node: (row[node], node))
            left.remove(following)
            order.append(following)
        return [*order, self._end]

    def _renumber(self, first: int, last: int) -> None:
        order, place = self.order, self._place
        for i in range(first, last + 1):
            place[order[i]] = i

    def length_s(self) -> float:
        return sum(self._cost[a][b] for a, b in itertools.pairwise(self.order))

    def improve(self, nodes: list[int]) -> None:
        """Apply 2-opt and Or-opt moves around the given nodes until none helps."""
        queue = nodes[::-1]
        queued = set(queue)
        while queue:
            node = queue.pop()
            queued.discard(node)
            touched = self._improve_at(node)
            if touched:
                for other in (node, *touched):
                    if other not in queued and other != self._end:
                        queue.append(other)
                        queued.add(other)

    def _improve_at(self, node: int) -> tuple[int, ...]:
        """Make one change that involves `node`; the nodes at the changed links, () for none."""
        return self._two_opt(node) or self._or_opt(node)

    def _two_opt(self, a: int) -> tuple[int, ...]:
        cost, order, place, least = self._cost, self.order, self._place, self._least
        i = place[a]
        if i < self._end:  # the link a-b with its successor, replaced by a-c
            b = order[i + 1]
            old = cost[a][b]
            for c in self._near[a]:
                gain = old - cost[a][c]
                if gain <= least:
                    break
                j = place[c]
                d = order[j + 1]
                if gain + cost[c][d] - cost[b][d] > least:
                    self._reverse(min(i, j) + 1, max(i, j))
                    return (b, c, d)
        if i > 0:  # the link with its predecessor
            b = order[i - 1]
            old = cost[a][b]
            for c in self._near[a]:
                gain = old - cost[a][c]
                if gain <= least:
                    break
                j = place[c]
                if j == 0:
                    continue
                d = order[j - 1]
                if gain + cost[c][d] - cost[b][d] > least:
                    self._reverse(min(i, j), max(i, j) - 1)
                    return (b, c, d)
        return ()

    def _or_opt(self, node: int) -> tuple[int, ...]:
        """Move a segment of up to three nodes that begins or ends at `node` beside a neighbour."""
        cost, order, place, least = self._cost, self.order, self._place, self._least
        i = place[node]
        if i == 0:
            return ()
        for size in range(1, _LONGEST_SEGMENT + 1):
            for first, last in ((i, i + size - 1), (i - size + 1, i)):
                if first < 1 or last >= self._end or (size == 1 and first != i):
                    continue
                before, after = order[first - 1], order[last + 1]
                far = order[last] if first == i else order[first]  # the segment's other end
                freed = cost[before][order[first]] + cost[order[last]][after] - cost[before][after]
                if freed <= least:
                    continue
                for c in self._near[node]:
                    if freed - cost[node][c] <= least:
                        break
                    j = place[c]
                    if first <= j <= last:
                        continue
                    # `node` beside c, `far` beside c's successor or predecessor.
                    for left, right in ((j, j + 1), (j - 1, j)):
                        if left < 0 or first <= left <= last or first <= right <= last:
                            continue
                        other = order[right] if left == j else order[left]
                        added = cost[c][node] + cost[far][other] - cost[c][other]
                        if freed - added > least:
                            head = node if left == j else far
                            self._shift(first, last, left, is_reversed=order[first] != head)
                            return (before, after, far, c, other)
        return ()

    def _reverse(self, first: int, last: int) -> None:
        self.order[first : last + 1] = self.order[first : last + 1][::-1]
        self._renumber(first, last)

    def _shift(self, first: int, last: int, left: int, *, is_reversed: bool) -> None:
        """Put the segment between the places `left` and `left + 1`."""
        order = self.order
        segment = order[first : last + 1]
        if is_reversed:
            segment.reverse()
        if left > last:
            order[first : left + 1] = order[last + 1 : left + 1] + segment
            self._renumber(first, left)
        else:
            order[left + 1 : last + 1] = segment + order[left + 1 : first]
            self._renumber(left + 1, last)

    def kick(self, tries: int, chance: random.Random) -> None:
        """Exchange two neighbouring stretches, repair, keep what is not longer.

        Two ways to cut in turn: near each other on the chip, wherever that is on the path, found by
        short random walks (Applegate, Cook and Rohe 2003); and at long links, which moves whole
        clusters of flakes.
        """
        if self._end < 5:
            return
        best_s = self.length_s()
        for turn in range(tries):
            cuts = self._cuts_nearby(chance) if turn % 2 else self._cuts_at_long_links(chance)
            if len(cuts) < 3:
                continue
            p, q, r = cuts
            kept = list(self.order)
            order = self.order
            order[p:r] = order[q:r] + order[p:q]
            self._renumber(p, r - 1)
            ends = {order[k] for k in (p - 1, p, p + r - q - 1, p + r - q, r - 1, r)}
            self.improve(sorted(ends - {self._end}))
            length_s = self.length_s()
            if length_s <= best_s + self._least:
                best_s = length_s
            else:
                self.order = kept
                self._renumber(0, self._end)

    def _cuts_at_long_links(self, chance: random.Random) -> list[int]:
        order, cost = self.order, self._cost
        weights = [cost[a][b] for a, b in itertools.pairwise(order[:-1])]
        if sum(weights) <= 0:
            return []
        return sorted(set(chance.choices(range(1, self._end), weights, k=3)))

    def _cuts_nearby(self, chance: random.Random) -> list[int]:
        """Three places on the path, ascending, none of them the start; fewer if they coincide."""
        centre = chance.randrange(1, self._end)
        found = {self._place[centre]}
        for _ in range(6):
            node = centre
            for _ in range(_WALK_STEPS):
                node = chance.choice(self._near[node])
            if node != 0:
                found.add(self._place[node])
            if len(found) == 3:
                break
        return sorted(found)
