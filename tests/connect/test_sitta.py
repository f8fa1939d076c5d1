import itertools
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import ByteLevelBPETokenizer
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)
from transformers.utils import logging as transformers_logging

from foveal.connect import sitta
from foveal.connect.sitta import PromptStyle, SittaCaptioner, SittaConnector, SittaMapper
from foveal.connect.sitta_captioner import stop_ids

torch.set_num_threads(1)
GOLDEN = dict(np.load(Path(__file__).parents[1] / "golden/sitta.npz"))
TENSOR = {key: torch.from_numpy(value) for key, value in GOLDEN.items() if value.dtype.kind in "fi"}


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# Maps -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["ols", "ridge", "procrustes", "robust_procrustes"])
def test_golden_maps(method):
    X, Y = sitta.standardize(TENSOR["map_x"])[0], sitta.standardize(TENSOR["map_y"])[0]
    torch.testing.assert_close(X, TENSOR["map_x_std"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(Y, TENSOR["map_y_std"], atol=1e-5, rtol=1e-5)
    W = sitta.fit_linear_map(X, Y, method)
    torch.testing.assert_close(W, TENSOR[f"map_{method.split('_')[0]}"], atol=1e-4, rtol=1e-4)
    assert W.dtype == torch.float32


def test_standardize_uses_population_std_and_survives_constant_columns():
    x = draw(7, 3)
    x[:, 1] = 0.0
    z, mean, std = sitta.standardize(x)
    torch.testing.assert_close(std, x.std(0, correction=0))
    torch.testing.assert_close(z.square().mean(0), torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64))
    torch.testing.assert_close(sitta.standardize(x[:2], mean, std)[0], z[:2])


@pytest.mark.parametrize("value", [1000.1, 0.1, 1 / 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_constant_column_is_zero_and_not_its_rounding_error(value, dtype):
    x = draw(7, 3, dtype=dtype) + 5
    expected = (x - x.mean(0)) / x.std(0, correction=0)
    x[:, 1] = value
    z, mean, std = sitta.standardize(x)
    assert torch.equal(z[:, 1], A(7, dtype=dtype))
    assert (mean[1], std[1]) == (x[0, 1], 0)
    assert torch.equal(z[:, ::2], expected[:, ::2])
    assert torch.equal(sitta.standardize(x[3:4], mean, std)[0], z[3:4])


@settings(max_examples=20, deadline=None)
@given(n=st.integers(2, 12), dv=st.integers(1, 8), dl=st.integers(1, 8), seed=st.integers(0, 99))
def test_ols_residual_is_orthogonal_and_minimum_norm(n, dv, dl, seed):
    X, Y = draw(n, dv, seed=seed), draw(n, dl, seed=seed + 100)
    W = sitta.fit_linear_map(X, Y, "ols")
    torch.testing.assert_close(X.mT @ (Y - X @ W), torch.zeros(dv, dl, dtype=torch.float64), atol=1e-8, rtol=0)
    torch.testing.assert_close(W, torch.from_numpy(np.linalg.lstsq(X.numpy(), Y.numpy())[0]), atol=1e-6, rtol=1e-6)


def test_ridge_solves_its_normal_equations():
    X, Y = draw(4, 6), draw(4, 3, seed=1)
    W = sitta.fit_linear_map(X, Y, "ridge", alpha=25.0)
    torch.testing.assert_close(X.mT @ X @ W + 25 * W, X.mT @ Y)


@pytest.mark.parametrize(("dv", "dl"), [(5, 3), (3, 5), (4, 4)])
@pytest.mark.parametrize("method", ["procrustes", "robust_procrustes"])
def test_procrustes_is_semi_orthogonal_and_finds_a_rotation(dv, dl, method):
    rotation = torch.linalg.qr(draw(max(dv, dl), min(dv, dl)))[0]
    rotation = rotation if dv > dl else rotation.mT
    X = draw(30, dv, seed=1)
    W = sitta.fit_linear_map(X, X @ rotation, method)
    gram = W.mT @ W if dv >= dl else W @ W.mT
    torch.testing.assert_close(gram, torch.eye(min(dv, dl), dtype=torch.float64))
    if dv <= dl:
        torch.testing.assert_close(W, rotation)


def test_robust_procrustes_shrugs_off_outliers():
    rotation, X = torch.linalg.qr(draw(6, 6))[0], draw(60, 6, seed=1)
    Y = X @ rotation
    Y[:10] = 3 * draw(10, 6, seed=2)
    plain, robust = (
        (sitta.fit_linear_map(X, Y, m) - rotation).norm().item() for m in ("procrustes", "robust_procrustes")
    )
    assert robust < plain / 5


# Pairs and words ------------------------------------------------------------------------------------------------------


def test_expand_pairs_repeats_each_source_for_its_tokens():
    features, embeddings = draw(3, 2), draw(5, 4, seed=1)
    X, Y, source, token = sitta.expand_pairs(features, [[4, 0], [], [1]], embeddings)
    assert source.tolist() == [0, 0, 2]
    assert token.tolist() == [4, 0, 1]
    assert torch.equal(X, features[source])
    assert torch.equal(Y, embeddings[token])


def test_caption_words():
    text = "A dog, a Dog and the ball. A ball on grass. End ."
    assert sitta.caption_words(text, {"a", "and", "the", "on"}) == ["Dog", "End", "ball", "dog", "grass"]
    assert sitta.caption_words("is a.", {"a", "is"}) == [
        "a"
    ]  # the full stop hides the stop word, as in the paper's code
    assert sitta.caption_words("", set()) == []


def test_prompted_embeddings_average_raw_outputs_over_templates():
    calls = []

    def encode(texts):
        calls.append(texts)
        return torch.tensor([[float(len(text)), text.count("a")] for text in texts])

    out = sitta.prompted_embeddings(["cat", "{x}"], ["a {}", "the photo of {}."], encode)
    assert calls == [["a cat", "a {x}"], ["the photo of cat.", "the photo of {x}."]]
    torch.testing.assert_close(out, torch.tensor([[(5 + 17) / 2, (2 + 1) / 2], [(5 + 17) / 2, (1 + 0) / 2]]))


def test_class_name_pairs():
    vocabulary = {" great": 9, " white": 4, " shark": 2, " black": 5, " and": 1, " s": 0}
    tokenize = lambda word: [vocabulary[word], 7] if word == " shark" else [vocabulary[word]]  # noqa: E731
    names = ["Great White shark", "black-and-white shark's", "the"]
    assert sitta.class_name_pairs(names, tokenize) == [[2, 4, 7, 9], [0, 2, 4, 5, 7], []]
    whole = torch.tensor([False, True, True, True, True, True, True, False, True, True])
    assert sitta.class_name_pairs(names, tokenize, whole) == [[2, 4, 9], [2, 4, 5], []]


def test_soft_prototype():
    features, weight, bias = draw(2, 3), draw(4, 3, seed=1), draw(4, seed=2)
    belief = ((features @ weight.mT + bias) / 2).softmax(-1)
    torch.testing.assert_close(sitta.soft_prototype(features, weight, bias), belief @ weight)
    torch.testing.assert_close(sitta.soft_prototype(features, weight, bias, torch.eye(4).double()), belief)
    sharp = sitta.soft_prototype(features, weight, bias, temperature=1e-4)
    torch.testing.assert_close(sharp, weight[belief.argmax(-1)])


# Retrieval ------------------------------------------------------------------------------------------------------------


def test_golden_retrieval():
    words = GOLDEN["ret_words"].tolist()
    k, pool = int(GOLDEN["ret_k"]), int(GOLDEN["ret_pool"])
    ids = sitta.retrieve_tokens(TENSOR["ret_z"], TENSOR["ret_targets"], k, words.__getitem__, pool)
    assert torch.equal(ids, TENSOR["ret_ids"])


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 999), k=st.integers(1, 4), pool=st.integers(4, 12))
def test_retrieval_against_a_slow_loop(seed, k, pool):
    z, targets = draw(3, 5, seed=seed), draw(20, 5, seed=seed + 1)
    words = [" aA"[i % 3] + "bcdefg"[i % 6] for i in range(20)]
    allowed = torch.arange(20) % 4 != 1
    cosine = torch.nn.functional.cosine_similarity(z[:, None], targets[None], dim=-1)
    expected = []
    for row in cosine:
        ranked = [i for i in row.argsort(descending=True).tolist() if allowed[i]][:pool]
        seen = dict.fromkeys(words[i].strip().lower() for i in ranked)
        expected.append([next(i for i in ranked if words[i].strip().lower() == word) for word in seen][:k])
    if min(map(len, expected)) < k:
        with pytest.raises(ValueError, match="distinct"):
            sitta.retrieve_tokens(z, targets, k, words.__getitem__, pool, allowed)
        return
    for form in (allowed, allowed.nonzero()[:, 0], allowed.nonzero()[:, 0].tolist()):
        assert sitta.retrieve_tokens(z, targets, k, words.__getitem__, pool, form).tolist() == expected
    ranks = cosine.argsort(1, descending=True)[:, :k]
    assert torch.equal(sitta.retrieve_tokens(z, targets, k, pool=99), ranks)


@pytest.mark.parametrize("scale", [1e25, 1e-13, 1e-30])
@pytest.mark.parametrize("scaled", ["z", "targets", "both"])
def test_lengths_do_not_matter_to_retrieval(scale, scaled):
    z, targets = draw(3, 5, dtype=torch.float32), draw(20, 5, seed=1, dtype=torch.float32)
    expected = sitta.retrieve_tokens(z, targets, 7)
    z = z if scaled == "targets" else z * scale
    targets = targets if scaled == "z" else targets * scale
    assert torch.equal(sitta.retrieve_tokens(z, targets, 7), expected)


def test_of_equal_cosines_the_lower_id_comes_first():
    targets = torch.eye(3)[torch.tensor([2, 1, 0, 1] * 20)]  # 60 of 80 equal ones beyond the pool of the two best
    z = torch.tensor([[0.0, 5, 0], [3, 0, 0], [0, 0, 1]])
    firsts = [[1, 3, 5, 7, 9], [2, 6, 10, 14, 18], [0, 4, 8, 12, 16]]
    assert sitta.retrieve_tokens(z, targets, 5, pool=5).tolist() == firsts
    assert sitta.retrieve_tokens(z, targets, 5).tolist() == firsts
    assert sitta.retrieve_tokens(z[:1], targets, 2, pool=2, allowed=[9, 3, 5, 0, 3]).tolist() == [[3, 5]]
    assert sitta.retrieve_tokens(z[:1], targets, 3, pool=43).tolist() == [firsts[0][:3]]
    assert sitta.retrieve_tokens(z[:0], targets, 3).shape == (0, 3)


def test_golden_ndcg_and_edge_cases():
    assert sitta.ndcg(TENSOR["ndcg_retrieved"], TENSOR["ndcg_relevant"]) == pytest.approx(float(GOLDEN["ndcg_value"]))
    assert sitta.ndcg([3, 1, 2], [9]) == 0.0
    for relevant in ({1, 2}, {1: "a", 2: "b"}.keys(), np.array([1, 2]), torch.tensor([1, 2])):
        assert sitta.ndcg([3, 1, 2], relevant) == pytest.approx(sitta.ndcg([3, 1, 2], [1, 2])) != 0
    assert sitta.ndcg([], [1]) == 0.0
    assert sitta.ndcg(["dog", "cat"], ["dog", "whale"]) == 1.0
    assert sitta.ndcg([1, 5, 5], [5]) == pytest.approx((1 / np.log2(3) + 0.5) / (1 + 1 / np.log2(3)))


# Prompts and ranking --------------------------------------------------------------------------------------------------


def test_golden_prompt_ids():
    ids = sitta.prompt_ids(TENSOR["int_prefix"], int(GOLDEN["int_sep"]), TENSOR["int_suffix"])
    assert torch.equal(ids, TENSOR["int_out"])
    plain = sitta.prompt_ids(TENSOR["int_prefix"], None, [11, 12, 13])
    assert torch.equal(plain, torch.cat([TENSOR["int_prefix"], TENSOR["int_suffix"].expand(2, -1)], 1))


def test_permuted_prompts():
    tokens = torch.tensor([9, 4, 4, 7, 1])
    orders = sitta.permuted_prompts(tokens, 600, torch.Generator().manual_seed(3))
    assert torch.equal(orders[0], tokens)
    assert torch.equal(orders.sort(1).values, tokens.sort().values.expand(600, -1))
    assert torch.equal(orders, sitta.permuted_prompts(tokens, 600, torch.Generator().manual_seed(3)))
    assert not torch.equal(orders, sitta.permuted_prompts(tokens, 600, torch.Generator().manual_seed(4)))
    assert len(set(map(tuple, orders.tolist()))) == 60  # every order of the multiset occurs
    state = torch.get_rng_state()
    assert torch.equal(sitta.permuted_prompts(tokens, 5), sitta.permuted_prompts(tokens, 5))
    assert torch.equal(torch.get_rng_state(), state)


def test_golden_ranking():
    best, cosines = sitta.rank_captions(TENSOR["rank_image"], TENSOR["rank_captions"])
    assert best == int(GOLDEN["rank_best"])
    torch.testing.assert_close(cosines, TENSOR["rank_scores"], atol=1e-5, rtol=1e-5)
    score = sitta.clip_score(TENSOR["rank_image"], TENSOR["rank_captions"])
    torch.testing.assert_close(score, TENSOR["rank_clip_score"], atol=1e-5, rtol=1e-5)


# Mapper and connector -------------------------------------------------------------------------------------------------


def golden_tokens():
    bounds = itertools.pairwise(GOLDEN["fit_offsets"].tolist())
    return [GOLDEN["fit_tokens"][a:b].tolist() for a, b in bounds]


@pytest.mark.parametrize("method", ["ols", "procrustes"])
def test_golden_mapper(method):
    mapper = SittaMapper(method).fit(TENSOR["fit_sources"], golden_tokens(), TENSOR["fit_embeddings"])
    torch.testing.assert_close(mapper.W, TENSOR[f"fit_W_{method}"], atol=1e-4, rtol=1e-4)
    if method == "procrustes":
        query, close = TENSOR["query"], {"atol": 1e-4, "rtol": 1e-4}
        torch.testing.assert_close(mapper.transform(query), TENSOR["query_z_trainstats"], **close)
        own = mapper.transform(query, query.mean(0), query.std(0, correction=0))
        torch.testing.assert_close(own, TENSOR["query_z_ownstats"], **close)


@pytest.mark.parametrize("method", ["ols", "ridge", "procrustes", "robust_procrustes"])
def test_mapper_finds_its_own_training_tokens(method):
    sources, embeddings = draw(10, 20), draw(100, 16, seed=1)
    tokens = [[3 * i, 3 * i + 1] for i in range(10)]
    found = SittaMapper(method).fit(sources, tokens, embeddings).retrieve(sources, k=2)
    hits = np.mean([len(set(row) & set(ids)) / 2 for row, ids in zip(found.tolist(), tokens, strict=True)])
    assert hits > 0.5  # chance is 0.02


def test_connector_gives_the_models_own_embeddings():
    embedding = torch.nn.Parameter(draw(30, 4, seed=1, dtype=torch.float32))
    sources = draw(8, 5, dtype=torch.float32)
    mapper = SittaMapper("procrustes").fit(sources, golden_tokens(), embedding)
    words = "abcdefghijklmnopqrstuvwxyzabcd"
    options = {"decode": words.__getitem__, "allowed": range(3, 30), "mean": torch.zeros(5), "std": torch.ones(5)}
    connector = SittaConnector(mapper, embedding, k=3, **options)
    maps = torch.stack([sources - 1, sources + 1], 1)
    assert torch.equal(connector(sources), embedding[mapper.retrieve(sources, 3, **options)])
    torch.testing.assert_close(connector(maps), connector(sources))
    assert set(connector.state_dict()) == {"weight", "mean", "std"}  # the vocabulary is the language model's


def test_a_mapper_fitted_again_retrieves_among_its_new_words():
    sources, tokens = draw(8, 5), golden_tokens()
    mapper = SittaMapper("procrustes").fit(sources, tokens, draw(30, 4, seed=1))
    mapper.retrieve(sources, 3)
    other = draw(30, 4, seed=2)
    again = SittaMapper("procrustes").fit(sources, tokens, other).retrieve(sources, 3)
    assert torch.equal(mapper.fit(sources, tokens, other).retrieve(sources, 3), again)


def test_loading_a_connector_leaves_the_mapper_as_it_was():
    embedding, sources = draw(30, 4, seed=1), draw(8, 5)
    mappers = [SittaMapper(method).fit(sources, golden_tokens(), embedding) for method in ("ols", "procrustes")]
    mean = sources.mean(0)
    kept = [mappers[0].W.clone(), mappers[0].source_std.clone(), mean.clone()]
    SittaConnector(mappers[0], embedding, mean=mean).load_state_dict(
        {name: value + 1 for name, value in SittaConnector(mappers[1], embedding).state_dict().items()}
    )
    assert all(map(torch.equal, (mappers[0].W, mappers[0].source_std, mean), kept))


def test_statistics_of_another_dtype_and_empty_batches():
    embedding, sources = draw(30, 4, seed=1).float(), draw(8, 5).float()
    mapper = SittaMapper("procrustes").fit(sources, golden_tokens(), embedding)
    for dtype in (torch.float64, torch.bfloat16):
        query, own = sources.to(dtype), {"mean": sources.mean(0).to(dtype), "std": sources.std(0).to(dtype)}
        cast = {name: value.float() for name, value in own.items()}
        assert torch.equal(mapper.transform(query, **own), mapper.transform(query.float(), **cast))
        expected = embedding[mapper.retrieve(sources, 3, **cast)]
        assert torch.equal(SittaConnector(mapper, embedding, k=3, **own)(sources), expected)
    assert mapper.transform(sources[:0]).shape == (0, 4)
    assert mapper.retrieve(sources[:0], 3).shape == (0, 3)
    assert SittaConnector(mapper, embedding, k=3)(sources[:0]).shape == (0, 3, 4)


# Captioner ------------------------------------------------------------------------------------------------------------

CORPUS = ["a dog plays with a ball on the grass.", "a boat sails in the harbor.\n", "words: A picture of bread"] * 3


@pytest.fixture(scope="module")
def tokenizer():
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(CORPUS, vocab_size=340, min_frequency=2, special_tokens=["<end>"], show_progress=False)
    return PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, eos_token="<end>", pad_token="<end>")


