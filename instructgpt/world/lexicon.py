"""The words of the world, in English, Chinese and French, checked by hand.

One small lexicon serves every family, so that a small model meets each word often. An entry is indexed by language:
`entry["zh"]`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Gender = Literal["m", "f"]


@dataclass(frozen=True, slots=True)
class Entry:
    """A word in three languages."""

    en: str
    zh: str
    fr: str

    def __getitem__(self, language: str) -> str:
        return self.zh if language == "zh" else self.fr if language == "fr" else self.en


@dataclass(frozen=True, slots=True)
class Person(Entry):
    """A first name."""

    gender: Gender


@dataclass(frozen=True, slots=True)
class Noun(Entry):
    """Something that can be counted."""

    gender: Gender
    """Of the French word."""
    measure: str
    """The Chinese measure word: 一`只`猫."""
    plural: str
    fr_plural: str


@dataclass(frozen=True, slots=True)
class Place(Entry):
    """Somewhere to be: at the …, 在…, à …"""

    gender: Gender


@dataclass(frozen=True, slots=True)
class Adjective(Entry):
    """`zh` is the bare word (红色), `fr` the masculine."""

    zh_attribute: str
    """Before a noun: 红色的猫, 大猫."""
    zh_predicate: str
    """After a subject: 这只猫是红色的, 这只猫很大."""
    fr_feminine: str
    fr_precedes: bool = False
    """True for the few that come before the noun: un grand chat, but un chat noir."""


@dataclass(frozen=True, slots=True)
class Verb:
    """What a person did to a thing, in the past: she `bought` it, 她`买了`它, elle l'a `acheté`."""

    base: str
    past: str
    zh: str
    participle: str
    """The French one; all of them go with avoir, so that it does not agree with the subject."""


PEOPLE: tuple[Person, ...] = (
    Person("Anna", "安娜", "Anna", "f"),
    Person("Tom", "汤姆", "Tom", "m"),
    Person("Lily", "莉莉", "Lily", "f"),
    Person("Jack", "杰克", "Jack", "m"),
    Person("Mary", "玛丽", "Mary", "f"),
    Person("Paul", "保罗", "Paul", "m"),
    Person("Emma", "艾玛", "Emma", "f"),
    Person("David", "大卫", "David", "m"),
    Person("Lucy", "露西", "Lucy", "f"),
    Person("Leo", "利奥", "Leo", "m"),
    Person("Nina", "妮娜", "Nina", "f"),
    Person("Max", "马克斯", "Max", "m"),
    Person("Sara", "萨拉", "Sara", "f"),
    Person("Peter", "彼得", "Peter", "m"),
    Person("Alice", "爱丽丝", "Alice", "f"),
    Person("Hugo", "雨果", "Hugo", "m"),
    Person("Julia", "朱莉娅", "Julia", "f"),
    Person("Simon", "西蒙", "Simon", "m"),
    Person("Rosa", "罗莎", "Rosa", "f"),
    Person("Oscar", "奥斯卡", "Oscar", "m"),
)

ANIMALS: tuple[Noun, ...] = (
    Noun("cat", "猫", "chat", "m", "只", "cats", "chats"),
    Noun("dog", "狗", "chien", "m", "只", "dogs", "chiens"),
    Noun("bird", "鸟", "oiseau", "m", "只", "birds", "oiseaux"),
    Noun("horse", "马", "cheval", "m", "匹", "horses", "chevaux"),
    Noun("fish", "鱼", "poisson", "m", "条", "fish", "poissons"),
    Noun("mouse", "老鼠", "souris", "f", "只", "mice", "souris"),
    Noun("cow", "牛", "vache", "f", "头", "cows", "vaches"),
    Noun("sheep", "羊", "mouton", "m", "只", "sheep", "moutons"),
    Noun("rabbit", "兔子", "lapin", "m", "只", "rabbits", "lapins"),
    Noun("duck", "鸭子", "canard", "m", "只", "ducks", "canards"),
    Noun("goose", "鹅", "oie", "f", "只", "geese", "oies"),
    Noun("fox", "狐狸", "renard", "m", "只", "foxes", "renards"),
    Noun("wolf", "狼", "loup", "m", "只", "wolves", "loups"),
    Noun("pig", "猪", "cochon", "m", "头", "pigs", "cochons"),
)

