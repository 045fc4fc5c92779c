"""Letting the probe look at a denoiser call, once its first `depth` blocks have run.

Its feature is the call's. A probe that is `local` looks at every site instead, where that opens
(`dicache.runtime.inner_sites`); one that never looks costs nothing.
"""

import time

from torch import Tensor

from dicache.config import Config
from dicache.models.family import STREAMS
from dicache.probes.base import Probe, View
from dicache.probes.first_blocks import FirstBlocks
from dicache.runtime.module_call import ModuleCall, stream
from dicache.runtime.run_state import Call
from dicache.tensors.contract import check_own, check_tensor
from dicache.tensors.mac_meter import Meter
from dicache.tensors.tree import Tree, tensors


def feature_of(probe: Probe, view: View) -> Tensor | None:
    """What the probe sees, (R, ...). Raises PartError for anything else."""
    feature, said_by = probe(view), f"{type(probe).__name__}.__call__"
    if feature is not None:
        rows = len(view.latent) if len(view.before) == len(view.latent) else -1  # frames may be folded into the batch
        check_tensor(feature, (rows, -1), said_by, "a feature of each row, or None where there is none")
        check_own(feature, (view.latent, view.before, view.after), said_by)
    return feature


class Probing:
    probe: Probe
    meter: Meter

    def __init__(self, config: Config, meter: Meter) -> None:
        self.probe, self.meter = config.probe, meter
        self.looks: bool = not config.probe.local and config.probe != FirstBlocks(depth=0)

    def before(self, call: Call, module_call: ModuleCall) -> None:
        """A block is about to run."""
        if call.position:
            return
        before = _entering(module_call)
        called = (module_call.module, module_call.args, module_call.kwargs)
        call.view = View(call.latent, before, before, *called, call.run.step)
        if self.probe.depth == 0:
            self._look(call, call.view)

    def after(self, call: Call, output: Tree) -> None:
        """A block has run."""
        if call.position == self.probe.depth and call.view is not None:
            self._look(call, call.view._replace(after=_leaving(output, call.view.before)))

    def _look(self, call: Call, view: View) -> None:
        """What the probe computes of its own is counted."""
        started, probe = time.perf_counter(), self.probe
        call.feature, call.view = self.meter.added("the probe", lambda: feature_of(probe, view)), None
        call.run.overhead += time.perf_counter() - started


def _entering(module_call: ModuleCall) -> Tensor:
    """The picture's stream as a block takes it: a map, (R, C, H, W), if that is what it continues, else the largest
    tensor.
    """
    args, kwargs = module_call.args, module_call.kwargs
    named = kwargs.get(STREAMS[0], args[0] if args else None)
    return named if isinstance(named, Tensor) and named.ndim > 3 else stream((args, kwargs))


def _leaving(output: Tree, before: Tensor) -> Tensor:
    """The stream as blocks give it. A down block of a UNet also gives what it hands ahead: the last map at its own
    resolution is what its layers made, before it is sampled down.
    """
    maps = [t for t in tensors(output) if t.ndim == before.ndim > 3 and t.shape[2:] == before.shape[2:]]
    return maps[-1] if maps else stream(output)
