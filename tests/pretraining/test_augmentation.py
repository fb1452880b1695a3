"""Random views against Pillow, float64 re-computations, and the distributions that they are drawn from."""

import colorsys
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage, stats

from src.errors import UserError
from src.pretraining.augmentation import (
    LUMA,
    TRIES,
    Augmentation,
    AugmentParams,
    CropBox,
    adjust_brightness,
    adjust_contrast,
    adjust_hue,
    adjust_saturation,
    crop_box,
    gaussian_blur,
    largest_crop,
    resized_crop,
    sample_params,
    to_grayscale,
)

# To to_grayscale and chroma, the inverse of the NTSC's decoding.
YIQ = np.array([[0.299, 0.587, 0.114], [0.595716, -0.274453, -0.321263], [0.211456, -0.522591, 0.311135]])
KEY = jax.random.PRNGKey(0)
WHOLE = {"crop": (1.0, 1.0), "ratio": (1.0, 1.0), "flip": 0.0, "jitter": 0.0, "grey": 0.0}  # changes nothing


def image(height=9, width=12, channels=3, seed=0):
    return np.random.default_rng(seed).random((height, width, channels), np.float32)


def images(count=8, side=8, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, channels), np.uint8)


def planes(array):
    return jnp.asarray(array).transpose(0, 2, 1)


def back(array):
    return np.asarray(array).transpose(0, 2, 1)


def run(op, array, *settings):
    """Return what an operation makes of an image, its settings compiled in: as one program, not one for each line."""
    return back(jax.jit(lambda x: op(x, *settings))(planes(array)))


# --- each operation --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("box", [(0, 0, 9, 12), (2, 3, 5, 4), (8, 11, 1, 1), (0, 5, 9, 1), (1, 0, 7, 12)])
def test_a_crop_is_what_pillow_resizes(box, flip):
    """Pillow's bilinear filter of the cropped float image, channel by channel."""
    array = image()
    top, left, height, width = box
    found = run(resized_crop, array, CropBox(*map(jnp.float32, box)), jnp.asarray(flip))
    for channel in range(3):
        part = Image.fromarray(array[top : top + height, left : left + width, channel])
        expected = np.asarray(part.resize((12, 9), Image.Resampling.BILINEAR))
        np.testing.assert_allclose(found[..., channel], expected[:, ::-1] if flip else expected, atol=2e-6)


@pytest.mark.parametrize("factor", [0.6, 1.0, 1.4])
def test_colours_against_float64(factor):
    array = image(channels=3)
    x = array.astype(np.float64)
    grey = (x @ np.array([0.299, 0.587, 0.114]))[..., None]
    for op, expected in (
        (adjust_brightness, factor * x),
        (adjust_contrast, grey.mean() + factor * (x - grey.mean())),
        (adjust_saturation, grey + factor * (x - grey)),
    ):
        np.testing.assert_allclose(run(op, array, factor), np.clip(expected, 0, 1), atol=2e-6)
    np.testing.assert_allclose(run(to_grayscale, array), grey, atol=1e-6)


def test_grey_is_pillow_s():
    array = images(1)[0]
    expected = np.asarray(Image.fromarray(array).convert("L"))
    found = Augmentation(**(WHOLE | {"grey": 1.0})).augment(KEY, array[None])[0]
    assert np.ptp(found, axis=-1).max() == 0
    np.testing.assert_allclose(found[..., 0] * 255, expected, atol=0.51)


@pytest.mark.parametrize("turn", [-0.5, -0.1, 0.07])
def test_hue_is_a_rotation_of_yiq_s_chroma(turn):
    """The same in float64, by way of complex numbers; colours in the middle, so that nothing is cut off."""
    array = 0.4 + 0.2 * image()
    flat = array.astype(np.float64).reshape(-1, 3) @ YIQ.T
    chroma = (flat[:, 1] + 1j * flat[:, 2]) * np.exp(-2j * np.pi * turn)
    expected = np.stack([flat[:, 0], chroma.real, chroma.imag], 1) @ np.linalg.inv(YIQ).T
    found = run(adjust_hue, array, turn)
    np.testing.assert_allclose(found.reshape(-1, 3), expected, atol=2e-6)
    np.testing.assert_allclose(found @ np.array(LUMA), array @ np.array(LUMA), atol=1e-6)


