"""Writes the tiny Llama that the tests of a real vLLM serve. Run: python model.py FOLDER

Two layers of random weights, a byte-level BPE of 4,096 tokens trained on a made-up text, and a chat
template. All of it follows from one seed, so two machines write the same model. It talks nonsense: what
is under test is who caches which tokens, not what they say.
"""

import json
import random
import sys
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SEED = 7
VOCABULARY = 4096
SPECIAL = ["<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
# Words the tests write; each becomes one token or two.
WORDS = """
about again air also always animal another answer around because before begin between book both bring
build but call came can carry change city close come could country day did different does down each earth
end even every example eye family far father find first follow food form found four friend from give good
great ground grow had hand hard has have head help her here high him his home house how into its just keep
know land large last later learn leave left let letter life light like line little live long look made
make man many may mean men might money more morning most mother mountain move much must name near need
never new next night not now number off often old one only open other our out over own page paper part
people place plant play point press quick read right river run said same saw say school second see seem
sentence set she should show side small some soon sound spell stand start state still stop story study
such take tell than that the their them then there these they thing think this those thought three through
time together too took tree try turn two under until upon use very voice walk want was water way well went
were what when where which while white who why will with without word work world would write year you young
your
""".split()
# As vLLM and the Hugging Face library render it: every message between two special tokens.
TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ '<|system|>' }}"
    "{% elif message['role'] == 'user' %}{{ '<|user|>' }}"
    "{% elif message['role'] == 'assistant' %}{{ '<|assistant|>' }}"
    "{% else %}{{ raise_exception('unknown role: ' + message['role']) }}{% endif %}"
    "{{ message['content'] + '<|end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def made_up_text():
    """Lines of words: those above, and as many syllables as it takes to fill the vocabulary."""
    rng = random.Random(SEED)
    onsets = ["b", "br", "d", "f", "gl", "k", "l", "m", "n", "p", "r", "s", "st", "t", "v", "z"]
    vowels = ["a", "e", "i", "o", "u", "ai", "ou"]
    codas = ["", "l", "m", "n", "r", "s", "nd", "rk"]
    syllables = [on + vo + co for on in onsets for vo in vowels for co in codas]
    invented = ["".join(rng.choices(syllables, k=rng.randint(1, 3))) for _ in range(6000)]
    for _ in range(20_000):
        words = rng.choices(WORDS, k=8) + rng.choices(invented, k=4)
        rng.shuffle(words)
        yield " ".join(words)


def tokenizer():
    """A byte-level BPE: any text has tokens, and special tokens are cut out first."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[AddedToken(text, special=True, normalized=False) for text in SPECIAL],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(made_up_text(), trainer=trainer)
    assert bpe.get_vocab_size() == VOCABULARY, bpe.get_vocab_size()
    return bpe


def main(folder):
    folder.mkdir(parents=True, exist_ok=True)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer(),
        eos_token="<|end|>",
        pad_token="<|end|>",
        model_max_length=4096,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder)
    torch.manual_seed(SEED)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=4096,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=0,
        tie_word_embeddings=False,
        dtype="float32",
    )
    LlamaForCausalLM(config).save_pretrained(folder, safe_serialization=True)
    print(json.dumps({"folder": str(folder), "tokens": len(fast)}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
