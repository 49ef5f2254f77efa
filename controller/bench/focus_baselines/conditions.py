"""What the focus bench asks everybody: the conditions, in the order in which they matter."""

from __future__ import annotations

from typing import Final

from controller.bench.focus_baselines.problem import Condition

BASE: Final = Condition("25 DOF, 200 e-/px")
FAR: Final = Condition("100 DOF", half_range_dof=100.0)
LOW: Final = Condition("20 e-/px", dose_e_per_px=20.0)
LOWEST: Final = Condition("5 e-/px", dose_e_per_px=5.0)
KNOWN: Final = Condition("blur carried over")
LEVELS: Final = (
    Condition("gain x0.5-2", gain=(0.5, 2.0)),
    Condition("offset +-30 %", offset_ratio=(-0.3, 0.3)),
    Condition("gamma 0.7-1.4", gamma=(0.7, 1.4)),
    Condition("flicker 10 %", flicker_ratio=0.1),
    Condition("5 % saturated", saturated_ratio=0.05),
)
STIG: Final = Condition("astigmatism 10 DOF", astigmatism_dof=10.0, has_stigmator=True)
NO_STIG: Final = Condition("astigmatism, no stigmator", astigmatism_dof=10.0)
EMPTY: Final = Condition("empty field", kinds=("empty",), is_hopeless=True)
MECHANICS: Final = Condition(
    "backlash, hysteresis, drift, stale",
    backlash_dof=5.0,
    hysteresis_ratio=0.03,
    drift_dof_per_s=0.3,
    stale_ratio=0.05,
)
PERIODIC: Final = Condition("periodic object", kinds=("square_grid",))
SPARSE: Final = Condition("sparse object", kinds=("near_empty",))

CONDITIONS: Final = (
    BASE,
    FAR,
    LOW,
    LOWEST,
    KNOWN,
    *LEVELS,
    STIG,
    NO_STIG,
    EMPTY,
    MECHANICS,
    PERIODIC,
    SPARSE,
)
FOR_RIVALS: Final = (BASE, FAR, LOW, LOWEST, LEVELS[3], EMPTY, MECHANICS, SPARSE)
OTHER_OBJECTS: Final = (PERIODIC, SPARSE)