def test_hue_stands_for_hsv_s():
    """Colours of all hues turn in HSV's direction, on average about as far; single ones by up to half more or less."""
    hues = np.linspace(0, 1, 240, endpoint=False)
    colours = np.array([colorsys.hsv_to_rgb(hue, 0.3, 0.6) for hue in hues], np.float32)
    for turn in (0.1, -0.05):
        found = run(adjust_hue, colours[None], turn)[0]
        after = np.array([colorsys.rgb_to_hsv(*map(float, colour))[0] for colour in found])
        turned = (after - hues + 0.5) % 1 - 0.5
        assert np.sign(turned).tolist() == [np.sign(turn)] * 240
        np.testing.assert_allclose(turned.mean(), turn, rtol=0.1)
        assert np.abs(turned - turn).max() < 0.55 * abs(turn)
    greys = np.full((2, 2, 3), 0.3, np.float32)
    np.testing.assert_allclose(run(adjust_hue, greys, 0.1), greys, atol=1e-6)


@pytest.mark.parametrize(("sigma", "size"), [(0.1, 3), (0.7, 3), (2.0, 7), (1.3, 17)])
def test_blur_is_scipy_s(sigma, size):
    """Correlation with a kernel cut off at the same width; scipy calls the same edges ``mirror``."""
    array = image(9, 12)
    places = np.arange(size) - size // 2
    kernel = np.exp(-(places**2) / (2 * sigma**2))
    kernel /= kernel.sum()
    expected = array.astype(np.float64)
    for axis in (0, 1):
        expected = ndimage.correlate1d(expected, kernel, axis=axis, mode="mirror")
    np.testing.assert_allclose(run(gaussian_blur, array, sigma, size), expected, atol=2e-6)


def test_a_blur_wider_than_the_image():
    with pytest.raises(UserError, match="blur_size of an augmentation is 17; allowed: less than twice the side"):
        Augmentation(blur=1.0, blur_size=17).augment(KEY, images(side=8))


# --- what is drawn ---------------------------------------------------------------------------------------------------


def boxes(count, height, width, crop, ratio, seed=0):
    keys = jax.random.split(jax.random.PRNGKey(seed), count)
    box = jax.jit(jax.vmap(lambda key: crop_box(sample_params(key), height, width, crop, ratio)))(keys)
    return CropBox(*(np.asarray(value, np.float64) for value in box))


def accepted_area(crop, ratio):
    """Cumulative distribution of the share of a square that a crop has, given that it fits.

    A share ``a`` and a ratio ``r`` fit where ``a <= r <= 1 / a``; of a ratio that is log-uniform on ``[1/m, m]``, that
    has the probability ``min(1, log(1/a) / log(m))``.
    """
    grid = np.linspace(*crop, 20001)
    density = np.minimum(1, np.log(1 / grid) / math.log(ratio[1]))
    cumulative = np.concatenate([[0], np.cumsum((density[1:] + density[:-1]) / 2)])
    return lambda share: np.interp(share, grid, cumulative / cumulative[-1])


def test_areas_and_ratios_follow_their_distribution():
    """Kolmogorov and Smirnov's test; a large image, so that rounding to pixels does not show."""
    side, crop, ratio = 20000, (0.08, 1.0), (3 / 4, 4 / 3)
    box = boxes(20000, side, side, crop, ratio)
    assert stats.kstest(box.height * box.width / side**2, accepted_area(crop, ratio)).pvalue > 0.01
    small = boxes(20000, side, side, (0.1, 0.5), ratio)  # every one fits: the ratio is as it was drawn
    logs = np.log(small.width / small.height) / math.log(ratio[1])
    assert stats.kstest(logs, stats.uniform(-1, 2).cdf).pvalue > 0.01
    for start, length in ((small.top, small.height), (small.left, small.width)):
        assert stats.kstest(start / (side - length), stats.uniform.cdf).pvalue > 0.01


def test_crops_of_small_images_are_whole_pixels_inside():
    box = boxes(5000, 32, 32, (0.08, 1.0), (3 / 4, 4 / 3))
    for start, length in ((box.top, box.height), (box.left, box.width)):
        np.testing.assert_array_equal(start, np.round(start))
        np.testing.assert_array_equal(length, np.round(length))
        assert length.min() >= 1
        assert start.min() == 0
        assert (start + length).max() == 32
    # Starts are uniform over the places that there are, both ends included.
    tops = box.top[box.height == 28]
    assert set(tops) == {0, 1, 2, 3, 4}
    assert stats.chisquare(np.unique(tops, return_counts=True)[1]).pvalue > 0.01


