"""What fields mean by what they are called in public sets. `Fields` compares names without case and signs.

The order counts: of fields that mean the same, all that are filled are used where they can be used together (system,
prompt, passages), else the first.
"""

from __future__ import annotations

SYSTEM_FIELDS = ("system", "system_prompt", "system_message", "system_instruction", "system_instructions", "sys_prompt")
# What is asked.
PROMPT_FIELDS = ("instruction", "instructions", "definition", "prompt", "question", "query", "problem", "request")
# What it is asked about.
PASSAGE_FIELDS = (
    *("input", "context", "contexts", "passage", "passages", "document", "documents", "paragraph", "article", "story"),
    *("text", "content", "background", "knowledge", "evidence", "support", "facts", "schema", "source_text", "hint"),
    *("premise", "hypothesis", "dialogue", "dialog", "reference_text"),
)
# What is asked, where none of the above is there to ask it.
USER_FIELDS = ("input", "inputs", "user", "human", "user_input", "user_message", "message", "post", "history")
CHOICE_FIELDS = ("choices", "options", "answer_choices")
LETTERED_FIELDS = ("{}", "option_{}", "choice_{}", "op{}")  # a choice in a field of its own: A, option_a, opa
# Whole conversations.
TURN_FIELDS = ("messages", "conversations", "conversation", "dialogue", "dialog", "chat", "turns", "data")
HISTORY_FIELD = "history"  # earlier turns

ANSWER_FIELDS = (
    *("output", "response", "completion", "answer", "target", "outputs", "responses", "completions", "answers"),
    *("targets", "assistant", "gpt", "bot", "model_output", "reply", "solution", "canonical_solution", "ground_truth"),
    *("reference_answer", "best_answer", "correct_answer", "gold_answer", "expected_output", "summary", "highlights"),
    *("reference", "answer_key", "answer_idx", "final_answer"),
)
# A list of two texts in these is a better answer and a worse one; in the others, answers that are all right.
PAIR_FIELDS = ("output", "response", "completion")
CHOSEN_FIELDS = (
    *("chosen", "preferred_output", "chosen_response", "response_chosen", "chosen_answer", "preferred_response"),
    *("accepted", "accepted_response", "response_accepted", "preferred", "better", "better_response", "win"),
    *("response_j",),
)
REJECTED_FIELDS = (
    *("rejected", "non_preferred_output", "rejected_response", "response_rejected", "rejected_answer"),
    *("dispreferred_response", "non_preferred_response", "reject", "dispreferred", "worse", "worse_response", "lose"),
    *("response_k",),
)
RANKING_FIELDS = ("ranking", "ranked", "completions", "responses", "answers", "outputs", "generations")
# Of an answer among several: the first of the names is best where it is small, the others where they are large.
RANK_FIELD = "rank"
SCORE_FIELDS = ("score", "overall_score", "rating", "reward", "upvotes")
# Whether a record's answer is a good one; and which of these names are also those of a text's class.
MARK_FIELDS = (
    *("label", "kto_tag", "tag", "kto_label", "is_good", "is_correct", "correct", "is_accepted", "accepted"),
    *("desirable", "is_desirable", "is_preferred", "is_chosen", "thumbs_up", "good", "feedback", "verdict"),
)
CLASS_FIELDS = ("label", "tag", "feedback", "verdict")
