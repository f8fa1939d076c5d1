"""A question about one of your pictures."""

from typing import Annotated

import tyro


def main(
    image: Annotated[str, tyro.conf.Positional], question: Annotated[str, tyro.conf.Positional], json: bool = False
) -> None:
    """Answer a question about a picture with a small language model that is told what a classifier sees.

    For "What is this?" and "Is there a cat?": of the things that are there it affirms 69 %, of others 14 %. It cannot
    tell colours, numbers, places or what is general ("an animal"), and knows only the 1,000 classes of ImageNet:
    tulips, rocks and paintings come out wrong. It does not say when it does not know.

    Args:
        image: picture file; JPEG, PNG, WebP, GIF, BMP, TIFF or AVIF.
        question: in English, e.g. "Is there a dog?".
        json: print one JSON document, with what the language model was told.
    """
    from foveal.cli._pictures import progress, read_picture

    if not question.strip():
        raise ValueError(f"question={question!r} is empty: ask something")
    picture = read_picture(image)
    with progress() as report:
        from foveal.demo.answer import answer
        from foveal.demo.eyes import Eyes
        from foveal.demo.zero_shot import ZeroShot
        from foveal.llm import HFLM

        eyes = Eyes.load(report)
        zero_shot = ZeroShot.load(eyes.vision)
        language = HFLM(eyes.language.model, eyes.language.tokenizer)
        report("answering", 0, 1)
        found = answer(eyes, zero_shot, language, picture, question)
    if json:
        from foveal.cli import print_json

        print_json({"image": image, "question": question, "answer": found.text, "seen": found.seen})
        return
    from rich.console import Console
    from rich.text import Text

    console = Console()
    console.print(Text(found.text, style="bold"), soft_wrap=True)
    console.print(Text(f"seen: {', '.join(found.seen)}", style="dim"), soft_wrap=True)
