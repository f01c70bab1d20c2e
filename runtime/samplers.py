"""Diffusion samplers as tables of coefficients, one row a step, and the noise they start from.

A sampler is a pure function from (alphas, steps, strength) to a ``SamplerTable``; each step reads one row:

    eps  = eps_uncond + guidance_scale * (eps_cond - eps_uncond)
    x0   = x0_from_latent * latent + x0_from_noise * eps
    next = next_from_latent * latent + next_from_x0 * x0 + next_from_previous_x0 * previous_x0

Below, ``a`` is the alpha-bar of the row's timestep and ``b`` the alpha-bar that the row leads to. Every
sampler predicts x0 = (latent - sqrt(1 - a) * eps) / sqrt(a). The first row's ``next_from_previous_x0`` is
0, and its ``previous_x0`` must be finite (zeros, say), because 0 * nan is nan.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from unibrain_rt.errors import InputError

COLUMNS = (
    "guidance_scale",
    "image_ratio",
    "x0_from_latent",
    "x0_from_noise",
    "next_from_latent",
    "next_from_x0",
    "next_from_previous_x0",
)
MOST_GUIDANCE = 1000.0
MOST_TIMESTEPS = 100_000
_GUIDANCE_SCALE = COLUMNS.index("guidance_scale")
_IMAGE_RATIO = COLUMNS.index("image_ratio")


@dataclass(frozen=True)
class Schedule:
    """The noise schedule a diffusion model was trained with; InputError if it is not one."""

    timesteps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012
    beta_schedule: str = "scaled_linear"

    def __post_init__(self) -> None:
        if _integer(self.timesteps) is None or not 2 <= self.timesteps <= MOST_TIMESTEPS:
            wanted = f"a whole number from 2 to {MOST_TIMESTEPS:,}"
            raise InputError(f"schedule: timesteps must be {wanted}, not {self.timesteps!r}")
        if not 0.0 < self.beta_start <= self.beta_end < 1.0:
            given = f"{self.beta_start}, {self.beta_end}"
            raise InputError(f"schedule: betas must obey 0 < beta_start <= beta_end < 1, not {given}")
        if self.beta_schedule not in ("scaled_linear", "linear"):
            raise InputError(
                f"schedule: beta_schedule must be 'scaled_linear' or 'linear', not {self.beta_schedule!r}"
            )


@dataclass(frozen=True, eq=False)
class SamplerTable:
    """What one run of a sampler needs; arrays are read-only.

    A run starts from sqrt(alpha_bar_start) * x0 + sqrt(1 - alpha_bar_start) * noise. At strength 1 that is
    pure noise: ``alpha_bar_start`` is then 0, and ``noise_timestep`` is the noisiest timestep of the
    sampler's grid.
    """

    timesteps: NDArray[np.int64]  # (rows,), in the order they run: falling
    noise_timestep: int  # where the noise is added
    alpha_bar_start: float  # alpha-bar at noise_timestep; 0 for pure noise
    schedule_timesteps: int  # T, the number of timesteps the model was trained with
    coefficients: NDArray[np.float64]  # (rows, 7), columns as in COLUMNS

    def __post_init__(self) -> None:
        if self.coefficients.shape != (self.timesteps.size, len(COLUMNS)):
            raise ValueError(f"coefficients {self.coefficients.shape} for {self.timesteps.size} timesteps")
        self.timesteps.setflags(write=False)
        self.coefficients.setflags(write=False)

    def column(self, name: str) -> NDArray[np.float64]:
        """One column of ``coefficients`` (rows,), by its name in ``COLUMNS``."""
        return self.coefficients[:, COLUMNS.index(name)]


Sampler = Callable[[NDArray[np.float64], int, float], SamplerTable]


def alphas_cumprod(schedule: Schedule) -> NDArray[np.float64]:
    """Alpha-bar of every timestep, (timesteps,), in float64 (the reference rounds it to float32).

    ``scaled_linear`` is linear in the square root of beta (latent diffusion, arXiv 2112.10752).
    """
    if schedule.beta_schedule == "scaled_linear":
        start, end = math.sqrt(schedule.beta_start), math.sqrt(schedule.beta_end)
        betas = np.linspace(start, end, schedule.timesteps, dtype=np.float64) ** 2
    else:
        betas = np.linspace(schedule.beta_start, schedule.beta_end, schedule.timesteps, dtype=np.float64)
    return np.cumprod(1.0 - betas, dtype=np.float64)


def ddim(alphas: NDArray[np.float64], steps: int, strength: float) -> SamplerTable:
    """DDIM with eta 0 (arXiv 2010.02502) on the reference's grid: 1, 1 + T // steps, 1 + 2 (T // steps), ...

    The lowest int(steps * strength) of these timesteps run, each leading to the one below it and the last
    to alphas[0]. The noise is added one timestep of the grid above the first that runs (50 steps at 0.75:
    noise at 741, then 721 ... 1 run), and the first row takes that latent for its own timestep's: the
    reference does, too. At strength 1 the whole grid runs, from pure noise. A grid never reaches T, so T
    steps run T - 1.

    next = sqrt(b) * x0 + sqrt(1 - b) * eps with eps = (latent - sqrt(a) * x0) / sqrt(1 - a), so that
    next_from_latent = sqrt((1 - b) / (1 - a)) and next_from_x0 = sqrt(b) - sqrt(a) * next_from_latent.
    Raises InputError for bad arguments, among them a grid that would leave out over a tenth of the schedule.
    """
    total, running = _checked(alphas, steps, strength)
    stride = total // steps
    if stride * steps < 0.9 * total:  # 600 steps of 1000, say: strength would not mean what it says
        raise InputError(
            f"ddim: {steps} steps with a whole stride cover {stride * steps} of {total} timesteps; "
            f"take a number of steps that divides {total}"
        )
    grid = np.arange(steps, dtype=np.int64) * stride + 1
    grid = grid[grid < total]
    timesteps = grid[:running]
    a = alphas[timesteps]
    b = np.concatenate([alphas[:1], a[:-1]])
    next_from_latent = np.sqrt((1.0 - b) / (1.0 - a))
    next_from_x0 = np.sqrt(b) - np.sqrt(a) * next_from_latent
    return _table(
        alphas,
        timesteps[::-1],
        int(grid[min(running, grid.size - 1)]),
        strength,
        next_from_latent[::-1],
        next_from_x0[::-1],
        np.zeros_like(a),
    )


def dpm_solver_pp_2m(alphas: NDArray[np.float64], steps: int, strength: float) -> SamplerTable:
    """DPM-Solver++(2M): multistep, second order, data prediction (arXiv 2211.01095, algorithm 2).

    int(steps * strength) timesteps run, from where the noise is added, int(T * strength) + 1 (at most T - 1),
    towards 0, where the run ends. So the noise level does not depend on the number of steps: at strength 0.75
    it is timestep 751, where 50 steps of ``ddim`` have 741; at 0.74 it is 741. In between the timesteps are
    nearest to equal steps in sigma^(1/7), sigma = sqrt((1 - a) / a) (arXiv 2206.00364, equation 5): of a few
    steps uniform in time, the last alone would be half of the run in log-SNR.

    With lambda = -log(sigma), h the row's step in lambda, h' the one before and r = h' / h:

    next = sqrt((1 - b) / (1 - a)) * latent - sqrt(b) * (exp(-h) - 1) * D
    D = (1 + 1 / (2 r)) * x0 - 1 / (2 r) * previous_x0

    The first and the last row are first order, D = x0, which is DDIM: the first has no x0 before it, and the
    last would extrapolate over the longest h. Two such rows leave the whole at second order. Raises
    InputError for bad arguments.
    """
    total, running = _checked(alphas, steps, strength)
    noise_timestep = min(int(total * strength) + 1, total - 1)
    nodes = _sigma_nodes(alphas, noise_timestep, min(running, noise_timestep))
    a, b = alphas[nodes[:-1]], alphas[nodes[1:]]
    log_snr = 0.5 * np.log(alphas[nodes] / (1.0 - alphas[nodes]))  # lambda
    h = np.diff(log_snr)
    from_data = -np.sqrt(b) * np.expm1(-h)
    half_inverse_r = np.zeros_like(h)  # 1 / 2r; 0 makes a row first order
    half_inverse_r[1:-1] = 0.5 * h[1:-1] / h[:-2]
    return _table(
        alphas,
        nodes[:-1],
        noise_timestep,
        strength,
        np.sqrt((1.0 - b) / (1.0 - a)),
        from_data * (1.0 + half_inverse_r),
        -from_data * half_inverse_r,
    )


SAMPLERS: dict[str, Sampler] = {"ddim": ddim, "dpm-solver++2m": dpm_solver_pp_2m}


def with_guidance(
    table: SamplerTable, scale: float, interval: Sequence[float] | None, image_ratio: float
) -> SamplerTable:
    """The table with classifier-free guidance at ``scale`` and ``image_ratio`` as the image context's weight.

    ``interval`` (low, high) limits guidance to rows with low <= timestep / T <= high (arXiv 2404.07724,
    where the limits are in sigma); the others have a scale of exactly 1, no guidance. None guides all.
    Raises InputError.
    """
    if not 0.0 <= scale <= MOST_GUIDANCE:
        raise InputError(f"guidance scale must be a number from 0 to {MOST_GUIDANCE:g}, not {scale}")
    if not 0.0 <= image_ratio <= 1.0:
        raise InputError(f"image ratio must lie in [0, 1], not {image_ratio}")
    scales = np.full(table.timesteps.size, float(scale))
    if interval is not None:
        if len(interval) != 2 or not 0.0 <= interval[0] < interval[1] <= 1.0:
            raise InputError(f"guidance interval must be two numbers, 0 <= low < high <= 1, not {interval}")
        fraction = table.timesteps / table.schedule_timesteps
        scales[(fraction < interval[0]) | (fraction > interval[1])] = 1.0
    coefficients = table.coefficients.copy()
    coefficients[:, _GUIDANCE_SCALE] = scales
    coefficients[:, _IMAGE_RATIO] = image_ratio
    return replace(table, coefficients=coefficients)


def build_table(
    schedule: Schedule,
    sampler: str,
    steps: int,
    strength: float,
    guidance_scale: float,
    guidance_interval: Sequence[float] | None,
    image_ratio: float,
) -> SamplerTable:
    """A preset's whole table: the sampler of that name in ``SAMPLERS``, then guidance. Raises InputError."""
    if sampler not in SAMPLERS:
        raise InputError(f"unknown sampler {sampler!r}; choose one of {', '.join(SAMPLERS)}")
    table = SAMPLERS[sampler](alphas_cumprod(schedule), steps, strength)
    return with_guidance(table, guidance_scale, guidance_interval, image_ratio)


