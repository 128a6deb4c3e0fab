"""The kernel of the fused back end: scores, masks, sums and weights of a tile, without the scores ever leaving the chip.

Logits are in base 2 here, because the hardware's exponential is.
"""

# mypy: ignore-errors
# ruff: noqa: RUF100
from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _dot_tile(
    left, right, start_left, start_right, end_left, end_right, depth: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, PRECISION: tl.constexpr, COPIED: tl.constexpr,
):  # fmt: skip
    """left[rows] @ right[columns].T for one tile; both are row-major, with `depth` components, a multiple of DEPTH.

    With COPIED they are descriptors of tensors, which the copy engine of Hopper and later chips reads by itself.
    """
    sums = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    if COPIED:
        for k in range(0, depth, DEPTH):
            sums = tl.dot(left.load([start_left, k]), right.load([start_right, k]).T, sums, input_precision=PRECISION)
    else:
        # 64-bit addresses of the tile's first row, and 32-bit offsets within the tile, which take fewer registers.
        i = tl.minimum(tl.arange(0, ROWS), end_left - 1 - start_left)
        j = tl.minimum(tl.arange(0, COLUMNS), end_right - 1 - start_right)
        k = tl.arange(0, DEPTH)
        a_at, b_at = left + tl.cast(start_left, tl.int64) * depth, right + tl.cast(start_right, tl.int64) * depth
        a_from, b_from = i[:, None] * depth + k[None, :], j[None, :] * depth + k[:, None]
        for _ in range(0, depth, DEPTH):
            sums = tl.dot(tl.load(a_at + a_from), tl.load(b_at + b_from), sums, input_precision=PRECISION)
            a_at += DEPTH
            b_at += DEPTH
    return sums


