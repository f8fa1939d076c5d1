"""Files that are either whole or not there: the lab writes its results by `foveal.data.files`."""

from foveal.data.files import write_atomically as write_atomically
