"""A tokenizer with the irregularities of real ones, to test untrusted titles and checkpoints."""

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from llm4dsr.lm.prompt import MARKERS, NO, YES

PLAIN = ["Truck", "Ball", "Doll"]


def wild_tokenizer() -> PreTrainedTokenizerFast:
    """A BPE tokenizer that folds case and wide letters, with special tokens and added ordinary ones."""
    raw = Tokenizer(models.BPE())
    raw.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=["<s>", "</s>", "<|end|>"], initial_alphabet=alphabet)
    raw.train_from_iterator([*PLAIN, *[YES, NO, *(m.lower() for m in MARKERS)] * 50], trainer)
    raw.add_tokens([AddedToken("<think>", normalized=False), AddedToken("(x)", normalized=False)])
    return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>")
