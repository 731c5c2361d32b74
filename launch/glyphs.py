"""Letters rendered from the fonts that matplotlib ships, and their augmentation in JAX.

No digit of any script is ever rendered: digits are what configs/digits.py learns, which is
transfer only if the network has not seen them. The glyphs are light on dark, and the augmentation
drops the resolution to as low as 8x8, like scikit-learn's digits scaled up to 32x32.
"""

import unicodedata
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from matplotlib.ft2font import FT2Font
from PIL import Image, ImageFont
from scipy import ndimage

POOL = 48  # side of a rendered base glyph, pixels; its longest side fills GLYPH of them
GLYPH = 44
SIZE = 32  # side of a training image, pixels
REFERENCE_FONT = "DejaVuSans"  # has every script; two letters alike in it are one class
HELD_OUT_FONTS = ("DejaVuSerif-Italic", "DejaVuSansMono-Bold", "STIXGeneralBolIta", "cmss10")
SCRIPTS = (
    "LATIN GREEK CYRILLIC ARMENIAN GEORGIAN HEBREW ARABIC CANADIAN LAO LISU TIFINAGH NKO COPTIC OLD"
).split()
LEFT_OUT = ("WITH", "SMALL CAPITAL", "MODIFIER", "LIGATURE")  # letters with a mark, or drawn small
NUMBER_WORDS = ("NUMERAL", "DIGIT", "LETTER TWO", "TONE")  # letters made from digits, as TONE FIVE


@dataclass(frozen=True)
class Glyphs:
    """Rendered base glyphs, sorted by class.

    Attributes:
        images: u8[n, POOL, POOL], light on dark, centred.
        labels: i32[n].
        classes: the characters of each class ("AΑА": Latin, Greek, Cyrillic look the same).
        fonts: names of the fonts the images come from.
    """

    images: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    fonts: tuple[str, ...]


def is_letter(character: str) -> bool:
    """Whether `character` is a letter and neither a digit nor made from one, in any script."""
    if unicodedata.category(character) not in ("Lu", "Ll", "Lo"):
        return False
    if any(word in unicodedata.name(character, "") for word in NUMBER_WORDS):
        return False
    letters = character + unicodedata.normalize("NFKC", character)
    return not any(c.isnumeric() or unicodedata.category(c).startswith("N") for c in letters)


def font_files() -> dict[str, Path]:
    """Text fonts in matplotlib's data directory, by name."""
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    names = ("DejaVuSans*", "DejaVuSerif*", "STIXGeneral*", "cm*")
    files = {p.stem: p for name in names for p in sorted(folder.glob(name + ".ttf"))}
    return {n: p for n, p in files.items() if not n.endswith("Display") and n != "cmex10"}


def font_letters(name: str, path: Path) -> list[tuple[str, str]]:
    """(character to draw, letter it stands for) of a font, from its charmap.

    STIX holds the mathematical alphabets (script, fraktur, ...), which are more styles of the
    same letters. The Computer Modern files follow Unicode for ASCII letters only, cmsy10 for
    capitals only.
    """
    characters = [chr(code) for code in sorted(FT2Font(str(path)).get_charmap())]
    if name.startswith("cm"):
        stop = "Z" if name == "cmsy10" else "z"
        return [(c, c) for c in characters if c.isascii() and c.isalpha() and c <= stop]
    pairs = []
    for c in characters:
        if not is_letter(c):
            continue
        title = unicodedata.name(c, "")
        letter = unicodedata.normalize("NFKC", c) if title.startswith("MATHEMATICAL") else c
        if letter == c and (
            title.split(" ")[0] not in SCRIPTS
            or any(word in title for word in LEFT_OUT)
            or unicodedata.decomposition(c)
        ):
            continue
        pairs.append((c, letter))
    return pairs


