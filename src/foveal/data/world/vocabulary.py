"""The words of the world: everything that a scene can hold, and what tends to occur together.

Nouns are common English words, so that pretrained language models can read the captions. Each sprite is one Twemoji
picture. `HABITATS` is what makes the world natural: a model that has learnt from it expects a fork beside a plate of
pizza, and invents one for the same reason that models of photographs do.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import NamedTuple

RGB = tuple[int, int, int]


class Sprite(NamedTuple):
    """A noun that is drawn as a Twemoji picture."""

    noun: str
    plural: str
    category: str
    emoji: str


SHAPES = MappingProxyType(
    {
        "circle": "circles",
        "square": "squares",
        "triangle": "triangles",
        "star": "stars",
        "ring": "rings",
        "heart": "hearts",
        "diamond": "diamonds",
        "cross": "crosses",
        "crescent": "crescents",
        "hexagon": "hexagons",
        "arrow": "arrows",
        "drop": "drops",
    }
)
"""Noun to plural. The category of all of them is ``"shape"``."""

COLOURS: MappingProxyType[str, RGB] = MappingProxyType(
    {
        "red": (214, 39, 40),
        "orange": (247, 136, 24),
        "yellow": (250, 218, 50),
        "green": (44, 150, 62),
        "cyan": (64, 205, 218),
        "blue": (38, 84, 208),
        "purple": (130, 58, 178),
        "pink": (248, 142, 190),
        "brown": (122, 78, 44),
        "black": (28, 28, 32),
        "white": (246, 246, 246),
    }
)

TEXTURES = ("plain", "striped", "dotted", "checked", "zigzag", "ringed")
SIZES = ("small", "medium", "large")
PLACES = ("grass", "sand", "water", "snow", "street", "sky", "wood", "brick")
STYLES = ("flat", "sketch", "cartoon", "night", "fog", "blur", "noise", "inverted", "grey", "sepia", "mosaic")
"""``"flat"`` is the picture as it was drawn; the others change its look and leave its masks true."""

_SPRITES = {
    "animal": (
        "dog 🐕, cat 🐈, horse 🐎, cow 🐄, pig 🐖, sheep/sheep 🐑, rabbit 🐇, monkey 🐒, elephant 🐘, "
        "tiger 🐅, camel 🐪, giraffe 🦒, zebra 🦓, kangaroo 🦘, bear 🐻, fox/foxes 🦊, lion 🦁, "
        "mouse/mice 🐁, snake 🐍, turtle 🐢, crocodile 🐊, frog 🐸"
    ),
    "bird": "chicken 🐔, duck 🦆, owl 🦉, eagle 🦅, penguin 🐧, parrot 🦜, flamingo 🦩, swan 🦢",
    "sea creature": "fish/fish 🐟, whale 🐳, dolphin 🐬, shark 🦈, octopus/octopuses 🐙, crab 🦀, lobster 🦞, seal 🦭",
    "insect": "bee 🐝, butterfly/butterflies 🦋, ant 🐜, ladybug 🐞, snail 🐌",
    "fruit": (
        "apple 🍎, banana 🍌, lemon 🍋, pear 🍐, pineapple 🍍, strawberry/strawberries 🍓, "
        "watermelon 🍉, kiwi 🥝, peach/peaches 🍑, coconut 🥥"
    ),
    "vegetable": (
        "carrot 🥕, tomato/tomatoes 🍅, cucumber 🥒, potato/potatoes 🥔, eggplant 🍆, mushroom 🍄, onion 🧅, pepper 🫑"
    ),
    "food": ("bagel 🥯, taco 🌮, pizza 🍕, hamburger 🍔, egg 🥚, cake 🎂, cookie 🍪, donut 🍩, sandwich/sandwiches 🥪"),
    "vehicle": (
        "car 🚗, bus/buses 🚌, truck 🚚, tractor 🚜, bicycle 🚲, motorcycle 🏍️, train 🚂, airplane ✈️, "
        "helicopter 🚁, boat ⛵, rocket 🚀, ambulance 🚑"
    ),
    "tool": "hammer 🔨, wrench/wrenches 🔧, saw 🪚, axe 🪓, key 🔑, knife/knives 🔪, magnet 🧲, ladder 🪜",
    "instrument": "guitar 🎸, drum 🥁, violin 🎻, trumpet 🎺, piano 🎹, saxophone 🎷, bell 🔔",
    "sport": "soccer ball ⚽, basketball 🏀, tennis ball 🎾, kite 🪁, skateboard 🛹, trophy/trophies 🏆",
    "clothing": (
        "shirt 👕, dress/dresses 👗, hat 👒, shoe 👟, boot 👢, coat 🧥, crown 👑, scarf/scarves 🧣, backpack 🎒"
    ),
    "plant": "tree 🌳, sunflower 🌻, cactus/cacti 🌵, leaf/leaves 🍁, tulip 🌷, palm 🌴",
    "home": ("chair 🪑, bed 🛏️, bulb 💡, clock ⏰, cup ☕, bucket 🪣, broom 🧹, candle 🕯️, television 📺, umbrella ☂️"),
    "desk": "book 📕, pencil ✏️, computer 💻, telephone ☎️, camera 📷, envelope ✉️",
    "building": "house 🏠, castle 🏰, tent ⛺, church/churches ⛪, tower 🗼",
}


def _sprites() -> tuple[Sprite, ...]:
    """One record per "noun emoji" or "noun/plural emoji"; a plural that is not given ends in s."""
    found = []
    for category, line in _SPRITES.items():
        for entry in line.split(", "):
            names, emoji = entry.rsplit(" ", 1)
            noun, _, plural = names.partition("/")
            found.append(Sprite(noun, plural or f"{noun}s", category, emoji))
    return tuple(found)


SPRITES = _sprites()
SPRITE = MappingProxyType({sprite.noun: sprite for sprite in SPRITES})
CATEGORIES = ("shape", *_SPRITES)
NOUNS = (*SHAPES, *SPRITE)
CATEGORY = MappingProxyType({noun: SPRITE[noun].category if noun in SPRITE else "shape" for noun in NOUNS})
PLURALS = MappingProxyType({**SHAPES, **{sprite.noun: sprite.plural for sprite in SPRITES}})

NOVEL_NOUNS = (
    *("hexagon", "drop"),
    *("zebra", "fox", "kangaroo", "turtle", "owl", "flamingo", "dolphin", "lobster", "ladybug"),
    *("pear", "coconut", "strawberry", "eggplant", "onion", "donut", "sandwich"),
    *("helicopter", "motorcycle", "ambulance", "wrench", "magnet", "violin", "saxophone", "kite", "skateboard"),
    *("scarf", "boot", "cactus", "broom", "candle", "camera", "castle"),
)
"""Nouns that zero-shot and open-vocabulary protocols keep out of training; a fixed fifth, from every category."""
BASE_NOUNS = tuple(noun for noun in NOUNS if noun not in NOVEL_NOUNS)

HABITATS = MappingProxyType(
    {
        "home": (
            ("wood",),
            "dog, cat, mouse, chair, bed, bulb, clock, television, book, candle, broom, telephone, piano",
        ),
        "garden": (
            ("grass",),
            "dog, cat, tree, sunflower, tulip, bee, butterfly, ladybug, snail, ant, rabbit, "
            "house, bucket, soccer ball, frog",
        ),
        "farm": (("grass", "street"), "cow, horse, pig, sheep, chicken, tractor, duck, egg, house, tree, dog"),
        "savanna": (
            ("grass", "sand"),
            "lion, elephant, giraffe, zebra, tiger, monkey, crocodile, snake, tree, kangaroo",
        ),
        "forest": (("grass", "wood"), "bear, fox, owl, mushroom, tree, leaf, axe, tent, eagle, snail, ant, rabbit"),
        "desert": (("sand",), "camel, cactus, snake, tent, palm"),
        "jungle": (("grass",), "monkey, parrot, banana, palm, snake, tiger, coconut, frog, pineapple"),
        "beach": (("sand", "water"), "crab, palm, coconut, umbrella, turtle, kite, boat, lobster, hat, bucket"),
        "sea": (("water",), "fish, whale, dolphin, shark, octopus, boat, seal, turtle, lobster, crab"),
        "pond": (("water", "grass"), "duck, swan, flamingo, frog, fish, turtle, crocodile, bucket"),
        "winter": (("snow",), "penguin, seal, bear, scarf, coat, boot, fox, house, hat"),
        "city": (
            ("street", "brick"),
            "car, bus, truck, bicycle, motorcycle, ambulance, train, church, tower, house, skateboard",
        ),
        "air": (("sky",), "airplane, helicopter, rocket, kite, eagle, butterfly, parrot, bee, owl"),
        "fruit bowl": (
            ("wood",),
            "apple, banana, lemon, pear, pineapple, strawberry, watermelon, kiwi, peach, coconut, knife",
        ),
        "kitchen": (
            ("wood", "brick"),
            "bagel, egg, tomato, carrot, cucumber, potato, eggplant, onion, pepper, mushroom, knife, cup",
        ),
        "café": (("wood", "brick"), "cup, cake, cookie, donut, sandwich, pizza, hamburger, taco, bagel, chair, candle"),
        "workshop": (("wood", "brick"), "hammer, wrench, saw, axe, ladder, magnet, key, bucket"),
        "stage": (("wood", "brick"), "guitar, drum, violin, trumpet, piano, saxophone, bell"),
        "playground": (
            ("grass", "street"),
            "soccer ball, basketball, tennis ball, kite, skateboard, trophy, bicycle, shoe",
        ),
        "wardrobe": (("wood", "brick"), "shirt, dress, hat, shoe, boot, coat, scarf, crown, backpack, umbrella"),
        "office": (("wood",), "book, pencil, computer, telephone, camera, envelope, bulb, clock, cup, key, backpack"),
        "old town": (("street", "grass"), "castle, church, tower, bell, horse, crown, key, tulip"),
    }
)
"""Name to the places it is found in (the likeliest first) and the nouns found there."""


def _habitats() -> tuple[dict[str, tuple[str, ...]], dict[str, tuple[str, ...]]]:
    """Companions and homes of every sprite, in the order of `HABITATS`."""
    companions: dict[str, dict[str, None]] = {noun: {} for noun in SPRITE}
    homes: dict[str, dict[str, None]] = {noun: {} for noun in SPRITE}
    for places, line in HABITATS.values():
        nouns = line.split(", ")
        for noun in nouns:
            homes[noun] |= dict.fromkeys(places)
            companions[noun] |= dict.fromkeys(other for other in nouns if other != noun)
    return {n: tuple(found) for n, found in companions.items()}, {n: tuple(found) for n, found in homes.items()}


_companions, _homes = _habitats()
COMPANIONS = MappingProxyType(_companions)
"""Sprite noun to the sprite nouns that naturally occur beside it."""
HOMES = MappingProxyType(_homes)
"""Sprite noun to the places where it naturally occurs."""

WORDS = (
    *("STOP", "EXIT", "OPEN", "CAFE", "TAXI", "HOTEL", "BANK", "SALE", "ZOO", "PARK", "BUS", "SHOP", "FOOD", "NEWS"),
    *("HELLO", "LOVE", "MILK", "TEA", "FISH", "BOOK", "STAR", "MOON", "SUN", "RED", "BLUE", "NORTH", "WEST", "KING"),
    *("7", "12", "24", "36", "48", "59", "60", "81", "95", "100"),
)
"""What is written in scenes in Latin letters and figures."""
