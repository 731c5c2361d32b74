"""Letters rendered from fonts: no digit among them, centred, and augmented as said."""

import unicodedata

import glyphs
import jax.numpy as jnp
import numpy as np
import pytest


@pytest.mark.parametrize("character", ["3", "٣", "३", "Ⅷ", "²", "½", "①", "𝟗", "Ↄ", "三", "߃", "Ƽ", "ƻ"])
def test_numbers_of_any_script_are_no_letters(character):
    assert not glyphs.is_letter(character)


def test_every_font_yields_letters_and_no_digits():
    for name, path in glyphs.font_files().items():
        pairs = glyphs.font_letters(name, path)
        assert len(pairs) >= 26, name
        for characters in pairs:
            for character in characters:
                assert unicodedata.category(character) not in ("Nd", "No", "Nl"), name
                assert not unicodedata.normalize("NFKC", character).isnumeric(), name


def test_drawn_glyphs_are_light_on_dark_and_centred():
    font = glyphs.font_files()["DejaVuSans"]
    font = glyphs.ImageFont.truetype(str(font), 96)
    image = glyphs.draw(font, "H").astype(float)
    assert image.max() == 255 and image[0].max() == 0
    rows, columns = np.nonzero(image)
    assert abs(rows.mean() - (glyphs.POOL - 1) / 2) < 1
    assert abs(columns.mean() - (glyphs.POOL - 1) / 2) < 1
    assert rows.max() - rows.min() + 1 == glyphs.GLYPH
    assert glyphs.draw(font, " ") is None


def test_letters_of_one_shape_share_a_class():
    font = glyphs.font_files()["DejaVuSans"]
    font = glyphs.ImageFont.truetype(str(font), 96)
    images = np.stack([glyphs.draw(font, c) for c in "AΑАBoO"])  # Latin, Greek, Cyrillic A
    groups = glyphs.group_alike(images)
    assert groups[0] == groups[1] == groups[2] != groups[3]
    assert groups[4] == groups[5] != groups[0]


def test_thickness_moves_both_ways():
    stroke = jnp.zeros((3, 48, 48)).at[:, :, 20:26].set(1.0)
    widths = glyphs.thicken(stroke, jnp.array([-1.0, 0.0, 2.0]))[:, 24].sum(-1)
    np.testing.assert_allclose(widths, [4, 6, 10])


def test_resolution_drop_keeps_brightness_and_loses_detail():
    down, up = glyphs.resampling_bank()
    flat = up @ (down @ jnp.ones((32, 32)) @ down.mT) @ up.mT
    np.testing.assert_allclose(flat[:, 8:-8, 8:-8], 1.0, atol=0.02)
    stripes = jnp.tile(jnp.arange(32.0) % 2, (32, 1))
    contrast = jnp.ptp((up @ (down @ stripes @ down.mT) @ up.mT)[:, 8:-8, 8:-8], (1, 2))
    assert contrast[0] < 1e-5 and contrast[-2] == 1.0
