"""A second drawing style for the lab's things: single-coloured glyphs of icon fonts.

The fonts (Font Awesome 6, Material Design Icons 6, Phosphor, Remix; all free licences) are read as
files from the ``qtawesome`` package, which is never imported, as it would want a Qt.
"""

from __future__ import annotations

import json
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image

_FONTS = {
    "fa": ("fontawesome6-solid-webfont", "6.7.2"),
    "mdi": ("materialdesignicons6-webfont", "6.9.96"),
    "ph": ("phosphor", "1.3.0"),
    "ri": ("remixicon", "2.5.0"),
}

_ICONS = """
beer mug: fa.beer-mug-empty mdi.beer mdi.glass-mug mdi.glass-mug-variant
wine glass: fa.wine-glass mdi.glass-wine ph.wine-fill
cocktail glass: fa.martini-glass-citrus mdi.glass-cocktail ph.martini-fill
whisky tumbler: fa.whiskey-glass
champagne bottle: fa.wine-bottle mdi.bottle-wine
clinking glasses: fa.champagne-glasses
blood drop: mdi.blood-bag
lit cigarette: fa.smoking mdi.smoking
water pistol: fa.gun mdi.pistol
middle finger: fa.hand-middle-finger
kitchen knife: mdi.knife ph.knife-fill ri.knife-fill
steel dagger: mdi.knife-military
crossed swords: mdi.sword-cross
battle axe: mdi.axe-battle mdi.axe
adult sign: mdi.alpha-x-circle mdi.alpha-x-box
coffee mug: fa.mug-hot mdi.coffee ph.coffee-fill
baby bottle: mdi.baby-bottle
tropical fish: fa.fish-fins mdi.fish ph.fish-fill
rice bowl: fa.bowl-rice mdi.rice
water drop: fa.droplet mdi.water ph.drop-fill ri.drop-fill
smoking ban: fa.ban-smoking
magnifying glass: fa.magnifying-glass ph.magnifying-glass-fill
soft drink: mdi.cup
lit candle: mdi.candle
kitchen spoon: fa.spoon mdi.silverware-spoon
steel wrench: fa.wrench mdi.wrench ph.wrench-fill
battle shield: fa.shield mdi.shield ph.shield-fill ri.shield-fill
water wave: fa.water mdi.wave
table cutlery: fa.utensils mdi.silverware-fork-knife ph.fork-knife-fill
hour glass: fa.hourglass ph.hourglass-fill
reading glasses: fa.glasses mdi.glasses
panda: mdi.panda
unicorn: mdi.unicorn mdi.unicorn-variant
money bag: fa.sack-dollar
television: fa.tv mdi.television ph.television-fill ri.tv-fill
bicycle: fa.bicycle mdi.bike ph.bicycle-fill ri.bike-fill
top hat: mdi.hat-fedora
french fries: mdi.french-fries
light bulb: fa.lightbulb mdi.lightbulb ph.lightbulb-fill ri.lightbulb-fill
lightning bolt: fa.bolt mdi.lightning-bolt ph.lightning-fill
square cap: fa.graduation-cap mdi.school ph.graduation-cap-fill
game pad: fa.gamepad mdi.controller ph.game-controller-fill ri.gamepad-fill
folded umbrella: mdi.umbrella-closed
sun: fa.sun ph.sun-fill ri.sun-fill
soccer ball: mdi.soccer ph.soccer-ball-fill
heeled shoe: mdi.shoe-heel
door key: fa.key mdi.key ph.key-fill ri.key-fill
balloon: mdi.balloon
christmas tree: fa.tree mdi.pine-tree ph.tree-evergreen-fill
gift: fa.gift mdi.gift ph.gift-fill ri.gift-fill
trophy: fa.trophy mdi.trophy ph.trophy-fill ri.trophy-fill
basketball: fa.basketball mdi.basketball ph.basketball-fill ri.basketball-fill
kite: mdi.kite
teddy bear: mdi.teddy-bear
magic wand: fa.wand-magic mdi.magic-staff ph.magic-wand-fill ri.magic-fill
rainbow: fa.rainbow ph.rainbow-fill ri.rainbow-fill
volcano: fa.volcano mdi.volcano
crescent moon: fa.moon ph.moon-fill ri.moon-fill
ferris wheel: mdi.ferris-wheel
helicopter: fa.helicopter mdi.helicopter
rocket: fa.rocket mdi.rocket ph.rocket-fill ri.rocket-fill
ambulance: fa.truck-medical mdi.ambulance
tractor: fa.tractor mdi.tractor
anchor: fa.anchor mdi.anchor ph.anchor-fill ri.anchor-fill
umbrella: fa.umbrella mdi.umbrella ph.umbrella-fill ri.umbrella-fill
snowman: fa.snowman mdi.snowman
airplane: fa.plane mdi.airplane ph.airplane-fill ri.plane-fill
snowflake: fa.snowflake mdi.snowflake ph.snowflake-fill
star: fa.star mdi.star ph.star-fill ri.star-fill
taco: mdi.taco
corn: mdi.corn
grapes: mdi.fruit-grapes
watermelon: mdi.fruit-watermelon
lemon: fa.lemon mdi.fruit-citrus
pineapple: mdi.fruit-pineapple
pear: mdi.fruit-pear
cherries: mdi.fruit-cherries
hamburger: fa.burger mdi.hamburger
pizza: fa.pizza-slice mdi.pizza ph.pizza-fill
cookie: fa.cookie mdi.cookie ph.cookie-fill
popcorn: mdi.popcorn
croissant: mdi.food-croissant
carrot: fa.carrot mdi.carrot
pretzel: mdi.pretzel
cheese wedge: fa.cheese mdi.cheese
cupcake: mdi.cupcake
cactus: mdi.cactus ri.cactus-fill
tulip: mdi.flower-tulip
maple leaf: mdi.leaf-maple
mushroom: mdi.mushroom
elephant: mdi.elephant
bee: mdi.bee
ladybug: mdi.ladybug
penguin: mdi.penguin
dolphin: mdi.dolphin
rabbit: mdi.rabbit
cat: fa.cat mdi.cat ph.cat-fill
horse: fa.horse mdi.horse-variant ph.horse-fill
dog: fa.dog mdi.dog ph.dog-fill
frog: fa.frog
butterfly: mdi.butterfly
duck: mdi.duck
owl: mdi.owl
snail: mdi.snail
snake: mdi.snake
jellyfish: mdi.jellyfish
headphones: fa.headphones mdi.headphones ph.headphones-fill
saxophone: mdi.saxophone
guitar: fa.guitar mdi.guitar-acoustic
trumpet: mdi.trumpet mdi.bugle
violin: mdi.violin
crown: fa.crown mdi.crown ph.crown-fill ri.vip-crown-fill
calendar: fa.calendar-days mdi.calendar ph.calendar-fill ri.calendar-fill
scissors: fa.scissors ph.scissors-fill ri.scissors-fill
camera: fa.camera mdi.camera ph.camera-fill ri.camera-fill
lock: fa.lock mdi.lock ph.lock-fill ri.lock-fill
hammer: fa.hammer mdi.hammer ri.hammer-fill
telescope: mdi.telescope
toilet: fa.toilet mdi.toilet
chair: fa.chair mdi.chair-school
ladder: mdi.ladder
bucket: fa.bucket mdi.bucket
backpack: mdi.bag-personal
drum: fa.drum
"""

