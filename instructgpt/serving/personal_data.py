"""The kinds of personal data and secrets, and how each is found in a text.

`KINDS` is the whole of it: a name, and a function to the places. What is found first is taken, so what is most certain
comes first. A pattern begins at a boundary and is bounded after it, or reads on to the end of a word that nothing else
begins in, so that the time is linear in the text, whatever a stranger sends. A number that is an order to one and a
telephone to another is judged by the words before it.
"""

from __future__ import annotations

import ipaddress
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import NamedTuple

from instructgpt.serving import check_digits

Span = tuple[int, int]
Finder = Callable[[str], Iterator[Span]]


class Kind(NamedTuple):
    """A sort of personal data: what stands in its place, and how it is found in a folded text."""

    name: str
    find: Finder


TAKEN = "\0"
"""Stands in the folded text for every character of what was found already; it separates nothing."""
# Before a number no word and no part of a longer number; the same after it. Other scripts may stand close: 电话138….
_FROM = r"(?<![A-Za-z0-9_\0])(?<!\d[.\-:+*^])"
_TO = r"(?![A-Za-z0-9_\0])(?![.\-:]\d)"
_CONTEXT = 24  # characters before a number that say what it is

# A number after one of these is a telephone; after those it is not, unless it is written as no other number is.
_TELEPHONE = (
    r"(?:\b(?:tele)?(?:phone|fax)|\b(?:tel|mob|mobile|cell|call|dial|ring|text|whatsapp|sms|hotline|contact|"
    r"appele[zr]|tél|téléphone|telefon|handy|móvil|teléfono)\b|电话|電話|手机|手機|致电|拨打|撥打|来电|热线|座机|传真|联系方式|短信)"
)
_NOT_PERSONAL = re.compile(
    r"(?:\b(?:order|invoice|ticket|ref|reference|tracking|parcel|shipment|serial|part|model|sku|isbn|issn|doi|case|batch|lot|"
    r"build|item|article|commit|error|bug|issue|id|timestamp|population|total|sum|seed|barcode|ean|upc)\b"
    r"|订单|單號|单号|编号|編號|運單|运单|快递|物流|发票|批号|型号|序列号|条码|流水|工单|货号|商品|人口|总数|合计|时间戳|版本)"
    r"[^\d\n,;，。；!?！？]{0,14}$|第$",
    re.A | re.I,
)
_TELEPHONE_BEFORE = re.compile(_TELEPHONE + r"[^\d\n]{0,12}$", re.A | re.I)
_VERSION_BEFORE = re.compile(
    r"(?:\b(?:v|ver|version|release|build|firmware|driver|section|sections|chapter|clause|figure|fig|table|item|oid)\b"
    r"|[§#]|[A-Za-z]/|版本|版|固件|章节|章|节|条|第|图|表)[ .:]{0,3}$",
    re.I,
)
_AMOUNT_AFTER = re.compile(
    r" ?(?:元|块|美元|欧元|日元|人|次|个|件|吨|公里|米|字节|年|%"
    r"|(?:bytes|usd|eur|dollars|euros|people|times|items|users|rows|units|km)\b)",
    re.A | re.I,
)
_AMOUNT_BEFORE = re.compile(r"[$€£¥¥₩₹] ?$")


def _pattern(
    expression: str, is_one: Callable[[re.Match[str]], bool] = lambda match: True, group: str | int = 0
) -> Finder:
    """Matches of `expression` (ASCII classes, any case) that `is_one` confirms; the span is that of `group`."""
    compiled = re.compile(expression, re.A | re.I)
    return lambda text: (match.span(group) for match in compiled.finditer(text) if is_one(match))


def _digits_of(match: re.Match[str], group: str | int = 0) -> str:
    return re.sub(r"\D", "", match[group], flags=re.A)


def _checked(expression: str, check: Callable[[str], bool]) -> Finder:
    """Matches whose letters and digits, without separators, pass a check of their own."""
    return _pattern(_FROM + expression + _TO, lambda match: check(re.sub(r"[^A-Za-z0-9]", "", match[0])))


def _telephone(expression: str) -> Finder:
    return _pattern(f"{_FROM}(?:{expression}){_TO}", _is_telephone)


