"""Published methods, composed of parts, with their published defaults: `enable(pipe, config=presets.teacache())`.

    evaluations      skip whole denoiser evaluations                      blocks      skip blocks, sublayers or branches
    fitted           correct by what was fitted on the model              tokens      run some tokens of what is skipped
    parts            what only one of them is made of

All decide per sample where the papers decide per batch; the first guidance branch decides for all. What the papers keep
of a block is here the denoiser's output where a whole evaluation is skipped: the head's fresh time embedding does not
reach a skipped step, one output is kept in place of many residuals, and skipping saves more. Sums of L1 changes are no
errors: thresholds, and what the report calls predicted and spent, are in the method's own unit. Warm-ups are shares of
the steps where papers count steps. Thresholds belong to a model and a step count: those here are for the models named,
and to be swept on any other.

`methods()` has a row for every preset. The parts that one method alone uses are importable from here too
(`from dicache.presets import Codebook`); `dir` lists the presets.
"""

from dicache.approximators.fitted.sublayer_gates import Gated as Gated
from dicache.presets.blocks import (
    bwcache,
    deepcache,
    delta_dit,
    fastercache,
    fastercache_attention,
    gradient_optimized_cache,
    hgc,
    pab,
    speca,
    tgate,
)
from dicache.presets.evaluations import (
    adacache,
    dbcache,
    dicache,
    easycache,
    first_block_cache,
    foca,
    fora,
    hicache,
    magcache,
    racer,
    seacache,
    sencache,
    taylorseer,
    teacache,
)
from dicache.presets.fitted import block_caching, cachequant, fastcache, icc, lazydit
from dicache.presets.method_table import Method as Method
from dicache.presets.method_table import methods as methods
from dicache.presets.parts.adacache import FAST as FAST
from dicache.presets.parts.adacache import SLOW as SLOW
from dicache.presets.parts.adacache import Codebook as Codebook
from dicache.presets.parts.bwcache import ComputedChange as ComputedChange
from dicache.presets.parts.bwcache import Stretch as Stretch
from dicache.presets.parts.delta_dit import Staged as Staged
from dicache.presets.parts.easycache import OnlineRate as OnlineRate
from dicache.presets.parts.easycache import ReuseResidual as ReuseResidual
from dicache.presets.parts.fastercache import Bands as Bands
from dicache.presets.parts.foca import FoCa as FoCa
from dicache.presets.parts.hicache import Hermite as Hermite
from dicache.presets.parts.magcache import MagnitudeRatios as MagnitudeRatios
from dicache.presets.parts.magcache import measure_ratios as measure_ratios
from dicache.presets.parts.racer import Chebyshev as Chebyshev
from dicache.presets.parts.racer import Disagreement as Disagreement
from dicache.presets.parts.racer import Repaid as Repaid
from dicache.presets.parts.racer import Shrunk as Shrunk
from dicache.presets.parts.seacache import SpectrumFiltered as SpectrumFiltered
from dicache.presets.parts.sencache import Sensitivities as Sensitivities
from dicache.presets.parts.sencache import SensitivityTable as SensitivityTable
from dicache.presets.parts.sencache import measure_sensitivities as measure_sensitivities
from dicache.presets.parts.teacache import TEACACHE_FLUX as TEACACHE_FLUX
from dicache.presets.parts.teacache import Polynomial as Polynomial
from dicache.presets.tokens import clusca, fastcache_tokens, toca, tokencache

__all__ = [
    "adacache",
    "block_caching",
    "bwcache",
    "cachequant",
    "clusca",
    "dbcache",
    "deepcache",
    "delta_dit",
    "dicache",
    "easycache",
    "fastcache",
    "fastcache_tokens",
    "fastercache",
    "fastercache_attention",
    "first_block_cache",
    "foca",
    "fora",
    "gradient_optimized_cache",
    "hgc",
    "hicache",
    "icc",
    "lazydit",
    "magcache",
    "pab",
    "racer",
    "seacache",
    "sencache",
    "speca",
    "taylorseer",
    "teacache",
    "tgate",
    "toca",
    "tokencache",
]


def __dir__() -> list[str]:
    return list(__all__)