@triton.jit
def _same_label(
    keep, mine, theirs, i, j, MINE: tl.constexpr, THEIRS: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    """`keep` without the entries whose row and column share a label. With STEPS, each row's labels are sorted."""
    for h in tl.static_range(THEIRS):
        their = tl.load(theirs + j * THEIRS + h)
        if STEPS == 0:
            for g in tl.static_range(MINE):
                keep = keep & (tl.load(mine + i * MINE + g)[:, None] != their[None, :])
        else:
            # The last of the row's labels that is not above the column's, by halving.
            low = tl.zeros_like(keep).to(tl.int32)
            high = low + (MINE - 1)
            base = mine + i * MINE
            for _ in tl.static_range(STEPS):
                middle = (low + high + 1) // 2
                below = tl.load(base[:, None] + middle) <= their[None, :]
                low = tl.where(below, middle, low)
                high = tl.where(below, high, middle - 1)
            keep = keep & (tl.load(base[:, None] + low) != their[None, :])
    return keep


@triton.jit
def _log2_of_one_plus_exp(x):
    """Without overflow."""
    base2 = x * 1.4426950408889634
    return tl.maximum(base2, 0.0) + tl.log2(1 + tl.exp2(-tl.abs(base2)))


@triton.jit
def _place(place, n, m, ROWS: tl.constexpr, COLUMNS: tl.constexpr, TOGETHER: tl.constexpr):
    """(row, column) of a tile. Tiles that are computed at the same time share rows and columns, which the cache then has."""
    tall, wide = tl.cdiv(n, ROWS), tl.cdiv(m, COLUMNS)
    band = TOGETHER * wide
    top = place // band * TOGETHER
    height = tl.minimum(tall - top, TOGETHER)
    return top + place % band % height, place % band // height


@triton.jit
def _weigh(
    tile_row, tile_column,
    rows, columns, scale, reference, redo, weights, highest, sums, totals, masses, counts,
    limits, biases, ids_mine, ids_theirs, groups_mine, groups_theirs,
    guide_rows, guide_columns, guide_limits, guide_offsets,
    sketch_rows, sketch_columns, sketch_offsets, intercept, sketch_limit,
    n, m, stride, first_row, own_first,
    depth: tl.constexpr, guide_depth: tl.constexpr, sketch_depth: tl.constexpr,
    STORE: tl.constexpr, TOTALS: tl.constexpr, OWN_ROWS: tl.constexpr, OWN_COLUMNS: tl.constexpr,
    LIMITED: tl.constexpr, BIASED: tl.constexpr, WEIGHTED: tl.constexpr,
    IDS_MINE: tl.constexpr, IDS_THEIRS: tl.constexpr, IDS_STEPS: tl.constexpr,
    GROUPS_MINE: tl.constexpr, GROUPS_THEIRS: tl.constexpr, GROUPS_STEPS: tl.constexpr,
    GUIDED: tl.constexpr, SUSPECTED: tl.constexpr, THRESHOLD: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, GUIDE_DEPTH: tl.constexpr,
    SKETCH_DEPTH: tl.constexpr, TOGETHER: tl.constexpr, PRECISION: tl.constexpr, BESIDE: tl.constexpr,
    COPIED: tl.constexpr,
):  # fmt: skip
    """One tile; see `weigh_tiles`."""
    i0, j0 = tile_row * ROWS, tile_column * COLUMNS
    i, j = i0 + tl.arange(0, ROWS), j0 + tl.arange(0, COLUMNS)
    inside, within = i < n, j < m
    # Attributes of all rows of the matrix start at row 0, those of the block at first_row.
    all_i = tl.minimum(first_row + i, first_row + n - 1).to(tl.int64)
    all_j = tl.minimum(j, m - 1).to(tl.int64)
    keep = inside[:, None] & within[None, :]
    bias = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    if GUIDED:
        guided = _dot_tile(
            guide_rows, guide_columns, first_row + i0, j0, first_row + n, m, guide_depth, ROWS, COLUMNS, GUIDE_DEPTH,
            BESIDE, COPIED,
        )  # fmt: skip
        guided += tl.load(guide_offsets + all_j)[None, :]
        keep = keep & (guided <= tl.load(guide_limits + all_i)[:, None])
    if SUSPECTED:
        odds = _dot_tile(
            sketch_rows, sketch_columns, first_row + i0, j0, first_row + n, m, sketch_depth, ROWS, COLUMNS, SKETCH_DEPTH,
            BESIDE, COPIED,
        )  # fmt: skip
        odds += intercept + tl.load(sketch_offsets + all_j)[None, :]
        if THRESHOLD:
            keep = keep & (odds <= sketch_limit)
        else:
            bias -= _log2_of_one_plus_exp(odds)  # log2(1 - p)
    score = _dot_tile(
        rows, columns, first_row + i0, j0, first_row + n, m, depth, ROWS, COLUMNS, DEPTH, PRECISION, COPIED
    )
    if OWN_COLUMNS > 0:
        keep = keep & ((own_first + (first_row + i) // OWN_ROWS)[:, None] != (j // OWN_COLUMNS)[None, :])
    if IDS_MINE > 0:
        keep = _same_label(keep, ids_mine, ids_theirs, all_i, all_j, IDS_MINE, IDS_THEIRS, IDS_STEPS)
    if GROUPS_MINE > 0:
        keep = _same_label(keep, groups_mine, groups_theirs, all_i, all_j, GROUPS_MINE, GROUPS_THEIRS, GROUPS_STEPS)
    if LIMITED:
        keep = keep & (score <= tl.load(limits + all_i)[:, None])
    logit = score * tl.load(scale)
    if BIASED:
        extra = tl.load(biases + all_j)
        bias += extra[None, :]
        keep = keep & (extra > float("-inf"))[None, :]
    if WEIGHTED:
        logit += bias
    logit = tl.where(keep, logit, float("-inf"))
    exponentials = tl.exp2(logit - tl.load(reference + i, mask=inside, other=0.0)[:, None])
    at = tl.cast(tile_column, tl.int64) * n + i
    tl.store(highest + at, tl.max(logit, 1), mask=inside)
    tl.store(sums + at, tl.sum(exponentials, 1), mask=inside)
    tl.store(counts + at, tl.sum(keep.to(tl.int32), 1), mask=inside)
    if TOTALS:
        tl.store(totals + at, tl.sum(tl.where(keep, logit, 0.0), 1), mask=inside)
    if WEIGHTED:
        tl.store(masses + at, tl.sum(tl.where(keep, tl.exp2(bias), 0.0), 1), mask=inside)
    if STORE:
        if TOTALS:  # what counts must differ from what does not, however little it weighs
            exponentials = tl.where(keep, tl.maximum(exponentials, 1.1754943508222875e-38), 0.0)
        # Up to the end of the row, whose length is a multiple of 16: with m here, numbers would be stored one by one.
        into = weights + i.to(tl.int64)[:, None] * stride + j[None, :]
        tl.store(into, exponentials.to(weights.dtype.element_ty), mask=inside[:, None] & (j < stride)[None, :])


@triton.jit(do_not_specialize=["n", "m", "first_row", "own_first", "programs", "intercept", "sketch_limit"])
def weigh_tiles(
    rows, columns, scale, reference, redo, weights, highest, sums, totals, masses, counts,
    limits, biases, ids_mine, ids_theirs, groups_mine, groups_theirs,
    guide_rows, guide_columns, guide_limits, guide_offsets,
    sketch_rows, sketch_columns, sketch_offsets, intercept, sketch_limit,
    n, m, stride, first_row, own_first, programs,
    depth: tl.constexpr, guide_depth: tl.constexpr, sketch_depth: tl.constexpr,
    REDO: tl.constexpr, STORE: tl.constexpr, TOTALS: tl.constexpr, OWN_ROWS: tl.constexpr, OWN_COLUMNS: tl.constexpr,
    LIMITED: tl.constexpr, BIASED: tl.constexpr, WEIGHTED: tl.constexpr,
    IDS_MINE: tl.constexpr, IDS_THEIRS: tl.constexpr, IDS_STEPS: tl.constexpr,
    GROUPS_MINE: tl.constexpr, GROUPS_THEIRS: tl.constexpr, GROUPS_STEPS: tl.constexpr,
    GUIDED: tl.constexpr, SUSPECTED: tl.constexpr, THRESHOLD: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, GUIDE_DEPTH: tl.constexpr,
    SKETCH_DEPTH: tl.constexpr, TOGETHER: tl.constexpr, PRECISION: tl.constexpr, BESIDE: tl.constexpr,
    COPIED: tl.constexpr, STAYS: tl.constexpr,
):  # fmt: skip
    """All tiles of `n` rows, which start at `first_row`, and `m` columns.

    weights `[n, m]` get exp2(logit - reference), 0 where nothing counts; highest, sums, totals, masses and counts
    `[tiles of columns, n]` get what each row has in a tile. With REDO only tiles with a marked row are computed. With STAYS
    each of the `programs` computes one tile after the other, and loads the next one while it ends the last.
    """
    place = tl.program_id(0)
    if REDO:
        # Few programs, each for some columns of a row of tiles: as a rule there is nothing to do.
        tall = tl.cdiv(n, ROWS)
        tile_row, each = place % tall, programs // tall
        i = tile_row * ROWS + tl.arange(0, ROWS)
        if tl.max(tl.load(redo + i, mask=i < n, other=0), 0) == 0:
            return
        for tile_column in tl.range(place // tall, tl.cdiv(m, COLUMNS), each):
            _weigh(
                tile_row, tile_column,
                rows, columns, scale, reference, redo, weights, highest, sums, totals, masses, counts, limits,
                biases, ids_mine, ids_theirs, groups_mine, groups_theirs, guide_rows, guide_columns, guide_limits,
                guide_offsets, sketch_rows, sketch_columns, sketch_offsets, intercept, sketch_limit, n, m, stride,
                first_row, own_first, depth, guide_depth, sketch_depth, STORE, TOTALS, OWN_ROWS, OWN_COLUMNS,
                LIMITED, BIASED, WEIGHTED, IDS_MINE, IDS_THEIRS, IDS_STEPS, GROUPS_MINE, GROUPS_THEIRS, GROUPS_STEPS,
                GUIDED, SUSPECTED, THRESHOLD, ROWS, COLUMNS, DEPTH, GUIDE_DEPTH, SKETCH_DEPTH, TOGETHER, PRECISION,
                BESIDE, COPIED,
            )  # fmt: skip
    elif STAYS:
        for turn in tl.range(place, tl.cdiv(n, ROWS) * tl.cdiv(m, COLUMNS), programs, flatten=True):
            tile_row, tile_column = _place(turn, n, m, ROWS, COLUMNS, TOGETHER)
            _weigh(
                tile_row, tile_column,
                rows, columns, scale, reference, redo, weights, highest, sums, totals, masses, counts, limits,
                biases, ids_mine, ids_theirs, groups_mine, groups_theirs, guide_rows, guide_columns, guide_limits,
                guide_offsets, sketch_rows, sketch_columns, sketch_offsets, intercept, sketch_limit, n, m, stride,
                first_row, own_first, depth, guide_depth, sketch_depth, STORE, TOTALS, OWN_ROWS, OWN_COLUMNS,
                LIMITED, BIASED, WEIGHTED, IDS_MINE, IDS_THEIRS, IDS_STEPS, GROUPS_MINE, GROUPS_THEIRS, GROUPS_STEPS,
                GUIDED, SUSPECTED, THRESHOLD, ROWS, COLUMNS, DEPTH, GUIDE_DEPTH, SKETCH_DEPTH, TOGETHER, PRECISION,
                BESIDE, COPIED,
            )  # fmt: skip
    else:
        tile_row, tile_column = _place(place, n, m, ROWS, COLUMNS, TOGETHER)
        _weigh(
            tile_row, tile_column,
            rows, columns, scale, reference, redo, weights, highest, sums, totals, masses, counts, limits, biases,
            ids_mine, ids_theirs, groups_mine, groups_theirs, guide_rows, guide_columns, guide_limits, guide_offsets,
            sketch_rows, sketch_columns, sketch_offsets, intercept, sketch_limit, n, m, stride, first_row, own_first,
            depth, guide_depth, sketch_depth, STORE, TOTALS, OWN_ROWS, OWN_COLUMNS, LIMITED, BIASED, WEIGHTED,
            IDS_MINE, IDS_THEIRS, IDS_STEPS, GROUPS_MINE, GROUPS_THEIRS, GROUPS_STEPS, GUIDED, SUSPECTED, THRESHOLD,
            ROWS, COLUMNS, DEPTH, GUIDE_DEPTH, SKETCH_DEPTH, TOGETHER, PRECISION, BESIDE, COPIED,
        )  # fmt: skip


# Row by row: what has to be done to vectors before and after, in one pass over memory each.


@triton.jit
def _unit_rows(rows, out, inverse, d: tl.constexpr, WIDTH: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    k = tl.arange(0, WIDTH)
    x = tl.load(rows + row * d + k, mask=k < d, other=0.0).to(tl.float32)
    largest = tl.maximum(tl.max(tl.abs(x), 0), 1.0)  # squares overflow above 1e19
    x_small = x / largest
    length = tl.sqrt(tl.sum(x_small * x_small, 0)) * largest
    one_over = tl.where(length > 1e-12, 1.0 / tl.maximum(length, 1e-12), 0.0)
    tl.store(out + row * d + k, (x * one_over).to(out.dtype.element_ty), mask=k < d)
    tl.store(inverse + row, one_over)


@triton.jit
def _unit_gradient(units, gradient, inverse, out, d: tl.constexpr, WIDTH: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    k = tl.arange(0, WIDTH)
    u = tl.load(units + row * d + k, mask=k < d, other=0.0).to(tl.float32)
    g = tl.load(gradient + row * d + k, mask=k < d, other=0.0).to(tl.float32)
    found = (g - u * tl.sum(u * g, 0)) * tl.load(inverse + row)
    tl.store(out + row * d + k, found.to(out.dtype.element_ty), mask=k < d)


@triton.jit
def _row_dots(left, right, out, d: tl.constexpr, WIDTH: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    k = tl.arange(0, WIDTH)
    x = tl.load(left + row * d + k, mask=k < d, other=0.0).to(tl.float32)
    y = tl.load(right + row * d + k, mask=k < d, other=0.0).to(tl.float32)
    tl.store(out + row, tl.sum(x * y, 0))


@triton.jit
def _scaled_rows(rows, factors, out, d: tl.constexpr, WIDTH: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    k = tl.arange(0, WIDTH)
    x = tl.load(rows + row * d + k, mask=k < d, other=0.0).to(tl.float32) * tl.load(factors + row)
    tl.store(out + row * d + k, x.to(out.dtype.element_ty), mask=k < d)


def unit_rows(rows: Tensor, out: Tensor, inverse: Tensor) -> None:
    """out `[n, d]` = rows `[n, d]` divided by their lengths, whose inverses go to `inverse` `[n]` (0 for a row of zeros)."""
    d = rows.shape[-1]
    _unit_rows[(len(rows),)](rows, out, inverse, d=d, WIDTH=triton.next_power_of_2(d), num_warps=_warps(d))


def unit_gradient(units: Tensor, gradient: Tensor, inverse: Tensor, out: Tensor) -> None:
    """out `[n, d]` = the gradient of what `units` `[n, d]` were made of, from `gradient` `[n, d]` of themselves."""
    d = units.shape[-1]
    _unit_gradient[(len(units),)](
        units, gradient, inverse, out, d=d, WIDTH=triton.next_power_of_2(d), num_warps=_warps(d)
    )


def row_dots(left: Tensor, right: Tensor, out: Tensor) -> None:
    """out `[n]` = inner products of the rows of left and right, `[n, d]` each."""
    d = left.shape[-1]
    _row_dots[(len(left),)](left, right, out, d=d, WIDTH=triton.next_power_of_2(d), num_warps=_warps(d))


def scaled_rows(rows: Tensor, factors: Tensor, out: Tensor) -> None:
    """out `[n, d]` = rows `[n, d]` times factors `[n]`."""
    d = rows.shape[-1]
    _scaled_rows[(len(rows),)](rows, factors, out, d=d, WIDTH=triton.next_power_of_2(d), num_warps=_warps(d))


def _warps(d: int) -> int:
    """Warps for a row of d components: a power of 2."""
    return max(1, min(8, triton.next_power_of_2(d) // 256))