_RUN = re.compile(r"(?<![\w\0])(?<!\d[.,:])\d(?:[ -]{0,2}\d){13,}(?![\w\0])(?![.:]\d)", re.A)


def _cards(text: str) -> Iterator[Span]:
    """Cards in runs of digits, spaced or dashed. Neighbours may be other numbers: every stretch of groups is tried."""
    for run in _RUN.finditer(text):
        groups = [(run.start() + group.start(), group[0]) for group in re.finditer(r"\d+", run[0])]
        first = 0
        while first < len(groups):
            digits, end = "", 0
            for last in range(first, min(first + 5, len(groups))):
                digits += groups[last][1]
                if (
                    14 <= len(digits) <= 19
                    and (last == first or len(groups[first][1]) >= 4)
                    and check_digits.card(digits)
                ):
                    end = last + 1
            if end:
                yield groups[first][0], groups[end - 1][0] + len(groups[end - 1][1])
            first = end or first + 1


_IBAN = re.compile(_FROM + r"[A-Z]{2}\d{2}(?=[ -]?[A-Z0-9]{2,4}[ -]?[A-Z0-9]{3})", re.A | re.I)


def _accounts(text: str) -> Iterator[Span]:
    for match in _IBAN.finditer(text):
        length, end, letters = check_digits.iban_length(match[0][:2]), match.start(), ""
        while length and end < len(text) and len(letters) < length and text[end] in _IBAN_LETTERS:
            letters += text[end].strip(" -")
            end += 1
        if letters and not text[end : end + 1].isalnum() and check_digits.iban(letters):
            yield match.start(), end


_IBAN_LETTERS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789 -")


def _is_telephone(match: re.Match[str]) -> bool:
    """Not an amount, a date, a round number or a progression, and no order number by the words before it."""
    text, number, digits = match.string, match[0], _digits_of(match)
    if not 9 <= len(digits) <= 16:
        return False
    before = text[max(match.start() - _CONTEXT, 0) : match.start()]
    if (len(set(digits)) < 3 and digits.endswith("000000")) or digits in "01234567890123456789":
        return False
    if _AMOUNT_BEFORE.search(before) or _AMOUNT_AFTER.match(text, match.end()):
        return False
    if re.match(r"\(?(?:\d\d?[ /-]){2}(?:19|20)\d\d\b|(?:19|20)\d\d[ /.-]\d\d?[ /.-]\d\d?\b", number):
        return False
    groups = [int(group) for group in re.findall(r"\d+", number)]
    if len(groups) > 3 and len({after - first for first, after in pairwise(groups)}) == 1:
        return False
    return bool(_TELEPHONE_BEFORE.search(before)) or not _NOT_PERSONAL.search(before)


def _is_international(match: re.Match[str]) -> bool:
    """A country's code and as many digits as numbers have there."""
    digits = _digits_of(match, "number").replace("0", "", 1) if "(0)" in match[0] else _digits_of(match, "number")
    if digits.startswith("1"):
        return len(digits) == 11 and digits[1] != "0"
    return 8 <= len(digits) <= 15 and _COUNTRY.match(digits) is not None


_DATE_OR_TIMES = re.compile(
    r"(?:19|20)\d\d[ /.-]?(?:0\d|1[0-2])[ /.-]?[0-3]\d|\d\d[ /.-]\d\d[ /.-](?:19|20)\d\d"
    r"|[0-2]\d[0-5]\d ?- ?[0-2]\d[0-5]\d$"
)


def _is_called(match: re.Match[str]) -> bool:
    """A number after a word for telephones: between 7 digits and 13, no date, no times, not round, no amount."""
    digits = _digits_of(match, "number")
    if not 7 <= len(digits) <= 13 or (digits.endswith("0000") and len(digits) < 10):
        return False
    if _AMOUNT_AFTER.match(match.string, match.end()):
        return False
    return not _DATE_OR_TIMES.match(match["number"])


def _is_social_security(match: re.Match[str]) -> bool:
    return not _NOT_PERSONAL.search(match.string[max(match.start() - _CONTEXT, 0) : match.start()])


def _is_named(match: re.Match[str]) -> bool:
    """What follows the word for a document: five digits at least, and no date."""
    return len(_digits_of(match, "id")) >= 5 and not re.match(r"(?:19|20)\d\d[ -]", match["id"])


