"""Two fields, or two files, in two languages: `en` and `ja`, `eng_Latn` and `zho_Hant`, `German` and `text_pt-BR`."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

from instructgpt.data.account import Unusable
from instructgpt.data.fields import Fields

# ISO 639-1, all of it.
_TWO_LETTERS = frozenset(
    "aa ab ae af ak am an ar as av ay az ba be bg bh bi bm bn bo br bs ca ce ch co cr cs cu cv cy da de dv dz ee el en "
    "eo es et eu fa ff fi fj fo fr fy ga gd gl gn gu gv ha he hi ho hr ht hu hy hz ia id ie ig ii ik io is it iu ja jv "
    "ka kg ki kj kk kl km kn ko kr ks ku kv kw ky la lb lg li ln lo lt lu lv mg mh mi mk ml mn mr ms mt my na nb nd ne "
    "ng nl nn no nr nv ny oc oj om or os pa pi pl ps pt qu rm rn ro ru rw sa sc sd se sg sh si sk sl sm sn so sq sr ss "
    "st su sv sw ta te tg th ti tk tl tn to tr ts tt tw ty ug uk ur uz ve vi vo wa wo xh yi yo za zh zu".split()
)
# Of the 7,900 codes of ISO 639-3 those of ISO 639-2 (both its forms) and those of public translation sets, where they
# are not words that fields are called by.
_THREE_LETTERS = frozenset(
    "aar abk ace acm acq adj aeb afr aka alb als amh apc ara arb arg arm ars ary arz asm ast ava awa ave ayr aym azb "
    "aze azj bak bal bam ban baq bar bel bem ben bho bjn bod bos bre brx bug bul bur cat ceb ces cha che chi chr chu "
    "chv cjk ckb cmn cor cos cre crh csb cym cze dan deu din div doi dut dyu dzo ell eng epo est eus ewe fao fas fij "
    "fil fin fon fra fre fry fry ful fur fuv gaz geo ger gla gle glg glk glv gom gre grn gsw guj hak hat hau haw hbs "
    "heb her hil hin hmn hne hrv hsb hun hye ibo ice ido iii iku ilo ina ind isl ita jav jbo jpn kab kac kal kam kan "
    "kas kat kau kaz kbp kea khk khm kik kin kir kmb kmr knc kok kom kon kor kur lao lat lav lez lij lim lin lit lmo "
    "ltg ltz lua lug luo lus lvs lzh mac mad mag mah mai mal mao mar may min mkd mlg mlt mni mon mos mri msa mwl mya "
    "nan nap nau nav nbl nde ndo nds nep new nld nno nob nor nov npi nqo nso nus nya oci oji ori orm ory oss pag pan "
    "pap pbt per pes plt pms pnb pol por prs pus quc que quy roh rom ron rum run rus sag sah san sat scn sco shn sin "
    "slk slo slv smo sna snd som sot spa sqi srd srp ssw sun swa swe swh syr szl tah tam tat tel tet tgk tgl tha tib "
    "tir tlh tok ton tpi tsn tso tuk tum tur twi tyv tzm udm uig ukr umb urd uzb uzn vec ven vie vol vro wel wln wol "
    "wuu xal xho xmf ydd yid yor yue zea zha zho zsm zul".split()
)
_NAMES = frozenset(
    "afrikaans albanian amharic arabic armenian azerbaijani basque belarusian bengali bosnian bulgarian burmese "
    "cantonese catalan chinese croatian czech danish dutch english esperanto estonian filipino finnish french galician "
    "georgian german greek gujarati hausa hebrew hindi hungarian icelandic igbo indonesian irish italian japanese "
    "javanese kannada kazakh khmer korean kurdish kyrgyz lao latin latvian lithuanian macedonian malay malayalam "
    "maltese mandarin maori marathi mongolian nepali norwegian pashto persian polish portuguese punjabi romanian "
    "russian sanskrit serbian sinhala slovak slovenian somali spanish sundanese swahili swedish tagalog tajik tamil "
    "tatar telugu thai tibetan turkish ukrainian urdu uyghur uzbek vietnamese welsh xhosa yiddish yoruba zulu "
    "中文 汉语 英文 英语 日文 日语 法文 法语 德文 德语 韩文 韩语 俄文 俄语 西班牙语".split()
)
_SIDES = (("1", "2"), ("source", "target"), ("src", "tgt"), ("source_text", "target_text"), ("src_text", "tgt_text"))
# de, de-AT, zh_Hant, zh-Hant-TW, es-419; by itself or beside a word that says what it is, as in `text_de`.
_TAG = r"(?P<language>[a-z]{2,3})(?P<region>(?:[-_](?:[a-z]{4}|[a-z]{2}|\d{3}))*)"
_WORD = r"(?:text|sentence|sent|caption|translation|src|tgt|source|target)"
_CODED = re.compile(rf"(?P<before>{_WORD}[-_])?{_TAG}(?P<after>[-_]{_WORD})?", re.IGNORECASE)
_ORDINARY = frozenset(("id", "no"))  # Indonesian and Norwegian, and what many a field is called


def parallel_columns(fields: Fields) -> tuple[str, str] | None:
    """The fields with a text and its translation, in the record's order; None where there are none.

    Raises Unusable where texts stand in more than two languages: which two are meant is a guess.
    """
    for first, second in _SIDES:
        if len(fields.present((first, second))) == 2:
            return first, second
    found = [name for name in fields.names if is_language(name) and _is_prose(name, fields.peek(name))]
    if len(found) > 2:
        names = ", ".join(name[:40] for name in found[:10])
        raise Unusable("texts in more than two languages", f"{names}; say which two with --prompt and --answer")
    return (found[0], found[1]) if len(found) == 2 else None


def _is_prose(name: str, value: Any) -> bool:
    """Whether this is a text, and not a number or a key in a field called `id` or `no`."""
    if not isinstance(value, str):
        return False
    return name.lower() not in _ORDINARY or bool(re.search(r"\w\s+\w|^\D+$", value.strip()))


@lru_cache(4096)
def is_language(name: str) -> bool:
    """Whether a field's name, or a file's last part, says a language: a code, with region or script, or its name."""
    word = name.strip().lower()
    if word in _NAMES or any(part in _NAMES for part in re.split(r"[-_ ]", word)):
        return True
    match = _CODED.fullmatch(word)
    if match is None:
        return False
    if match["language"] in _ORDINARY and (match["before"] or match["after"]):  # sentence_id
        return False
    known = match["language"] in (_TWO_LETTERS if len(match["language"]) == 2 else _THREE_LETTERS)
    return known or any(len(part) == 4 for part in re.split("[-_]", match["region"]))  # a script is proof enough
