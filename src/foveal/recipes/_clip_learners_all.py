"""Which objectives there are for CLIP's towers, and why the others have no place on them."""

from foveal.recipes._clip_learners import Learner
from foveal.recipes._clip_learners_dito import Dito
from foveal.recipes._clip_learners_m3i import M3i
from foveal.recipes._clip_learners_regions import Cloc, Grain
from foveal.recipes._clip_learners_sources import Nevlp, Prefix
from foveal.recipes._clip_learners_texts import Align, DreamLip, Filip

LEARNERS: dict[str, type[Learner]] = {
    "clip": Learner,
    "align": Align,
    "filip": Filip,
    "dreamlip": DreamLip,
    "prefix_conditioning": Prefix,
    "cloc": Cloc,
    "grain": Grain,
    "dito": Dito,
    "nevlp": Nevlp,
    "m3i": M3i,
}
ELSEWHERE = {
    "uniter": "reads words and a detector's regions in one BERT: UNITERForPretraining of foveal.pretrain.uniter",
    "tldr": "chooses and rewrites data: foveal curate tldr",
}
"""Papers that train no dual encoder, and what they do instead."""
