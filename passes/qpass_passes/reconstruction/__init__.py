"""The reconstruction engine: one block after another learns to give what its full-precision twin gives."""

from qpass_passes.reconstruction.block import Trace, reconstruct
from qpass_passes.reconstruction.engine import Reconstruction
from qpass_passes.reconstruction.objective import Objective

__all__ = ["Objective", "Reconstruction", "Trace", "reconstruct"]
