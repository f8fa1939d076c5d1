import torch
from torch import nn
from transformers import BertConfig, BertForMaskedLM

from foveal.nn.word_head import TiedWordHead


def test_it_is_the_head_of_bert():
    config = BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    bert = BertForMaskedLM(config).eval()
    for parameter in bert.cls.parameters():
        nn.init.normal_(parameter, generator=torch.Generator().manual_seed(0))
    head = TiedWordHead(bert.bert.embeddings.word_embeddings)
    theirs = {name: value for name, value in bert.cls.predictions.state_dict().items() if name != "decoder.bias"}
    assert head.state_dict().keys() == theirs.keys()
    head.load_state_dict(theirs)
    hidden = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(head(hidden), bert.cls(hidden))
    assert head.decoder.weight is bert.bert.embeddings.word_embeddings.weight
