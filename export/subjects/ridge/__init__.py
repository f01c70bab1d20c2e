"""Ridge regression from voxels to latents: one factorisation of the voxels serves every head, target and alpha.

With z the z-scored voxels of N scans, Y the centred targets and w the scans' weights, a head minimises
``sum of w |Y - z W|² + alpha |W|²``. In what follows, the rows of z
and Y are multiplied by the roots of the weights, and ``z = scores axes.T`` is the singular value decomposition: the
scores are orthogonal with squared lengths s², and the axes are orthonormal::

    W    = axes (s² + alpha)⁻¹ scores.T Y                 the solution                          (`basis`)
    H    = q q.T + scores (s² + alpha)⁻¹ scores.T         what fitted values are of targets, q the intercept's
    Y - Y_without_F = (1 - H_FF)⁻¹ (Y - H Y)_F            what is left of scans F that were left out (`held_out`)

The last is exact; with one scan in F it is the leave-one-out identity (Hastie, Tibshirani, Friedman, The Elements
of Statistical Learning, section 7.10). So held-out predictions are a matrix (N, N) times the targets, a block of
targets at a time. The calibration and the reduced rank (`reduced`) are chosen by them. The weights of a head are never
in memory as a whole.

scipy's LAPACK and BLAS do the work, in place. himalaya's solvers do not serve here: its cross-validation refits
every fold, holds all targets and all weights in memory, and has neither calibration nor reduced rank.
"""

from unibrain_rt.export.subjects.ridge.fit import ALPHAS, Calibration, RidgeFit, fit_heads

__all__ = ["ALPHAS", "Calibration", "RidgeFit", "fit_heads"]
