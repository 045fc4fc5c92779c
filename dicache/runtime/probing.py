"""Letting the probe look at a denoiser call, once its first `depth` blocks have run.

Its feature is the call's. A probe that is `local` looks at every site instead, where that opens
(`dicache.runtime.inner_sites`); one that never looks costs nothing.
"""

import time

from dicache.config import Config
from dicache.probes.base import View
from dicache.probes.first_blocks import FirstBlocks
from dicache.runtime.module_call import ModuleCall, stream
from dicache.runtime.run_state import Call
from dicache.tensors.mac_meter import Meter
from dicache.tensors.tree import Tree


class Probing:
    def __init__(self, config: Config, meter: Meter) -> None:
        self.probe, self.meter = config.probe, meter
        self.looks = not config.probe.local and config.probe != FirstBlocks(depth=0)

    def before(self, call: Call, module_call: ModuleCall) -> None:
        """A block is about to run."""
        if call.position:
            return
        before = stream((module_call.args, module_call.kwargs))
        called = (module_call.module, module_call.args, module_call.kwargs)
        call.view = View(call.latent, before, before, *called, call.run.step)
        if self.probe.depth == 0:
            self._look(call, call.view)

    def after(self, call: Call, output: Tree) -> None:
        """A block has run."""
        if call.position == self.probe.depth and call.view is not None:
            self._look(call, call.view._replace(after=stream(output)))

    def _look(self, call: Call, view: View) -> None:
        """What the probe computes of its own is counted."""
        started, probe = time.perf_counter(), self.probe
        call.feature, call.view = self.meter.added("the probe", lambda: probe(view)), None
        call.run.overhead += time.perf_counter() - started
