"""POVID: does preference tuning against made-up answers, written and noise-triggered, make a model invent less?

Host: nano-llava. Preferred are true captions, dispreferred the same captions with absent companions, swapped places or
wrong attributes, written by rules into as many words. Detailed captions of held-out scenes are judged by CHAIR (share
of mentions, and of captions, with something that is not there) and by how many of the objects that are there they name;
POPE asks for objects one by one. Captions are drawn (temperature 1): the likeliest ones, of which the columns *greedy*
tell, hold few inventions to begin with.

Each arm sees the same pictures and true captions in the same batches, with the same number of steps and one learning
rate, chosen for *dpo* on seed 100: *sft* imitates the true captions; *dpo* is DPO against the written errors alone;
*povid* is that for the first half (stage 1), then both kinds of errors with the model of stage 1 as the reference
(stage 2). Controls: *noise0* is POVID with the picture as it is instead of noise (step 0); *base* is not trained.

Both kinds of preference tuning invent less than the host and than imitation, and name more of what is there. Noise is
hardly better than the picture as it is; POPE and greedy captions, which hold few inventions, hardly change.
"""

from functools import partial

from foveal.align.povid import POVIDObjective
from foveal.lab import Claim, Recipe, Run
from foveal.recipes._made_up import made_up
from foveal.recipes._povid_pairs import pairs
from foveal.recipes._preferences import Batches, Seen, chosen_alone, copied, fresh, imitate, pair_batches, prefer

LR = 1e-4


def batches(run: Run, noise_step: int) -> Batches:
    return pair_batches(run, run.shared(pairs), noise_step)


def first_stage(run: Run) -> Seen:
    policy, taught = fresh(run), run.shared(batches, 500)
    prefer(run, POVIDObjective(policy, policy, stage=1), taught[: len(taught) // 2], LR)
    return policy


def base(run: Run) -> dict[str, float]:
    return made_up(run, fresh(run).requires_grad_(False))


def sft(run: Run) -> dict[str, float]:
    policy = fresh(run)
    imitate(run, policy, chosen_alone(run.shared(batches, 500)), LR)
    return made_up(run, policy)


def dpo(run: Run) -> dict[str, float]:
    policy = fresh(run)
    prefer(run, POVIDObjective(policy, policy, stage=1), run.shared(batches, 500), LR)
    return made_up(run, policy)


def povid(run: Run, noise_step: int = 500) -> dict[str, float]:
    policy, taught = copied(run.shared(first_stage)), run.shared(batches, noise_step)
    prefer(run, POVIDObjective(policy, policy), taught[len(taught) // 2 :], LR)
    return made_up(run, policy)


RECIPE = Recipe(
    paper="povid",
    arms={
        "base": base,
        "sft": sft,
        "dpo": dpo,
        "povid": povid,
        "noise0": partial(povid, noise_step=0),
    },
    claims=[
        Claim("povid", beats="sft", on="CHAIR_i", lower=True, published="12.7 → 5.4 (LLaVA-1.5-7B, untuned → POVID)"),
        Claim("povid", beats="dpo", on="CHAIR_i", lower=True),
        Claim("dpo", beats="sft", on="CHAIR_i", lower=True),
        Claim("povid", beats="sft", on="POPE accuracy", published="85.9 → 86.9 (LLaVA-1.5-7B, untuned → POVID)"),
        Claim("dpo", beats="base", on="CHAIR_i", lower=True),
        Claim("dpo", beats="base", on="POPE accuracy"),
        *(Claim(arm, beats="base", on="object recall", by=-2.0) for arm in ("dpo", "povid")),
    ],
    controls=("base", "noise0"),
    seeds=tuple(range(9, 15)),  # 0 to 5 were run on greedy captions, 6 to 8 were too few to tell DPO from the host
    real="foveal align povid --model llava-hf/llava-1.5-7b-hf --images photos/",
    example="""
import torch
from foveal import align, zoo
from foveal.align.batches import Pair, PairCollator
from foveal.data.photos import photos

nano = zoo.load("nano-llava")  # or any LLaVA or LLaVA-NeXT of transformers, with its processor
photo = next(iter(photos())).image
pair = Pair(photo, "What is it?", "a cat with green eyes", "a cat with a red collar")
batch = PairCollator(nano.processor, noise_step=500)([pair])
objective = align.POVIDObjective(nano.model, nano.model)  # the reference is a frozen copy
output = objective(batch)
output.loss.backward()
print(float(output.loss), output.reward_chosen, output.reward_text, output.reward_noise)
""",
)
