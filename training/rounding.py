"""The 4- and 5-bit blocks that learnt matrices are shipped in: the same rounding while they learn and when they are written."""

import torch

BLOCK = 32
# Blocks looked at together: few enough to stay in a core's cache.
AT_ONCE = 4_096


def signed_blocks(rows: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Blocks [n, 32] f32 -> (scales f16 [n], codes f32 [n, 32] in [0, 2^bits)): value = scale * (code - 2^(bits-1)).

    Tries the usual scale (extreme value at the lowest code) and others up to 20 % smaller or the extreme at the
    highest code, and keeps each block's best.
    """
    low = 1 << (bits - 1)
    extreme = rows.gather(1, rows.abs().argmax(1, keepdim=True))
    best_error = torch.full_like(extreme, torch.inf)
    best_scale, best_codes = torch.zeros_like(extreme, dtype=torch.float16), torch.zeros_like(rows)
    for divisor in (-low, -low * 1.05, -low * 0.95, -low * 0.9, -low * 1.1, low - 1, (low - 1) * 1.1, -low * 1.2):
        scale = (extreme / divisor).half()
        d = scale.float()
        codes = (rows * torch.where(d == 0, 0, 1 / d)).round_().add_(low).clamp_(0, 2 * low - 1)
        error = ((codes - low) * d - rows).square_().sum(1, keepdim=True)
        better = error < best_error
        best_error = torch.where(better, error, best_error)
        best_scale = torch.where(better, scale, best_scale)
        best_codes = torch.where(better, codes, best_codes)
    return best_scale[:, 0], best_codes


def rounded(matrix: torch.Tensor, bits: int) -> torch.Tensor:
    """The values [..., n] that a file will hold for this one, n a multiple of 32."""
    made = torch.empty(matrix.shape, device=matrix.device)
    target = made.view(-1, BLOCK)
    at_once = len(target) if matrix.is_cuda else AT_ONCE
    for rows, out in zip(matrix.reshape(-1, BLOCK).split(at_once), target.split(at_once)):
        scales, codes = signed_blocks(rows, bits)
        torch.mul(codes - (1 << (bits - 1)), scales.float()[:, None], out=out)
    return made
