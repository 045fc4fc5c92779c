"""Running a scheduler's own code in double precision, with random numbers that are said beforehand."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_DRAWS = frozenset((torch.randn, torch.randn_like, torch.normal, Tensor.normal_))
_CASTS = frozenset((Tensor.to, Tensor.type, Tensor.float, Tensor.half, Tensor.bfloat16))
_LOW = frozenset((torch.float32, torch.float16, torch.bfloat16))


class Exact(TorchFunctionMode):
    """While it is entered, this thread computes in float64 and `noise` is what is drawn; the user's generators stay
    where they are.
    """

    def __init__(self) -> None:
        super().__init__()
        self.noise: Tensor = torch.zeros(1, dtype=torch.float64)

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Any,  # noqa: ANN401
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        if function in _DRAWS:
            return self._drawn(function, args, kwargs or {})
        value = function(*args, **kwargs) if kwargs else function(*args)
        if not isinstance(value, Tensor) or value.dtype not in _LOW:
            return value
        if function in _CASTS and args[0].is_floating_point():
            return args[0].double()  # not by way of the lower precision
        return value.double()

    def _drawn(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
        """Raises NotImplementedError for another distribution, and RuntimeError for numbers of another shape."""
        if function is torch.randn:
            size = kwargs.get("size", args[0] if len(args) == 1 else args)
            return self.noise.expand(*size).clone()
        if function is torch.randn_like:
            return self.noise.expand_as(args[0]).clone()
        raise NotImplementedError(f"it draws by {function.__name__}, which is not a standard normal distribution")
