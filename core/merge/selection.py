"""Which elements of the deltas are kept: exact ranks by magnitude or variance, and random masks.

Everything streams: a tensor is read block by block, and what is remembered is a few counts, a short list of candidates
or one bit an element. Order everywhere: larger key first, among equal keys the lower index first. The key is the
float32 nearest to the magnitude, which is the exact order for 16-bit inputs but for differences beyond 24 bits.
"""

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from core.merge import kernels, random
from core.merge.kernels import Draw, MaskSpec, Window
from core.merge.operators import Block, Group

ALL, NONE, RANK, BITS = range(4)
NO_KEY = 0xFFFFFFFF
LANES = 32  # partial sums of a reduction: lane l adds the indices = l mod LANES
BLOCK_LIMIT = 32768  # elements the kernels read at once
SEGMENTS, SEGMENT = 512, 256  # sample from which a window around a rank is guessed; more segments for larger tensors
SMALL = 1 << 18  # tensors up to here are ranked from the full list of keys
MARGINS = (5.0, 20.0)  # half width of the window in deviations of an independent sample's rank; tried in this order
BIT_LIMIT = 128 << 20  # bytes of random bits kept for a tensor; beyond, bands of it are drawn again when applied
BAND = 1 << 24  # elements of such a band, about


@dataclass
class Mask:
    """Elements of one delta that are kept, its weight and the factor on the kept ones.

    ``draw(start, stop)`` gives the bits of a band when they are too many to keep.
    """

    mode: int = ALL
    low: int = 0
    low_ties: int = 0
    high: int = NO_KEY
    high_ties: int = 0
    bits: np.ndarray | None = None
    scale: float = 1.0
    weight: float = 1.0
    draw: Callable[[int, int], np.ndarray] | None = None

    def spec(self) -> MaskSpec:
        """As the kernels' structure."""
        bits = None if self.bits is None else self.bits.ctypes.data
        return MaskSpec(self.mode, self.low, self.high, self.low_ties, self.high_ties, bits, self.scale, self.weight)

    def keep(self, key: np.ndarray, start: int, ties: list[int]) -> np.ndarray:
        """Boolean mask of a block; ``ties`` (remaining at low, at high) is updated."""
        if self.mode == BITS:
            n, first = len(key), start // 8
            if self.draw is not None:
                flags = np.unpackbits(self.draw(start, start + n), bitorder="little").astype(bool)
                return flags[:n]
            flags = np.unpackbits(self.bits[first : (start + n + 7) // 8], bitorder="little").astype(bool)
            return flags[start - 8 * first :][:n]
        if self.mode != RANK:
            return np.full(len(key), self.mode == ALL)
        kept, ties[0] = _above(key, self.low, ties[0])
        if self.high == NO_KEY:
            return kept
        removed, ties[1] = _above(key, self.high, ties[1])
        return kept & ~removed


def keys(values: np.ndarray) -> np.ndarray:
    """Sortable keys of magnitudes: the bits of the nearest float32 without sign."""
    with np.errstate(over="ignore"):
        return values.astype(np.float32).view(np.uint32) & np.uint32(0x7FFFFFFF)


def variance(deltas: Sequence[np.ndarray]) -> np.ndarray:
    """Population variance over the models, element by element."""
    mean = np.zeros_like(deltas[0])
    for d in deltas:
        mean += d
    mean /= len(deltas)
    total = np.zeros_like(mean)
    for d in deltas:
        e = d - mean
        total += e * e
    return total / len(deltas)


def lane_sums(lanes: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Add a block's values to the running lane sums (blocks start at multiples of LANES)."""
    padded = np.zeros(-(-len(values) // LANES) * LANES)
    padded[: len(values)] = values
    return np.add.reduce(np.concatenate([lanes[None], padded.reshape(-1, LANES)]), axis=0)


def total(lanes: np.ndarray) -> float:
    """The lanes' sum, first to last."""
    return float(np.cumsum(lanes)[-1])


def magnitude_masks(group: Group, ranks: Sequence[tuple[int, int]]) -> list[Mask]:
    """For each model the mask of ranks ``[removed, kept)`` of its delta's magnitudes (0 is the largest)."""
    n = group.size
    cuts = []
    for which in (1, 0):
        wanted = [pair[which] if 0 < pair[which] < n else None for pair in ranks]
        cuts.append(_delta_cuts(group, wanted) if any(w is not None for w in wanted) else [None] * len(ranks))
    masks = []
    for (removed, kept), low, high in zip(ranks, *cuts):
        if kept <= removed:
            masks.append(Mask(NONE))
        elif removed <= 0 and kept >= n:
            masks.append(Mask(ALL))
        else:
            low, high = low or (0, n), high or (NO_KEY, 0)
            masks.append(Mask(RANK, low[0], low[1], high[0], high[1]))
    return masks


def variance_mask(group: Group, share: float) -> tuple[Mask, list[float]]:
    """Mask of the ``int(share * nonzero)`` elements of highest variance, and per model the sum of squares kept."""
    if share >= 1:
        mask = Mask(ALL)
    elif share <= 0:
        mask = Mask(NONE)
    else:
        ranks = [lambda nonzero: int(nonzero * share)]
        cut = _cuts(group, lambda b: [keys(variance(b.deltas))], 1, ranks, variance=True)[0]
        mask = Mask(NONE) if cut is None else Mask(RANK, cut[0], cut[1])
    bits = np.zeros(group.size // 8 + 1, dtype=np.uint8)
    native, sources = _native(group)
    if native is not None:
        squares = np.zeros(len(group.sources))
        spec = mask.spec()
        code = native.merge_variance_mask(
            len(group.sources), sources, group.size, ctypes.byref(spec), bits.ctypes.data, squares.ctypes.data
        )
        kernels.check(code, group, True)
        return Mask(BITS, bits=bits), squares.tolist()
    lanes, ties = np.zeros((len(group.sources), LANES)), [mask.low_ties, mask.high_ties]
    for block in group.blocks():
        keep = mask.keep(keys(variance(block.deltas)), block.start, ties)
        bits[block.start // 8 : (block.stop + 7) // 8] = np.packbits(keep, bitorder="little")
        for i, d in enumerate(block.deltas):
            kept = np.where(keep, d, 0.0)
            lanes[i] = lane_sums(lanes[i], kept * kept)
    return Mask(BITS, bits=bits), [total(x) for x in lanes]


Drawn = tuple[Mask, float, float]


def random_masks(group: Group, densities: Sequence[float]) -> list[Drawn]:
    """DARE: keep each element with probability ``density``; with each mask the sums of abs(delta), all and kept."""
    native, sources = _native(group)
    if native is not None:

        def run(draws: "ctypes.Array[Draw]", start: int, stop: int) -> None:
            kernels.check(native.merge_drop(len(draws), sources, start, stop, draws), group, True)

        return _drawn_natively(group, densities, [0.0] * len(densities), run)
    draws, bits = _draws(group, densities, [0.0] * len(densities), group.size)
    lanes = np.zeros((len(draws), 2, LANES))
    for block in group.blocks():
        for i, (draw, d) in enumerate(zip(draws, block.deltas)):
            keep = random.words((draw.key0, draw.key1), block.start, block.stop) < np.uint64(draw.below)
            bits[i][block.start // 8 : (block.stop + 7) // 8] = np.packbits(keep, bitorder="little")
            lanes[i, 0] = lane_sums(lanes[i, 0], np.abs(d))
            lanes[i, 1] = lane_sums(lanes[i, 1], np.where(keep, np.abs(d), 0.0))
    return [(Mask(BITS, bits=b), total(x[0]), total(x[1])) for b, x in zip(bits, lanes)]


def rank_random_masks(group: Group, densities: Sequence[float], epsilons: Sequence[float]) -> list[Drawn]:
    """DELLA: as :func:`random_masks`, the probability rising with the magnitude's rank in its row.

    Probability of rank r of n (ascending): density - epsilon + 2 epsilon r / (n - 1); a row of one has density.
    """
    cols = group.columns
    native, sources = _native(group)
    if native is not None and group.size:

        def run(draws: "ctypes.Array[Draw]", start: int, stop: int) -> None:
            code = native.merge_della(len(draws), sources, start // cols, stop // cols, cols, draws)
            kernels.check(code, group, True)

        return _drawn_natively(group, densities, epsilons, run)
    draws, _ = _draws(group, densities, epsilons, 0)
    kept_flags = [np.zeros(group.size, dtype=bool) for _ in draws]
    for block in group.blocks(rows=True):
        for i, (draw, flat) in enumerate(zip(draws, block.deltas)):
            d = np.abs(flat).reshape(-1, cols)
            word = random.words((draw.key0, draw.key1), block.start, block.stop).reshape(d.shape)
            rank = _row_ranks(keys(d))
            ratio = rank / (cols - 1) if cols > 1 else np.full(d.shape, 0.5)
            keep = word < ((draw.density - draw.epsilon) + ratio * 2.0 * draw.epsilon) * 4294967296.0
            kept_flags[i][block.start : block.stop] = keep.reshape(-1)
            draw.all = _row_sums(d, draw.all)
            draw.kept = _row_sums(np.where(keep, d, 0.0), draw.kept)
    packed = [np.packbits(k, bitorder="little") for k in kept_flags]
    return [(Mask(BITS, bits=b), d.all, d.kept) for b, d in zip(packed, draws)]


def masked_norms(group: Group, masks: Sequence[Mask]) -> list[tuple[float, float]]:
    """For each model the sums of abs(delta): of all elements and of those its mask keeps."""
    lanes = np.zeros((len(masks), 2, LANES))
    ties = [[m.low_ties, m.high_ties] for m in masks]
    for block in group.blocks():
        for i, (mask, d) in enumerate(zip(masks, block.deltas)):
            kept = mask.keep(keys(d), block.start, ties[i])
            lanes[i, 0] = lane_sums(lanes[i, 0], np.abs(d))
            lanes[i, 1] = lane_sums(lanes[i, 1], np.where(kept, np.abs(d), 0.0))
    return [(total(x[0]), total(x[1])) for x in lanes]


def _row_ranks(key: np.ndarray) -> np.ndarray:
    """Ascending rank of each element in its row; among equals the lower index has the higher rank."""
    order = np.argsort(key[:, ::-1], axis=1, kind="stable")
    ranks = np.empty(order.shape, dtype=np.int64)
    np.put_along_axis(ranks, order, np.arange(key.shape[1], dtype=np.int64)[None], axis=1)
    return ranks[:, ::-1]


def _row_sums(values: np.ndarray, start: float) -> float:
    rows, cols = values.shape
    padded = np.zeros((rows, -(-cols // LANES) * LANES))
    padded[:, :cols] = values
    lanes = np.add.reduce(padded.reshape(rows, -1, LANES), axis=1)
    return float(np.cumsum(np.concatenate([[start], np.cumsum(lanes, axis=1)[:, -1]]))[-1])


def _draws(group: Group, densities: Sequence[float], epsilons: Sequence[float], room: int) -> tuple:
    """The draws of all models and room for ``room`` bits each (none: sums only)."""
    bits = [np.zeros(room // 8 + 1, dtype=np.uint8) for _ in densities]
    draws = (Draw * len(densities))()
    for i, (density, epsilon) in enumerate(zip(densities, epsilons)):
        key = random.stream_key(group.seed, i, group.name)
        below = min(int(density * 2.0**32), 0xFFFFFFFF)
        draws[i] = Draw(*key, below, density, epsilon, bits[i].ctypes.data if room else None, 0.0, 0.0)
    return draws, bits


def _drawn_natively(group: Group, densities: Sequence[float], epsilons: Sequence[float], run: Callable) -> list[Drawn]:
    """One walk for the sums, keeping the bits if they are few; otherwise bands are drawn again on demand."""
    few = len(densities) * group.size // 8 <= BIT_LIMIT
    draws, bits = _draws(group, densities, epsilons, group.size if few else 0)
    run(draws, 0, group.size)
    if few:
        return [(Mask(BITS, bits=b), d.all, d.kept) for b, d in zip(bits, draws)]
    known: dict[tuple[int, int], list[np.ndarray]] = {}

    def band(i: int, start: int, stop: int) -> np.ndarray:
        if (start, stop) not in known:
            known.clear()
            again, drawn = _draws(group, densities, epsilons, stop - start)
            run(again, start, stop)
            known[start, stop] = drawn
        return known[start, stop][i]

    return [
        (Mask(BITS, draw=lambda a, b, i=i: band(i, a, b)), d.all, d.kept) for i, d in enumerate(draws)
    ]  # fmt: skip


def _native(group: Group) -> tuple:
    """The kernels and the group's sources followed by the base; (None, None) for the numpy twin."""
    native = kernels.library()
    sources = kernels.inputs([*group.sources, group.base_source]) if native is not None else None
    return (None, None) if sources is None else (native, sources)


def _above(key: np.ndarray, at: int, ties: int) -> tuple[np.ndarray, int]:
    """Elements above the cut (key larger, or among the first ``ties`` equal ones) and the ties left."""
    above, equal = key > at, key == at
    count = int(equal.sum())
    if 0 < ties < count:
        equal &= np.cumsum(equal) <= ties
    return (above | equal if ties else above), ties - min(ties, count)


Cut = tuple[int, int]
BlockKeys = Callable[[Block], list[np.ndarray]]


def _delta_cuts(group: Group, wanted: Sequence[int | None]) -> list[Cut | None]:
    ranks = [lambda nonzero, k=k: k for k in wanted]
    return _cuts(group, lambda b: [keys(d) for d in b.deltas], len(wanted), ranks, variance=False)


def _cuts(group: Group, block_keys: BlockKeys, n: int, ranks: Sequence[Callable], variance: bool) -> list[Cut | None]:
    """For each of ``n`` key sequences the cut ``(key, ties)`` above which exactly ``rank(nonzero)`` elements lie."""
    native, sources = _native(group)
    if native is None:
        return histogram_cuts(group, block_keys, n, ranks)
    cuts: list[Any] = [False] * n
    for margin in MARGINS if group.size > SMALL else (0.0,):
        windows = _guess(native, sources, group, ranks, variance, margin)
        found, sure = _count(native, sources, group, windows, group.size, BLOCK_LIMIT, BLOCK_LIMIT, variance)
        cuts = [_cut_in(w, k, rank) if ok else False for (w, k), rank, ok in zip(found, ranks, sure)]
        if not any(c is False for c in cuts):
            return cuts
    exact = histogram_cuts(group, block_keys, n, ranks)
    return [e if c is False else c for c, e in zip(cuts, exact)]


def _guess(
    native: Any, sources: Any, group: Group, ranks: Sequence[Callable], variance: bool, margin: float
) -> list[tuple[int, int]]:
    """For each rank an interval of keys that very likely holds its cut, from a sample of short segments."""
    size = group.size
    if size <= SMALL:
        return [(0, NO_KEY)] * len(ranks)
    segments = max(SEGMENTS, size >> 17)
    step = size // segments
    found, _ = _count(native, sources, group, [(0, NO_KEY)] * len(ranks), size, step, min(SEGMENT, step), variance)
    windows = []
    for (w, listed), rank in zip(found, ranks):
        sample = np.sort(np.concatenate([np.zeros(w.at_lo, dtype=np.uint32), listed]))[::-1]
        expected = rank(int(size * (w.nonzero / len(sample))))
        if expected is None:
            windows.append((NO_KEY, NO_KEY))
            continue
        place, half = int(expected / size * len(sample)), int(margin * 0.5 * np.sqrt(len(sample)))
        hi = NO_KEY if place < half else int(sample[place - half])
        lo = 0 if place + half >= len(sample) else int(sample[place + half])
        windows.append((lo, hi))
    return windows


def _count(
    native: Any, sources: Any, group: Group, windows: Sequence[tuple[int, int]], size: int, step: int, segment: int,
    variance: bool,
) -> tuple[list, list[bool]]:  # fmt: skip
    """Count the keys of a segment every ``step`` elements around each window: (window, keys inside), and whether the
    room for these sufficed."""
    span = -(-size // step) * segment
    everything = windows[0] == (0, NO_KEY)
    room = span + 1024 if everything else span // 16 + 65536
    lists = [np.empty(room, dtype=np.uint32) for _ in windows]
    array = (Window * len(windows))()
    full = (ctypes.c_int32 * len(windows))()
    for i, (lo, hi) in enumerate(windows):
        array[i] = Window(lo, hi, 0, 0, 0, 0, room, 0, lists[i].ctypes.data)
    code = native.merge_window(int(variance), len(group.sources), sources, size, step, segment, array, full)
    kernels.check(code, group, True)
    return [(w, k[: w.inside]) for w, k in zip(array, lists)], [not f for f in full]


def _cut_in(w: Window, listed: np.ndarray, rank: Callable) -> "Cut | bool | None":
    """The cut from a window's counts; False when it lies outside, None when no element is wanted."""
    k = rank(w.nonzero)
    if k is None or k <= 0:
        return None
    at_lo = w.at_lo if w.lo != w.hi else 0
    if k <= w.above:
        return False
    if k <= w.above + w.at_hi:
        return w.hi, k - w.above
    k -= w.above + w.at_hi
    if k <= w.inside:
        at = int(np.partition(listed, len(listed) - k)[len(listed) - k])
        return at, k - int((listed > at).sum())
    k -= w.inside
    return (w.lo, k) if k <= at_lo else False


def histogram_cuts(
    group: Group, block_keys: BlockKeys, n: int, ranks: Sequence[Callable], rows: bool = False
) -> list[Cut | None]:
    """Exact cuts by two histograms: of the keys' upper 16 bits, then of the lower 16 in the bin that holds the rank.

    Args:
        block_keys: block -> ``n`` key arrays (uint32).
        ranks: for each, a function from the number of nonzero keys to the wanted rank (from 1), None for none.
        rows: blocks of whole rows.

    Returns:
        For each the key and how many of the elements with that key lie above the cut.
    """
    upper = np.zeros((n, 1 << 16), dtype=np.int64)
    nonzero = np.zeros(n, dtype=np.int64)
    for block in group.blocks(rows):
        for i, key in enumerate(block_keys(block)):
            upper[i] += np.bincount(key >> np.uint32(16), minlength=1 << 16)
            nonzero[i] += np.count_nonzero(key)
    wanted = [rank(int(nz)) for rank, nz in zip(ranks, nonzero)]
    places = [None if k is None or k <= 0 else _place(upper[i], k) for i, k in enumerate(wanted)]
    lower = np.zeros((n, 1 << 16), dtype=np.int64)
    for block in group.blocks(rows):
        for i, key in enumerate(block_keys(block)):
            if places[i] is not None:
                inside = key[(key >> np.uint32(16)) == places[i][0]] & np.uint32(0xFFFF)
                lower[i] += np.bincount(inside, minlength=1 << 16)
    cuts: list[Cut | None] = []
    for i, place in enumerate(places):
        if place is None:
            cuts.append(None)
        else:
            low, ties = _place(lower[i], place[1])
            cuts.append(((place[0] << 16) + low, ties))
    return cuts


def _place(histogram: np.ndarray, rank: int) -> tuple[int, int]:
    """The bin in which the ``rank``-th largest lies, and its rank inside the bin (from 1)."""
    above = np.cumsum(histogram[::-1])
    at = int(np.searchsorted(above, rank))
    return len(histogram) - 1 - at, rank - (int(above[at - 1]) if at else 0)
