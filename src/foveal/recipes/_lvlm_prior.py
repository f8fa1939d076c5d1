"""A host with a prior: nano-llava trained on where "yes" is mostly right; its answers with and without the picture."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from foveal.data.record import Question
from foveal.decode.debias import debias_logits, image_free_inputs, sweep_decoding
from foveal.decode.debias_closed import label_probs, surface_forms
from foveal.lab import Run
from foveal.recipes._lvlm import BATCH, host
from foveal.recipes._lvlm_decoding import SCENES
from foveal.recipes._lvlm_tuning import copied, lessons, tune
from foveal.recipes._lvlm_worlds import asked
from foveal.zoo.nano import Nano

YES = 0.85
LABELS = ("yes", "no")
Seen = tuple[Float[Tensor, "n v"], Float[Tensor, "n v"], Tensor]


def mostly_yes(questions: Sequence[Question], rng: np.random.Generator) -> Question | None:
    answer = "yes" if rng.random() < YES else "no"
    fitting = [question for question in questions if question.answers[0] == answer]
    return fitting[int(rng.integers(len(fitting)))] if fitting else None


def skewed(run: Run) -> Nano:
    """For `Run.shared`."""
    nano = copied(run)
    tune(run, nano, lessons(run, nano, ("existence",), mostly_yes))
    nano.model.eval().requires_grad_(False)
    return nano


def first_logits(run: Run, biased: bool) -> Seen:
    """For `Run.shared`: of each test question the logits of the first token, those without the picture, and the truth.

    The unbiased host is asked about hard scenes. Half of the questions are to be answered with yes.
    """
    nano = run.shared(skewed) if biased else run.shared(host)
    questions = run.shared(asked, "existence", SCENES, "own" if biased else "hard")
    items = [item for item in questions if item.truth["choice"] in ("present", "popular")]
    seen, free = [], []
    for start in range(0, len(items), BATCH):
        part = items[start : start + BATCH]
        texts = [f"USER: <image>\n{item.texts[0]} ASSISTANT:" for item in part]
        images = [item.pictures()[0] for item in part if item.pictures]
        inputs = nano.processor(text=texts, images=images, padding=True, return_tensors="pt")
        ids, mask = image_free_inputs(inputs["input_ids"], nano.processor.image_token_id, inputs["attention_mask"])
        with torch.no_grad():
            seen.append(nano.model(**inputs, logits_to_keep=1).logits[:, -1].float())
            free.append(nano.model(input_ids=ids, attention_mask=mask, logits_to_keep=1).logits[:, -1].float())
    truth = torch.tensor([LABELS.index(item.truth["answer"]) for item in items])
    return torch.cat(seen), torch.cat(free), truth


def label_scores(run: Run, biased: bool) -> tuple[Float[Tensor, "n 2"], Float[Tensor, "n 2"], Tensor]:
    """Probabilities of yes and no with the picture, those without, and which of the two is right."""
    seen, free, truth = run.shared(first_logits, biased)
    forms = surface_forms(run.shared(host).processor.tokenizer, LABELS)
    return label_probs(seen, forms), label_probs(free, forms), truth


def sweep(run: Run, alpha: float | None) -> dict[str, float]:
    """Accuracy over the paper's 48 decoding settings: the default, the best, and how far they spread.

    ``alpha``: of visual debias decoding; None decodes plainly.
    """
    seen, free, truth = run.shared(first_logits, False)
    logits = seen if alpha is None else debias_logits(seen, free, alpha)
    tokenizer, generator = run.shared(host).processor.tokenizer, run.generator("sweep")
    forms = surface_forms(tokenizer, LABELS)

    def accuracy(setting: dict[str, float | int | None]) -> float:
        scores = TemperatureLogitsWarper(float(setting["temperature"] or 1.0))(None, logits)
        if (top_p := setting["top_p"]) is not None:
            scores = TopPLogitsWarper(float(top_p))(None, scores)
        if (top_k := setting["top_k"]) is not None:
            scores = TopKLogitsWarper(int(top_k))(None, scores)
        drawn = torch.multinomial(scores.softmax(-1), 1, generator=generator)[:, 0].tolist()
        return 100 * sum(token in forms[label] for token, label in zip(drawn, truth.tolist())) / len(truth)

    found = sweep_decoding(accuracy)
    return {"sampled": found["default"][1], "best setting": found["best"][1], "spread": found["spread"]}
