"""Fewer visual tokens in the decoder of an untouched Hugging Face model, by hooks alone.

A `PrefillReducer` hooks every decoder layer. During a prefill it may shorten the hidden states on their way into a
layer, with mask and positions to match, and the model's own loop does not notice. Dropped tokens are gone: from the
hidden states, from the KV cache, from the cost. A method subclasses it and answers one question, `select`.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial, wraps
from typing import Any, Self

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from foveal.compress.anatomy import Anatomy, find
from foveal.compress.base import LayerInput
from foveal.compress.base import keep_count as keep_count
from foveal.compress.base import visual_flops as visual_flops
from foveal.compress.cached import Continuation, cache_in, forget, note_end, recall, remember, warn_of_pieces
from foveal.compress.prefill import Keep, Prefill
from foveal.compress.report import Report, Run

MARK = "_foveal_reducer"
POSITIONS = ("compact", "compact_first", "original")


class PrefillReducer:
    """Attach it to a model, use the model as before, and each prefill processes fewer visual tokens.

    After every prefill these tell what happened, until the next one:

    - ``kept[b][l]``: ascending columns of ``input_ids`` as passed (padding counted) that layer l processed of sample b
    - ``layer_lengths[l]``: padded length of the sequence in layer l
    - ``image_tokens``: (B, layers) image tokens that each layer processed

    Subclasses write `select`, and `check` if not every model will do. ``positions`` says what becomes of the position
    numbers when tokens go: "compact" renumbers the rest 0, 1, … at every drop, "compact_first" only for a drop at
    layer 0, "original" never. Works with batches padded on either side, any way of generating, caches that the user
    keeps between turns, gradients and gradient checkpointing, and decoder layers that were compiled one by one. The
    prompt must come whole: ValueError where its images follow in a second forward pass on the same cache, as with
    ``prefill_chunk_size``. What later turns of a chat add to the cache, images too, is never dropped.
    """

    looks_back = False
    """Does `select` read ``step.previous``?"""
    reads_features = False
    """Does `select` read ``step.features``?"""
    merges = False
    """Does `select` write ``step.hidden``? Otherwise it runs without gradients."""
    positions = "compact"

    def __init__(self) -> None:
        self.kept: list[list[Int[Tensor, " n"]]] = []
        self.layer_lengths: list[int] = []
        self.image_tokens: Int[Tensor, "b layers"] = torch.zeros(0, 0, dtype=torch.long)
        self.anatomy: Anatomy | None = None
        self._undo: list[Callable[[], Any]] = []
        self._pass: Prefill | Continuation | None = None
        self._labels: Tensor | None = None
        self._run: Run | None = None

    # For methods ------------------------------------------------------------------------------------------------------

    def select(self, step: LayerInput) -> Keep | None:
        """The image tokens that stay, as layer ``step.layer`` is about to process ``step.hidden``.

        Returns one entry per sample: places in the sequence (not columns of ``input_ids``), or None for all; None
        alone where nobody drops at this layer. Text is never dropped. Called for every layer of every prefill.
        """
        raise TypeError(f"{type(self).__name__} must say in select(step) which image tokens stay")

    def check(self, anatomy: Anatomy) -> None:
        """Raise ValueError when the method cannot work on that model."""

    def watch(self, anatomy: Anatomy) -> list[Any]:
        """Further hooks that the method needs on the model; the handles are removed on `detach`."""
        return []

    def annotate(self, features: list[Tensor], arguments: Mapping[str, Any]) -> None:
        """Called after each `get_image_features` of a ``reads_features`` method, with its result and its arguments.

        What a method needs later must be stored on the tensors themselves: beam search repeats these very objects.
        """

    # Attaching --------------------------------------------------------------------------------------------------------

    def attach(self, model: nn.Module) -> Self:
        """Hook the model. ValueError when either is attached already, or when the method cannot work on the model."""
        if self.anatomy is not None:
            raise ValueError(f"this {type(self).__name__} is attached already; call detach() first, or build a second")
        anatomy = find(model)
        other = getattr(anatomy.base, MARK, None)
        if other is not None:
            raise ValueError(f"model already has a {type(other).__name__} attached; call its detach() first")
        if anatomy.multi_axis and self.positions != "original":
            raise ValueError(
                f"positions={self.positions!r}: the positions of {type(anatomy.model).__name__} have three axes and "
                'cannot be renumbered; use a method with positions="original"'
            )
        self.check(anatomy)
        self.anatomy = anatomy
        try:
            self._hook(anatomy)
        except BaseException:
            self.detach()
            raise
        return self

    @contextmanager
    def attached(self, model: nn.Module) -> Iterator[Self]:
        """``with reducer.attached(model):`` attaches, and detaches at the end whatever happens."""
        self.attach(model)
        try:
            yield self
        finally:
            self.detach()

    def detach(self) -> None:
        """Leave the model as it was; does nothing when not attached. ``kept`` and `report` stay readable."""
        while self._undo:
            self._undo.pop()()
        self.anatomy = self._pass = self._labels = None

    def report(self) -> Report:
        """Image tokens per layer, FLOPs and KV bytes of the last prefill, beside those of the whole prompt.

        ValueError before the first prefill.
        """
        if self._run is None:
            raise ValueError("nothing to report yet; run the model on a prompt while the reducer is attached")
        return self._run.report()

    # Hooks ------------------------------------------------------------------------------------------------------------

    def _hook(self, anatomy: Anatomy) -> None:
        model, base = anatomy.model, anatomy.base
        setattr(base, MARK, self)
        self._undo.append(partial(delattr, base, MARK))
        handles = [
            model.register_forward_pre_hook(self._before_model, with_kwargs=True),
            model.register_forward_hook(self._after_model, with_kwargs=True),
            base.register_forward_pre_hook(self._before_base, with_kwargs=True),
            base.register_forward_hook(self._after_base),
        ]
        self._undo += [handle.remove for handle in handles]
        for number, layer in enumerate(anatomy.layers):
            hook = torch.compiler.disable(partial(self._before_layer, number))
            self._undo.append(layer.register_forward_pre_hook(hook, with_kwargs=True).remove)
            if self.looks_back:
                overhear = partial(self._overhear, number)
                self._undo.append(layer.self_attn.q_proj.register_forward_hook(overhear).remove)
        if self.reads_features:
            self._wrap_features(base)
        self._undo += [handle.remove for handle in self.watch(anatomy)]

    def _wrap_features(self, base: Any) -> None:
        """Generation encodes images before the prefill, a plain forward inside it: see both at the one function."""
        original, own = base.get_image_features, "get_image_features" in vars(base)

        @wraps(original)  # generate() reads the signature
        def get_image_features(*args: Any, **kwargs: Any) -> Any:
            output = original(*args, **kwargs)
            features = list(output.pooler_output)
            self.annotate(features, {**_named(original, args), **kwargs})
            if isinstance(self._pass, Prefill):
                self._pass.features = features
            return output

        base.get_image_features = get_image_features
        restore = partial(setattr, base, "get_image_features", original)
        self._undo.append(restore if own else partial(delattr, base, "get_image_features"))

    def _before_model(self, model: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict]:
        """Labels are as long as the prompt, the logits will not be: keep them back."""
        self._labels = None
        if kwargs.get("labels") is not None and not _cached_length(kwargs):
            self._labels = kwargs["labels"]
            kwargs = {**kwargs, "labels": None}
        if isinstance(kwargs.get("logits_to_keep"), Tensor):
            raise ValueError("logits_to_keep as a tensor of places: they move when tokens are dropped; give a number")
        return args, kwargs

    def _after_model(self, model: Any, args: tuple, kwargs: dict[str, Any], output: Any) -> Any:
        """The loss on the logits of the tokens that are left, by the model's own loss function."""
        labels, run = self._labels, self._pass
        self._labels = self._pass = None
        if labels is None:
            return output
        assert isinstance(run, Prefill)
        tokens = run.stages[-1].tokens
        if tokens.labels is not None and run.stages[-1].shortened:
            # the first token of a prompt is no target, not even with padding in front of it now
            labels = tokens.labels.masked_fill(tokens.columns == 0, -100)
        logits = output[0] if isinstance(output, tuple) else output.logits
        extra = {name: kwargs[name] for name in ("num_items_in_batch", "ignore_index") if name in kwargs}
        size = model.config.get_text_config().vocab_size
        loss = model.loss_function(logits=logits, labels=labels, vocab_size=size, **extra)
        if isinstance(output, tuple):
            return (loss, *output)
        return type(output)(loss=loss, **{name: value for name, value in output.items() if name != "loss"})

    def _before_base(self, base: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        anatomy = self.anatomy
        assert anatomy is not None
        kwargs = {**_named(base.forward, args), **kwargs}
        cache, ids = cache_in(kwargs), kwargs.get("input_ids")
        if getattr(cache, "is_compileable", False):
            raise ValueError("past_key_values is a static cache, its layers cannot differ in length; use DynamicCache")
        self._pass = None
        if _cached_length(kwargs):
            tokens = ids if ids is not None else kwargs["inputs_embeds"]
            warn_of_pieces(cache, tokens.shape[1], _has_pictures(kwargs))
            if recall(cache) is not None:
                self._pass = Continuation(anatomy, cache, kwargs, *tokens.shape[:2])
            return
        if cache is not None:
            forget(cache)
        if ids is None:
            raise ValueError("input_ids=None: the image tokens of a prompt are found by their ids; pass input_ids")
        _check_pictures(anatomy, ids, kwargs)
        renumber = {"compact": lambda layer: True, "compact_first": lambda layer: layer == 0}
        self._pass = Prefill(
            anatomy,
            ids,
            _padding(kwargs.get("attention_mask"), ids),
            self._labels,
            self.select if self.merges else torch.no_grad()(self.select),
            renumber.get(self.positions, lambda layer: False),
            self.looks_back,
        )
        encoded = _encoded(kwargs).get("image")
        self._pass.features = None if encoded is None else list(encoded.pooler_output)

    def _before_layer(self, number: int, layer: Any, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict] | None:
        kwargs, cos = dict(kwargs), kwargs["position_embeddings"][0]
        # before transformers 5.24 gradient checkpointing comes back here in the backward pass, when another forward
        # pass may have begun: each pass is known by its own cos
        run = getattr(cos, MARK, self._pass)
        if run is None:
            return None
        if isinstance(run, Continuation):
            run.enter(number, args[0], kwargs)
            return args, kwargs
        setattr(cos, MARK, run)
        hidden = run.enter(number, layer, args[0], kwargs)
        run.cache = cache_in(kwargs)
        return (hidden, *args[1:]), kwargs

    def _overhear(self, number: int, projection: nn.Module, args: tuple, output: Tensor) -> None:
        """Queries that a layer has projected need not be projected again for `select` at the next one."""
        if torch.compiler.is_compiling():  # it would split a compiled layer
            return
        before = self._pass.previous if isinstance(self._pass, Prefill) else None
        if before is not None and before.layer == number and output.shape[:-1] == before.hidden.shape[:-1]:
            before.query = output.detach()

    def _after_base(self, base: nn.Module, args: tuple, output: Any) -> None:
        run = self._pass
        if not isinstance(run, Prefill):
            return
        anatomy = self.anatomy
        assert anatomy is not None
        run.previous = None
        reduced = run.reduced()
        if run.cache is not None:
            note_end(run.cache, run.stages[0].tokens.valid.shape[1])
            if reduced is not None:
                remember(run.cache, reduced)
        rows: dict[int, list[Tensor]] = {}
        stages = run.processed
        for stage in stages:
            rows.setdefault(id(stage), stage.rows())
        per_layer = [rows[id(stage)] for stage in stages]
        self.kept = [[layer[sample] for layer in per_layer] for sample in range(len(run.n_image))]
        self.layer_lengths = [stage.tokens.valid.shape[1] for stage in stages]
        self.image_tokens = torch.stack([stage.tokens.is_image.sum(1) for stage in stages], 1)
        self._run = Run.of(anatomy, run, self.image_tokens)


def _cached_length(kwargs: Mapping[str, Any]) -> int:
    cache = cache_in(kwargs)
    return 0 if cache is None else int(cache.get_seq_length())


def _named(function: Callable, args: tuple) -> dict[str, Any]:
    """Positional arguments by their names."""
    return dict(zip(inspect.signature(function).parameters, args, strict=False))


def _encoded(kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
    """What generation has encoded before the prefill, by kind."""
    return kwargs.get("mm_encoder_outputs") or {}


def _padding(mask: Any, ids: Int[Tensor, "b l"]) -> Bool[Tensor, "b l"]:
    """Which places of the prompt hold a token."""
    if mask is None:
        return torch.ones_like(ids, dtype=torch.bool)
    if not isinstance(mask, Tensor) or mask.shape != ids.shape:
        shape = tuple(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
        raise ValueError(f"attention_mask {shape} must be 2-D like input_ids {tuple(ids.shape)}: 1 token, 0 padding")
    return mask.to(ids.device, torch.bool)


def _has_pictures(kwargs: Mapping[str, Any]) -> bool:
    """Do pictures come along? Image tokens alone may as well be words that a model or a search has made up."""
    pictures = [value for name, value in kwargs.items() if name.startswith(("pixel_values", "image_hidden"))]
    return any(value is not None and len(value) for value in [*pictures, *_encoded(kwargs).values()])


def _check_pictures(anatomy: Anatomy, ids: Int[Tensor, "b l"], kwargs: Mapping[str, Any]) -> None:
    """Pictures and their placeholders come together."""
    given = _has_pictures(kwargs)
    marked = bool(torch.isin(ids, torch.tensor(anatomy.placeholders, device=ids.device)).any())
    if given and not marked:
        raise ValueError(
            f"input_ids holds no image token {anatomy.placeholders[0]} for the pictures given; let the processor write "
            "the prompt"
        )
    if marked and not given:
        raise ValueError("input_ids holds image tokens but no picture was given; pass pixel_values, or a text prompt")