THINGS: tuple[Noun, ...] = (
    Noun("book", "书", "livre", "m", "本", "books", "livres"),
    Noun("ball", "球", "balle", "f", "个", "balls", "balles"),
    Noun("box", "盒子", "boîte", "f", "个", "boxes", "boîtes"),
    Noun("cup", "杯子", "tasse", "f", "个", "cups", "tasses"),
    Noun("key", "钥匙", "clé", "f", "把", "keys", "clés"),
    Noun("knife", "刀", "couteau", "m", "把", "knives", "couteaux"),
    Noun("hat", "帽子", "chapeau", "m", "顶", "hats", "chapeaux"),
    Noun("coat", "外套", "manteau", "m", "件", "coats", "manteaux"),
    Noun("bag", "包", "sac", "m", "个", "bags", "sacs"),
    Noun("chair", "椅子", "chaise", "f", "把", "chairs", "chaises"),
    Noun("table", "桌子", "table", "f", "张", "tables", "tables"),
    Noun("lamp", "灯", "lampe", "f", "盏", "lamps", "lampes"),
    Noun("watch", "手表", "montre", "f", "块", "watches", "montres"),
    Noun("car", "汽车", "voiture", "f", "辆", "cars", "voitures"),
    Noun("bike", "自行车", "vélo", "m", "辆", "bikes", "vélos"),
    Noun("cake", "蛋糕", "gâteau", "m", "个", "cakes", "gâteaux"),
    Noun("apple", "苹果", "pomme", "f", "个", "apples", "pommes"),
    Noun("letter", "信", "lettre", "f", "封", "letters", "lettres"),
    Noun("flower", "花", "fleur", "f", "朵", "flowers", "fleurs"),
    Noun("leaf", "叶子", "feuille", "f", "片", "leaves", "feuilles"),
    Noun("brush", "刷子", "brosse", "f", "把", "brushes", "brosses"),
)

NOUNS: tuple[Noun, ...] = ANIMALS + THINGS

COLOURS: tuple[Adjective, ...] = (
    Adjective("red", "红色", "rouge", "红色的", "是红色的", "rouge"),
    Adjective("blue", "蓝色", "bleu", "蓝色的", "是蓝色的", "bleue"),
    Adjective("green", "绿色", "vert", "绿色的", "是绿色的", "verte"),
    Adjective("black", "黑色", "noir", "黑色的", "是黑色的", "noire"),
    Adjective("white", "白色", "blanc", "白色的", "是白色的", "blanche"),
    Adjective("yellow", "黄色", "jaune", "黄色的", "是黄色的", "jaune"),
    Adjective("brown", "棕色", "brun", "棕色的", "是棕色的", "brune"),
    Adjective("grey", "灰色", "gris", "灰色的", "是灰色的", "grise"),
)

ADJECTIVES: tuple[Adjective, ...] = (
    *COLOURS,
    Adjective("big", "大", "grand", "大", "很大", "grande", fr_precedes=True),
    Adjective("small", "小", "petit", "小", "很小", "petite", fr_precedes=True),
    Adjective("pretty", "漂亮", "joli", "漂亮的", "很漂亮", "jolie", fr_precedes=True),
    Adjective("clean", "干净", "propre", "干净的", "很干净", "propre"),
    Adjective("dirty", "脏", "sale", "脏", "很脏", "sale"),
    Adjective("heavy", "重", "lourd", "重的", "很重", "lourde"),
)

VERBS: tuple[Verb, ...] = (
    Verb("buy", "bought", "买了", "acheté"),
    Verb("sell", "sold", "卖了", "vendu"),
    Verb("find", "found", "找到了", "trouvé"),
    Verb("lose", "lost", "丢了", "perdu"),
    Verb("see", "saw", "看见了", "vu"),
    Verb("wash", "washed", "洗了", "lavé"),
    Verb("draw", "drew", "画了", "dessiné"),
    Verb("take", "took", "拿了", "pris"),
    Verb("choose", "chose", "选了", "choisi"),
    Verb("touch", "touched", "摸了", "touché"),
)

PLACES: tuple[Place, ...] = (
    Place("park", "公园", "parc", "m"),
    Place("school", "学校", "école", "f"),
    Place("market", "市场", "marché", "m"),
    Place("station", "车站", "gare", "f"),
    Place("library", "图书馆", "bibliothèque", "f"),
    Place("zoo", "动物园", "zoo", "m"),
    Place("museum", "博物馆", "musée", "m"),
    Place("hospital", "医院", "hôpital", "m"),
    Place("beach", "海滩", "plage", "f"),
    Place("hotel", "酒店", "hôtel", "m"),
    Place("farm", "农场", "ferme", "f"),
    Place("bank", "银行", "banque", "f"),
)

NUMBER_WORDS: tuple[Entry, ...] = (
    Entry("two", "两", "deux"),
    Entry("three", "三", "trois"),
    Entry("four", "四", "quatre"),
    Entry("five", "五", "cinq"),
    Entry("six", "六", "six"),
    Entry("seven", "七", "sept"),
    Entry("eight", "八", "huit"),
    Entry("nine", "九", "neuf"),
)
"""Two to nine, as they stand before something counted."""


def a(word: str) -> str:
    """`a cat`, `an apple`."""
    return f"an {word}" if word[0] in "aeiou" else f"a {word}"
