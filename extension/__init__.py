"""Two fused operations that dicache's own arithmetic consists of, each in one pass over memory.

    residual_sums(a, b) -> (B, 6):    sum|a - b|, sum|b|, sum(a - b)^2, sum b^2, sum a b, sum a^2     per sample
    combine(x, c) -> (B, ...):        sum_k c[:, k] x_k                                               per sample

From the sums follow relative change in L1 and L2, cosine, and least-squares alignment: see `dicache.tensors.norms`.
Combining is extrapolation of any order, filling in the rows that were not computed, and mixing guidance branches.

Both are registered with `torch.library`, go through `torch.compile(fullgraph=True)`, and run on the best of three paths
(`dicache.extension.choice`): a native library, CuPy, or plain torch (`dicache.extension.reference`).
"""

from dicache.extension.choice import Choice, choose, describe
from dicache.extension.ops import combine, residual_sums

__all__ = ["Choice", "choose", "combine", "describe", "residual_sums"]