def _is_token(match: re.Match[str]) -> bool:
    value = match["value"]
    return _entropy(value) >= 3 and bool(re.search(r"\d|[a-z][A-Z]", value))


# The codes of the ITU (E.164) by their first two or three digits.
_COUNTRY = re.compile(
    r"7|2[07]|2[1-69]\d|3[0-469]|3[578]\d|4[013-9]|42\d|5[1-8]|5[09]\d|6[0-6]|6[7-9]\d|8[1246]|8[58]\d|9[0-58]|9[679]\d"
)
_EXTENSION = r"(?: ?(?:ext\.?|x|转|-) ?\d{1,5})?"


def _is_address(match: re.Match[str]) -> bool:
    before = match.string[max(match.start() - _CONTEXT, 0) : match.start()]
    return not _VERSION_BEFORE.search(before) or before.endswith("//")


def _is_address_six(match: re.Match[str]) -> bool:
    """An IPv6 address that is no slice `x[1::2]`, no name `a::b` and not the bare `::`."""
    text, start = match[0], match.start()
    if re.search(r"[\w\])]\[$", match.string[max(start - 2, 0) : start]):
        return False
    groups = [group for group in text.split(":") if group]
    if (
        "::" in text
        and text != "::1"
        and "." not in text
        and len(groups) < 3
        and not re.match(r"(?:2[0-9a-f]|f[cde])[0-9a-f]{2}::?\w*\d", text, re.I)
    ):
        return False
    try:
        return bool(ipaddress.IPv6Address(text)) and any(letter.isdigit() for letter in text)
    except ValueError:
        return False


def _entropy(value: str) -> float:
    """Bits a character, by how often each occurs in the value itself."""
    return -sum(n / len(value) * math.log2(n / len(value)) for n in Counter(value).values())


def _is_random(match: re.Match[str]) -> bool:
    """A value that nobody would write as a name: letters and digits change places often, and few repeat."""
    value = match["value"]
    sorts = ["d" if letter.isdigit() else "u" if letter.isupper() else "l" for letter in value if letter.isalnum()]
    changes = sum(first != after for first, after in pairwise(sorts))
    return "d" in sorts and len(set(sorts)) > 1 and changes * 7 >= len(value) and _entropy(value) >= 3


def _is_password(match: re.Match[str]) -> bool:
    """A value with digits or marks in it, of four digits or six characters, that is no code and no placeholder."""
    value = match["value"]
    if value.isdigit():
        return True
    if len(value) < 6 or re.fullmatch(
        r"[A-Za-z_]\w*(?:[.:/-][A-Za-z_]\w*)+|\$\w+|[*•x.-]+|[A-Z_]+\d?|%\(?\w+\)?s?", value
    ):
        return False
    return bool(re.search(r"[A-Za-z]", value) and re.search(r"\d|[!@#$%^&*?~]", value))


_ASSIGNED = r"[\"']?\s{0,3}(?:=>|:=|[:=]|\bis\b|是|为)\s{0,3}[\"'`]?"
_NAMED_ID = (
    r"(?<![A-Z])(?:passport|driv(?:er'?s|ing) licen[cs]e|social security|ssn|national insurance|nhs|national id|"
    r"identity card|id card|tax id|nino|护照|身份证|居民证|通行证|驾驶证|驾照|社保卡?|军官证|学籍|证件)"
)
_MAIL = r"[A-Z0-9À-ɏ._%+'-]+"
_DOMAIN = r"(?:[A-Z0-9À-ɏ](?:[A-Z0-9À-ɏ-]{0,62})\.){1,8}(?:[A-Z]{2,24}|xn--[A-Z0-9-]{2,59})(?![A-Za-z0-9\0])"

_ADDRESS_FROM = r"(?<![A-Z0-9À-ɏ._%+'@\0-])"
_AT, _DOT = r" ?[(\[<{] ?(?:at|@) ?[)\]>}] ?", r"(?:\.| ?[(\[<{] ?(?:dot|\.) ?[)\]>}] ?)"
_ALONE = r"(?<!\d )"  # a number in groups is not the end of a longer one
_OCTET = r"(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)"
_LETTERS = "\u3400-\u9fff"  # of Chinese

