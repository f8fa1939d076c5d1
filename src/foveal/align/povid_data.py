"""POVID's preference data: records in the released format, and errors that a language model writes into answers."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from foveal.data.files import write_atomically
from foveal.llm import LanguageModel, Turn

HALLUCINATION_KINDS = ("co-occurrence", "relation", "attribute")
MARK = "<image>"
TURNS = ("conversations", "rejected_conversations")
_SPEAKERS = ("human", "gpt")
_ERRORS = {
    "co-occurrence": (
        "Mention one or two objects that are not in the original but that people often see together with the objects "
        "that are, in such a way that a reader would not notice."
    ),
    "relation": (
        "Change how things stand to each other: swap left and right, above and below, in front of and behind, or who "
        "does what to whom."
    ),
    "attribute": "Change attributes of what is mentioned: colours, numbers, sizes, materials, actions or moods.",
}
_RULES = (
    "You write false descriptions of pictures for a test of attention. You are given an instruction and its correct "
    "answer. Rewrite the answer with errors of the kind that is asked for. Keep its style, its order and about its "
    "length; change facts only, and keep the false ones plausible. Reply with the rewritten answer and nothing else."
)


def preference_record(id: str, image: str, instruction: str, preferred: str, dispreferred: str) -> dict[str, Any]:
    """One record as the authors released them: both dialogues open with the same human turn.

    Args:
        id: of the example.
        image: file name.
        instruction: ``<image>`` and a line break are put in front unless the mark is in it.
        preferred, dispreferred: the two answers.

    Raises:
        ValueError: an answer is empty, or both are the same.
    """
    for name, answer in (("preferred", preferred), ("dispreferred", dispreferred)):
        if not answer.strip():
            raise ValueError(f"{name}={answer!r} of record {id!r} is empty: drop the example")
    if preferred.strip() == dispreferred.strip():
        raise ValueError(f"dispreferred={dispreferred!r} of record {id!r} equals preferred: there is nothing to learn")
    asked = instruction if MARK in instruction else f"{MARK}\n{instruction}"

    def turns(answer: str) -> list[dict[str, str]]:
        return [{"from": "human", "value": asked}, {"from": "gpt", "value": answer}]

    return {
        "id": id,
        "image": image,
        "conversations": turns(preferred),
        "rejected_conversations": turns(dispreferred),
    }


def read_preferences(path: str | Path) -> list[dict[str, Any]]:
    """The records of a JSON list. ValueError: no such file, no list of records, or one of another form."""
    try:
        records = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"cannot read preferences {path}: {error}; give a JSON list of records") from error
    if not isinstance(records, list):
        raise ValueError(f"preferences {path} hold a {type(records).__name__}: give a JSON list of records")
    for number, record in enumerate(records, 1):
        _check_record(record, f"preferences {path}, record {number}")
    return records


def write_preferences(path: str | Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Write a JSON list, whole or not at all. ValueError: a record has another form."""
    records = list(records)
    for number, record in enumerate(records, 1):
        _check_record(record, f"record {number}")
    content = json.dumps(records, indent=1, ensure_ascii=False) + "\n"
    write_atomically(Path(path), content.encode())


def hallucination_messages(instruction: str, answer: str, kind: str) -> list[Turn]:
    """What a language model is told so that it writes errors of one kind into the answer. ValueError: unknown kind."""
    if kind not in _ERRORS:
        raise ValueError(f"kind={kind!r}: choose one of {', '.join(HALLUCINATION_KINDS)}")
    question = instruction.replace(MARK, "").strip()
    asked = f"Kind of error: {kind}. {_ERRORS[kind]}\n\nInstruction: {question}\n\nCorrect answer: {answer}"
    return [{"role": "system", "content": _RULES}, {"role": "user", "content": f"{asked}\n\nRewritten answer:"}]


def inject_hallucinations(
    samples: Sequence[Mapping[str, Any]],
    lm: LanguageModel,
    *,
    kinds: Sequence[str] = HALLUCINATION_KINDS,
    max_retries: int = 2,
) -> list[dict[str, Any]]:
    """Preference records in which the language model's rewritten answers are the dispreferred ones.

    Args:
        samples: with ``id``, ``image``, ``instruction`` and the true ``answer``.
        lm: first asked at temperature 0, then with rising seeds.
        kinds: sample i gets errors of kind i mod their number.
        max_retries: how often more to ask when a reply is empty or the answer itself; then the sample is left out.

    Raises:
        ValueError: no kinds, an unknown one, negative retries, or a sample that lacks something.
    """
    if not kinds or max_retries < 0:
        raise ValueError(f"kinds={kinds!r}, max_retries={max_retries}: give at least one kind, and 0 retries or more")
    for number, sample in enumerate(samples):  # all of them before the first call is paid for
        if missing := [name for name in ("id", "image", "instruction", "answer") if name not in sample]:
            raise ValueError(f"samples[{number}] lacks {', '.join(missing)}; it has {', '.join(sample)}")
        if not sample["answer"].strip():
            raise ValueError(f"samples[{number}] ({sample['id']!r}) has an empty answer: nothing can be rewritten")
    found = []
    for number, sample in enumerate(samples):
        messages = hallucination_messages(sample["instruction"], sample["answer"], kinds[number % len(kinds)])
        reply = _rewritten(messages, sample["answer"], lm, max_retries)
        if reply is not None:
            asked, answer = sample["instruction"], sample["answer"]
            found.append(preference_record(sample["id"], sample["image"], asked, answer, reply))
    return found


def _rewritten(messages: list[Turn], answer: str, lm: LanguageModel, max_retries: int) -> str | None:
    """The first reply that says something else than the answer, or None."""
    room = 48 + 2 * len(answer.split())  # about its length, in tokens of any language model
    for attempt in range(max_retries + 1):
        temperature, seed = (0.7, attempt) if attempt else (0.0, None)  # the same again would be the same
        reply = lm.complete(messages, max_new_tokens=max(128, room), temperature=temperature, seed=seed).strip()
        if reply and reply.split() != answer.split():
            return reply
    return None


def _check_record(record: Any, name: str) -> None:
    """ValueError unless the record has a picture and two dialogues of the same two speakers."""
    form = '{"id", "image", "conversations": [{"from": "human", "value"}, {"from": "gpt", "value"}], '
    form += '"rejected_conversations": [...]}'
    if not isinstance(record, Mapping) or not isinstance(record.get("image"), str):
        raise ValueError(f"{name} must be an object with an image, {form}; not {str(record)[:80]!r}")
    for part in TURNS:
        turns = record.get(part)
        speakers = [turn.get("from") for turn in turns if isinstance(turn, Mapping)] if isinstance(turns, list) else []
        texts = [turn.get("value") for turn in turns if isinstance(turn, Mapping)] if isinstance(turns, list) else []
        if tuple(speakers) != _SPEAKERS or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"{name}: {part} must be one human and one gpt turn, {form}")
