from d3m_assets.foundation.embedded.characters import caption_words
from d3m_assets.foundation.embedded.models import build_tokenizer


def test_every_caption_word_is_one_token_and_any_text_is_tokens():
    tokenizer = build_tokenizer()
    assert [w for w in caption_words() if len(tokenizer.tokenize(w)) != 1] == []
    assert tokenizer.unk_token_id not in tokenizer("Größe ∕ 日本", add_special_tokens=False).input_ids
    assert tokenizer.eos_token_id == len(tokenizer) - 1