KINDS: tuple[Kind, ...] = (
    # Keys that say themselves what they are, and values after a word that does.
    Kind(
        "KEY",
        _pattern(
            r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----"
            r"(?:[^-]|-(?!----END))*(?:-----END [A-Z0-9 ]{0,40}-----|-*$)"
        ),
    ),
    Kind("KEY", _pattern(r"(?<![\w\0-])eyJ[\w-]{8,}\.[\w-]{8,}(?:\.[\w-]*)?(?![\w\0])")),
    Kind(
        "KEY",
        _pattern(
            r"(?<![\w\0-])(?:(?:sk|pk|rk)-(?=[\w-]{0,200}\d)[\w-]{20,}|(?:sk|pk|rk)_(?:live|test)_\w{16,}"
            r"|(?:AKIA|ASIA|AGPA|AROA)[A-Z0-9]{16}|gh[pousr]_\w{30,}|github_pat_\w{22,}|glpat-[\w-]{20,}"
            r"|xox[abeprs]-[\w-]{10,}|xapp-[\w-]{20,}|AIza[\w-]{35}|ya29\.[\w-]{20,}|SG\.[\w-]{16,}\.[\w-]{16,}"
            r"|hf_\w{30,}|npm_\w{36}|pypi-[\w-]{40,}|dop_v1_\w{40,}|shp(?:at|ss|ca)_\w{32}|LTAI\w{12,26}|AKID\w{30,}"
            r"|\d{8,10}:AA[\w-]{33}|key-[0-9a-f]{32})(?![\w\0])"
        ),
    ),
    Kind("KEY", _pattern(r"\b(?:bearer|basic)\s{1,3}(?P<value>[\w.~+/-]{16,}=*)(?![\w\0])", _is_token, "value")),
    Kind("KEY", _pattern(r"(?<=://)[^\s/:@\0]{0,64}:[^\s/:@\0]{1,64}(?=@)")),
    Kind(
        "KEY",
        _pattern(
            r"(?:pass(?:word|wd|phrase|code)|(?<![A-Z])(?:pwd|pin)|密码|密碼|口令|验证码|驗證碼)"
            + _ASSIGNED
            + r"(?P<value>[^\s\"'`<>{}(),;\[\]\0，。；、！？]{4,})(?![\w(\[])",
            _is_password,
            "value",
        ),
    ),
    Kind(
        "KEY",
        _pattern(
            r"(?:key(?:[_ -]?id)?|secret|token|credentials?|signature|cookie|session(?:[_-]?id)?|auth|"
            r"密钥|密鑰|令牌|凭证)" + _ASSIGNED + r"(?P<value>[\w+/.~-]{16,}={0,2})(?![\w(\[\0])",
            _is_random,
            "value",
        ),
    ),
    Kind("EMAIL", _pattern(_ADDRESS_FROM + rf"(?!git@){_MAIL}@(?!\d+x\.){_DOMAIN}")),
    Kind("EMAIL", _pattern(_ADDRESS_FROM + rf"{_MAIL}{_AT}[A-Z0-9-]{{1,63}}(?:{_DOT}[A-Z0-9-]{{1,63}}){{1,5}}")),
    Kind(
        "EMAIL", _pattern(rf"[{_LETTERS}]{{1,32}}@[{_LETTERS}]{{1,32}}\.(?:中国|公司|网络|在线|中文网|集团|香港|台灣)")
    ),
    Kind("IBAN", _accounts),
    Kind("CARD", _cards),
    # Identity numbers: with check digits, a date, a form that nothing else has, or the document's name before them.
    Kind("ID", _checked(r"[1-8]\d{5}[ -]?(?:18|19|20)\d{6}[ -]?\d{3}[\dX]", check_digits.chinese_id)),
    Kind("ID", _checked(r"[1-8]\d{14}", check_digits.chinese_id)),
    Kind("ID", _checked(r"[A-Z]{1,2}\d{6}\([\dA]\)", check_digits.hong_kong_id)),
    Kind("ID", _checked(r"[A-Z][1289]\d{8}", check_digits.taiwan_id)),
    Kind("ID", _checked(r"[STFG]\d{7}[A-Z]", check_digits.singapore_id)),
    Kind("ID", _checked(r"(?:\d{8}|[XYZ]\d{7})-?[A-Z]", check_digits.spanish_id)),
    Kind("ID", _checked(r"[A-Z]{6}\d{2}[ABCDEHLMPRST]\d{2}[A-Z]\d{3}[A-Z]", check_digits.italian_code)),
    Kind("ID", _checked(r"[12] ?\d{2} ?[01]\d ?\d{2} ?\d{3} ?\d{3} ?\d{2}", check_digits.french_number)),
    Kind("ID", _checked(r"\d{3}\.\d{3}\.\d{3}-\d{2}", check_digits.brazilian_number)),
    Kind("ID", _checked(_ALONE + r"[2-9]\d{3}([ -])\d{4}\1\d{4}(?! \d)", check_digits.indian_number)),
    Kind("ID", _checked(r"\d{6}[-+]\d{4}", check_digits.swedish_number)),
    Kind("ID", _checked(r"\d{6}-[1-8]\d{6}", check_digits.korean_number)),
    Kind(
        "ID",
        _pattern(_FROM + r"(?!BG|GB|KN|NK|NT|TN|ZZ)[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z] ?\d\d ?\d\d ?\d\d ?[A-D]" + _TO),
    ),
    Kind("ID", _pattern(_FROM + r"(?!000|666|9)\d{3}([ -])(?!00)\d\d\1(?!0000)\d{4}" + _TO, _is_social_security)),
    Kind(
        "ID",
        _pattern(
            _NAMED_ID + r"(?:[^\d\n,.;，。；]|no\.){0,14}?(?P<id>(?=[A-Z0-9 -]{0,12}\d)[A-Z]{0,3}\d[A-Z0-9]{2,17}"
            r"(?:[ -]\d[A-Z0-9]{1,7}){0,4})(?![\w\0])",
            _is_named,
            "id",
        ),
    ),
    # Addresses of machines.
    Kind(
        "IP",
        _pattern(
            r"(?<![A-Z0-9_:.\0])[0-9A-F:]{2,39}(?:(?<=:)(?:\d{1,3}\.){3}\d{1,3})?(?![A-Z0-9_:\0]|\.\d)", _is_address_six
        ),
    ),
    Kind(
        "IP",
        _pattern(
            _FROM + rf"(?<!\.)(?:{_OCTET}\.){{3}}{_OCTET}(?![A-Z0-9_\0])(?!\.\d)(?!-\d)",
            _is_address,
        ),
    ),
    # Telephones: as nothing else is written, then by the habits of countries, then by the word before.
    Kind(
        "PHONE",
        _telephone(r"(?:\(?\+?86\)?[ -]?)?1[3-9]\d(?:\d{8}|([ -])\d{4}\1\d{4}|\d[ -]\d{3}[ -]\d{4}|\d{4}[ -]\d{4})"),
    ),
    Kind(
        "PHONE",
        _pattern(
            r"(?<![A-Z0-9_\0+])(?<!\d[.\-:])(?:\+|(?<!\d )00)(?P<number>86[ -]?1[3-9]\d(?:[ -]?\d){8}"
            r"|1[ .-]?\(?\d{3}\)?[ .-]?\d{3}[ .-]?\d{4}|[2-9](?:[ ./()-]{0,3}\d){6,14})" + _EXTENSION + _TO,
            _is_international,
        ),
    ),
    Kind("PHONE", _telephone(r"(?:1[ .-])?(?:\(\d{3}\) ?|[1-9]\d{2}[.-])\d{3}[ .-]\d{4}" + _EXTENSION)),
    Kind("PHONE", _telephone(r"[48]00-\d{4}-\d{3}")),
    Kind(
        "PHONE",
        _telephone(
            _ALONE + r"(?:\(0[1-9]\d{0,3}\) ?|0[1-9]\d{0,3}[ /-])\d{2,8}(?:[ -]\d{2,8}){0,4}(?! ?\d)" + _EXTENSION
        ),
    ),
    Kind("PHONE", _telephone(r"0[1-9](?:\.\d\d){4}")),
    Kind("PHONE", _telephone(r"07\d{9}|0[67]\d{8}")),
    Kind(
        "PHONE",
        _pattern(
            _TELEPHONE + r"[^\d\n+。，,;；!?()\0]{0,14}(?P<number>(?:(?<![A-Z])\()?\d(?:[ ().-]{0,2}\d){6,12})" + _TO,
            _is_called,
            "number",
        ),
    ),
)
