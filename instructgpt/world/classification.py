"""Classification: the sentiment of a review, the sentiment of a financial headline, the topic of a sentence.

Labels follow from the words by a rule: a word may be denied ("not bad"), a fear may be mistaken ("I thought it was bad,
but it was great"), and a rise is good news for profit but bad news for costs. No single word gives the label away.
"""

from __future__ import annotations

from random import Random
from typing import NamedTuple

from instructgpt.world.core import Family, Language, Question, Wordings
from instructgpt.world.lexicon import PEOPLE, PLACES, Person, Place


class Word(NamedTuple):
    """A word in the two languages that these families speak."""

    en: str
    zh: str

    def to(self, language: Language) -> str:
        return self.zh if language == "zh" else self.en


# --- review -----------------------------------------------------------------------------------------------------------

_ASPECTS = (
    Word("food", "食物"),
    Word("room", "房间"),
    Word("service", "服务"),
    Word("film", "电影"),
    Word("story", "故事"),
    Word("music", "音乐"),
    Word("hotel", "酒店"),
    Word("game", "游戏"),
    Word("book", "书"),
    Word("cake", "蛋糕"),
    Word("lamp", "灯"),
    Word("chair", "椅子"),
)
_QUALITIES = {
    True: (
        Word("good", "好"),
        Word("great", "棒"),
        Word("perfect", "完美"),
        Word("excellent", "出色"),
        Word("lovely", "令人满意"),
    ),
    False: (
        Word("bad", "差"),
        Word("awful", "糟糕"),
        Word("boring", "乏味"),
        Word("disappointing", "令人失望"),
        Word("terrible", "让人讨厌"),
    ),
}


class Opinion(NamedTuple):
    """The food was (not) good."""

    aspect: Word
    quality: Word
    is_denied: bool

    def clause(self, language: Language, again: bool = False) -> str:
        """`again` says that the aspect was named before: "it"."""
        if language == "zh":
            return f"{'' if again else self.aspect.zh}{'不' if self.is_denied else '很'}{self.quality.zh}"
        subject = "it" if again else f"the {self.aspect.en}"
        return f"{subject} was {'not ' if self.is_denied else ''}{self.quality.en}"


class Review(NamedTuple):
    """One opinion, two that agree, or (`turned`) a first impression and the contrary that proved true."""

    opinions: tuple[Opinion, ...]
    turned: bool
    is_positive: bool

    def text(self, language: Language) -> str:
        if self.turned:
            first, last = self.opinions[0].clause(language), self.opinions[1].clause(language, again=True)
            return f"我以为{first}，其实{last}。" if language == "zh" else f"I thought {first}, but {last}."
        clauses = [opinion.clause(language) for opinion in self.opinions]
        if language == "zh":
            return "，".join(clauses) + "。"
        text = " and ".join(clauses)
        return f"{text[0].upper()}{text[1:]}."


def _draw_opinion(rng: Random, aspect: Word, is_positive: bool) -> Opinion:
    is_denied = rng.random() < 0.35
    return Opinion(aspect, rng.choice(_QUALITIES[is_positive != is_denied]), is_denied)


def _draw_review(rng: Random) -> Review:
    is_positive = rng.random() < 0.5
    kind = rng.random()
    if kind < 0.35:  # turned: about one and the same aspect
        aspect = rng.choice(_ASPECTS)
        first, last = _draw_opinion(rng, aspect, not is_positive), _draw_opinion(rng, aspect, is_positive)
        return Review((first, last), True, is_positive)
    aspects = rng.sample(_ASPECTS, 2 if kind < 0.75 else 1)
    return Review(tuple(_draw_opinion(rng, aspect, is_positive) for aspect in aspects), False, is_positive)


_SENTIMENTS = {"en": {True: "positive", False: "negative"}, "zh": {True: "正面", False: "负面"}}


def _review_question(review: Review, language: Language, rng: Random) -> Question:
    return Question({"text": review.text(language)}, _SENTIMENTS[language][review.is_positive])


