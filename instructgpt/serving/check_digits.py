"""Numbers that say themselves whether they are one: check digits of cards, accounts and identity numbers.

Each function takes what is written, without separators, and says whether its check digits fit. One number in ten, at
worst, fits by chance, which is why `privacy.py` asks for a length, a prefix, a date or a way of writing besides.
"""

from __future__ import annotations

import re
from datetime import date

# Characters of an IBAN by country (ISO 13616, SWIFT's registry).
_IBAN_LENGTHS = {
    item[:2]: int(item[2:])
    for item in (
        "AD24 AE23 AL28 AT20 AZ28 BA20 BE16 BG22 BH22 BR29 BY28 CH21 CR22 CY28 CZ24 DE22 DK18 DO28 EE20 EG29 ES24 FI18 "
        "FO18 FR27 GB22 GE22 GI23 GL18 GR27 GT28 HR21 HU28 IE22 IL23 IQ23 IS26 IT27 JO30 KW30 KZ20 LB28 LC32 LI21 LT20 "
        "LU20 LV21 LY25 MC27 MD24 ME22 MK19 MR27 MT31 MU30 NL18 NO15 PK24 PL28 PS29 PT25 QA29 RO24 RS22 SA24 SC31 SE24 "
        "SI19 SK24 SM27 ST25 SV28 TL23 TN24 TR26 UA29 VA22 VG24 XK20"
    ).split()
}
# The length of a card's number follows from how it begins (ISO/IEC 7812 and the networks' own lists); the Visa cards of
# 13 digits are gone, and a barcode has as many.
_CARDS = re.compile(
    r"4\d{15}(?:\d{3})?|5[0-8]\d{14}(?:\d{3})?|2(?:22[1-9]|2[3-9]\d|[3-6]\d\d|7[01]\d|720)\d{12}|3[47]\d{13}"
    r"|3(?:0[0-5]|[68]\d|9\d)\d{11}|35\d{14}(?:\d{3})?|6[0-9]\d{14,17}|9[0-9]\d{14}(?:\d{3})?"
)
_PROVINCES = frozenset(
    "11 12 13 14 15 21 22 23 31 32 33 34 35 36 37 41 42 43 44 45 46 50 51 52 53 54 61 62 63 64 65 71 81 82 83".split()
)
# Verhoeff 1969: the multiplication of the dihedral group of ten, and the permutation that is applied once more a place.
_VERHOEFF = tuple(
    tuple(
        (a + b) % 5 if a < 5 and b < 5 else (a - b) % 5 if a >= 5 and b >= 5 else 5 + (a + b if a < 5 else a - b) % 5
        for b in range(10)
    )
    for a in range(10)
)
_PERMUTATION = (1, 5, 7, 6, 2, 8, 3, 0, 9, 4)


def luhn(digits: str) -> bool:
    """Luhn 1954: every second digit from the right is doubled, its own digits added; the sum ends in 0."""
    doubled = (0, 2, 4, 6, 8, 1, 3, 5, 7, 9)
    values = [int(digit) for digit in reversed(digits)]
    return (sum(values[::2]) + sum(doubled[value] for value in values[1::2])) % 10 == 0


def card(digits: str) -> bool:
    """A payment card: beginning and length of a network, Luhn's digit, and not one digit throughout."""
    return _CARDS.fullmatch(digits) is not None and luhn(digits) and len(set(digits)) > 1


def iban_length(country: str) -> int:
    """How many characters a country's IBAN has; 0 where there are none."""
    return _IBAN_LENGTHS.get(country.upper(), 0)


def iban(text: str) -> bool:
    """ISO 13616: the first four characters go last, letters count from A = 10, and the number leaves 1 by 97."""
    moved = text[4:] + text[:4]
    return len(text) == iban_length(text[:2]) and int("".join(str(int(letter, 36)) for letter in moved)) % 97 == 1


