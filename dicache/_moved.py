"""Modules that have moved, or were taken out: a deep import of an old place is an error that names the new one.

A package of the old name may stand where a module stood (`dicache.cli`, `dicache.files`); it is then found first.
CHANGELOG shows the same table.
"""

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

MOVED = {
    "dicache.adapters": "dicache.models.lora",
    "dicache.approximators.affine": "dicache.approximators.fitted.affine",
    "dicache.approximators.bands": "dicache.presets.parts.fastercache",
    "dicache.approximators.calibrated": "dicache.approximators.fitted.base",
    "dicache.approximators.chebyshev": "dicache.presets.parts.racer",
    "dicache.approximators.foca": "dicache.presets.parts.foca",
    "dicache.approximators.hermite": "dicache.presets.parts.hicache",
    "dicache.approximators.low_rank": "dicache.approximators.fitted.low_rank",
    "dicache.approximators.multistep": "dicache.approximators.fitted.run_slopes",
    "dicache.approximators.residual": "dicache.presets.parts.easycache",
    "dicache.approximators.ridge": "dicache.approximators.fitted.ridge",
    "dicache.approximators.scale_shift": "dicache.approximators.fitted.scale_shift",
    "dicache.approximators.shrunk": "dicache.presets.parts.racer",
    "dicache.audit": "dicache.hosts.audit",
    "dicache.basis": "dicache.schedules.setting",
    "dicache.bench.ablation": "dicache.bench.studies.ablation",
    "dicache.bench.arms": "dicache.bench.arms.arm",
    "dicache.bench.batched": "dicache.bench.models.batched_guidance",
    "dicache.bench.budgets": "dicache.bench.studies.budgets",
    "dicache.bench.check": "dicache.bench.harness.check_again",
    "dicache.bench.costs": "dicache.bench.harness.costs",
    "dicache.bench.coverage": "dicache.bench.studies.coverage",
    "dicache.bench.curves": "dicache.bench.harness.curves",
    "dicache.bench.defects": "dicache.bench.studies.peer_defects",
    "dicache.bench.footprint": "dicache.bench.harness.live_bytes",
    "dicache.bench.jaggedness": "dicache.bench.harness.jaggedness",
    "dicache.bench.kept": "dicache.bench.showing.coverage_tables",
    "dicache.bench.kernels": "dicache.bench.studies.kernels",
    "dicache.bench.measure": "dicache.bench.harness.measure",
    "dicache.bench.micro": "dicache.bench.studies.hook_cost",
    "dicache.bench.oracle": "dicache.bench.arms.oracle",
    "dicache.bench.ours": "dicache.bench.arms.ours",
    "dicache.bench.overhead": "dicache.bench.studies.controller_cost",
    "dicache.bench.pareto": "dicache.bench.studies.pareto",
    "dicache.bench.peers": "dicache.bench.arms.peers",
    "dicache.bench.peers_cachedit": "dicache.bench.arms.cache_dit",
    "dicache.bench.peers_diffusers": "dicache.bench.arms.diffusers_caches",
    "dicache.bench.presets": "dicache.bench.arms.presets",
    "dicache.bench.schedules": "dicache.bench.studies.schedules",
    "dicache.bench.share": "dicache.bench.studies.arithmetic_share",
    "dicache.bench.show": "dicache.bench.showing.show",
    "dicache.bench.store": "dicache.bench.harness.store",
    "dicache.bench.syncs": "dicache.bench.harness.host_waits",
    "dicache.bench.tables": "dicache.bench.showing.tables",
    "dicache.bench.warmup": "dicache.bench.studies.peer_warmup",
    "dicache.budget": "dicache.planning.budget",
    "dicache.calibration": "dicache.measuring.calibrate",
    "dicache.caller": "dicache.hosts.running_pipeline",
    "dicache.cli": "dicache.cli.app",
    "dicache.clock": "dicache.solvers.clock",
    "dicache.closing": "dicache.runtime.end_of_step",
    "dicache.compiled": "dicache.hosts.compiled_blocks",
    "dicache.conformal": "dicache.promise.learn_then_test",
    "dicache.controllers.promised": "dicache.promise.keep_budget",
    "dicache.controllers.repaid": "dicache.presets.parts.racer",
    "dicache.controllers.scheduled": "dicache.schedules.follow",
    "dicache.controllers.staged": "dicache.presets.parts.delta_dit",
    "dicache.controllers.stretch": "dicache.presets.parts.bwcache",
    "dicache.controllers.within": "dicache.controllers.noise_window",
    "dicache.demo": "dicache.cli.demo",
    "dicache.doctor": "dicache.cli.doctor",
    "dicache.drawing": "dicache.measuring.prompt_runs",
    "dicache.effects": "dicache.solvers.output_influence",
    "dicache.estimators.codebook": "dicache.presets.parts.adacache",
    "dicache.estimators.computed_change": "dicache.presets.parts.bwcache",
    "dicache.estimators.disagreement": "dicache.presets.parts.racer",
    "dicache.estimators.magnitude_ratios": "dicache.presets.parts.magcache",
    "dicache.estimators.online_rate": "dicache.presets.parts.easycache",
    "dicache.estimators.polynomial": "dicache.presets.parts.teacache",
    "dicache.estimators.sensitivities": "dicache.presets.parts.sencache",
    "dicache.evidence": "dicache.runtime.decide",
    "dicache.extension.arguments": "dicache.extension.ops",
    "dicache.extension.layout": "dicache.extension.native",
    "dicache.files": "dicache.files.checked",
    "dicache.finders.along": "dicache.measuring.slopes_along_run",
    "dicache.finders.curves": "dicache.measuring.error_curves",
    "dicache.finders.gate": "dicache.finders.t_gate",
    "dicache.finders.gates": "dicache.regressions.soft_gates",
    "dicache.finders.ground": "dicache.measuring.schedule_measurements",
    "dicache.finders.law": "dicache.finders.law_plan",
    "dicache.finders.learned": "dicache.finders.learning_to_cache",
    "dicache.finders.names": "dicache.finders.by_name",
    "dicache.finders.optimal": "dicache.finders.dynamic_programming",
    "dicache.finders.plot": "dicache.reporting.front_plot",
    "dicache.fingerprint": "dicache.models.conditioning",
    "dicache.fitted": "dicache.approximators.fitted.coefficients",
    "dicache.fitting": "dicache.regressions.fit_coefficients",
    "dicache.grid": "dicache.tensors.token_grid",
    "dicache.guided": "dicache.runtime.guidance",
    "dicache.history": "dicache.tensors.history",
    "dicache.hooked": "dicache.hosts.module_hook",
    "dicache.hooks": "dicache.hosts.attachment",
    "dicache.identity": "dicache.models.identity",
    "dicache.inner": "dicache.runtime.inner_sites",
    "dicache.judge": "dicache.runtime.decide",
    "dicache.latents": "dicache.hosts.denoiser_call",
    "dicache.law": "dicache.planning.error_law",
    "dicache.ledger": "dicache.files.checkpoint",
    "dicache.macs": "dicache.tensors.mac_meter",
    "dicache.memory": "dicache.runtime.memory_plan",
    "dicache.metrics": "dicache.promise.metrics",
    "dicache.models.stacks": "dicache.models.find_blocks",
    "dicache.moments": "dicache.regressions.moments",
    "dicache.norms": "dicache.tensors.norms",
    "dicache.page": "dicache.reporting.page",
    "dicache.parts": "dicache.runtime.module_call",
    "dicache.plan": "dicache.planning.law_plan",
    "dicache.probes.spectrum_filtered": "dicache.presets.parts.seacache",
    "dicache.profile": "dicache.promise.profile",
    "dicache.report": "dicache.reporting.report",
    "dicache.rows": "dicache.tensors.tree",
    "dicache.run": "dicache.runtime.run_state",
    "dicache.schedule": "dicache.schedules.schedule",
    "dicache.schedule_file": "dicache.schedules.schedule_file",
    "dicache.sensitivity": "dicache.measuring.gap_weights",
    "dicache.serve.twin": "dicache.slots.twin",
    "dicache.session": "dicache.runtime.session",
    "dicache.shelf": "dicache.promise.choose_profile",
    "dicache.streams": "dicache.tensors.block_output",
    "dicache.table": "dicache.schedules.action_table",
    "dicache.timegrid": "dicache.solvers.same_steps",
    "dicache.trace": "dicache.runtime.trace",
    "dicache.whole": "dicache.runtime.evaluation_site",
}
"""Old place: new place."""
RENAMED = {
    "dicache.api.Cache": "dicache.cache.Cache",
    "dicache.approximators.base.Now": "dicache.approximators.Target",
    "dicache.approximators.base.Past": "dicache.approximators.Histories",
    "dicache.approximators.calibrated.Calibrated": "dicache.approximators.fitted.base.FromCoefficients",
    "dicache.approximators.multistep.Multistep": "dicache.approximators.fitted.run_slopes.RunSlopes",
    "dicache.config.budgeted": "dicache.defaults.for_budget",
    "dicache.config.calibrated": "dicache.defaults.for_profile",
    "dicache.controllers.within.Within": "dicache.controllers.NoiseWindow",
    "dicache.demo.draw": "dicache.reference.draw.draw",
    "dicache.demo.pictures": "dicache.reference.draw.pictures",
    "dicache.estimators.sensitivities.Table": "dicache.presets.SensitivityTable",
    "dicache.files.Wrong": "dicache.files.checked.FileFault",
    "dicache.finders.gate.Gate": "dicache.finders.TGate",
    "dicache.finders.optimal.Optimal": "dicache.finders.DynamicProgramming",
    "dicache.fitted.About": "dicache.approximators.fitted.about.About",
    "dicache.profile.Facts": "dicache.promise.facts.Facts",
    "dicache.report.Promise": "dicache.controllers.base.ProfileUse",
    "dicache.schedule.Found": "dicache.schedules.setting.Origin",
    "dicache.schedule.ParetoSet": "dicache.ParetoSet",
    "dicache.sensitivity.Gap": "dicache.measuring.gap_weights.SingleGap",
    "dicache.shelf.Shelf": "dicache.promise.choose_profile.ProfileChoice",
    "dicache.table.read": "dicache.schedules.action_table.table_of",
    "dicache.table.written": "dicache.schedules.action_table.lines_of",
    "dicache.types.Course": "dicache.types.Timetable",
}
"""Classes and functions that a composition, a finder or a loop of one's own may use: old name and place, new ones."""
REMOVED = {
    "dicache.approximators.least_squares": "use dicache.approximators.Align",
    "dicache.controllers.audited": "use enable(..., audit=0.05)",
    "dicache.corrector": "what it paid back it lost elsewhere",
    "dicache.estimators.calibrated": "every profile is planned by the law; use dicache.estimators.Amplitude",
    "dicache.estimators.isotonic": "no preset uses it; use dicache.presets.Polynomial",
    "dicache.estimators.recorder": "use dicache.measuring.recording.Recorder",
    "dicache.measured": "every profile is planned by the law (dicache.planning.law_plan)",
    "dicache.probes.sampled_tokens": "no preset uses it; use dicache.probes.FirstBlocks",
    "dicache.resampled": "profile='nearest' takes the levels of the profile as they are",
    "dicache.turning": "every profile is planned by the law (dicache.planning.error_law)",
}
"""Old place: what to do without it."""


class _OldModules(MetaPathFinder):
    """Asked last, for what no other finder has found."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        text = whereabouts(fullname)
        if text is not None:
            raise ModuleNotFoundError(text)
        return None


def whereabouts(name: str) -> str | None:
    """What to say of an old place; None of what is none."""
    if name in MOVED:
        return f"{name} moved to {MOVED[name]}"
    return f"{name} was taken out: {REMOVED[name]}" if name in REMOVED else None


def name_old_modules() -> None:
    """Register the finder, once."""
    if not any(isinstance(finder, _OldModules) for finder in sys.meta_path):
        sys.meta_path.append(_OldModules())
