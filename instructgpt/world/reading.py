"""Reading: who, what and where in a passage; a shop's policy; a small table; a short story in one sentence.

Answers quote what they rest on ("Lily: geese 9, knives 4. So knives 4."), so that each next word is looked up by words
just written. Asked for the bare number, a model would have to find the row by a name in the question, and the column by
another, before its first word; the `tiny` preset has not the minutes to learn that.
"""

from __future__ import annotations

from random import Random
from typing import NamedTuple

from instructgpt.world.core import Family, Language, Question, Wordings
from instructgpt.world.lexicon import NOUNS, PEOPLE, PLACES, THINGS, VERBS, Noun, Person, Place, Verb, a

# --- who, what, where -------------------------------------------------------------------------------------------------


class Event(NamedTuple):
    """Anna bought a hat at the market."""

    who: Person
    verb: Verb
    what: Noun
    where: Place

    def text(self, language: Language) -> str:
        """The event as a sentence."""
        if language == "zh":
            return f"{self.who.zh}在{self.where.zh}{self.verb.zh}一{self.what.measure}{self.what.zh}。"
        return f"{self.who.en} {self.verb.past} {a(self.what.en)} at the {self.where.en}."


class Passage(NamedTuple):
    """Two or three events, of which one is asked about."""

    events: tuple[Event, ...]
    asked: int
    kind: str
    """`who`, `what` or `where`."""


def _draw_passage(rng: Random) -> Passage:
    count = 2 if rng.random() < 0.7 else 3
    # Verbs may repeat; people, things and places may not, so that every question has one answer.
    events = zip(
        rng.sample(PEOPLE, count), rng.choices(VERBS, k=count), rng.sample(NOUNS, count), rng.sample(PLACES, count)
    )
    return Passage(tuple(Event(*event) for event in events), rng.randrange(count), rng.choice(("who", "what", "where")))


def _passage_text(passage: Passage, language: Language) -> str:
    return ("" if language == "zh" else " ").join(event.text(language) for event in passage.events)


def _passage_question(passage: Passage, language: Language, rng: Random) -> Question:
    event = passage.events[passage.asked]
    who, what, where = event.who[language], event.what[language], event.where[language]
    if language == "zh":
        questions = {
            "who": (f"谁{event.verb.zh}{what}？", f"{event.verb.zh}{what}的是{who}。"),
            "what": (f"{who}{event.verb.zh}什么？", event.text("zh")),
            "where": (f"{who}在哪里？", f"{who}在{where}。"),
        }
    else:
        questions = {
            "who": (f"Who {event.verb.past} the {what}?", f"The one who {event.verb.past} the {what} is {who}."),
            "what": (f"What did {who} {event.verb.base}?", f"{who} {event.verb.past} {a(what)}."),
            "where": (f"Where was {who}?", event.text("en")),
        }
    asked, answer = questions[passage.kind]
    return Question({"text": _passage_text(passage, language), "question": asked}, answer)


PASSAGE = Family(
    "passage",
    _draw_passage,
    _passage_question,
    {
        "en": Wordings(
            (
                "{text} {question}",
                "{text}\n{question}",
                "Read this: {text}\nQuestion: {question}",
                "{question} {text}",
                "Answer the question. {text} {question}",
                "{text}\nAnswer this question: {question}",
            ),
            ("Read this and answer the question: {text} {question}", "Question: {question}\n{text}"),
        ),
        "zh": Wordings(
            (
                "{text}{question}",
                "{text}\n{question}",
                "请读：{text}\n问题：{question}",
                "{question}{text}",
                "请回答问题。{text}{question}",
            ),
            ("请读，再回答问题：{text}{question}", "问题：{question}\n{text}"),
        ),
    },
    # All questions on one passage split alike: the answer to one quotes the answer to another.
    key=lambda passage: _passage_text(passage, "en"),
    weight=3,
)

# --- a shop's policy --------------------------------------------------------------------------------------------------


class Case(NamedTuple):
    """A customer who bought `things[asked]` so many `days` ago; each thing can be returned within its limit."""

    things: tuple[Noun, ...]
    limits: tuple[int, ...]
    asked: int
    days: int


def _draw_case(rng: Random) -> Case:
    things, limits = rng.sample(THINGS, 2), rng.sample(range(5, 91), 2)
    asked = rng.randrange(2)
    limit, other = limits[asked], limits[1 - asked]
    # Half the time the days lie between the two limits: whoever reads the wrong line answers wrongly.
    low, high = sorted((limit, other))
    if rng.random() < 0.5 and high - low > 1:
        days = rng.randint(low + 1, high)
    else:
        days = rng.randint(2, limit) if rng.random() < 0.5 else rng.randint(limit + 1, 99)
    return Case(tuple(things), tuple(limits), asked, days)


