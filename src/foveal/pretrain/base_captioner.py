"""Who writes about pictures, for methods that train on new captions: one protocol, which any model can fulfil."""

from typing import Protocol

import numpy as np
from jaxtyping import UInt8


class Captioner(Protocol):
    """A language model that sees."""

    def answer(self, image: UInt8[np.ndarray, "h w 3"], question: str) -> str:
        """What it says to a question, or an instruction, about a picture."""