def chinese_id(text: str) -> bool:
    """A resident's number of 18 characters (GB 11643) or the old one of 15: province, date, check."""
    if text[:2] not in _PROVINCES:
        return False
    if len(text) == 15:
        return _is_date(f"19{text[6:8]}", text[8:10], text[10:12])
    total = sum(int(digit) * pow(2, 17 - place, 11) for place, digit in enumerate(text[:17]))
    return _is_date(text[6:10], text[10:12], text[12:14]) and "10X98765432"[total % 11] == text[17].upper()


def hong_kong_id(text: str) -> bool:
    """One or two letters, six digits, a check character; a missing first letter counts as a space of 36."""
    values = [36 if letter == " " else int(letter, 36) for letter in text.upper().rjust(9)]
    return sum(value * (9 - place) for place, value in enumerate(values)) % 11 == 0


def taiwan_id(text: str) -> bool:
    """A letter, which stands for two digits, and nine digits; weights 1, 9, 8 … 1, 1 give a multiple of ten."""
    letter = "ABCDEFGHJKLMNPQRSTUVXYWZIO".index(text[0].upper()) + 10
    digits = [letter // 10, letter % 10, *map(int, text[1:])]
    return sum(digit * weight for digit, weight in zip(digits, (1, 9, 8, 7, 6, 5, 4, 3, 2, 1, 1))) % 10 == 0


def singapore_id(text: str) -> bool:
    """S, T, F or G (residents and foreigners, by century), seven digits, a letter by weights 2, 7, 6, 5, 4, 3, 2."""
    total = sum(int(digit) * weight for digit, weight in zip(text[1:8], (2, 7, 6, 5, 4, 3, 2)))
    total += 4 if text[0].upper() in "TG" else 0
    return ("JZIHGFEDCBA" if text[0].upper() in "ST" else "XWUTRQPNMLK")[total % 11] == text[8].upper()


def spanish_id(text: str) -> bool:
    """Eight digits, or X, Y, Z and seven, and the letter that the number leaves by 23."""
    number = text[:-1].upper().translate(str.maketrans("XYZ", "012"))
    return "TRWAGMYFPDXBNJZSQVHLCKE"[int(number) % 23] == text[-1].upper()


def italian_code(text: str) -> bool:
    """The codice fiscale: 15 characters and a letter; odd places count by a table of their own."""
    odd = (1, 0, 5, 7, 9, 13, 15, 17, 19, 21, 2, 4, 18, 20, 11, 3, 6, 8, 12, 14, 16, 10, 22, 25, 24, 23)
    values = [int(letter) if letter.isdigit() else ord(letter) - ord("A") for letter in text.upper()]
    return (sum(odd[value] for value in values[:15:2]) + sum(values[1:15:2])) % 26 == values[15]


def french_number(digits: str) -> bool:
    """The numéro de sécurité sociale: sex, year, month, place; the last two digits are 97 less the rest by 97."""
    return 1 <= int(digits[3:5]) <= 12 and 97 - int(digits[:13]) % 97 == int(digits[13:])


def brazilian_number(digits: str) -> bool:
    """The CPF: nine digits and two check digits mod 11."""
    for length in (9, 10):
        total = sum(int(digit) * (length + 1 - place) for place, digit in enumerate(digits[:length]))
        if total * 10 % 11 % 10 != int(digits[length]):
            return False
    return len(set(digits)) > 1


def indian_number(digits: str) -> bool:
    """Aadhaar: twelve digits, the first not 0 or 1, the last by Verhoeff's group."""
    check = 0
    for place, digit in enumerate(reversed(digits)):
        value = int(digit)
        for _ in range(place % 8):
            value = _PERMUTATION[value]
        check = _VERHOEFF[check][value]
    return digits[0] not in "01" and check == 0


def swedish_number(digits: str) -> bool:
    """A personnummer of ten digits: a date and Luhn's digit."""
    return _is_date("2000", digits[2:4], digits[4:6]) and luhn(digits)


def korean_number(digits: str) -> bool:
    """A resident's number: a date, then 1 to 8 for century and sex."""
    return _is_date("2000", digits[2:4], digits[4:6]) and digits[6] in "12345678"


def _is_date(year: str, month: str, day: str) -> bool:
    try:
        return 1800 < date(int(year), int(month), int(day)).year < 2100
    except ValueError:
        return False