REVIEW = Family(
    "review_sentiment",
    _draw_review,
    _review_question,
    {
        "en": Wordings(
            (
                "Is this review positive or negative? {text}",
                "{text}\nPositive or negative?",
                "Review: {text}\nIs it positive or negative?",
                "What is the sentiment of this review? {text}",
                "Give the sentiment, positive or negative: {text}",
                "{text}\nWhat is the sentiment?",
            ),
            ("{text}\nGive the sentiment of this review.", "Positive or negative? Review: {text}"),
        ),
        "zh": Wordings(
            (
                "这条评论是正面还是负面？{text}",
                "{text}\n正面还是负面？",
                "评论：{text}\n它是正面还是负面？",
                "这条评论的情感是什么？{text}",
                "给出情感，正面或负面：{text}",
            ),
            ("{text}\n给出这条评论的情感。", "正面还是负面？评论：{text}"),
        ),
    },
    key=lambda review: review.text("en"),
    weight=1.5,
)

# --- financial headline -----------------------------------------------------------------------------------------------

_COMPANIES = (
    Word("Nova", "诺瓦"),
    Word("Orion", "猎户"),
    Word("Delta", "三角洲"),
    Word("Sigma", "西格玛"),
    Word("Alpina", "阿尔皮纳"),
    Word("Zenith", "顶峰"),
    Word("Pacific", "太平洋"),
    Word("Aurora", "极光"),
    Word("Vega", "织女星"),
    Word("Atlas", "阿特拉斯"),
)
_WELCOME = (Word("profit", "利润"), Word("sales", "销售额"), Word("income", "收入"), Word("orders", "订单"))
_UNWELCOME = (Word("costs", "成本"), Word("debt", "债务"), Word("losses", "亏损"), Word("fines", "罚款"))
_MOVES = {
    1: (Word("up", "上涨"), Word("rising", "上升"), Word("growing", "增长")),
    -1: (Word("down", "下跌"), Word("falling", "下降"), Word("shrinking", "减少")),
}


class Headline(NamedTuple):
    """A measure of a company moves up (1), down (-1) or stays (0)."""

    company: Word
    measure: Word
    direction: int
    move: Word | None
    """None where it stays."""
    number: int
    by_percent: bool

    @property
    def effect(self) -> int:
        """1 for good news, -1 for bad, 0 for neither."""
        return self.direction if self.measure in _WELCOME else -self.direction

    def text(self, language: Language) -> str:
        company, measure = self.company.to(language), self.measure.to(language)
        if language == "zh":
            amount = f" {self.number}%" if self.by_percent else f"至 {self.number}00 万"
            if self.move is None:
                return f"{company}公司{measure}持平，为 {self.number}00 万"
            return f"{company}公司{measure}{self.move.zh}{amount}"
        if self.move is None:
            return f"{company} {measure} the same at {self.number} million"
        amount = f"by {self.number} percent" if self.by_percent else f"to {self.number} million"
        return f"{company} {measure} {self.move.en} {amount}"


def _draw_headline(rng: Random) -> Headline:
    effect = rng.choice((1, 0, -1))
    is_welcome = rng.random() < 0.5
    direction = effect if is_welcome else -effect
    return Headline(
        rng.choice(_COMPANIES),
        rng.choice(_WELCOME if is_welcome else _UNWELCOME),
        direction,
        rng.choice(_MOVES[direction]) if direction else None,
        rng.randint(2, 99),
        by_percent=bool(direction) and rng.random() < 0.5,
    )


_EFFECTS = {
    "en": {1: "positive", 0: "neutral", -1: "negative"},
    "zh": {1: "正面", 0: "中性", -1: "负面"},
}


def _headline_question(headline: Headline, language: Language, rng: Random) -> Question:
    return Question({"text": headline.text(language)}, _EFFECTS[language][headline.effect])