def seeded_noise(seed: int, stream: int, shape: int | Sequence[int]) -> NDArray[np.float32]:
    """Standard normal noise of ``shape`` that depends on (seed, stream) alone; both in 0 .. 2**64 - 1.

    Philox4x64 (Salmon et al., SC11) keyed by the pair gives words, and Box-Muller turns two words into two
    values. Not numpy's ``standard_normal``, whose values may change from one numpy to the next; the words
    may not. It is float64 up to the last rounding: platforms can differ only where their log or cos moves a
    value across the edge between two float32 numbers. Value i is the same in every shape. Raises InputError
    for a bad seed or stream.
    """
    for name, value in (("seed", seed), ("stream", stream)):
        whole = _integer(value)
        if whole is None or not 0 <= whole < 2**64:
            raise InputError(f"{name} must be a whole number from 0 to 2**64 - 1, not {value!r}")
    count = math.prod((shape,) if isinstance(shape, int) else shape)
    pairs = (count + 1) // 2
    words = np.random.Philox(key=np.array([seed, stream], dtype=np.uint64)).random_raw(2 * pairs)
    uniform = (np.asarray(words, dtype=np.uint64) >> np.uint64(11)).reshape(pairs, 2) * 2.0**-53  # in [0, 1)
    radius = np.sqrt(-2.0 * np.log1p(-uniform[:, 0]))
    angle = 2.0 * np.pi * uniform[:, 1]
    values = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    return values.reshape(-1)[:count].astype(np.float32).reshape(shape)