def _policy_question(case: Case, language: Language, rng: Random) -> Question:
    lines = zip(case.things, case.limits)
    thing, limit = case.things[case.asked], case.limits[case.asked]
    if language == "zh":
        policy = "，".join(f"{noun.zh} {days} 天" for noun, days in lines)
        answer = f"{thing.zh}：{limit} 天。{case.days} 天：{'可以' if case.days <= limit else '不可以'}。"
    else:
        policy = ", ".join(f"{noun.en} {days} days" for noun, days in lines)
        answer = f"The {thing.en}: {limit} days. {case.days} days: {'yes' if case.days <= limit else 'no'}."
    bought = f"一{thing.measure}{thing.zh}" if language == "zh" else a(thing.en)
    slots = {"policy": policy, "bought": bought, "thing": thing[language], "days": str(case.days)}
    return Question(slots, answer)


POLICY = Family(
    "policy",
    _draw_case,
    _policy_question,
    {
        "en": Wordings(
            (
                "Returns: {policy}. I bought {bought} {days} days ago. Can I return it?",
                "You can return: {policy}.\nA customer bought {bought} {days} days ago. Can it be returned?",
                "I bought {bought} {days} days ago. Can I return it? Returns: {policy}.",
                "Policy for returns: {policy}.\nCustomer: Can I return the {thing}? I bought it {days} days ago.",
                "Returns: {policy}.\nThe customer has had the {thing} for {days} days. Can it be returned?",
            ),
            (
                "Policy for returns: {policy}. I bought the {thing} {days} days ago. Can it be returned?",
                "You can return: {policy}.\nCustomer: I bought {bought} {days} days ago. Can I return it?",
            ),
        ),
        "zh": Wordings(
            (
                "退货期限：{policy}。我 {days} 天前买了{bought}。可以退货吗？",
                "退货规定：{policy}。\n顾客 {days} 天前买了{bought}。可以退货吗？",
                "我 {days} 天前买了{bought}。可以退货吗？退货期限：{policy}。",
                "退货规定：{policy}。\n顾客：{thing}是我 {days} 天前买的，能退吗？",
                "退货期限：{policy}。顾客的{thing}买了 {days} 天，能退吗？",
            ),
            (
                "退货规定：{policy}。我的{thing}买了 {days} 天，可以退货吗？",
                "退货期限：{policy}。\n顾客：我 {days} 天前买了{bought}，能退吗？",
            ),
        ),
    },
    key=lambda case: f"{[thing.en for thing in case.things]} {case.limits} {case.asked} {case.days}",
    weight=3,
)

# --- a small table ----------------------------------------------------------------------------------------------------


class Table(NamedTuple):
    """How many of each thing everybody has; either a cell is asked for, or the one who has so many."""

    people: tuple[Person, ...]
    things: tuple[Noun, ...]
    cells: tuple[tuple[int, ...], ...]
    """(people, things); the numbers of one column differ."""
    row: int
    column: int
    asks_who: bool


def _draw_table(rng: Random) -> Table:
    # One column asks for a row alone: with two, a model that finds neither learns neither.
    rows, columns = rng.randint(2, 3), rng.randint(1, 2)
    cells = zip(*(rng.sample(range(2, 10), rows) for _ in range(columns)))
    return Table(
        tuple(rng.sample(PEOPLE, rows)),
        tuple(rng.sample(NOUNS, columns)),
        tuple(cells),
        rng.randrange(rows),
        rng.randrange(columns),
        asks_who=rng.random() < 0.3,
    )


def _table_text(table: Table, language: Language) -> str:
    heads = [thing.zh if language == "zh" else thing.plural for thing in table.things]
    lines = [["名字" if language == "zh" else "name", *heads]]
    lines += [[who[language], *map(str, cells)] for who, cells in zip(table.people, table.cells)]
    # As Markdown: to a tokenizer a word after a space is another word than at a line's start, and so each stands in its
    # row as it does in the question.
    left, between, right = ("|", "|", "|") if language == "zh" else ("| ", " | ", " |")
    return "\n".join(f"{left}{between.join(line)}{right}" for line in lines)


def _table_question(table: Table, language: Language, rng: Random) -> Question:
    who, thing, number = table.people[table.row], table.things[table.column], table.cells[table.row][table.column]
    counted = f"{number} {thing.measure}{thing.zh}" if language == "zh" else f"{number} {thing.plural}"
    if table.asks_who and language == "zh":
        asked, answer = f"谁有 {counted}？", f"有 {counted}的是{who.zh}。"
    elif table.asks_who:
        asked, answer = f"Who has {counted}?", f"The one with {counted} is {who.en}."
    else:
        # The row first, and where it has several cells the one that was asked for.
        row = list(zip(table.things, table.cells[table.row]))
        if language == "zh":
            asked = f"{who.zh}有多少{thing.measure}{thing.zh}？"
            answer = f"{who.zh}：{'，'.join(f'{head.zh} {cell}' for head, cell in row)}。"
            answer += f"所以{thing.zh} {number}。" if len(row) > 1 else ""
        else:
            asked = f"How many {thing.plural} does {who.en} have?"
            answer = f"{who.en}: {', '.join(f'{head.plural} {cell}' for head, cell in row)}."
            answer += f" So {thing.plural} {number}." if len(row) > 1 else ""
    return Question({"table": _table_text(table, language), "question": asked}, answer)


