"""Photographs that come with scikit-image and mvtb-data, described by hand: pictures to try a captioner on.

Each file was looked at. Left out are textures, test and calibration patterns, scans, microscopy, sequences, drawings,
and pictures whose origin makes passing them on doubtful. Nothing is downloaded: scikit-image's fetcher is never called.
"""

from __future__ import annotations

from dataclasses import dataclass

from foveal.data.bundled import LazySamples, package_folder
from foveal.data.images import read_image
from foveal.data.record import Sample

# package -> the distribution to install, folder of its pictures
PACKAGES = {"skimage": ("scikit-image", "data"), "mvtbdata": ("mvtb-data", "images")}
PUBLIC = "public domain or CC0 (skimage.data docstring)"
MVTB = "MIT (the package mvtb-data as a whole)"


@dataclass(frozen=True, slots=True)
class Photo:
    """A file of a package and what is to be seen on it."""

    package: str
    file: str
    note: str
    """One short description."""
    nouns: str
    """What a good caption may name, in the singular, the most telling first; underscores join a noun of two words."""
    licence: str


def photos() -> LazySamples:
    """The photographs as samples, most telling first; each is decoded when it is asked for.

    ``meta`` has the description ``note``, the ``nouns`` of which a right caption names at least one (singular; for
    `foveal.data.text.mentions`), the ``licence`` and the ``source`` file. No captions: nobody wrote any.
    """
    return LazySamples(PHOTOS, _sample)


def _sample(photo: Photo) -> Sample:
    distribution, folder = PACKAGES[photo.package]
    path = package_folder(photo.package, distribution) / folder / photo.file
    return Sample(
        key=f"{photo.package}/{path.stem}",
        images=(read_image(path),),
        meta={
            "note": photo.note,
            "nouns": tuple(noun.replace("_", " ") for noun in photo.nouns.split()),
            "licence": photo.licence,
            "source": f"{distribution}: {photo.package}/{folder}/{photo.file}",
        },
    )


def _skimage(file: str, note: str, nouns: str, licence: str = PUBLIC) -> Photo:
    return Photo("skimage", file, note, nouns, licence)


def _mvtb(file: str, note: str, nouns: str) -> Photo:
    return Photo("mvtbdata", file, note, nouns, MVTB)


PHOTOS = (
    _skimage("chelsea.png", "the face of a ginger tabby cat", "cat kitten face eye whisker animal pet"),
    _skimage("coffee.png", "a cup of espresso on a red saucer", "coffee espresso cup saucer spoon mug drink table"),
    _skimage(
        "astronaut.png",
        "a smiling astronaut in an orange suit in front of a flag and a model of a space shuttle",
        "astronaut woman suit spacesuit helmet flag space_shuttle shuttle person",
    ),
    _skimage(
        "motorcycle_left.png",
        "a red motorcycle in a garage",
        "motorcycle motorbike bike garage chair shelf wheel",
        "not stated; Middlebury 2014 stereo benchmark by way of scikit-image",
    ),
    _skimage("rocket.jpg", "a rocket on its launch pad at dusk", "rocket launch launch_pad tower sky light spacecraft"),
    _skimage(
        "camera.png", "a man in a dark coat at a camera on a tripod", "man photographer camera tripod coat person"
    ),
    _skimage("coins.png", "four rows of old coins on a dark ground", "coin money medal"),
    _skimage("hubble_deep_field.jpg", "hundreds of distant galaxies", "galaxy star space sky universe night"),
    _mvtb("butterfly.jpg", "a black and white butterfly on a striped leaf", "butterfly wing leaf insect plant moth"),
    _mvtb("eiffel-1.png", "the Eiffel Tower behind a lawn", "tower eiffel_tower lawn tree grass sky cloud park"),
    _mvtb("eiffel-2.png", "the Eiffel Tower between rows of trees", "tower eiffel_tower tree grass sky cloud park"),
    _mvtb(
        "notre-dame.png", "the front of a cathedral with two towers", "cathedral church tower facade building window"
    ),
    _mvtb("church.png", "a white church with a dark roof", "church building roof window grass tower chapel sky"),
    _mvtb("building2-3.png", "an old Parisian apartment house behind trees", "building house tree window sky balcony"),
    _mvtb("flowers5.png", "yellow tulips", "tulip flower garden plant"),
    _mvtb("flowers8.png", "a bed of pink tulips", "tulip flower garden field plant"),
    _mvtb("flowers4.png", "red, white and yellow tulips in a garden", "tulip flower garden plant"),
    _mvtb("flowers6.png", "purple irises along a stone wall", "iris flower wall grass stone plant"),
    _mvtb("flowers2.png", "white pansies among green leaves", "pansy flower leaf garden plant"),
    _mvtb("tomato_35.png", "two red tomatoes on the plant", "tomato plant leaf fruit vegetable vine"),
    _mvtb("tomato_54.png", "a green tomato on the plant", "tomato plant leaf fruit vegetable vine"),
    _mvtb("greenscreen.png", "a straw hat and a yellow ball on a stool", "hat ball stool wall step_stool ladder table"),
    _mvtb("lab-scene.png", "a robot arm and a tripod in a laboratory", "robot arm tripod laboratory lab room floor"),
    _mvtb("road.png", "an empty straight road through a desert", "road desert sky horizon highway plain"),
    _mvtb("parks.png", "a gravel path through a park", "path park tree grass road lawn shadow garden"),
    _mvtb("castle.png", "a road sign to a castle on a brick wall", "sign wall arrow brick castle"),
    _mvtb("penguins.png", "a sign that warns drivers of penguins", "sign warning penguin"),
    _mvtb("rocks2-l.png", "a heap of rocks", "rock stone pile boulder"),
    _mvtb("walls-l.png", "the corner of a brick house with white windows", "house building wall window brick pavement"),
    _mvtb("roof.png", "a small bell tower on a slate roof", "roof tower bell_tower building sky church cupola dome"),
    _mvtb(
        "street.png", "an empty street of stone houses in hard shadow", "street building house window shadow sidewalk"
    ),
    _mvtb("campus/P1070498.png", "a café under blue umbrellas", "umbrella cafe tree building plant table people"),
    _mvtb("campus/P1070507.png", "a tree before a house with columns", "tree building house column lawn grass mansion"),
    _mvtb(
        "campus/P1070500.png", "a brick building behind lamp posts and plants", "building tree window lamp lawn plant"
    ),
    _mvtb("campus/P1070512.png", "palm leaves before a building", "palm tree leaf plant building"),
)