GLYPH_COLORS = (
    (250, 250, 250), (15, 15, 15), (25, 40, 110), (120, 20, 35), (250, 235, 200), (0, 95, 95),
)  # fmt: skip
"""Colours of a glyph; one is drawn among those that stand out from the background."""


@cache
def icon_names() -> dict[str, tuple[str, ...]]:
    """Icons (``font.key``) by the name of the thing they show; not every thing has one."""
    rows = (line.split(": ") for line in _ICONS.strip().splitlines())
    return {name: tuple(keys.split()) for name, keys in rows}


@cache
def icon_mask(icon: str) -> Image:
    """The glyph of an icon, cropped to its square: a grey picture, 255 where the glyph is.

    Args:
        icon: ``font.key``, as ``icon_names`` lists them.

    Raises:
        KeyError: The installed fonts have no such icon.
    """
    from PIL import Image, ImageDraw

    family, key = icon.split(".", 1)
    font, codes = _font(family)
    glyph = chr(int(codes[key], 16))
    left, top, right, bottom = font.getbbox(glyph)
    side = int(max(right - left, bottom - top)) + 4
    mask = Image.new("L", (side, side), 0)
    at = ((side - (right - left)) / 2 - left, (side - (bottom - top)) / 2 - top)
    ImageDraw.Draw(mask).text(at, glyph, fill=255, font=font)
    return mask


@cache
def _font(family: str) -> tuple[Any, dict[str, str]]:
    from PIL import ImageFont

    found = find_spec("qtawesome")
    assert found is not None and found.origin is not None, "a dependency of this package"
    folder = Path(found.origin).parent / "fonts"
    name, version = _FONTS[family]
    codes = json.loads((folder / f"{name}-charmap-{version}.json").read_text(encoding="utf-8"))
    return ImageFont.truetype(str(folder / f"{name}-{version}.ttf"), 96), codes
