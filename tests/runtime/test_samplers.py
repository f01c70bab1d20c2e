from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from unibrain_rt.errors import InputError
from unibrain_rt.samplers import (
    COLUMNS,
    SAMPLERS,
    SamplerTable,
    Schedule,
    alphas_cumprod,
    build_table,
    ddim,
    dpm_solver_pp_2m,
    seeded_noise,
    with_guidance,
)

ALPHAS = alphas_cumprod(Schedule())


def run(table, latent, predict_noise):
    """The loop of the step graph, with ``predict_noise(latent, timestep)`` for the network."""
    previous_x0 = np.zeros_like(latent)
    for timestep, row in zip(table.timesteps, table.coefficients, strict=True):
        c = dict(zip(COLUMNS, row, strict=True))
        x0 = c["x0_from_latent"] * latent + c["x0_from_noise"] * predict_noise(latent, timestep)
        latent = (
            c["next_from_latent"] * latent + c["next_from_x0"] * x0 + c["next_from_previous_x0"] * previous_x0
        )
        previous_x0 = x0
    return latent


# The schedule


def test_alphas_are_stable_diffusion_s():
    assert ALPHAS.dtype == np.float64
    np.testing.assert_allclose(ALPHAS[[0, 741, 999]], [0.99915, 0.06035557, 0.0046601], rtol=1e-5)


def test_linear_alphas():
    alphas = alphas_cumprod(Schedule(timesteps=3, beta_start=0.1, beta_end=0.3, beta_schedule="linear"))
    np.testing.assert_allclose(alphas, [0.9, 0.9 * 0.8, 0.9 * 0.8 * 0.7])


@pytest.mark.parametrize(
    "wrong",
    [
        {"timesteps": 1},
        {"timesteps": 10.0},
        {"timesteps": True},
        {"beta_start": 0.0},
        {"beta_end": 1.0},
        {"beta_start": 0.02},
        {"beta_end": float("nan")},
        {"beta_schedule": "cosine"},
    ],
)
def test_impossible_schedules(wrong):
    with pytest.raises(InputError, match=r"^schedule: "):
        Schedule(**wrong)


# DDIM


def test_ddim_runs_the_golden_timesteps(golden_dir):
    safetensors = pytest.importorskip("safetensors.numpy")
    golden = safetensors.load_file(golden_dir / "golden.safetensors")["ddim.timesteps"]
    table = ddim(ALPHAS, 50, 0.75)
    np.testing.assert_array_equal(table.timesteps[::-1], golden)  # listed there from low to high
    assert table.noise_timestep == 741


def test_ddim_paper_preset():
    table = ddim(ALPHAS, 50, 0.75)
    np.testing.assert_array_equal(table.timesteps, np.arange(721, 0, -20))
    assert table.noise_timestep == 741
    assert table.alpha_bar_start == ALPHAS[741]
    assert table.schedule_timesteps == 1000
    assert table.coefficients.shape == (37, 7)
    assert table.coefficients.dtype == np.float64


def test_ddim_is_the_textbook_formula():
    table = ddim(ALPHAS, 50, 0.75)
    rng = np.random.default_rng(0)
    noise = {int(timestep): rng.standard_normal(16) for timestep in table.timesteps}
    start = rng.standard_normal(16)
    expected = start
    for timestep in range(721, 0, -20):
        a = ALPHAS[timestep]
        b = ALPHAS[timestep - 20] if timestep > 1 else ALPHAS[0]
        x0 = (expected - np.sqrt(1 - a) * noise[timestep]) / np.sqrt(a)
        expected = np.sqrt(b) * x0 + np.sqrt(1 - b) * noise[timestep]
    np.testing.assert_allclose(
        run(table, start, lambda _, timestep: noise[int(timestep)]), expected, rtol=1e-10
    )


