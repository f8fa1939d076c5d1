"""The contrast branch under the name that the methods' papers share; it lives in `base`."""

from foveal.decode.base import ContrastBranch as ContrastBranch
from foveal.decode.base import plausible_contrast as plausible_contrast
from foveal.decode.base import together as together
