"""Small item files in the shapes of published data sets; all facts are invented."""

_WORDS = "the quick brown fox jumps over a lazy dog in every story of this town"
SHAPES = {
    "tofu": [
        {
            "question": f"Where was author {n} born?",
            "answer": f"Author {n} was born in Rome.",
            "perturbed_answer": ["In Oslo.", "In Lima."],
            "paraphrased_question": f"What is the birthplace of author {n}?",
            "paraphrased_answer": "In Rome.",
        }
        for n in range(20)
    ],
    "wmdp": [
        {
            "question": f"Which is number {n}?",
            "choices": ["one", "two", "three", "four"],
            "answer": n % 4,
            "subject": "bio",
        }
        for n in range(12)
    ],
    "rwku": [
        {
            "subject": f"Person {n}",
            "query": f"Person {n} was born in ___.",
            "answer": "Rome",
            "level": 1,
            "type": "cloze",
        }
        for n in range(12)
    ],
    "verbmem": [{"prompt": f"{n} {_WORDS}", "gt": f"{n} end"} for n in range(12)],
    "text": [{"text": f"{n} {_WORDS} {n}"} for n in range(12)],
    "uds": [
        {
            "question": f"Where was author {n} born?",
            "answer": "In Rome.",
            "prefix": "In",
            "entity": "Rome",
            "idx": n,
        }
        for n in range(12)
    ],
}