def _sigma_nodes(alphas: NDArray[np.float64], start: int, steps: int) -> NDArray[np.int64]:
    """``steps`` + 1 falling timesteps from ``start`` to 0, nearest to equal steps in sigma^(1/7)."""
    sigma = np.sqrt((1.0 - alphas) / alphas)
    equal = np.linspace(sigma[start] ** (1 / 7), sigma[0] ** (1 / 7), steps + 1) ** 7
    nearest = np.rint(np.interp(equal, sigma, np.arange(alphas.size))).astype(np.int64)
    # Rounding makes some equal, mostly near 0: lift each to 1 above the next, but leave room below the start.
    place = np.arange(steps + 1)
    lifted = np.maximum.accumulate((nearest + place)[::-1])[::-1] - place
    return np.minimum(lifted, start - place)


def _table(
    alphas: NDArray[np.float64],
    timesteps: NDArray[np.int64],
    noise_timestep: int,
    strength: float,
    next_from_latent: NDArray[np.float64],
    next_from_x0: NDArray[np.float64],
    next_from_previous_x0: NDArray[np.float64],
) -> SamplerTable:
    """A table without guidance (scale 1), both contexts at equal weight; rows in the order they run."""
    a = alphas[timesteps]
    ones = np.ones_like(a)
    columns = {
        "guidance_scale": ones,
        "image_ratio": 0.5 * ones,
        "x0_from_latent": 1.0 / np.sqrt(a),
        "x0_from_noise": -np.sqrt((1.0 - a) / a),
        "next_from_latent": next_from_latent,
        "next_from_x0": next_from_x0,
        "next_from_previous_x0": next_from_previous_x0,
    }
    return SamplerTable(
        timesteps=timesteps.copy(),
        noise_timestep=noise_timestep,
        alpha_bar_start=0.0 if strength == 1.0 else float(alphas[noise_timestep]),
        schedule_timesteps=alphas.size,
        coefficients=np.stack([columns[name] for name in COLUMNS], axis=1),
    )


def _checked(alphas: NDArray[np.float64], steps: int, strength: float) -> tuple[int, int]:
    """(T, rows that run), or InputError."""
    falling = alphas.ndim == 1 and alphas.size >= 2 and bool(np.all(np.diff(alphas) < 0.0))
    if not (falling and alphas[0] < 1.0 and alphas[-1] > 0.0):
        raise InputError("alphas must be at least two falling numbers between 1 and 0")
    total = int(alphas.size)
    whole = _integer(steps)
    if whole is None or not 1 <= whole <= total:
        raise InputError(f"steps must be a whole number from 1 to {total}, not {steps!r}")
    if not 0.0 < strength <= 1.0:
        raise InputError(f"strength must be above 0 and at most 1, not {strength}")
    running = int(whole * strength)
    if running == 0:
        raise InputError(f"{steps} steps at strength {strength} leave no step to run; raise one of the two")
    return total, running


def _integer(value: object) -> int | None:
    """The whole number that ``value`` is (Python's or numpy's), or None; a bool is none."""
    if isinstance(value, bool):
        return None
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        return None