def draw(font: ImageFont.FreeTypeFont, character: str) -> np.ndarray | None:
    """One glyph, u8[POOL, POOL], scaled by its longest side and centred; None if it is empty."""
    mask = font.getmask(character)
    if 0 in mask.size:
        return None
    glyph = Image.frombytes("L", mask.size, bytes(mask))
    box = glyph.getbbox()
    if box is None:
        return None
    glyph = glyph.crop(box)
    scale = GLYPH / max(glyph.size)
    size = tuple(max(1, round(side * scale)) for side in glyph.size)
    canvas = Image.new("L", (POOL, POOL))
    offset = ((POOL - size[0]) // 2, (POOL - size[1]) // 2)
    canvas.paste(glyph.resize(size, Image.Resampling.BOX if scale < 1 else 2), offset)
    return np.asarray(canvas)


def group_alike(images: np.ndarray, distance: float = 0.33) -> np.ndarray:
    """Groups glyphs that cannot be told apart at low resolution, as O, o, Ο, О. Returns i32[n].

    Two glyphs u8[n, POOL, POOL] are alike if their 8x8 block means differ by less than
    `distance` of their mean norm.
    """
    n = len(images)
    blocks = images.reshape(n, 8, POOL // 8, 8, POOL // 8).mean((2, 4)).reshape(n, -1)
    squares = (blocks**2).sum(1)
    apart = np.maximum(squares[:, None] + squares[None] - 2 * blocks @ blocks.T, 0) ** 0.5
    alike = apart < distance * (squares[:, None] * squares[None]) ** 0.25
    group = np.arange(n)
    for i in range(n):  # the first glyph that is like this one gives the group
        group[i] = group[np.argmax(alike[i, : i + 1])]
    return np.unique(group, return_inverse=True)[1].astype(np.int32)


def render() -> tuple[Glyphs, Glyphs]:
    """Renders all letters of all fonts. Returns (training glyphs, glyphs of held-out fonts)."""
    drawn = {}  # font -> {(character, letter): image}
    for name, path in font_files().items():
        font = ImageFont.truetype(str(path), 96, layout_engine=ImageFont.Layout.BASIC)
        images = {pair: draw(font, pair[0]) for pair in font_letters(name, path)}
        drawn[name] = {pair: image for pair, image in images.items() if image is not None}
    # Letters in one piece, like digits: dots vanish at 8x8, and with them what tells letters apart.
    reference = {
        letter: image
        for (_, letter), image in drawn[REFERENCE_FONT].items()
        if ndimage.label(image > 64)[1] == 1
    }
    groups = group_alike(np.stack(list(reference.values())))
    label = dict(zip(reference, groups, strict=True))
    classes = [""] * (groups.max() + 1)
    for letter, group in label.items():
        classes[group] += letter

    def collect(fonts):
        rows = [
            (label[letter], image)
            for font in fonts
            for (_, letter), image in drawn[font].items()
            if letter in label
        ]
        rows.sort(key=lambda row: row[0])
        return Glyphs(
            np.stack([image for _, image in rows]),
            np.asarray([row[0] for row in rows], np.int32),
            tuple(classes),
            tuple(fonts),
        )

    return collect([f for f in drawn if f not in HELD_OUT_FONTS]), collect(HELD_OUT_FONTS)


# Augmentation, on the device, inside the jitted training step.


def resampling_bank() -> tuple[jax.Array, jax.Array]:
    """Matrices that lose resolution. Returns (down, up), both f32[kinds, SIZE, SIZE].

    `up @ (down @ image @ down.T) @ up.T` goes through 8x8 (half of the kinds), 16x16 or stays, with
    or without a blur before. Rows and columns beyond the low resolution are zero.
    """
    blur = np.eye(SIZE) / 2 + (np.eye(SIZE, k=1) + np.eye(SIZE, k=-1)) / 4
    down, up = [], []
    for side, method in ((8, "linear"), (8, "cubic"), (16, "linear"), (SIZE, "linear")):
        means = np.kron(np.eye(side), np.full((1, SIZE // side), side / SIZE))
        for blurred in (means, means @ blur @ blur):
            down.append(np.pad(blurred, ((0, SIZE - side), (0, 0))))
            grown = np.asarray(jax.image.resize(jnp.eye(side), (SIZE, side), method))
            up.append(np.pad(grown, ((0, 0), (0, SIZE - side))))
    return jnp.asarray(np.stack(down), jnp.float32), jnp.asarray(np.stack(up), jnp.float32)


def thicken(images: jax.Array, amount: jax.Array) -> jax.Array:
    """Erodes (amount -1..0) or dilates (0..2 pixels) the strokes of f32[n, POOL, POOL]."""

    def extreme(x, reduce, start):
        return jax.lax.reduce_window(x, start, reduce, (1, 3, 3), (1, 1, 1), "SAME")

    amount = amount[:, None, None]
    thin = extreme(images, jax.lax.min, jnp.inf)
    thick = extreme(images, jax.lax.max, -jnp.inf)
    thicker = extreme(thick, jax.lax.max, -jnp.inf)
    images = images + jnp.clip(-amount, 0, 1) * (thin - images)
    images = images + jnp.clip(amount, 0, 1) * (thick - images)
    return images + jnp.clip(amount - 1, 0, 1) * (thicker - thick)


def warp(images: jax.Array, key: jax.Array) -> jax.Array:
    """Random rotation, slant, size, aspect, shift and smooth elastic bend, about as handwriting
    varies. f32[n, POOL, POOL] -> f32[n, SIZE, SIZE]."""
    n = len(images)
    keys = jax.random.split(key, 6)
    angle = 0.15 * jax.random.normal(keys[0], (n,))
    slant = 0.2 * jax.random.normal(keys[1], (n,))
    # Source per output coordinate: the glyph's longest side fills 0.72..1.0 of the image.
    zoom = GLYPH / POOL / jax.random.uniform(keys[2], (n,), minval=0.72, maxval=1.0)
    aspect = jnp.exp(0.1 + 0.2 * jax.random.normal(keys[3], (n,)))  # handwriting is narrow
    shift = 0.05 * jax.random.normal(keys[4], (n, 2))
    line = (jnp.arange(SIZE) + 0.5) / SIZE * 2 - 1
    y, x = jnp.meshgrid(line, line, indexing="ij")
    smooth = jax.image.resize(jnp.eye(5), (SIZE, 5), "cubic")
    bend = 0.06 * jax.random.normal(keys[5], (2, n, 5, 5))
    bend = jnp.einsum("ya,cnab,xb->cnyx", smooth, bend, smooth)

    def column(v):
        return v[:, None, None]

    cos, sin = column(jnp.cos(angle)), column(jnp.sin(angle))
    across = cos * x + sin * y + column(slant) * y
    down = cos * y - sin * x
    source_x = column(zoom * aspect) * across + column(shift[:, 0]) + bend[0]
    source_y = column(zoom / aspect) * down + column(shift[:, 1]) + bend[1]
    to_pixel = jnp.stack([source_y, source_x], 1) * (POOL / 2) + (POOL - 1) / 2

    def sample(image, coordinates):
        return jax.scipy.ndimage.map_coordinates(image, list(coordinates), order=1)

    return jax.vmap(sample)(images, to_pixel)


def augment(images: jax.Array, key: jax.Array, bank: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Base glyphs u8[n, POOL, POOL] -> training images f32[n, SIZE, SIZE] in [0, 1]."""
    n = len(images)
    keys = jax.random.split(key, 6)
    images = images.astype(jnp.float32) / 255
    images = thicken(images, jax.random.uniform(keys[0], (n,), minval=-0.8, maxval=2.0))
    images = warp(images, keys[1])
    down, up = (m[jax.random.randint(keys[2], (n,), 0, len(m))] for m in bank)
    images = down @ images @ down.mT
    noise = jax.random.normal(keys[3], images.shape)
    images = images + jax.random.uniform(keys[4], (n, 1, 1), maxval=0.08) * noise
    # Strokes thinner than a low-resolution pixel are faint; handwritten ones saturate.
    images = jnp.clip(images * jax.random.uniform(keys[5], (n, 1, 1), minval=0.8, maxval=2.0), 0, 1)
    return jnp.clip(up @ images @ up.mT, 0, 1)