def test_the_first_try_that_fits_is_taken():
    lot = sample_params(KEY)
    areas = np.full(TRIES, 0.999999, np.float32)
    areas[[3, 7]] = 0.25, 0.0
    ratios = np.full(TRIES, 0.99, np.float32)  # nearly the widest: a whole area does not fit
    lot = lot._replace(
        areas=jnp.asarray(areas), ratios=jnp.asarray(ratios), top=jnp.float32(0), left=jnp.float32(0.9999999)
    )
    box = [float(value) for value in crop_box(lot, 100, 100, (0.0, 1.0), (3 / 4, 4 / 3))]
    ratio = (3 / 4) ** (1 - 2 * 0.99)
    high, wide = round(math.sqrt(2500 / ratio)), round(math.sqrt(2500 * ratio))
    assert box == [0, 100 - wide, high, wide]


@pytest.mark.parametrize(
    ("height", "width", "expected"), [(100, 10, (43, 0, 13, 10)), (10, 100, (0, 43, 10, 13)), (10, 12, (0, 0, 10, 12))]
)
def test_where_nothing_fits_the_middle_is_taken(height, width, expected):
    """Torchvision's last resort: the largest part in an allowed ratio, centred; of 12 / 10, the whole."""
    never = sample_params(KEY)._replace(areas=jnp.ones(TRIES), ratios=jnp.full(TRIES, 0.5))
    if height == 10 and width == 12:  # a square of the whole area is higher than the image
        assert largest_crop(height, width, (3 / 4, 4 / 3)) == (12, 10)
    box = [int(value) for value in crop_box(never, height, width, (1.0, 1.0), (3 / 4, 4 / 3))]
    assert box == list(expected)


def test_how_often_and_how_strongly():
    """A constant image of 0.4 shows the factor of brightness; a probability's error is about 0.007 here."""
    how = WHOLE | {"jitter": 0.7, "brightness": 0.4, "contrast": 0.0, "saturation": 0.0, "hue": 0.0}
    factors = np.asarray(Augmentation(**how).augment(KEY, np.full((4000, 2, 2, 3), 102, np.uint8)))[:, 0, 0, 0] / 0.4
    same = np.abs(factors - 1) < 1e-6
    assert abs(same.mean() - 0.3) < 0.03
    assert stats.kstest(factors[~same], stats.uniform(0.6, 0.8).cdf).pvalue > 0.01
    array = images(4000, 2)
    found = np.asarray(Augmentation(**(WHOLE | {"flip": 0.25, "grey": 0.4})).augment(KEY, array)) * 255
    grey = np.ptp(found, axis=-1).max((1, 2)) == 0
    assert abs(grey.mean() - 0.4) < 0.03
    expected = np.where(grey[:, None, None, None], (array @ YIQ[0])[..., None], array)
    mirrored = np.isclose(found, expected[:, :, ::-1], atol=0.01).all((1, 2, 3))
    assert np.all(mirrored | np.isclose(found, expected, atol=0.01).all((1, 2, 3)))
    assert abs(mirrored.mean() - 0.25) < 0.03
    assert abs(np.corrcoef(mirrored, grey)[0, 1]) < 0.08
    blurred = Augmentation(**(WHOLE | {"blur": 0.6, "blur_size": 3, "sigma": (1.0, 1.0)})).augment(KEY, array)
    changed = np.abs(np.asarray(blurred) * 255 - array).max((1, 2, 3)) > 0.1
    assert abs(changed.mean() - 0.6) < 0.03


def test_draws_of_an_image_are_independent():
    lots = jax.jit(jax.vmap(sample_params))(jax.random.split(KEY, 4000))
    values = np.column_stack([np.asarray(value).reshape(4000, -1) for value in lots])
    assert values.shape == (4000, 2 * TRIES + len(AugmentParams._fields) - 2)
    assert values.min() >= 0
    assert values.max() < 1
    correlations = np.corrcoef(values.T) - np.eye(values.shape[1])
    assert np.abs(correlations).max() < 5 / math.sqrt(4000)


# --- views -----------------------------------------------------------------------------------------------------------


def test_an_augmentation_of_nothing_is_the_image():
    array = images()
    found = np.asarray(Augmentation(**WHOLE).augment(KEY, array))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, array / 255, atol=1e-7)
    never = WHOLE | {"jitter": 1e-9, "blur": 1e-9, "blur_size": 3, "grey": 1e-9}  # compiled, and never drawn
    np.testing.assert_allclose(Augmentation(**never).augment(KEY, array), found, atol=1e-7)


