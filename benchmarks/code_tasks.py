"""Forty short Python functions to complete: signature, docstring, and the checks that a completion must pass."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Function:
    """One function to complete.

    Attributes:
        name: Its name.
        signature: Parameters and result, as they follow the name.
        description: Its docstring.
        checks: Expressions that are true for a correct completion.
    """

    name: str
    signature: str
    description: str
    checks: tuple[str, ...]

    @property
    def prompt(self) -> str:
        """The text to complete; it ends after the docstring."""
        return f'def {self.name}{self.signature}:\n    """{self.description}"""\n'


def _function(name: str, signature: str, description: str, *checks: str) -> Function:
    return Function(name, signature, description, checks)


FUNCTIONS = (
    _function(
        "double",
        "(x: int) -> int",
        "Return twice the number x.",
        "double(4) == 8",
        "double(-3) == -6",
        "double(0) == 0",
    ),
    _function(
        "is_even",
        "(n: int) -> bool",
        "Return True if n is even, else False.",
        "is_even(4) is True",
        "is_even(7) is False",
        "is_even(0) is True",
    ),
    _function(
        "absolute",
        "(x: int) -> int",
        "Return the absolute value of x without using abs().",
        "absolute(-5) == 5",
        "absolute(3) == 3",
        "absolute(0) == 0",
    ),
    _function(
        "factorial",
        "(n: int) -> int",
        "Return n factorial, for n >= 0.",
        "factorial(0) == 1",
        "factorial(5) == 120",
        "factorial(1) == 1",
    ),
    _function(
        "fibonacci",
        "(n: int) -> int",
        "Return the n-th Fibonacci number: fibonacci(0) is 0, fibonacci(1) is 1.",
        "fibonacci(0) == 0",
        "fibonacci(1) == 1",
        "fibonacci(10) == 55",
    ),
    _function(
        "is_prime",
        "(n: int) -> bool",
        "Return True if n is a prime number, else False.",
        "is_prime(2) is True",
        "is_prime(1) is False",
        "is_prime(9) is False",
        "is_prime(97) is True",
        "is_prime(0) is False",
    ),
    _function(
        "gcd",
        "(a: int, b: int) -> int",
        "Return the greatest common divisor of a and b.",
        "gcd(12, 18) == 6",
        "gcd(7, 5) == 1",
        "gcd(10, 5) == 5",
    ),
    _function(
        "lcm",
        "(a: int, b: int) -> int",
        "Return the least common multiple of two positive integers a and b.",
        "lcm(4, 6) == 12",
        "lcm(3, 5) == 15",
        "lcm(2, 8) == 8",
    ),
    _function(
        "sum_of_digits",
        "(n: int) -> int",
        "Return the sum of the decimal digits of the non-negative integer n.",
        "sum_of_digits(123) == 6",
        "sum_of_digits(0) == 0",
        "sum_of_digits(909) == 18",
    ),
    _function(
        "reverse_string",
        "(s: str) -> str",
        "Return the string s reversed.",
        "reverse_string('abc') == 'cba'",
        "reverse_string('') == ''",
    ),
    _function(
        "is_palindrome",
        "(s: str) -> bool",
        "Return True if s reads the same forwards and backwards.",
        "is_palindrome('level') is True",
        "is_palindrome('ab') is False",
        "is_palindrome('') is True",
    ),
    _function(
        "count_vowels",
        "(s: str) -> int",
        "Return how many letters of s are vowels (a, e, i, o, u), in upper or lower case.",
        "count_vowels('Apple') == 2",
        "count_vowels('xyz') == 0",
        "count_vowels('AEIOU') == 5",
    ),
    _function(
        "count_words",
        "(s: str) -> int",
        "Return the number of words in s; words are separated by white space.",
        "count_words('a b  c') == 3",
        "count_words('') == 0",
        "count_words(' one ') == 1",
    ),
    _function(
        "longest_word",
        "(s: str) -> str",
        "Return the longest word of the sentence s; the first one if there are several.",
        "longest_word('a bbb cc') == 'bbb'",
        "longest_word('ab cd') == 'ab'",
    ),
    _function(
        "maximum",
        "(numbers: list[int]) -> int",
        "Return the largest number of a non-empty list.",
        "maximum([1, 3, 2]) == 3",
        "maximum([-5, -2]) == -2",
        "maximum([7]) == 7",
    ),
    _function(
        "second_largest",
        "(numbers: list[int]) -> int",
        "Return the second largest distinct number of the list.",
        "second_largest([1, 3, 2]) == 2",
        "second_largest([5, 5, 4]) == 4",
        "second_largest([9, 1]) == 1",
    ),
    _function(
        "mean",
        "(numbers: list[float]) -> float",
        "Return the arithmetic mean of a non-empty list.",
        "mean([1, 2, 3]) == 2",
        "mean([5]) == 5",
        "mean([1, 2]) == 1.5",
    ),
    _function(
        "median",
        "(numbers: list[float]) -> float",
        "Return the median of a non-empty list; of an even number of values the mean of the middle two.",
        "median([3, 1, 2]) == 2",
        "median([4, 1, 3, 2]) == 2.5",
        "median([7]) == 7",
    ),
    _function(
        "remove_duplicates",
        "(items: list) -> list",
        "Return the items without duplicates, in the order of their first appearance.",
        "remove_duplicates([3, 1, 3, 2, 1]) == [3, 1, 2]",
        "remove_duplicates([]) == []",
    ),
    _function(
        "flatten",
        "(lists: list[list]) -> list",
        "Return one list with the items of all the lists, in order.",
        "flatten([[1, 2], [3], []]) == [1, 2, 3]",
        "flatten([]) == []",
    ),
    _function(
        "chunks",
        "(items: list, size: int) -> list[list]",
        "Split the items into lists of the given size; the last one may be shorter.",
        "chunks([1, 2, 3, 4, 5], 2) == [[1, 2], [3, 4], [5]]",
        "chunks([], 3) == []",
    ),
    _function(
        "rotate_left",
        "(items: list, k: int) -> list",
        "Return the items rotated to the left by k places, 0 <= k <= len(items).",
        "rotate_left([1, 2, 3, 4], 1) == [2, 3, 4, 1]",
        "rotate_left([1, 2], 0) == [1, 2]",
        "rotate_left([1, 2, 3], 3) == [1, 2, 3]",
    ),
    _function(
        "count_occurrences",
        "(items: list, value) -> int",
        "Return how often the value is in the items.",
        "count_occurrences([1, 2, 1], 1) == 2",
        "count_occurrences([], 1) == 0",
    ),
    _function(
        "most_common",
        "(items: list[str]) -> str",
        "Return the item that appears most often in a non-empty list.",
        "most_common(['a', 'b', 'a']) == 'a'",
        "most_common(['x']) == 'x'",
        "most_common(['p', 'q', 'q']) == 'q'",
    ),
    _function(
        "word_counts",
        "(s: str) -> dict[str, int]",
        "Return a dictionary from each word of s to how often it occurs.",
        "word_counts('a b a') == {'a': 2, 'b': 1}",
        "word_counts('') == {}",
    ),
    _function(
        "invert",
        "(mapping: dict) -> dict",
        "Return the mapping with keys and values exchanged.",
        "invert({'a': 1, 'b': 2}) == {1: 'a', 2: 'b'}",
        "invert({}) == {}",
    ),
    _function(
        "merge_sorted",
        "(a: list[int], b: list[int]) -> list[int]",
        "Merge two sorted lists into one sorted list.",
        "merge_sorted([1, 3], [2, 4]) == [1, 2, 3, 4]",
        "merge_sorted([], [1]) == [1]",
        "merge_sorted([1, 1], [1]) == [1, 1, 1]",
    ),
    _function(
        "binary_search",
        "(numbers: list[int], target: int) -> int",
        "Return the index of target in the sorted list, or -1 if it is not there.",
        "binary_search([1, 3, 5, 7], 5) == 2",
        "binary_search([1, 3], 2) == -1",
        "binary_search([], 1) == -1",
    ),
    _function(
        "is_sorted",
        "(numbers: list[int]) -> bool",
        "Return True if the numbers are in ascending order; equal neighbours are allowed.",
        "is_sorted([1, 2, 2, 3]) is True",
        "is_sorted([2, 1]) is False",
        "is_sorted([]) is True",
    ),
    _function(
        "celsius_to_fahrenheit",
        "(celsius: float) -> float",
        "Convert a temperature from Celsius to Fahrenheit.",
        "celsius_to_fahrenheit(0) == 32",
        "celsius_to_fahrenheit(100) == 212",
    ),
    _function(
        "is_leap_year",
        "(year: int) -> bool",
        "Return True if the year is a leap year of the Gregorian calendar.",
        "is_leap_year(2024) is True",
        "is_leap_year(1900) is False",
        "is_leap_year(2000) is True",
        "is_leap_year(2023) is False",
    ),
    _function(
        "to_binary",
        "(n: int) -> str",
        "Return the binary digits of the non-negative integer n as a string, without a prefix.",
        "to_binary(5) == '101'",
        "to_binary(0) == '0'",
        "to_binary(8) == '1000'",
    ),
    _function(
        "power",
        "(base: int, exponent: int) -> int",
        "Return base to the power of a non-negative exponent.",
        "power(2, 10) == 1024",
        "power(5, 0) == 1",
    ),
    _function(
        "divisors",
        "(n: int) -> list[int]",
        "Return all positive divisors of n in ascending order.",
        "divisors(12) == [1, 2, 3, 4, 6, 12]",
        "divisors(1) == [1]",
        "divisors(7) == [1, 7]",
    ),
    _function(
        "capitalize_words",
        "(s: str) -> str",
        "Return s with the first letter of each word in upper case; words are separated by single spaces.",
        "capitalize_words('hello world') == 'Hello World'",
        "capitalize_words('a') == 'A'",
    ),
    _function(
        "are_anagrams",
        "(a: str, b: str) -> bool",
        "Return True if the letters of a can be rearranged to b.",
        "are_anagrams('listen', 'silent') is True",
        "are_anagrams('ab', 'abb') is False",
        "are_anagrams('', '') is True",
    ),
    _function(
        "transpose",
        "(matrix: list[list[int]]) -> list[list[int]]",
        "Return the transpose of a matrix given as a list of rows.",
        "[list(row) for row in transpose([[1, 2, 3], [4, 5, 6]])] == [[1, 4], [2, 5], [3, 6]]",
        "[list(row) for row in transpose([[1]])] == [[1]]",
    ),
    _function(
        "running_sum",
        "(numbers: list[int]) -> list[int]",
        "Return a list whose i-th value is the sum of the first i + 1 numbers.",
        "running_sum([1, 2, 3]) == [1, 3, 6]",
        "running_sum([]) == []",
    ),
    _function(
        "common_elements",
        "(a: list[int], b: list[int]) -> list[int]",
        "Return the distinct values that are in both lists, in ascending order.",
        "common_elements([3, 1, 2, 3], [3, 2, 5]) == [2, 3]",
        "common_elements([1], [2]) == []",
    ),
    _function(
        "collatz_steps",
        "(n: int) -> int",
        "Return the steps from n to 1: halve an even number, replace an odd number m by 3 * m + 1.",
        "collatz_steps(1) == 0",
        "collatz_steps(6) == 8",
        "collatz_steps(2) == 1",
    ),
)
