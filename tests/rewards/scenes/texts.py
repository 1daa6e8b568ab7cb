"""Short texts over few words, so that n-grams are often shared."""

from hypothesis import strategies as st

WORDS = ("a", "the", "bold", "thin", "seven", "two", "Above")

words = st.lists(st.sampled_from(WORDS), min_size=1, max_size=8)
texts = words.map(" ".join)
answers = st.one_of(st.just(""), texts)
several = st.lists(texts, min_size=1, max_size=4)
pairs = st.lists(st.tuples(answers, several), min_size=1, max_size=4)


def refusals(name):
    """Bad answers and references, and what the message says of them."""
    return [
        (("a", [["a"]]), f"{name}: expected a list of answers, got 'a'"),
        (([3], [["a"]]), f"{name}: expected a text, got 3 for answer 0"),
        ((["a"], []), f"{name}: expected references for each of 1 answers, got 0 lists"),
        ((["a"], ["a"]), f"{name}: expected a list of at least one reference for answer 0, got 'a'"),
        ((["a", "b"], [["a"], []]), f"{name}: expected a list of at least one reference for answer 1"),
        ((["a"], [["a", " "]]), f"{name}: expected a reference of at least one word, got ' ' for answer 0"),
        ((["a"], [[None]]), f"{name}: expected a reference of at least one word, got None"),
        ((["a"], "a"), f"{name}: expected a list of lists of references, got 'a'"),
    ]