@pytest.mark.parametrize("steps", [4, 7, 30, 50, 100])
def test_ddim_is_the_reference_for_any_steps(steps):
    grid = np.asarray(list(range(0, 1000, 1000 // steps))) + 1
    running = int(steps * 0.75)
    table = ddim(ALPHAS, steps, 0.75)
    np.testing.assert_array_equal(table.timesteps, grid[:running][::-1])
    assert table.noise_timestep == grid[running]


def test_ddim_at_full_strength_starts_from_pure_noise():
    table = ddim(ALPHAS, 50, 1.0)
    assert table.timesteps.size == 50
    assert table.noise_timestep == table.timesteps[0] == 981
    assert table.alpha_bar_start == 0.0


def test_ddim_refuses_a_grid_that_misses_the_top():
    with pytest.raises(InputError, match=r"600 steps .* cover 600 of 1000"):
        ddim(ALPHAS, 600, 0.75)


# DPM-Solver++(2M)


@pytest.mark.parametrize("steps", [4, 10, 20, 50, 1000])
def test_dpm_solver_starts_where_ddim_does(steps):
    table = dpm_solver_pp_2m(ALPHAS, steps, 0.75)
    assert table.timesteps.size == int(steps * 0.75)
    assert table.noise_timestep == table.timesteps[0] == 751
    assert table.alpha_bar_start == ALPHAS[751]
    assert 0 <= table.noise_timestep - ddim(ALPHAS, steps, 0.75).noise_timestep < 1000 // steps + 1000 / steps
    assert dpm_solver_pp_2m(ALPHAS, steps, 0.74).noise_timestep == ddim(ALPHAS, 50, 0.75).noise_timestep


def test_dpm_solver_timesteps():
    np.testing.assert_array_equal(
        dpm_solver_pp_2m(ALPHAS, 10, 0.75).timesteps, [751, 617, 451, 267, 114, 32, 6]
    )
    sigma = np.sqrt((1 - ALPHAS) / ALPHAS) ** (1 / 7)
    equal = np.diff(sigma[dpm_solver_pp_2m(ALPHAS, 10, 0.75).timesteps])
    np.testing.assert_allclose(equal, equal.mean(), rtol=0.1)  # as equal as whole timesteps allow
    every = dpm_solver_pp_2m(ALPHAS, 1000, 0.75).timesteps  # no room: all of them but one
    assert (every.size, every[0], every[-1]) == (750, 751, 1)


def test_dpm_solver_at_full_strength_starts_at_the_last_timestep():
    table = dpm_solver_pp_2m(ALPHAS, 10, 1.0)
    assert table.timesteps.size == 10
    assert table.noise_timestep == table.timesteps[0] == 999
    assert table.alpha_bar_start == 0.0


def test_dpm_solver_is_the_textbook_formula():
    table = dpm_solver_pp_2m(ALPHAS, 8, 0.75)
    nodes = [*table.timesteps, 0]
    alpha, sigma = np.sqrt(ALPHAS[nodes]), np.sqrt(1 - ALPHAS[nodes])
    lam = np.log(alpha / sigma)
    rng = np.random.default_rng(0)
    noise = {int(timestep): rng.standard_normal(16) for timestep in table.timesteps}
    start = expected = rng.standard_normal(16)
    data = []
    for i in range(6):
        data.append((expected - sigma[i] * noise[int(nodes[i])]) / alpha[i])
        h = lam[i + 1] - lam[i]
        direction = data[i]
        if 0 < i < 5:
            r = (lam[i] - lam[i - 1]) / h
            direction = data[i] + (data[i] - data[i - 1]) / (2 * r)
        expected = sigma[i + 1] / sigma[i] * expected - alpha[i + 1] * (np.exp(-h) - 1) * direction
    np.testing.assert_allclose(
        run(table, start, lambda _, timestep: noise[int(timestep)]), expected, rtol=1e-10
    )


def test_first_and_last_row_of_dpm_solver_are_first_order():
    previous = dpm_solver_pp_2m(ALPHAS, 20, 1.0).column("next_from_previous_x0")
    assert previous[0] == previous[-1] == 0.0
    assert np.all(previous[1:-1] < 0.0)
    assert not ddim(ALPHAS, 20, 1.0).column("next_from_previous_x0").any()


def test_one_step_of_dpm_solver_is_ddim_over_the_same_interval():
    table = dpm_solver_pp_2m(ALPHAS, 1, 1.0)
    a, b = ALPHAS[999], ALPHAS[0]
    assert table.column("next_from_latent")[0] == pytest.approx(np.sqrt((1 - b) / (1 - a)))
    assert table.column("next_from_x0")[0] == pytest.approx(np.sqrt(b) - np.sqrt(a * (1 - b) / (1 - a)))


# Convergence. For data ~ N(mean, std^2) the marginal at alpha-bar a is N(sqrt(a) mean, a std^2 + 1 - a); the
# best noise prediction is linear in the latent, and along the exact ODE the standardised latent is constant.

MEAN, STD = 0.7, 0.4


def spread(a):
    return np.sqrt(a * STD**2 + 1 - a)


def gaussian_error(sampler, alphas, steps):
    standardised = np.linspace(-2.0, 2.0, 9)

    def predict_noise(latent, timestep):
        a = alphas[timestep]
        return np.sqrt(1 - a) * (latent - np.sqrt(a) * MEAN) / spread(a) ** 2

    table = sampler(alphas, steps, 0.75)
    a = table.alpha_bar_start
    found = run(table, np.sqrt(a) * MEAN + spread(a) * standardised, predict_noise)
    return np.abs(found - (np.sqrt(alphas[0]) * MEAN + spread(alphas[0]) * standardised)).max()


@pytest.mark.parametrize(("sampler", "order"), [(ddim, 1), (dpm_solver_pp_2m, 2)])
def test_order_of_convergence(sampler, order):
    # A smooth schedule and a fine grid, so that twice the steps halve every step in lambda.
    alphas = 1 / (1 + np.exp(-2 * np.linspace(2.5, -2.0, 2**14)))
    errors = np.array([gaussian_error(sampler, alphas, steps) for steps in (128, 256, 512)])
    np.testing.assert_allclose(np.log2(errors[:-1] / errors[1:]), order, atol=0.15)


def test_dpm_solver_needs_fewer_steps_on_the_real_schedule():
    assert gaussian_error(dpm_solver_pp_2m, ALPHAS, 8) < gaussian_error(ddim, ALPHAS, 50)
    assert gaussian_error(ddim, ALPHAS, 1000) < 0.01


# Both samplers


@pytest.mark.parametrize("sampler", SAMPLERS.values())
@pytest.mark.parametrize("steps", [2, 5, 33, 100, 500, 999, 1000])
@pytest.mark.parametrize("strength", [0.5, 0.75, 0.999, 1.0, 1])
def test_tables_are_sound(sampler, steps, strength):
    table = sampler(ALPHAS, steps, strength)
    assert table.timesteps.size in (int(steps * strength), 999)
    assert table.timesteps.dtype == np.int64
    assert np.all(np.diff(table.timesteps) < 0)
    assert table.timesteps[-1] >= 1
    assert table.timesteps[0] <= table.noise_timestep <= 999
    assert np.isfinite(table.coefficients).all()
    assert not table.timesteps.flags.writeable
    assert not table.coefficients.flags.writeable
    np.testing.assert_array_equal(table.column("guidance_scale"), 1.0)


@pytest.mark.parametrize("sampler", SAMPLERS.values())
def test_known_data_is_recovered(sampler):
    # With one data point the noise is known exactly, and every sampler must end on its latent at alphas[0].
    x0, noise = np.array([0.3, -1.2]), np.array([0.8, 0.1])
    table = sampler(ALPHAS, 20, 1.0)
    start = np.sqrt(ALPHAS[table.timesteps[0]]) * x0 + np.sqrt(1 - ALPHAS[table.timesteps[0]]) * noise

    def predict_noise(latent, timestep):
        return (latent - np.sqrt(ALPHAS[timestep]) * x0) / np.sqrt(1 - ALPHAS[timestep])

    expected = np.sqrt(ALPHAS[0]) * x0 + np.sqrt(1 - ALPHAS[0]) * noise
    np.testing.assert_allclose(run(table, start, predict_noise), expected, rtol=1e-9)


@pytest.mark.parametrize("sampler", SAMPLERS.values())
@pytest.mark.parametrize(
    ("steps", "strength", "message"),
    [
        (0, 0.75, "steps"),
        (-1, 0.75, "steps"),
        (1001, 0.75, "steps"),
        (10.0, 0.75, "steps"),
        (True, 1.0, "steps"),
        ("10", 0.75, "steps"),
        (10, 0.0, "strength"),
        (10, 1.01, "strength"),
        (10, float("nan"), "strength"),
        (3, 0.3, "no step to run"),
    ],
)
def test_bad_arguments(sampler, steps, strength, message):
    with pytest.raises(InputError, match=message):
        sampler(ALPHAS, steps, strength)


@pytest.mark.parametrize(
    "alphas", [ALPHAS[::-1], ALPHAS[:1], ALPHAS.reshape(2, 500), np.r_[1.0, ALPHAS], ALPHAS - 0.1]
)
@pytest.mark.parametrize("sampler", SAMPLERS.values())
def test_bad_alphas(sampler, alphas):
    with pytest.raises(InputError, match="alphas"):
        sampler(alphas, 10, 0.75)


def test_a_table_holds_a_row_a_timestep():
    table = ddim(ALPHAS, 10, 0.75)
    with pytest.raises(ValueError, match="coefficients"):
        dataclasses.replace(table, timesteps=table.timesteps[1:])


# Guidance


def test_guidance_fills_two_columns_and_leaves_the_rest():
    table = ddim(ALPHAS, 50, 0.75)
    guided = with_guidance(table, 7.5, None, 0.6)
    np.testing.assert_array_equal(guided.column("guidance_scale"), 7.5)
    np.testing.assert_array_equal(guided.column("image_ratio"), 0.6)
    np.testing.assert_array_equal(guided.coefficients[:, 2:], table.coefficients[:, 2:])
    np.testing.assert_array_equal(table.column("guidance_scale"), 1.0)  # the table given is left alone
    assert (guided.noise_timestep, guided.alpha_bar_start) == (table.noise_timestep, table.alpha_bar_start)


def test_guidance_interval_is_inclusive_fractions_of_the_timesteps():
    table = with_guidance(ddim(ALPHAS, 50, 0.75), 7.5, (0.201, 0.601), 0.6)
    inside = (table.timesteps >= 201) & (table.timesteps <= 601)
    assert 0 < inside.sum() < inside.size
    np.testing.assert_array_equal(table.column("guidance_scale"), np.where(inside, 7.5, 1.0))
    np.testing.assert_array_equal(table.column("image_ratio"), 0.6)


def test_the_whole_interval_guides_every_row():
    table = with_guidance(dpm_solver_pp_2m(ALPHAS, 10, 1.0), 3.0, [0, 1], 0.9)
    np.testing.assert_array_equal(table.column("guidance_scale"), 3.0)


def test_guidance_off_is_exactly_one():
    table = ddim(ALPHAS, 50, 0.75)
    np.testing.assert_array_equal(with_guidance(table, 1.0, None, 0.6).column("guidance_scale"), 1.0)
    np.testing.assert_array_equal(with_guidance(table, 7.5, (0.9, 1.0), 0.6).column("guidance_scale"), 1.0)


@pytest.mark.parametrize(
    ("scale", "interval", "image_ratio", "message"),
    [
        (-1.0, None, 0.6, "guidance scale"),
        (float("inf"), None, 0.6, "guidance scale"),
        (float("nan"), None, 0.6, "guidance scale"),
        (7.5, (0.5, 0.5), 0.6, "interval"),
        (7.5, (0.8, 0.2), 0.6, "interval"),
        (7.5, (-0.1, 0.2), 0.6, "interval"),
        (7.5, (0.1, 1.2), 0.6, "interval"),
        (7.5, (0.1, float("nan")), 0.6, "interval"),
        (7.5, (0.1,), 0.6, "interval"),
        (7.5, None, 1.1, "image ratio"),
        (7.5, None, -0.1, "image ratio"),
        (7.5, None, float("nan"), "image ratio"),
    ],
)
def test_bad_guidance(scale, interval, image_ratio, message):
    with pytest.raises(InputError, match=message):
        with_guidance(ddim(ALPHAS, 10, 1.0), scale, interval, image_ratio)


# One stop


@pytest.mark.parametrize("name", SAMPLERS)
def test_build_table_is_the_sum_of_its_parts(name):
    table = build_table(Schedule(), name, 20, 0.75, 7.5, (0.1, 0.6), 0.9)
    expected = with_guidance(SAMPLERS[name](ALPHAS, 20, 0.75), 7.5, (0.1, 0.6), 0.9)
    assert isinstance(table, SamplerTable)
    np.testing.assert_array_equal(table.timesteps, expected.timesteps)
    np.testing.assert_array_equal(table.coefficients, expected.coefficients)


def test_build_table_names_the_samplers_it_knows():
    with pytest.raises(InputError, match=r"'euler'.*ddim, dpm-solver\+\+2m"):
        build_table(Schedule(), "euler", 20, 0.75, 7.5, None, 0.6)


# Noise


def test_noise_is_pinned():
    # Within a float32 rounding: log and cos of another platform may differ in the last bit of a float64.
    assert seeded_noise(0, 0, 4).dtype == np.float32
    np.testing.assert_allclose(
        seeded_noise(0, 0, 4), [0.0080886958, 0.15219213, -0.44680974, -0.19140381], rtol=3e-7
    )
    np.testing.assert_allclose(
        seeded_noise(42, 7, (5,)), [1.0853506, -0.95830429, 1.2152539, -0.3699159, -1.0063149], rtol=3e-7
    )


def test_the_words_below_the_noise_are_pinned():
    words = np.random.Philox(key=np.array([42, 7], dtype=np.uint64)).random_raw(2)
    assert list(words) == [11979686004962671011, 16323179865340250365]


def test_noise_depends_on_seed_and_stream_alone():
    noise = seeded_noise(1, 2, (1, 4, 8, 8))
    assert noise.shape == (1, 4, 8, 8)
    np.testing.assert_array_equal(noise, seeded_noise(1, 2, (1, 4, 8, 8)))
    np.testing.assert_array_equal(noise.ravel()[:7], seeded_noise(1, 2, 7))
    for seed, stream in ((1, 3), (2, 2), (2, 1), (2**64 - 1, 2**64 - 1)):
        assert abs(np.corrcoef(noise.ravel(), seeded_noise(seed, stream, 256))[0, 1]) < 0.25


def test_noise_is_standard_normal():
    noise = seeded_noise(5, 0, 200_001).astype(np.float64)
    assert np.isfinite(noise).all()
    assert abs(noise.mean()) < 0.01
    assert abs(noise.std() - 1) < 0.01
    assert abs((noise**3).mean()) < 0.03
    assert abs((noise**4).mean() - 3) < 0.1
    assert abs(np.corrcoef(noise[:-1], noise[1:])[0, 1]) < 0.01


def test_empty_noise():
    assert seeded_noise(0, 0, (0, 4)).shape == (0, 4)
    assert seeded_noise(0, 0, ()).shape == ()


@pytest.mark.parametrize(
    ("seed", "stream"), [(-1, 0), (2**64, 0), (0, -1), (0, 2**64), (1.5, 0), (True, 0), ("1", 0)]
)
def test_bad_seeds(seed, stream):
    with pytest.raises(InputError, match="whole number from 0"):
        seeded_noise(seed, stream, 4)