def language_model(kind, size):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if kind == "gpt2":
            config = GPT2Config(vocab_size=size, n_embd=16, n_layer=2, n_head=2, initializer_range=0.5)
            return GPT2LMHeadModel(config)
        if kind == "t5":
            config = T5Config(vocab_size=size, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
            config.initializer_factor = 30.0  # lively enough for captions to differ
            config.decoder_start_token_id = 0
            return T5ForConditionalGeneration(config)
        sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
        return LlamaForCausalLM(LlamaConfig(vocab_size=size, initializer_range=0.5, **sizes))


def captioner(tokenizer, kind="llama", **options):
    language = language_model(kind, len(tokenizer))
    tokens = [[280 + i, 295 + i] for i in range(12)]
    mapper = SittaMapper("procrustes").fit(draw(12, 5), tokens, language.get_input_embeddings().weight)
    return SittaCaptioner(mapper, language, tokenizer, **{"k": 3, "n_orders": 7} | options)


STYLES = {"paper": sitta.PAPER, "instruction": sitta.INSTRUCTION, "examples": sitta.WORKED_EXAMPLES}


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("kind", ["llama", "gpt2", "t5"])
def test_captions_equal_uncached_one_by_one_greedy(tokenizer, kind, style):
    separator = {"examples": ",", "paper": "a"}.get(style)  # this small vocabulary merges the blank
    prompt = PromptStyle(**{**vars(STYLES[style]), "separator": separator, "max_new_tokens": 9})
    cap = captioner(tokenizer, kind, prompt=prompt)
    feature, encode = draw(5, seed=3), lambda text: tokenizer(text)["input_ids"]
    expected = []
    for order in sitta.permuted_prompts(cap.mapper.retrieve(feature[None], 3, tokenizer.decode)[0], 7).tolist():
        pieces = [[t, *(encode(separator) if separator else [])] for t in order]
        if not prompt.closing and separator:
            pieces[-1].pop()
        ids = torch.tensor([encode(prompt.before) + list(itertools.chain(*pieces)) + encode(prompt.after)])
        expected.append(greedy_text(cap.language, tokenizer, ids, prompt.stop, 9))
    text, candidates, scores = cap.caption(feature)
    assert candidates == list(dict.fromkeys(filter(None, expected)))
    assert len(scores) == len(candidates)
    assert text == (candidates[int(scores.argmax())] if candidates else "")
    assert cap.caption(feature)[1] == candidates  # the cached prefix is left as it was


@pytest.mark.filterwarnings("error::FutureWarning")
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_the_cached_prefix_is_passed_by_its_current_name(tokenizer, kind, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    transformers_logging.get_logger("transformers.utils.generic").warning_once.cache_clear()  # said only once otherwise
    cap = captioner(tokenizer, kind, prompt=PromptStyle(before="words:", separator=None, max_new_tokens=3))
    assert cap.caption(draw(5, seed=3))[1]
    assert not [record.getMessage() for record in caplog.records if "deprecated" in record.getMessage()]


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_the_checkpoints_own_defaults_are_ignored(tokenizer, kind):
    cap = captioner(tokenizer, kind, prompt=PromptStyle(before="words:", separator=None, max_new_tokens=9))
    feature, own = draw(5, seed=3), cap.language.generation_config
    candidates = cap.caption(feature)[1]
    own.update(no_repeat_ngram_size=1, suppress_tokens=list(range(100)), min_new_tokens=5, num_beams=2)
    before = own.to_dict()
    assert cap.caption(feature)[1] == candidates
    assert cap.language.generation_config is own
    assert own.to_dict() == before


def greedy_text(language, tokenizer, ids, stop, steps):
    """One token at a time, whole sequence every time, cut at the first stop character."""
    new: list[int] = []
    with torch.no_grad():
        while len(new) < steps and (not new or new[-1] != tokenizer.eos_token_id):
            if language.config.is_encoder_decoder:
                source = torch.cat([ids, torch.tensor([[tokenizer.eos_token_id]])], 1)
                logits = language(input_ids=source, decoder_input_ids=torch.tensor([[0, *new]])).logits
            else:
                logits = language(torch.cat([ids, torch.tensor([new], dtype=torch.long)], 1)).logits
            new.append(int(logits[0, -1].argmax()))
            if any(character in tokenizer.decode(new[-1]) for character in stop):
                break
    text = tokenizer.decode(new, skip_special_tokens=True).strip()
    positions = [text.index(character) for character in stop if character in text]
    return text[: min(positions, default=len(text))].strip()


def test_rank_callable_chooses_the_caption(tokenizer):
    prompt = PromptStyle(before="words:", separator=None, after="", max_new_tokens=6)
    seen = []

    def rank(feature, captions):
        seen.append((feature, captions))
        return -torch.arange(len(captions))

    cap = captioner(tokenizer, rank=rank, prompt=prompt)
    feature = draw(5, seed=3)
    text, candidates, scores = cap.caption(feature)
    assert len(candidates) > 1
    assert text == candidates[0]
    assert seen[0] == (feature, candidates)
    assert scores.tolist() == [-i for i in range(len(candidates))]
    assert len(cap.words(feature)) == 3
    with pytest.raises(ValueError, match="rank returned"):
        captioner(tokenizer, rank=lambda f, c: torch.zeros(99), prompt=prompt).caption(feature)


def test_default_rank_prefers_captions_that_name_the_words(tokenizer):
    cap = captioner(tokenizer, prompt=PromptStyle(separator=None))
    ids = [tokenizer(f" {word}")["input_ids"] for word in ("dog", "boat")]
    feature = torch.linalg.pinv(cap.mapper.W).mT @ cap.mapper.targets[ids[0]].mean(0)
    feature = feature * cap.mapper.source_std + cap.mapper.source_mean
    scores = cap.rank(feature, ["the dog", "a boat", "the"])
    assert scores[0] > scores[1]
    assert scores[2] == 0


def test_stop_ids_hold_every_token_with_a_stop_character(tokenizer):
    ids = stop_ids(tokenizer, ".\n")
    assert ids[0] == tokenizer.eos_token_id
    texts = {i: tokenizer.decode(i) for i in range(len(tokenizer))}
    assert set(ids[1:]) == {i for i, text in texts.items() if "." in text or "\n" in text}


def test_whole_words(tokenizer):
    mask = sitta.whole_words(tokenizer, len(tokenizer) + 5)
    words = {tokenizer.decode(i) for i in mask.nonzero()[:, 0].tolist()}
    assert " dog" in words or " ball" in words
    assert all(word[0] == " " and word[1:].isalpha() and len(word) >= 4 for word in words)
    assert not mask[len(tokenizer) :].any()


# Bad input ------------------------------------------------------------------------------------------------------------

A, Z = torch.zeros, draw(2, 3)
BAD = {
    "standardize x": (lambda: sitta.standardize(A(3)), "x "),
    "standardize empty": (lambda: sitta.standardize(A(0, 3)), "x "),
    "standardize mean": (lambda: sitta.standardize(A(2, 3), mean=A(2)), "mean"),
    "method": (lambda: sitta.fit_linear_map(Z, Z, "lasso"), "method='lasso'"),
    "lengths": (lambda: sitta.fit_linear_map(Z, draw(3, 3)), "X"),
    "nan": (lambda: sitta.fit_linear_map(Z * float("nan"), Z), "finite"),
    "alpha": (lambda: sitta.fit_linear_map(Z, Z, "ridge", alpha=0), "alpha"),
    "expand length": (lambda: sitta.expand_pairs(Z, [[1]], Z), "token_ids"),
    "expand range": (lambda: sitta.expand_pairs(Z, [[1], [2]], Z), "token_ids"),
    "expand empty": (lambda: sitta.expand_pairs(Z, [[], []], Z), "token_ids"),
    "template": (lambda: sitta.prompted_embeddings(["a"], ["photo"], lambda t: A(1, 1)), "templates"),
    "no words": (lambda: sitta.prompted_embeddings([], ["{}"], lambda t: A(1, 1)), "words"),
    "temperature": (lambda: sitta.soft_prototype(A(1, 3), A(2, 3), A(2), temperature=0), "temperature"),
    "prototype rows": (lambda: sitta.soft_prototype(A(1, 3), A(2, 3), A(2), A(3, 3)), "prototypes"),
    "prototype dims": (lambda: sitta.soft_prototype(A(1, 4), A(2, 3), A(2)), "features"),
    "retrieve dims": (lambda: sitta.retrieve_tokens(Z, draw(9, 4), 2), "targets"),
    "k above pool": (lambda: sitta.retrieve_tokens(Z, draw(9, 3), 5, pool=4), "pool=4"),
    "k above vocabulary": (lambda: sitta.retrieve_tokens(Z, draw(4, 3), 5), "k=5"),
    "too few allowed": (lambda: sitta.retrieve_tokens(Z, draw(9, 3), 2, allowed=[3]), "k=2"),
    "none allowed": (lambda: sitta.retrieve_tokens(Z, draw(9, 3), 2, allowed=[]), "allowed"),
    "none allowed by mask": (lambda: sitta.retrieve_tokens(Z, draw(9, 3), 2, allowed=A(9).bool()), "allowed"),
    "allowed above": (lambda: sitta.retrieve_tokens(Z, draw(9, 3), 2, allowed=[1, 2, 9]), "allowed .*9"),
    "allowed below": (lambda: sitta.retrieve_tokens(Z, draw(9, 3), 2, allowed=[-1, 2, 3]), "allowed .*-1"),
    "allowed numbers": (lambda: sitta.retrieve_tokens(Z, draw(9, 3), 2, allowed=A(9)), "allowed"),
    "targets nan": (lambda: sitta.retrieve_tokens(Z, draw(9, 3) * float("nan"), 2), "targets"),
    "allowed length": (lambda: sitta.retrieve_tokens(Z, draw(9, 3), 2, allowed=A(5).bool()), "allowed"),
    "few distinct": (lambda: sitta.retrieve_tokens(Z, draw(9, 3), 2, lambda i: "x"), "distinct"),
    "zero row": (lambda: sitta.retrieve_tokens(A(1, 3), draw(9, 3).float(), 2), "zero"),
    "orders": (lambda: sitta.permuted_prompts(torch.arange(3), 0), "n=0"),
    "orders shape": (lambda: sitta.permuted_prompts(A(2, 2), 3), "tokens"),
    "prefix": (lambda: sitta.prompt_ids(torch.arange(3), 1, [2]), "prefix"),
    "suffix": (lambda: sitta.prompt_ids(A(2, 2).long(), 1, A(2, 2).long()), "suffix_ids"),
    "rank dims": (lambda: sitta.rank_captions(A(3), A(2, 4)), "captions"),
    "rank none": (lambda: sitta.rank_captions(A(3), A(0, 3)), "captions"),
    "not fitted": (lambda: SittaMapper().transform(Z), "fit"),
    "connector not fitted": (lambda: SittaConnector(SittaMapper(), Z), "fit"),
    "embedding": (lambda: SittaConnector(SittaMapper().fit(Z, [[0], [1]], Z), A(5, 3)), "embedding"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(case):
    call, named = BAD[case]
    with pytest.raises(ValueError, match=named):
        call()


def test_captioner_bad_input(tokenizer):
    endless = PreTrainedTokenizerFast(tokenizer_object=tokenizer._tokenizer)
    with pytest.raises(ValueError, match="separator"):
        captioner(tokenizer, prompt=PromptStyle(separator=" and then "))
    with pytest.raises(ValueError, match="n_orders"):
        captioner(tokenizer, n_orders=0)
    with pytest.raises(ValueError, match=r"prompt\.stop=''"):
        captioner(endless, prompt=PromptStyle(separator=None, stop=""))
    with pytest.raises(ValueError, match="feature"):
        captioner(tokenizer, prompt=PromptStyle(separator=None)).caption(A(1, 5))