TABLE = Family(
    "table",
    _draw_table,
    _table_question,
    {
        "en": Wordings(
            (
                "{table}\n{question}",
                "{question}\n{table}",
                "Read this table:\n{table}\n{question}",
                "{table}\nAnswer from the table: {question}",
                "Table:\n{table}\nQuestion: {question}",
            ),
            ("Question: {question}\nTable:\n{table}", "Read this table and answer the question.\n{table}\n{question}"),
        ),
        "zh": Wordings(
            (
                "{table}\n{question}",
                "{question}\n{table}",
                "请读这张表：\n{table}\n{question}",
                "{table}\n根据这张表回答：{question}",
                "表：\n{table}\n问题：{question}",
            ),
            ("问题：{question}\n表：\n{table}", "请读这张表，再回答问题。\n{table}\n{question}"),
        ),
    },
    key=lambda table: _table_text(table, "en"),  # all questions on one table, as with a passage
    weight=4,
)

# --- summary ----------------------------------------------------------------------------------------------------------

_OPENINGS = (
    ("It was a sunny day.", "那天是晴天。"),
    ("It was late in the evening.", "那天很晚了。"),
    ("It was raining.", "那天下雨。"),
    ("It was very cold.", "那天很冷。"),
    ("It was Sunday.", "那天是星期天。"),
)
_OTHERS = (
    ("{other} stayed at home.", "{other}在家。"),
    ("{other} was asleep.", "{other}睡了。"),
    ("{other} had to work.", "{other}要上班。"),
    ("{other} did not come.", "{other}没有来。"),
)
_ARRIVALS = (
    ("{who} went to the {where}.", "{who}去了{where}。"),
    ("{who} walked to the {where}.", "{who}走到{where}。"),
    ("{who} was at the {where}.", "{who}在{where}。"),
)


class Story(NamedTuple):
    """Somebody goes somewhere and does something there, while somebody else does not."""

    event: Event
    other: Person
    opening: int
    absence: int
    arrival: int
    other_first: bool

    def text(self, language: Language) -> str:
        """The story in four short sentences."""
        column = 1 if language == "zh" else 0
        event, zh = self.event, language == "zh"
        absence = _OTHERS[self.absence][column].format(other=self.other[language])
        arrival = _ARRIVALS[self.arrival][column].format(who=event.who[language], where=event.where[language])
        if zh:
            pronoun = "他" if event.who.gender == "m" else "她"
            deed = f"在那里{pronoun}{event.verb.zh}一{event.what.measure}{event.what.zh}。"
        else:
            pronoun = "he" if event.who.gender == "m" else "she"
            deed = f"There {pronoun} {event.verb.past} {a(event.what.en)}."
        middle = [absence, arrival, deed] if self.other_first else [arrival, deed, absence]
        return ("" if zh else " ").join([_OPENINGS[self.opening][column], *middle])

    def summary(self, language: Language) -> str:
        """Who did what, in one sentence."""
        event = self.event
        if language == "zh":
            return f"{event.who.zh}{event.verb.zh}一{event.what.measure}{event.what.zh}。"
        return f"{event.who.en} {event.verb.past} {a(event.what.en)}."


def _draw_story(rng: Random) -> Story:
    who, other = rng.sample(PEOPLE, 2)
    return Story(
        Event(who, rng.choice(VERBS), rng.choice(NOUNS), rng.choice(PLACES)),
        other,
        rng.randrange(len(_OPENINGS)),
        rng.randrange(len(_OTHERS)),
        rng.randrange(len(_ARRIVALS)),
        other_first=rng.random() < 0.5,
    )


def _summary_question(story: Story, language: Language, rng: Random) -> Question:
    return Question({"text": story.text(language)}, story.summary(language))


SUMMARY = Family(
    "summary",
    _draw_story,
    _summary_question,
    {
        "en": Wordings(
            (
                "Summarize this story: who did what? {text}",
                "{text}\nWho did what?",
                "{text}\nSummarize in one sentence.",
                "Summarize: {text}",
                "Story: {text}\nSay in one sentence who did what.",
                "Say who did what. {text}",
            ),
            ("Story: {text}\nSummarize who did what.", "Summarize this story in one sentence: {text}"),
        ),
        "zh": Wordings(
            (
                "总结这个故事：谁做了什么？{text}",
                "{text}\n谁做了什么？",
                "{text}\n用一句话总结。",
                "总结：{text}",
                "故事：{text}\n用一句话说谁做了什么。",
            ),
            ("故事：{text}\n总结谁做了什么。", "用一句话总结这个故事：{text}"),
        ),
    },
    key=lambda story: story.text("en"),
    weight=1,
)

FAMILIES: tuple[Family, ...] = (PASSAGE, POLICY, TABLE, SUMMARY)