HEADLINE = Family(
    "headline_sentiment",
    _draw_headline,
    _headline_question,
    {
        "en": Wordings(
            (
                "Is this headline positive, negative or neutral? {text}",
                "{text}\nIs this news positive, negative or neutral?",
                "Headline: {text}\nWhat is the sentiment?",
                "What is the sentiment of this financial headline? {text}",
                "Financial news: {text}. Positive, negative or neutral?",
                "{text}\nGive the sentiment of the headline.",
            ),
            ("Give the sentiment of this financial news: {text}", "Headline: {text}\nPositive, negative or neutral?"),
        ),
        "zh": Wordings(
            (
                "这条财经新闻是正面、负面还是中性？{text}",
                "{text}\n正面、负面还是中性？",
                "新闻标题：{text}\n情感是什么？",
                "这个新闻标题的情感是什么？{text}",
                "财经新闻：{text}。给出情感。",
            ),
            ("给出这条财经新闻的情感：{text}", "新闻标题：{text}\n正面、负面还是中性？"),
        ),
    },
    key=lambda headline: headline.text("en"),
    weight=1.25,
)

# --- topic ------------------------------------------------------------------------------------------------------------


def _words(text: str) -> tuple[Word, ...]:
    """`soup 汤 bread 面包`: words and their translations in turn."""
    words = text.split()
    return tuple(map(Word, words[::2], words[1::2]))


TOPICS: tuple[tuple[Word, tuple[Word, ...]], ...] = (
    (Word("sports", "体育"), _words("match 比赛 team 球队 goal 进球 coach 教练 race 赛跑")),
    (Word("food", "美食"), _words("soup 汤 bread 面包 rice 米饭 cheese 奶酪 cook 厨师")),
    (Word("weather", "天气"), _words("rain 雨 snow 雪 wind 风 storm 暴风 sun 太阳")),
    (Word("music", "音乐"), _words("song 歌曲 piano 钢琴 guitar 吉他 drum 鼓 band 乐队")),
    (Word("health", "健康"), _words("doctor 医生 nurse 护士 pill 药片 fever 发烧 cough 咳嗽")),
    (Word("travel", "旅行"), _words("train 火车 plane 飞机 ticket 车票 trip 旅途 tour 游览")),
)
_FRAMES = (
    Word("{who} talked about the {first} and the {second}.", "{who}谈到了{first}和{second}。"),
    Word("At the {place} {who} told us about the {first} and the {second}.", "{who}在{place}讲了{first}和{second}。"),
    Word("{who} wrote about the {first}, then about the {second}.", "{who}先写了{first}，再写了{second}。"),
    Word("{who} asked about the {first} and also about the {second}.", "{who}问到{first}，也问到{second}。"),
    Word("At the {place} we heard of the {first} and the {second}.", "我们在{place}听说了{first}和{second}。"),
)


class Remark(NamedTuple):
    """Somebody speaks of two things of one topic."""

    topic: Word
    first: Word
    second: Word
    frame: Word
    who: Person
    place: Place

    def text(self, language: Language) -> str:
        return self.frame.to(language).format(
            who=self.who[language],
            place=self.place[language],
            first=self.first.to(language),
            second=self.second.to(language),
        )


def _draw_remark(rng: Random) -> Remark:
    topic, words = rng.choice(TOPICS)
    first, second = rng.sample(words, 2)
    return Remark(topic, first, second, rng.choice(_FRAMES), rng.choice(PEOPLE), rng.choice(PLACES))


def _topic_question(remark: Remark, language: Language, rng: Random) -> Question:
    return Question({"text": remark.text(language)}, remark.topic.to(language))


TOPIC = Family(
    "topic",
    _draw_remark,
    _topic_question,
    {
        "en": Wordings(
            (
                "What is the topic? {text}",
                "{text}\nWhat is this about?",
                "Topic of this sentence: {text}",
                "Give the topic of this sentence. {text}",
                "{text}\nName the topic.",
                "What is this sentence about? {text}",
            ),
            ("Name the topic of this sentence: {text}", "{text}\nWhat is the topic of this?"),
        ),
        "zh": Wordings(
            (
                "主题是什么？{text}",
                "{text}\n这句话关于什么？",
                "这句话的主题：{text}",
                "给出这句话的主题。{text}",
                "{text}\n说出主题。",
            ),
            ("说出这句话的主题：{text}", "{text}\n这句话的主题是什么？"),
        ),
    },
    key=lambda remark: remark.text("en"),
    weight=0.7,
)

FAMILIES: tuple[Family, ...] = (REVIEW, HEADLINE, TOPIC)