def test_a_view_is_its_operations_one_after_the_other():
    """A row by hand: its own key, the crop of Pillow, then colours in float64, in the order that is documented."""
    how = Augmentation(jitter=1.0, grey=0.0, blur=1.0, blur_size=3)
    array = images(4, 16)
    found = np.asarray(how.augment(KEY, array))
    for row in range(4):
        lot = sample_params(jax.random.fold_in(KEY, row))
        top, left, high, wide = (int(v) for v in crop_box(lot, 16, 16, how.crop, how.ratio))
        part = array[row, top : top + high, left : left + wide].astype(np.float32) / 255
        channels = [Image.fromarray(part[..., c]).resize((16, 16), Image.Resampling.BILINEAR) for c in range(3)]
        x = np.stack([np.asarray(channel, np.float64) for channel in channels], -1)
        x = x[:, ::-1] if lot.flip < 0.5 else x
        b, c, s, h = (2 * float(v) - 1 for v in (lot.brightness, lot.contrast, lot.saturation, lot.hue))
        x = np.clip((1 + 0.4 * b) * x, 0, 1)
        mean = (x @ YIQ[0]).mean()
        x = np.clip(mean + (1 + 0.4 * c) * (x - mean), 0, 1)
        grey = (x @ YIQ[0])[..., None]
        x = np.clip(grey + (1 + 0.4 * s) * (x - grey), 0, 1)
        turned = x @ YIQ.T
        chroma = (turned[..., 1] + 1j * turned[..., 2]) * np.exp(-2j * np.pi * 0.1 * h)
        x = np.clip(np.stack([turned[..., 0], chroma.real, chroma.imag], -1) @ np.linalg.inv(YIQ).T, 0, 1)
        kernel = np.exp(-(np.array([-1, 0, 1]) ** 2) / (2 * (0.1 + 1.9 * float(lot.sigma)) ** 2))
        for axis in (0, 1):
            x = ndimage.correlate1d(x, kernel / kernel.sum(), axis=axis, mode="mirror")
        np.testing.assert_allclose(found[row], x, atol=1e-5)


def test_a_row_s_view_does_not_depend_on_the_batch():
    how, array = Augmentation(), images(9)
    whole = np.asarray(how.augment(KEY, array))
    few = np.asarray(how.augment(KEY, array[:3]))
    np.testing.assert_allclose(few, whole[:3], atol=1e-6)
    others = np.asarray(how.augment(KEY, np.concatenate([array[:3], images(6, seed=1)])))
    np.testing.assert_array_equal(others[:3], whole[:3])
    assert not np.allclose(how.augment(KEY, np.repeat(array[:1], 9, axis=0))[1:], whole[:1], atol=0.01)  # one image


def test_two_views_are_drawn_independently():
    how, array = Augmentation(), images(9)
    first, second = (np.asarray(view) for view in how.two_views(KEY, array))
    assert first.shape == second.shape == array.shape
    for view, key in zip((first, second), jax.random.split(KEY), strict=True):
        np.testing.assert_allclose(view, how.augment(key, array), atol=1e-6)
        assert view.min() >= 0
        assert view.max() <= 1
    assert np.abs(first - second).mean() > 0.05
    np.testing.assert_array_equal(how.two_views(KEY, array)[0], first)


def test_bytes_and_floats_are_the_same_image():
    array = images()
    floats = array.astype(np.float32) / 255
    np.testing.assert_allclose(Augmentation().augment(KEY, array), Augmentation().augment(KEY, floats), atol=1e-6)


def test_one_channel_has_brightness_and_contrast_only():
    """What colours would do is left out: the same view under any saturation, hue and grey."""
    array = images(channels=1)
    plain = np.asarray(Augmentation(saturation=0.0, hue=0.0, grey=0.0).augment(KEY, array))
    np.testing.assert_array_equal(Augmentation(grey=1.0).augment(KEY, array), plain)
    three = Augmentation(saturation=0.0, hue=0.0, grey=0.0).augment(KEY, np.repeat(array, 3, axis=-1))
    np.testing.assert_allclose(np.asarray(three)[..., :1], plain, atol=1e-5)


def test_images_and_settings_that_cannot_be_used():
    with pytest.raises(UserError, match="images to augment have 2 channels; allowed: 1 or 3"):
        Augmentation().augment(KEY, images(channels=2))
    with pytest.raises(UserError, match=r"crop of an augmentation is \[0.9, 0.2\]; allowed: the least and the largest"):
        Augmentation(crop=(0.9, 0.2))
    with pytest.raises(UserError, match=r"sigma of an augmentation is \[1.0\]"):
        Augmentation(sigma=(1.0,))
