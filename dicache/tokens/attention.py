"""Looking into the attention of a block while it runs, whatever processor computes it.

Every attention that mixes tokens ends in torch's `scaled_dot_product_attention`, and a mode of torch sees each call of
a function: `NotedAttention` notes keys and values down where all tokens run, `StoredAttention` puts the stored ones of
all tokens in the place of those of the few that run, fresh at the places of these. Nothing of the model is replaced,
and nothing stays.

Rotary tables that all rows share, (n, D), are indexed with a `None` for the batch just before they are used. Rows that
run tokens of their own need tables of their own, (R, n, D): those stand in that `None`'s place.

    cos[None, :, None, :]   (n, D) -> (1, n, 1, D)       for rows of their own  (R, n, D) -> (R, n, 1, D)
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from dicache.errors import UnsupportedModelError
from dicache.extension import residual_sums


class KeysValues(NamedTuple):
    """Of one attention, (R, H, L, D) each."""

    keys: Tensor
    values: Tensor


class NotedAttention(TorchFunctionMode):
    """Keys and values of every attention inside of it, in their order."""

    def __init__(self) -> None:
        super().__init__()
        self.pairs: list[KeysValues] = []

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        if func is scaled_dot_product_attention:
            _, keys, values, *_ = _arguments(args, kwargs or {})
            self.pairs.append(KeysValues(_alone(keys), _alone(values)))
        return func(*args, **(kwargs or {}))


class StoredAttention(TorchFunctionMode):
    """Attention of the few tokens that run against `stored` pairs of all tokens; None for one that takes its own keys
    and values, as to a text that is no stream. `positions` has, by the length of a pair, where the tokens that run lie
    in it, (r, n); `rows`, (r,), are those of the pairs that run, None for all. Fresh keys and values are written down.
    Where the input stands `still`, raises UnsupportedModelError for those that are not what is stored.
    """

    stored: Sequence[KeysValues | None]
    positions: Callable[[int], Tensor | None]
    rows: Tensor | None
    tables: Sequence[Tensor]
    calls: int

    def __init__(
        self,
        stored: Sequence[KeysValues | None],
        positions: Callable[[int], Tensor | None],
        rows: Tensor | None,
        tables: Sequence[Tensor] = (),
        *,
        still: bool = False,
    ) -> None:
        super().__init__()
        self.still = still
        self.stored, self.positions, self.rows, self.tables, self.calls = stored, positions, rows, tables, 0

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        kwargs = kwargs or {}
        if func is scaled_dot_product_attention:
            return self._attend(args, kwargs)
        if func is Tensor.__getitem__ and any(args[0] is table for table in self.tables):
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            if index[0] is None:
                return func(args[0], (slice(None), *index[1:]))
        return func(*args, **kwargs)

    def _attend(self, args: Any, kwargs: dict[str, Any]) -> Tensor:  # noqa: ANN401
        self.calls += 1
        if self.calls > len(self.stored):
            raise UnsupportedModelError("calls attention more often with some of its tokens than with all")
        query, keys, values, mask, rest = _arguments(args, kwargs)
        stored = self.stored[self.calls - 1]
        positions = None if stored is None else self.positions(stored.keys.shape[2])
        if stored is None or _takes_its_own(stored, keys, positions):
            return scaled_dot_product_attention(query, keys, values, attn_mask=mask, **rest)
        if positions is None or keys.shape[2] != positions.shape[1]:
            raise UnsupportedModelError(
                f"attends to {keys.shape[2]} tokens where some run, of {stored.keys.shape[2]} among all"
            )
        fresh = self._fresh(stored.keys, keys, positions), self._fresh(stored.values, values, positions)
        return scaled_dot_product_attention(query, *fresh, attn_mask=_mask_of(mask, query, positions), **rest)

    def _fresh(self, stored: Tensor, fresh: Tensor, positions: Tensor) -> Tensor:
        """All keys, or values, of the rows that run; those of the tokens that do are written to what is stored."""
        every = torch.arange(len(positions), device=positions.device) if self.rows is None else self.rows
        if self.still:
            check_still(fresh.transpose(1, 2), stored[every[:, None], :, positions])
        with torch.inference_mode():  # where what was computed in there may be written to, and all else too
            stored[every[:, None], :, positions] = fresh.transpose(1, 2).to(stored.dtype)
        return stored if self.rows is None else stored.index_select(0, self.rows)


def _arguments(args: Any, kwargs: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor, Tensor | None, dict[str, Any]]:  # noqa: ANN401
    """Query, key, value, mask, and the others by name."""
    names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
    named = {**dict(zip(names, args, strict=False)), **kwargs}
    return named.pop("query"), named.pop("key"), named.pop("value"), named.pop("attn_mask", None), named


def tolerance(dtype: torch.dtype) -> float:
    """How far two ways of computing the same may lie apart, relative."""
    return max(1e-3, 8 * torch.finfo(dtype).eps)


def check_still(fresh: Tensor, stored: Tensor) -> None:
    missed, size = residual_sums(fresh, stored)[:, 2:4].double().sqrt().unbind(1)
    if not bool((missed <= tolerance(fresh.dtype) * size).all()):
        raise UnsupportedModelError("has other keys and values of a token when that runs among few")


def _takes_its_own(stored: KeysValues, keys: Tensor, positions: Tensor | None) -> bool:
    """Whether a text that is no stream has as many tokens as the picture."""
    return keys.shape[2] == stored.keys.shape[2] and positions is not None and positions.shape[1] != keys.shape[2]


def _mask_of(mask: Tensor | None, query: Tensor, positions: Tensor) -> Tensor | None:
    """A mask of all tokens against all, for the queries of those that run."""
    if mask is None or mask.ndim < 4 or mask.shape[2] in (1, query.shape[2]):
        return mask
    mask = mask.expand(len(query), -1, -1, -1)
    return mask.gather(2, positions[:, None, :, None].expand(-1, mask.shape[1], -1, mask.shape[3]))


def _alone(tensor: Tensor) -> Tensor:
    """Without what else lies in its memory, which would stay as long as it does."""
    tensor = tensor.detach()
    return tensor.clone() if tensor.untyped_storage().nbytes() > tensor.nbytes else tensor
