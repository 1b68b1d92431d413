"""Bilinear upsampling and argmax in one step, without storing an upsampled map for every class."""

from __future__ import annotations

import torch
import torch.nn.functional as F

_CHUNK = 1 << 20  # elements that a step holds: 4 MB of float32
_GPU_CHUNK = 1 << 26  # the same on a GPU: 256 MB


def class_map(logits: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Argmax of logits (C, h, w) after bilinear upsampling (align_corners=False): uint8 (height, width), C up to 256.

    Every output pixel is a convex combination of the four corners of a cell of the input grid. If the corners of a
    cell agree on their best class, that class wins in the whole cell. In any other cell, a class can win only if its
    highest corner reaches the best class's lowest corner: a handful of 150 classes. The result equals
    `F.interpolate(...).argmax` except for exact ties. Memory does not grow with the number of classes: 19 MB from
    150x128x128 to 512x683, 44 MB to 2048x2732.

    A GPU interpolates every class, a few at a time: the search above consists of many small kernels and took 30 times
    as long on an H100.
    """
    if logits.is_cuda:
        return dense_class_map(logits, height, width)
    classes, h, w = logits.shape
    values = logits.float().flatten(1).T.contiguous()  # (h w, C)
    best = values.argmax(1).view(h, w)
    rows, columns = _Axis(h, height, logits.device), _Axis(w, width, logits.device)
    result = best.to(torch.uint8)[rows.cell][:, columns.cell]

    below, right = best[rows.after], best[:, columns.after]
    mixed = (best != below) | (best != right) | (best != below[:, columns.after])
    cy, cx = (mixed & (rows.count > 0)[:, None] & (columns.count > 0)).nonzero().unbind(1)
    cells_per_chunk = max(1, _CHUNK // max(4 * classes, rows.most * columns.most))
    for y, x in zip(cy.split(cells_per_chunk), cx.split(cells_per_chunk)):
        corners = [values[a * w + b] for a in (y, rows.after[y]) for b in (x, columns.after[x])]
        pixels = rows.pixels[y][:, :, None], columns.pixels[x][:, None, :]
        result[pixels] = _winners(corners, rows.weight[y][:, :, None], columns.weight[x][:, None, :])
    return result


def dense_class_map(logits: torch.Tensor, height: int, width: int, chunk: int = _GPU_CHUNK) -> torch.Tensor:
    """`class_map` by interpolating every class; each step holds up to `chunk` elements, or one class."""
    best = logits.new_full((height, width), -torch.inf, dtype=torch.float32)
    winner = torch.zeros((height, width), dtype=torch.uint8, device=logits.device)
    count = max(1, chunk // (height * width))
    for start, part in zip(range(0, len(logits), count), logits.float().split(count)):
        upsampled = F.interpolate(part[None], (height, width), mode="bilinear", align_corners=False)[0]
        highest, index = upsampled.max(0)
        winner = torch.where(highest > best, (index + start).to(torch.uint8), winner)
        best = torch.maximum(highest, best)
    return winner


class _Axis:
    """Assign `output` positions to the `size` cells of an axis; cell i lies between inputs i and `after[i]`."""

    def __init__(self, size: int, output: int, device: torch.device) -> None:
        # F.interpolate's positions, to the last bit: it computes a fused multiply-add in float32, which rounds once.
        scale = torch.tensor(size, dtype=torch.float32).div(output).item()
        position = (torch.arange(output, dtype=torch.float64, device=device) + 0.5) * scale - 0.5
        position = position.float().clamp(min=0)
        self.cell = position.long()
        self.after = torch.arange(1, size + 1, device=device).clamp(max=size - 1)
        self.count = self.cell.bincount(minlength=size)
        self.most = int(self.count.max())
        ordinal = torch.arange(self.most, device=device).minimum((self.count - 1).clamp(min=0)[:, None])
        first = self.count.cumsum(0) - self.count
        # (size, most); cells with fewer pixels repeat their last one
        self.pixels = (first[:, None] + ordinal).clamp(max=output - 1)
        self.weight = (position - self.cell)[self.pixels]


def _winners(corners: list[torch.Tensor], fy: torch.Tensor, fx: torch.Tensor) -> torch.Tensor:
    """Classes uint8 (n, rows, columns) of n cells, given their 4 corners (n, C) and pixel positions inside the cells.

    The positions are fractions: fy (n, rows, 1) and fx (n, 1, columns).
    """
    a, b, c, d = corners
    lowest = torch.minimum(torch.minimum(a, b), torch.minimum(c, d)).amax(1, keepdim=True)
    highest = torch.maximum(torch.maximum(a, b), torch.maximum(c, d))
    can_win = highest >= lowest - 1e-6 * lowest.abs()  # with a tolerance for rounding
    counts, order = can_win.sum(1).sort(descending=True)
    cell, candidate = can_win[order].nonzero().unbind(1)
    # Sort the candidates by turn: the first of every cell, then the second of every cell that has two, and so on.
    turn = torch.arange(len(cell), device=cell.device) - (counts.cumsum(0) - counts)[cell]
    sizes = turn.bincount()
    turn = turn.sort(stable=True).indices
    cell, candidate = order[cell[turn]], candidate[turn]
    a, b, c, d = (corner[cell, candidate][:, None, None] for corner in corners)
    candidate = candidate.to(torch.uint8)[:, None, None]
    fy, fx = fy[order], fx[order]
    gy, gx = 1 - fy, 1 - fx

    best = torch.full((len(fy), fy.shape[1], fx.shape[2]), -torch.inf, device=fy.device)
    winner = torch.zeros_like(best, dtype=torch.uint8)
    end = 0
    for n in sizes.tolist():
        part, end = slice(end, end + n), end + n
        top = gx[:n] * a[part] + fx[:n] * b[part]
        value = gy[:n] * top + fy[:n] * (gx[:n] * c[part] + fx[:n] * d[part])
        torch.where(value > best[:n], candidate[part], winner[:n], out=winner[:n])
        torch.maximum(value, best[:n], out=best[:n])
    return torch.empty_like(winner).index_copy_(0, order, winner)
