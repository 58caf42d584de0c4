#!/usr/bin/env python3
"""Makes small.jsonl: small templates and what Jinja2, set up as transformers does, makes of them.

Each line holds `template`, and `expected` (the text) or `fails` (the kind of Jinja2's error). The context of
all is CONVERSATION below, with `bos_token`, `eos_token` and `add_generation_prompt`.

With the directory `chat_templates` of an unpacked wheel of TRL as argument, makes shipped.jsonl too: the
templates of instruct models that TRL ships (Apache-2.0), each with the texts that come of several conversations.

Needs jinja2 and transformers (made with jinja2 3.1.6, transformers 5.24 and trl 1.16.0).
"""

import json
import pathlib
import re
import sys

import jinja2
from transformers.utils.chat_template_utils import _compile_jinja_template

HERE = pathlib.Path(__file__).resolve().parent

CONVERSATION = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi  there, one two one"},
    {"role": "assistant", "content": "<think>\nhm\n</think>\n\nHello"},
    {"role": "user", "content": " 7 é "},
]

# One template a line. Of a line of expressions alone, each expression is a template too.
SMALL = r"""
=== text methods
{{ 'aXbXc'.split('X') }}
{{ ' a  b '.split() }}
{{ 'a b c'.split(' ', 1) }}
{{ 'a b c'.split(maxsplit=1) }}
{{ 'a b c'.split(sep=' ', maxsplit=1) }}
{{ 'a b  c'.split(none, 1) }}
{{ ''.split() }}{{ ''.split(',') }}
{{ 'a-b-c'.rsplit('-', 1) }}{{ 'a b c'.rsplit(maxsplit=1) }}{{ ' a b '.rsplit(none, 1) }}{{ 'a-b'.rsplit('-', -1) }}
{{ 'a=b=c'.partition('=') }}{{ 'a=b=c'.rpartition('=') }}{{ 'abc'.partition('=') }}{{ 'abc'.rpartition('=') }}
{{ 'prefix-x'.removeprefix('prefix-') }}{{ 'x.txt'.removesuffix('.txt') }}{{ 'x'.removeprefix('y') }}{{ 'x'.removesuffix('') }}
{{ '  a '.strip() }}|{{ 'xxaxx'.strip('x') }}|{{ '  a'.lstrip() }}|{{ 'a  '.rstrip() }}|{{ 'abcba'.strip('ab') }}|{{ 'a\n'.rstrip('\n') }}|{{ ' a '.strip(none) }}
{{ 'hello'.find('l') }}{{ 'hello'.rfind('l') }}{{ 'hello'.find('z') }}{{ 'hello'.index('l') }}{{ 'hello'.rindex('l') }}
{{ 'héllo'.find('l') }}{{ 'hello'.find('l', 3) }}{{ 'hello'.find('l', 0, 2) }}{{ 'hello'.find('') }}
{{ 'banana'.count('an') }}{{ 'banana'.count('a', 2) }}{{ 'aaa'.count('aa') }}{{ 'abc'.count('') }}
{{ 'a.b'.replace('.', '-') }}{{ 'aaa'.replace('a', 'b', 2) }}{{ 'aaa'.replace('a', 'b', count=1) if false else '' }}{{ 'ab'.replace('', '-') }}
{{ 'hello'.startswith('he') }}{{ 'hello'.startswith(('x', 'he')) }}{{ 'hello'.endswith('lo') }}{{ 'hello'.endswith(('x', 'y')) }}{{ 'hello'.startswith('l', 2) }}{{ 'hello'.endswith('l', 0, 4) }}
{{ 'a,b'.join(['1', '2', '3']) }}{{ ''.join(('x', 'y')) }}{{ '-'.join('abc') }}
{{ 'ß'.upper() }}{{ 'É'.lower() }}{{ 'ÀB'.casefold() }}{{ 'ß'.casefold() }}{{ 'aBc'.swapcase() }}
{{ 'hello wORLD'.capitalize() }}{{ "they're bill's".title() }}{{ 'x1y a_b'.title() }}{{ 'ǆ'.capitalize() }}
{{ '42'.zfill(5) }}{{ '-42'.zfill(5) }}{{ '+1'.zfill(4) }}{{ 'abc'.zfill(2) }}
[{{ 'a'.ljust(4) }}][{{ 'a'.rjust(4, '.') }}][{{ 'ab'.center(5, '*') }}][{{ 'abc'.center(6) }}][{{ 'abc'.ljust(2) }}]
{{ 'a\nb\r\nc\n'.splitlines() }}{{ 'a\nb'.splitlines(true) }}{{ 'a\x0bb\x85c'.splitlines() }}{{ ''.splitlines() }}
{{ 'abc'.isalpha() }}{{ 'ab1'.isalpha() }}{{ 'ab1'.isalnum() }}{{ ''.isalnum() }}{{ '12'.isdigit() }}{{ '²'.isdigit() }}{{ '²'.isdecimal() }}{{ '½'.isnumeric() }}{{ '½'.isdigit() }}
{{ 'abc'.islower() }}{{ 'aBc'.islower() }}{{ 'ABC1'.isupper() }}{{ '1'.isupper() }}{{ ' \t'.isspace() }}{{ ''.isspace() }}{{ 'Ab Cd'.istitle() }}{{ 'AB'.istitle() }}
{{ 'ab_1'.isidentifier() }}{{ '1a'.isidentifier() }}{{ 'abc'.isascii() }}{{ 'é'.isascii() }}{{ ''.isascii() }}{{ 'a\n'.isprintable() }}{{ 'ab'.isprintable() }}
{{ 'a\tbc\td'.expandtabs() }}|{{ 'a\tb'.expandtabs(4) }}|{{ 'a\tb'.expandtabs(tabsize=2) }}
{{ '{} and {}'.format('a', 1) }}{{ '{1}{0}'.format('a', 'b') }}{{ '{x}'.format(x=3) }}{{ '{{}}'.format() }}
{{ '{:>5}|{:<5}|{:^5}'.format('a', 'b', 'c') }}{{ '{:05d}|{:+d}|{:,}'.format(42, 3, 1234567) }}{{ '{:.2f}|{:e}|{:g}|{:%}'.format(3.14159, 12345.678, 0.0001, 0.25) }}
{{ '{:x}|{:X}|{:o}|{:b}|{:#x}|{:c}'.format(255, 255, 8, 5, 255, 65) }}{{ '{!r}|{!s}'.format('a', 'b') }}{{ '{0[0]}|{1[a]}'.format([7], {'a': 8}) }}
{{ 'abc'.translate({97: 'x'}) }}
{{ 'héé'.encode('utf-8') }}
{{ 'abc'[1] }}{{ 'abc'[-1] }}{{ 'héllo'[1] }}{{ 'abc'[1:] }}{{ 'abc'[::-1] }}{{ 'abcdef'[1:5:2] }}{{ 'abcdef'[-2:] }}{{ 'abcdef'[:-2] }}{{ 'abcdef'[5:1:-2] }}{{ 'abc'[10:] }}|
{{ 'abc'[7] }}|{{ 'abc'[7] is defined }}
{{ 'abc'|length }}{{ 'é'|length }}{{ '🤖a'|length }}
{{ 'nope'.index('z') }}
{{ 'a'.nosuchmethod() }}
{{ 'a'.nosuchattribute }}|
{{ 'a'.upper }}
=== text operators
{{ 'a' + 'b' }}{{ 'ab' * 2 }}{{ 2 * 'ab' }}{{ 'a' ~ 1 ~ none ~ true ~ 1.0 ~ [1] }}{{ 'ab' * 0 }}{{ 'ab' * -1 }}|
{{ 'a' 'b' }}{{ 'a' "b" 'c' }}
{{ '%s' % 'x' }}{{ '%s-%s' % ('x', 2) }}{{ '%d%%' % 50 }}{{ '%5d|%-5d|%05d|%+d' % (42, 42, 42, 42) }}
{{ '%.3f|%8.2f|%e|%g|%G' % (3.14159, 2.5, 12345.678, 1e-10, 1e20) }}{{ '%x|%X|%o|%#x|%c|%c' % (255, 255, 8, 255, 'a', 66) }}
{{ '%r|%s|%a' % ('a', [1, 'b'], 'é') }}{{ '%(a)s-%(b)d' % {'a': 1, 'b': 2} }}{{ '%s' % none }}{{ '%i' % 3.7 }}{{ '%.2s' % 'abc' }}{{ '%*d' % (5, 42) }}
{{ '%s %s' % ('a',) }}
{{ '%d' % 'a' }}
{{ 'a' < 'b' }}{{ 'a' == 'a' }}{{ 'B' < 'a' }}{{ 'a' in 'cat' }}{{ 'x' not in 'cat' }}{{ '' in 'a' }}{{ 'a' != 1 }}
{{ 'a' < 1 }}
{{ 'a' + 1 }}
{{ 1 in 'abc' }}
=== numbers
{{ 1 + 2 * 3 }}{{ (1 + 2) * 3 }}{{ 7 // 2 }}{{ -7 // 2 }}{{ 7 % 3 }}{{ -7 % 3 }}{{ 7 % -3 }}{{ 7 / 2 }}{{ 4 / 2 }}{{ 2 ** 10 }}{{ 2 ** -1 }}{{ 2 ** 0.5 }}{{ -2 ** 2 }}
{{ 7.5 // 2 }}{{ -7.5 % 2 }}{{ 1.0 }}{{ 1.50 }}{{ 1e3 }}{{ 1e16 }}{{ 1e15 }}{{ 123456789012345680.0 }}{{ 1e-4 }}{{ 1e-5 }}{{ 0.1 + 0.2 }}{{ 1e100 }}{{ 1E5 }}{{ 1e+5 }}{{ 3.0e-7 }}
{{ 1_000 }}{{ 0x1f }}{{ 0b101 }}{{ 0o17 }}{{ 1_0.5_0 }}{{ 0xFF + 1 }}{{ 00 }}
{{ 9223372036854775807 + 1 }}{{ 2 ** 64 }}{{ 2 ** 100 }}{{ -9223372036854775808 }}{{ 10 ** 18 * 10 }}
{{ 1e308 * 10 }}{{ -1e308 * 10 }}{{ 1e308 * 10 - 1e308 * 10 }}{{ 0.0 }}{{ -0.0 }}
{{ 1 == 1.0 }}{{ true == 1 }}{{ 1 < 2 < 3 }}{{ 1 < 3 < 2 }}{{ 3 > 2 >= 2 }}{{ true + true }}{{ 1 in [1.0] }}{{ not 1 }}{{ -true }}{{ +3 }}{{ - - 3 }}
{{ 1 / 0 }}
{{ 1 // 0 }}
{{ 1 % 0 }}
{{ 3 | abs }}{{ -3 | abs }}{{ (-3) | abs }}{{ 2.7 | round }}{{ 2.5 | round }}{{ 3.5 | round }}{{ 42.55 | round(1) }}{{ 42.55 | round(1, 'floor') }}{{ 42.51 | round(1, 'ceil') }}{{ 42 | round }}{{ 1234 | round(-2) }}{{ 2.675 | round(2) }}
{{ '42' | int }}{{ 'x' | int }}{{ 'x' | int(7) }}{{ '3.9' | int }}{{ 3.9 | int }}{{ '0x1f' | int(0, 16) }}{{ '0b11' | int(0, 2) }}{{ 'ff' | int(base=16) }}{{ none | int }}{{ ' 5 ' | int }}{{ '1_000' | int }}{{ -3.9 | int }}{{ true | int }}
{{ '3.5' | float }}{{ 'x' | float }}{{ 'x' | float(1.5) }}{{ 3 | float }}{{ '1e3' | float }}{{ ' 2 ' | float }}{{ 'inf' | float }}{{ 'nan' | float }}
{{ 1.0 | int }}{{ 1e20 | int }}{{ 3.7.is_integer() }}{{ 4.0.is_integer() }}{{ 5.bit_length() }}
{{ 1234.5 | string }}{{ 10 | string | length }}{{ 1 | string == '1' }}{{ 1.real }}{{ 2.5.as_integer_ratio() }}
{{ 12 is odd }}{{ 12 is even }}{{ 12 is divisibleby 5 }}{{ 12 is divisibleby(3) }}{{ 1.5 is float }}{{ 1 is integer }}{{ true is integer }}{{ true is number }}{{ '1' is number }}{{ true is boolean }}{{ 1 is boolean }}
{{ 5 is gt 3 }}{{ 5 is lt(3) }}{{ 5 is ge 5 }}{{ 5 is le 5 }}{{ 5 is eq 5 }}{{ 5 is ne 5 }}{{ 5 is equalto 5 }}{{ 5 is greaterthan 3 }}{{ 5 is lessthan 3 }}{{ 5 is sameas 5 }}{{ 5 is == 5 if false else '' }}
=== constants and printing
{{ true }}{{ True }}{{ false }}{{ False }}{{ none }}{{ None }}{{ [true, none, false] }}{{ {'a': none} }}
{{ [1, 'a', 2.0, none, [], {}, ()] }}{{ (1,) }}{{ (1, 2) }}{{ () }}{{ {'a': 1, 'b': [1, (2,)]} }}{{ {1: 2, none: 3, (1, 2): 4, true: 5} }}
{{ ["it's", 'say "x"', 'both \' and "', 'a\\b', 'tab\t', 'nl\n', 'é', '\x00', '\x7f', '🤖', '\u200b', '\xa0'] }}
{{ 1, 2 }}{{ (1) }}{{ 1, }}
{{ [1, 2,] }}{{ {'a': 1,} }}{{ (1, 2,) }}
{{ {'b': 1, 'a': 2} }}{{ {'a': 1, 'a': 2} }}{{ {'x': {'y': 'z'}} }}
{{ [1.0, 1e16, 0.1] }}{{ [1.5, 'x'] | string }}{{ {'k': 1.0} ~ '' }}
{{ messages[0] }}
{{ messages | length }}{{ messages[-1] }}{{ messages[1:3] | length }}{{ messages[::-1][0].role }}
{{ range(3) }}{{ range(3) | list }}{{ range(1, 4) | list }}{{ range(5, 0, -2) | list }}{{ range(0) | list }}{{ range(10)[2] }}{{ range(10)[2:4] }}{{ range(3) | length }}
{{ 'a"b' }}{{ "a'b" }}{{ 'a\'b' }}{{ "a\"b" }}{{ 'a\\nb' }}{{ 'a\nb' }}{{ 'a\tb' }}{{ 'a\x41b' }}{{ 'a\u00e9b' }}{{ 'a\U0001F916b' }}{{ 'a\101b' }}{{ 'a\qb' }}{{ 'a\/b' }}{{ 'a\0b' }}{{ '\N{BULLET}' if false else '' }}
{{ '\a\b\f\v\r' | tojson }}
{{ {'a': 1}.a }}{{ {'a': 1}['a'] }}{{ {'a': 1}.get('a') }}{{ {'a': 1}.get('b') }}{{ {'a': 1}.get('b', 2) }}{{ {'a': 1}.b }}|{{ {'a': 1}['b'] is defined }}
{{ {'items': 1}.items }}{{ {'items': 1}['items'] }}{{ {'get': 1}.get }}
=== lists, dicts, tuples
{{ [3, 1, 2] | sort }}{{ [3, 1, 2] | sort(reverse=true) }}{{ ['b', 'A', 'c'] | sort }}{{ ['b', 'A', 'c'] | sort(case_sensitive=true) }}{{ [{'a': 2}, {'a': 1}] | sort(attribute='a') }}{{ [{'a': 1, 'b': 2}, {'a': 1, 'b': 1}] | sort(attribute='a,b') }}
{{ [1, 2] + [3] }}{{ [1] * 3 }}{{ (1,) + (2,) }}{{ [1, 2] == [1, 2] }}{{ [1, 2] == (1, 2) }}{{ [1, 2] < [1, 3] }}{{ 1 in [1, 2] }}{{ 'a' in {'a': 1} }}{{ [] == () }}{{ {} == {} }}
{{ [1, 2, 3][1] }}{{ [1, 2, 3][-1] }}{{ [1, 2, 3][1:] }}{{ [1, 2, 3][::-1] }}{{ (1, 2, 3)[::2] }}{{ [1, 2, 3][5] }}|{{ [1, 2, 3][0:-1] }}{{ [1, 2, 3].0 }}
{{ [1, 2, 1].count(1) }}{{ [1, 2].index(2) }}{{ (1, 2, 1).count(1) }}{{ (1, 2).index(2) }}{{ [1, 2].copy() }}
{{ [1, 2].append(3) }}
{{ [1, 2].pop() }}
{{ {'a': 1}.update({'b': 2}) }}
{{ [2, 1].sort() }}
{% set x = [1] %}{% set _ = x.extend([2]) %}{{ x }}
{{ {'a': 1, 'b': 2}.items() | list }}{{ {'a': 1, 'b': 2}.keys() | list }}{{ {'a': 1}.values() | list }}{{ {'a': 1}.items() }}{{ {'a': 1}.keys() }}{{ {'a': 1}.values() }}
{{ {'a': 1, 'b': 2} | items | list }}{{ {'a': 1}.copy() }}{{ {'a': 1} | length }}{{ {'a': 1} | list }}{{ {'b': 1, 'a': 2} | dictsort }}{{ {'b': 1, 'A': 2} | dictsort(true) }}{{ {'b': 1, 'a': 2} | dictsort(false, 'value') }}{{ {'b': 1, 'a': 2} | dictsort(reverse=true) }}{{ {'b': 1, 'a': 2} | dictsort(by='value') }}
{{ dict(a=1, b=2) }}{{ dict({'a': 1}, b=2) }}{{ dict([('a', 1)]) }}{{ dict.fromkeys(['a', 'b'], 0) }}
{{ [1, 2, 3] | first }}{{ [1, 2, 3] | last }}{{ [] | first }}|{{ 'abc' | first }}{{ 'abc' | last }}{{ {'a': 1} | first }}{{ [1, 2] | max }}{{ [1, 2] | min }}{{ [] | max }}|{{ ['a', 'B'] | max }}{{ ['a', 'B'] | max(case_sensitive=true) }}{{ [{'a': 1}, {'a': 5}] | max(attribute='a') }}
{{ [1, 2, 3] | sum }}{{ [{'a': 1}, {'a': 2}] | sum(attribute='a') }}{{ [1, 2] | sum(start=10) }}{{ [] | sum }}{{ [0.1, 0.2] | sum }}{{ [[1], [2]] | sum(start=[]) }}
{{ [1, 2, 2, 1] | unique | list }}{{ ['a', 'A', 'b'] | unique | list }}{{ ['a', 'A'] | unique(case_sensitive=true) | list }}{{ [{'a': 1}, {'a': 1}, {'a': 2}] | unique(attribute='a') | list }}
{{ [1, 2, 3, 4, 5] | batch(2) | list }}{{ [1, 2, 3] | batch(2, 'x') | list }}{{ [1, 2, 3, 4, 5] | slice(2) | list }}{{ [1, 2, 3, 4, 5] | slice(3, 'x') | list }}
{{ [1, 2, 3] | reverse | list }}{{ 'abc' | reverse }}{{ [1, 2, 3] | join }}{{ [1, 2, 3] | join(', ') }}{{ messages | join('|', attribute='role') }}{{ [none, true, 1.0, 'x'] | join(',') }}{{ 'abc' | join('-') }}{{ {'a': 1, 'b': 2} | join(',') }}
{{ messages | map(attribute='role') | list }}{{ ['a', 'b'] | map('upper') | list }}{{ [1, 2] | map('string') | join }}{{ [{'a': 1}, {}] | map(attribute='a', default=0) | list }}{{ ['a b', 'c d'] | map('replace', ' ', '_') | join(',') }}{{ messages | map(attribute='content.0') | list }}
{{ [1, 2, 3, 4] | select('odd') | list }}{{ [1, 2, 3, 4] | reject('odd') | list }}{{ [0, 1, '', 'a'] | select | list }}{{ [0, 1] | reject | list }}{{ [1, 5] | select('gt', 3) | list }}{{ [1, 2, 3] | select('in', [1, 3]) | list }}{{ [1, 2, 3, 4] | select('divisibleby', 2) | list }}
{{ messages | selectattr('role', 'equalto', 'user') | list | length }}{{ messages | selectattr('role', '==', 'user') | map(attribute='content') | first }}{{ messages | rejectattr('role', 'eq', 'user') | map(attribute='role') | join(',') }}{{ messages | selectattr('tool_calls') | list }}{{ messages | selectattr('content', 'defined') | list | length }}{{ messages | selectattr('role', 'in', ['system']) | list | length }}
{% for g in [{'k': 'a', 'v': 1}, {'k': 'b', 'v': 2}, {'k': 'a', 'v': 3}] | groupby('k') %}{{ g.grouper }}:{{ g.list | map(attribute='v') | list }};{% endfor %}
{% for k, v in [{'k': 'a', 'v': 1}, {'k': 'b', 'v': 2}] | groupby('k') %}{{ k }}={{ v | length }};{% endfor %}{% for k, v in messages | groupby('role') %}{{ k }} {% endfor %}{{ [{'k': 'B'}, {'k': 'a'}, {}] | groupby('k', default='c') | map('first') | list }}
{{ [1, 2, 3] | list }}{{ 'abc' | list }}{{ (1, 2) | list }}{{ [[1, 2], [3, 4]] | map('last') | list }}{{ [1, 2, 3] | random in [1, 2, 3] }}
{{ [1, 2] | map('odd') }}
{{ [3, 'a'] | sort }}
{{ [1, [2, 3]] | string }}{{ [1, 2] | length }}{{ [1, 2] | count }}{{ none | length }}
{{ [1, 2, 3] | attr('count') is defined }}{{ messages[0] | attr('role') }}|{{ {'a': 1} | attr('get') is callable }}
=== text filters
{{ 'hello world' | upper }}{{ 'HeLLo' | lower }}{{ 'hello wORLD' | capitalize }}{{ "hello wORLD's it-is (x) a/b" | title }}{{ ' a ' | trim }}|{{ 'xax' | trim('x') }}|{{ 1 | upper }}{{ none | lower }}{{ 5 | title }}
{{ 'a-b-a' | replace('a', 'x') }}{{ 'aaa' | replace('a', 'x', 2) }}{{ 'aaa' | replace('a', 'x', count=1) }}{{ 112 | replace('1', '2') }}
{{ 'a\nb\nc' | indent }}|{{ 'a\nb' | indent(2) }}|{{ 'a\nb' | indent(2, true) }}|{{ 'a\n\nb' | indent(2) }}|{{ 'a\n\nb' | indent(2, blank=true) }}|{{ 'a\nb' | indent('> ') }}|{{ 'a\nb' | indent(width=3, first=true) }}|{{ 'a\n' | indent(2) }}|
{{ 'the quick brown fox jumps' | wordwrap(10) }}|{{ 'abcdefghij' | wordwrap(4) }}|{{ 'abcdefghij kl' | wordwrap(4, false) }}|{{ 'a b c d' | wordwrap(3, wrapstring='/') }}|{{ 'one two\nthree four five' | wordwrap(8) }}|{{ 'well-known words' | wordwrap(6) }}
[{{ 'abc' | center(9) }}][{{ 'ab' | center(5) }}]{{ 'foo bar baz qux' | truncate(9) }}|{{ 'foo bar baz qux' | truncate(9, true) }}|{{ 'foo bar baz qux' | truncate(11) }}|{{ 'foo bar baz qux' | truncate(11, false, '...', 0) }}|{{ 'foobar' | truncate(5, true, '') }}|{{ 'foo bar baz' | truncate(7, end='!', leeway=0) }}
{{ '<a href="x">b</a> & <!-- c --> d   e' | striptags }}|{{ '<a & "b">' | escape }}|{{ "it's <b>" | e }}|{{ '<x>' | safe }}|{{ '<x>' | forceescape }}|{{ ('<x>' | e) ~ '<y>' }}|{{ '&lt;' | striptags }}
{{ {'a': 1, 'b': none, 'c': 'x"y'} | xmlattr }}|{{ {'a': 1} | xmlattr(false) }}
{{ 'Hello world. It is.' | wordcount }}{{ '' | wordcount }}{{ "it's a-b" | wordcount }}{{ 'a b' | urlencode }}{{ 'a/b?c=é&d' | urlencode }}{{ {'a': 1, 'b': 'x y'} | urlencode }}
{{ 'see http://example.com/x and www.python.org.' | urlize }}
{{ '%s is %d' | format('a', 1) }}{{ '%(a)s' | format(a=3) }}{{ 'x' | default('y') }}{{ nothing | default('y') }}{{ none | default('y') }}{{ '' | default('y', true) }}{{ nothing | d }}|{{ nothing.x | default('z') if false else '' }}{{ 0 | default(1, boolean=true) }}
{{ 1000 | filesizeformat }}{{ 1 | filesizeformat }}{{ 1500000 | filesizeformat }}{{ 1024 | filesizeformat(true) }}{{ 0 | filesizeformat }}
{{ {'b': [1, 2], 'a': 'x'} | pprint }}{{ 'a' | pprint }}{{ [1, 2] | pprint }}
{{ 5 | string ~ 'x' }}{{ [1, 2] | string }}{{ none | string }}{{ true | string }}{{ 'abc' | string | upper }}
{{ 'a,b' | split(',') }}
{{ [[1, 2]] | tojson }}{{ {'a': 'é<>&\'"'} | tojson }}{{ {'a': [1, 2.0, none, true]} | tojson(indent=2) }}{{ (1, 2) | tojson }}{{ 'a\n\t\\/' | tojson }}{{ 1e16 | tojson }}{{ {1: 2, none: 3, true: 4} | tojson }}{{ {'a': 1, 'b': 2} | tojson(separators=(',', ':')) }}{{ {'b': 1, 'a': 2} | tojson(sort_keys=true) }}{{ 'é' | tojson(ensure_ascii=true) }}{{ [] | tojson(indent=2) }}{{ {} | tojson(indent=4) }}{{ '\x7f\u2028' | tojson }}{{ (1e308 * 10) | tojson }}
{{ [1] | tojson(indent='\t') }}{{ {'a': {'b': []}} | tojson(indent=1) }}{{ [1, [2, 3]] | tojson(indent=0) }}{{ nothing | tojson }}
{{ 'a' | nosuchfilter }}
{{ 'a' is nosuchtest }}
{{ nosuchfunction() }}
=== tests
{{ none is none }}{{ nothing is none }}{{ nothing is defined }}{{ nothing is undefined }}{{ messages is defined }}{{ 'a' is string }}{{ 1 is string }}{{ {} is mapping }}{{ [] is mapping }}{{ [] is sequence }}{{ 'a' is sequence }}{{ {} is sequence }}{{ 1 is sequence }}{{ none is sequence }}{{ () is sequence }}
{{ [] is iterable }}{{ 'a' is iterable }}{{ {} is iterable }}{{ none is iterable }}{{ 1 is iterable }}{{ range(2) is iterable }}{{ nothing is iterable }}{{ range(2) is sequence }}{{ {}.items() is iterable }}{{ nothing is sequence }}{{ nothing is string }}{{ nothing is mapping }}
{{ 'a' is lower }}{{ 'A' is upper }}{{ 'a1' is lower }}{{ 1 is lower }}{{ 'a' in ['a'] }}{{ 'a' is in ['a'] }}{{ 'a' is not in ['a'] }}{{ true is true }}{{ 1 is true }}{{ false is false }}{{ raise_exception is callable }}{{ 'a' is callable }}{{ 'a'.upper is callable }}{{ 'upper' is filter }}{{ 'nope' is filter }}{{ 'odd' is test }}{{ 'a' is escaped }}{{ none is sameas none }}{{ true is sameas 1 }}{{ [] is sameas [] }}
{{ not none is none }}{{ none is not none }}{{ 1 is odd and 2 is even }}{{ (1 is odd) | string }}{{ 1 is odd | string }}{{ not 'a' in 'b' }}{{ 'x' is string and 'y' }}{{ 2 is divisibleby 2 and true }}
=== logic
{{ 1 and 2 }}{{ 0 or 'x' }}{{ none or '' }}|{{ 'a' and '' }}|{{ not '' }}{{ not [] }}{{ [] or 'empty' }}{{ {} and 1 }}{{ 0.0 or 'zero' }}{{ 'a' if true }}{{ 'a' if false }}|{{ 'a' if false else 'b' }}{{ ('a' if false) is defined }}{{ 1 if 0 else 2 if 0 else 3 }}{{ (range(0)) and 'x' }}
{% if nothing %}a{% elif messages %}b{% else %}c{% endif %}{% if not nothing %}d{% endif %}{% if 0 %}{% elif '' %}{% else %}e{% endif %}{% if nothing == none %}f{% endif %}{% if nothing is none %}g{% endif %}{% if nothing == nothing2 %}h{% endif %}{% if nothing in [none] %}i{% endif %}{% if '' == nothing %}j{% endif %}
{{ nothing }}|{{ nothing ~ 'x' }}|{{ [nothing] }}|{{ nothing or 'y' }}|{{ nothing | length }}|{% for x in nothing %}a{% else %}none{% endfor %}|{{ nothing | upper }}|{{ nothing | list }}|{{ nothing | join }}|{{ nothing != none }}
{{ nothing.x }}
{{ nothing['x'] }}
{{ nothing + 1 }}
{{ nothing() }}
{{ nothing < 1 }}
{{ messages[0].nothing }}|{{ messages[0].nothing is defined }}|{{ messages[9] is defined }}|{{ messages[0]['x'] or 'd' }}|{{ messages.role }}|{{ none.x }}|{{ none.x is defined }}|{{ 1 .x }}
{{ none.x.y }}
{{ none + 1 }}
{{ none() }}
{{ none | items }}
{{ true | items }}
=== loops
{% for m in messages %}{{ loop.index }}{{ loop.index0 }}{{ loop.revindex }}{{ loop.revindex0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }};{% endfor %}
{% for m in messages %}{{ loop.cycle('a', 'b') }}{{ loop.previtem.role if loop.previtem is defined }}>{{ loop.nextitem.role if not loop.last }}{{ loop.changed(m.role) }};{% endfor %}{{ loop is defined }}
{% for x in [1, 2, 3] if x != 2 %}{{ x }}{{ loop.index }}/{{ loop.length }} {% else %}none{% endfor %}{% for x in [] %}a{% else %}empty{% endfor %}
{% for x in [1, [2, [3]]] recursive %}{% if x is iterable %}({{ loop(x) }}){% else %}{{ x }}@{{ loop.depth }}{{ loop.depth0 }}{% endif %}{% endfor %}
{% for k, v in {'a': 1, 'b': 2}.items() %}{{ k }}={{ v }}{% if not loop.last %},{% endif %}{% endfor %}{% for k in {'x': 1} %}{{ k }}{% endfor %}{% for c in 'abc' %}{{ c }}.{% endfor %}{% for a, (b, c) in [(1, (2, 3))] %}{{ a }}{{ b }}{{ c }}{% endfor %}
{% for i in range(5) %}{% if i == 1 %}{% continue %}{% endif %}{% if i == 3 %}{% break %}{% endif %}{{ i }}{% endfor %}{% for i in range(3) %}{% for j in range(3) %}{% if j == 1 %}{% break %}{% endif %}{{ i }}{{ j }} {% endfor %}{% endfor %}
{% set x = 0 %}{% for i in range(3) %}{% set x = x + 1 %}{{ x }}{% endfor %}{{ x }}{% set ns = namespace(x=0, y='a') %}{% for i in range(3) %}{% set ns.x = ns.x + i %}{% endfor %}{{ ns.x }}{{ ns.y }}{{ ns.z is defined }}
{% for i in range(2) %}{% for j in range(2) %}{{ loop.index }}{% endfor %}{{ loop.index }}{% endfor %}{% for i in range(2) %}{% set outer = loop %}{% for j in range(2) %}{{ outer.index }}{{ loop.index }} {% endfor %}{% endfor %}
{% for m in messages | reverse %}{{ m.role }} {% endfor %}{% for m in messages[1:] %}{{ loop.index0 }}{% endfor %}{% for a in [1,2] + [3] %}{{ a }}{% endfor %}{% for x in (1, 2) %}{{ x }}{% endfor %}{% for x in 1, 2 %}{{ x }}{% endfor %}
{% for x in [1, 2, 3] %}{% if loop.first %}first{% endif %}{% if loop.last %}last{% endif %}{% endfor %}{% for x in range(3) %}{{ loop.nextitem if loop.nextitem is defined else 'end' }}{% endfor %}{% for x in [1,1,2] %}{% if loop.changed(x) %}{{ x }}{% endif %}{% endfor %}
{% for x in 5 %}{{ x }}{% endfor %}
{% for x in none %}{{ x }}{% endfor %}
{% for x, y in [1, 2] %}{{ x }}{% endfor %}
{% for x, y in [(1, 2, 3)] %}{{ x }}{% endfor %}
=== macros, set, call, filter, with
{% macro f(a, b=2) %}{{ a }}{{ b }}{% endmacro %}{{ f(1) }}{{ f(1, 3) }}{{ f(b=5, a=4) }}{{ f() }}|{{ f.name }}{{ f.arguments }}{{ f.catch_varargs }}{{ f.catch_kwargs }}{{ f.caller }}
{% macro f() %}{{ varargs }}{{ kwargs }}{% endmacro %}{{ f(1, 2, x=3) }}{{ f() }}{{ f.catch_varargs }}{{ f.catch_kwargs }}{{ f.caller }}
{% macro f(a) %}{{ a }}{% for x in varargs %}[{{ x }}]{% endfor %}{% for k, v in kwargs.items() %}<{{ k }}={{ v }}>{% endfor %}{% endmacro %}{{ f(1, 2, 3) }}{{ f(1, k=2) }}{{ f(*[1, 2]) }}{{ f(**{'a': 1, 'z': 9}) }}
{% macro f(a, b=a) %}{{ a }}{{ b }}{% endmacro %}{{ f(1) }}{% macro g(a, b=a ~ 'x', c=b) %}{{ a }}{{ b }}{{ c }}{% endmacro %}{{ g(1) }}{{ g(1, c=3) }}
{% macro f(a) %}{{ a }}{% endmacro %}{{ f(1, 2) }}
{% macro f(a) %}{{ a }}{% endmacro %}{{ f(x=2) }}
{% macro f(a) %}{{ a }}{% endmacro %}{{ f(1, a=2) }}
{% macro f(n) %}{{ n }}{% if n > 0 %}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(3) }}{% macro outer() %}{% macro inner() %}i{% endmacro %}{{ inner() }}{% endmacro %}{{ outer() }}
{% macro f() %}[{{ caller() }}]{% endmacro %}{% call f() %}body{% endcall %}{% macro g() %}{{ caller(1, 2) }}{% endmacro %}{% call(a, b) g() %}{{ a }}-{{ b }}{% endcall %}{% macro h(x) %}{{ x }}{{ caller(x=x) }}{% endmacro %}{% call(x) h(3) %}<{{ x }}>{% endcall %}
{% macro f() %}{{ caller is defined }}{% endmacro %}{{ f() }}{% call f() %}{% endcall %}{% macro g() %}x{% endmacro %}{{ g() | upper }}{{ g() ~ 'y' }}{% set z = g() %}{{ z }}{{ z is string }}
{% set x %}a{{ 1 }}b{% endset %}{{ x }}{{ x | length }}{% set y | upper %}abc{% endset %}{{ y }}{% set a, b = 1, 2 %}{{ a }}{{ b }}{% set a = 1, 2 %}{{ a }}{% set (c, d) = [3, 4] %}{{ c }}{{ d }}
{% filter upper %}abc{{ 'd' }}{% endfilter %}{% filter replace('a', 'b') %}aaa{% endfilter %}{% filter trim | upper %} x {% endfilter %}{% with %}{% set q = 1 %}{{ q }}{% endwith %}{{ q is defined }}{% with a = 1, b = 2 %}{{ a }}{{ b }}{% endwith %}{% with a = 5 %}{% with b = a %}{{ b }}{% endwith %}{% endwith %}
{% if true %}{% set x = 1 %}{% endif %}{{ x }}{% for i in [1] %}{% set y = 1 %}{% endfor %}{{ y is defined }}{% macro m() %}{{ x }}{% endmacro %}{{ m() }}{% set x = 2 %}{{ m() }}{% set messages = [] %}{{ messages | length }}
{% set ns = namespace() %}{% set ns.a = 1 %}{{ ns.a }}{% set ns = namespace({'k': 1}, j=2) %}{{ ns.k }}{{ ns.j }}{% set ns.k = [1, 2] %}{{ ns.k }}{% set ns.list = ns.k + [3] %}{{ ns.list }}{% set ns.n %}block{% endset %}{{ ns.n }}
{% set d = {} %}{% set d.x = 1 %}
{% macro f(a='x', b='y') %}{{ a }}{{ b }}{% endmacro %}{{ f() }}{{ f('1') }}{{ f(b='2') }}{{ f(none) }}{% macro g(x=none) %}{{ x is none }}{% endmacro %}{{ g() }}{{ g(1) }}{% macro k(x) %}{{ x is defined }}{% endmacro %}{{ k() }}
{% generation %}a{{ 1 }}{% endgeneration %}{%- generation -%} b {%- endgeneration -%} c{% for i in range(2) %}{% generation %}{{ i }}{{ loop.index }}{% endgeneration %}{% endfor %}
{% set x = 1 %}{% generation %}{% set x = 2 %}{{ x }}{% endgeneration %}{{ x }}
{{ f() }}{% macro f() %}x{% endmacro %}
{% if true %}{% macro f() %}x{% endmacro %}{% endif %}{{ f() }}{% for i in [1] %}{% macro g() %}y{{ i }}{% endmacro %}{{ g() }}{% endfor %}
{{ namespace(_x=1) }}
{{ cycler('a', 'b').next() }}{% set c = cycler(1, 2) %}{{ c.next() }}{{ c.current }}{{ c.next() }}{{ c.reset() }}{{ c.next() }}{% set j = joiner(', ') %}{{ j() }}a{{ j() }}b{{ lipsum(n=0) }}
{% do messages.append(1) %}
{% import 'x' as y %}
{% include 'x' %}
{% extends 'x' %}
{% from 'x' import y %}
{% block a %}x{% endblock %}
{% autoescape true %}{{ '<x>' }}{% endautoescape %}
{% trans %}x{% endtrans %}
{% debug %}
{{ _('x') }}
=== the rest
{{ 'é' }}ü{{ '你好' }}🤖
{{ a.b if a is defined and a.b }}|{{ (a or {}).b }}|{{ ((1, 2) | list)[0] }}|{{ [1, 2] | first + 1 }}|{{ 'a' | upper ~ 'b' }}|{{ -1 | abs }}|{{ 2 * 3 | string }}|{{ not true | string }}
{{ messages[0]['content'][0:2] }}{{ messages[0].content.split('.')[0] | lower }}{{ (messages | selectattr('role', 'equalto', 'user') | list)[0].content[:2] }}{{ messages[-1]['content'] | trim }}{{ messages[(messages | length) - 1].role }}
{{ bos_token + messages[0].role }}{{ add_generation_prompt }}{{ tools }}{{ documents }}{{ tools is none }}{{ tools is defined }}{{ custom is defined }}{{ strftime_now is defined }}{{ eos_token }}
{{ raise_exception('no ' ~ 'way') }}
{{ messages | tojson }}
{{ 'x' if messages[1].content is string else 'y' }}{{ messages[1]['content'] is iterable and messages[1]['content'] is not string }}{{ messages[0].keys() | list }}{{ messages[0].values() | list }}{{ 'role' in messages[0] }}{{ messages[0].get('name', 'n') }}{{ messages[0] | length }}
{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}x{% else %}y{% endif %}{% endfor %}
{{ '<|im_start|>' + messages[0]['role'] + '\n' + messages[0]['content'] + '<|im_end|>' + '\n' }}
{{ __import__ }}|{{ self is defined }}|{{ ''.__class__ }}
{{ ''.__class__.__mro__ }}
{{ messages.__len__ }}|{{ messages[0].__init__ is defined }}
{{ messages is sameas messages }}{{ [1, 2] is eq [1, 2] }}{{ 1.0 is integer }}{{ 'a' is eq('a') }}
{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}{% endif %}{{ loop_messages | length }}{{ system_message }}
{% set content = messages[2].content %}{% if '</think>' in content %}{% set reasoning = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}{% set content = content.split('</think>')[-1].lstrip('\n') %}{% endif %}{{ reasoning }}|{{ content }}
{% set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}{% for message in messages[::-1] %}{% set index = (messages|length - 1) - loop.index0 %}{% if ns.multi_step_tool and message.role == "user" and message.content is string and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}{% set ns.multi_step_tool = false %}{% set ns.last_query_index = index %}{% endif %}{% endfor %}{{ ns.last_query_index }}
{{ [1, 2, 3] | map('pow', 2) | list if false else 'k' }}{{ (1, 'a') | join }}{{ {'a': [1, 2]}['a'][0] }}{{ [[1, 2], [3]][0][1] }}{{ {'a': 'b'}[('a')] }}{{ {1: 'x'}[1] }}{{ {true: 'x'}[1] }}
{{ [messages[0].role, messages[1].role] | join(' and ') }}{{ ('a', 'b') | join('+') }}{{ messages | map(attribute='content') | map('trim') | map('length') | list }}{{ messages | map(attribute='role') | unique | sort | join(',') }}
{{ [1, 2, 3, 4, 5, 6, 7, 8, 9, 10] | batch(3, '-') | map('join', ' ') | join('/') }}
{{ 'x' * 3 + 'y' }}{{ 10 - 2 - 3 }}{{ 2 ** 3 ** 2 }}{{ 100 / 10 / 2 }}{{ 7 // 2 * 2 }}{{ -5 // 2 }}{{ 5 % 3 * 2 }}{{ 1 + 1 ~ 'a' }}{{ 'a' ~ 1 + 1 }}{{ 1 - -1 }}{{ 2 * -3 }}
{{ 3 if true else 4 + 1 }}{{ (3 if false else 4) + 1 }}{{ [1, 2][0] if true }}{{ 1 == 1 and 2 == 2 }}{{ 1 in [1] and 2 not in [1] }}{{ not 1 == 2 }}{{ 1 != 2 != 3 }}{{ 'a' == 'a' == 'a' }}
{{ not messages }}{{ not not messages }}{{ messages and messages[0].role }}{{ loop }}|{{ super is defined }}{{ varargs is defined }}{{ caller is defined }}
=== attributes that are not called, and parts
{{ 1.real }}{{ 1.imag }}{{ 1.numerator }}{{ 1.denominator }}{{ 2.5.real }}{{ 2.5.imag }}{{ true.real }}{{ (3).real + 1 }}{{ 2.5.numerator }}|
{{ {'items': 1}.items is defined }}{{ {'items': 1}.items is callable }}{{ {'items': 1}.items is mapping }}{{ {'items': 1}['items'] }}{{ {'a': 1}.items is string }}{{ {'a': 1}.values is sameas 1 }}
{% if {'a': 1}.items %}yes{% endif %}{% set f = 'a-b'.split %}{{ f('-') }}{% set g = {'a': 1}.get %}{{ g('a') }}{{ g('b', 2) }}{{ ('x'.upper)() }}{{ 'a'.upper is callable }}{{ 'a'.nothing is callable }}{{ [1].count is defined }}{{ (1,).copy is defined }}{{ [1].copy is defined }}
{{ [1].append is defined }}{{ {'pop': 1}.pop is defined }}{{ {'a': 1}.update }}|{{ [1].append }}|{{ messages.sort is defined }}
{{ messages[0].content.strip is defined }}{{ messages[0].content.strip() }}{{ messages[0].role.title () }}{{ messages[0] . role . upper() }}{{ messages[0].items is defined and messages[0].keys is defined }}{{ messages[0].index is defined }}
{% set ns = namespace(items=1, count=2, index=0) %}{{ ns.items }}{{ ns.count + 1 }}{% set ns.index = ns.index + 1 %}{{ ns.index }}{% set ns.count = ns.items ~ ns.index %}{{ ns.count }}{{ ns.values is defined }}
{% for x in [1, 2] %}{{ loop.index }}{{ loop . index }}{{ (loop).index }}{{ loop.index is defined }}{% endfor %}{% for x in 'ab' %}{{ loop.cycle('odd', 'even') }}{{ loop.cycle(*[1, 2]) }}{% endfor %}
{% for x in [1] %}{{ loop.cycle() }}{% endfor %}
{{ self.a }}
{{ {'self': 2}.self }}{{ {'self': 2}['self'] }}
{% macro f(a, b=2) %}{{ a }}{% endmacro %}{{ f.name }}{{ f.arguments }}{{ f.caller }}{% macro g() %}{% endmacro %}{{ g.arguments }}
{{ {'arguments': 1}.arguments }}{{ {'name': 1, 'real': 2}.real }}{{ messages[0].arguments is defined }}
{{ range(10)[2:4] }}{{ range(10)[2:4] | list }}{{ range(10)[::-2] }}{{ range(10)[::-2] | list }}{{ range(9, 0, -3)[1:] }}{{ range(9, 0, -3)[1:] | list }}{{ range(3)[5:] | list }}{{ range(3).start }}{{ range(3).stop }}{{ range(3).step }}{{ range(10)[2:8][1:3] }}{{ range(3)[:] }}
{{ [1, 2, 3][1:].count(3) }}{{ [1, 2, 3][1:].index(3) }}{{ [1, 2, 3][1:] + [4] }}{{ [1, 2, 3][1:] == [2, 3] }}{{ [1, 2, 3][:2] is sequence }}{{ [[1, 2], [3]][0][:1] }}{{ ([1, 2] + [3, 4])[1:-1] }}{{ (1, 2, 3)[1:] + (4,) }}{{ [1, 2, 3][::-1][0] }}{{ [1, 2, 3][-2:][0] }}{{ [1, 2, 3][1:][1:] | tojson }}
{{ [1, 2, 3, 4, 5][4:0:-1] }}{{ [1, 2, 3][-100:100] }}{{ [1, 2, 3][100:] }}{{ [1, 2, 3][:-100] }}{{ [1, 2, 3][2:1] }}{{ [1, 2, 3][::5] }}{{ [1, 2, 3][none:none] }}{{ [1, 2, 3][true:] }}{{ 'abcdef'[::-2] }}{{ 'é漢🤖'[1:] }}{{ 'é漢🤖'[::-1] }}{{ ''[1:] }}{{ [1, 2, 3][-1:0:-1] }}
{{ nothing[1:] }}
{% set x = none %}{{ x[1:] }}
{% set x = 5 %}{{ x[1:] }}
{% set x = {'a': 1} %}{{ x[1:] }}
{% set x = [1, 2] %}{{ x[::0] }}
{% set x = [1, 2] %}{{ x['a':] }}
{{ {'a': 1}.items()[1:] }}
{{ messages[1:][0].content[:2] ~ messages[:1][0]['role'][1:3] }}{{ (messages | map(attribute='role') | list)[1:] }}{{ 'a' if messages[1:] else 'b' }}{{ not messages[9:] }}{{ -[1, 2][1:][0] }}{{ messages[messages | length - 1:] | length }}{{ messages[(messages | length) // 2 :] | length }}{{ [3, 1, 2] | sort | list }}
{{ 'ab' 'cd'[1:] }}{{ 'x' in 'axb'[1:] }}{{ [1, 2, 3][1:] | join(',') }}{{ ([1, 2, 3][1:])[0] }}{{ {'k': [1, 2]}['k'][1:] }}{{ {'k': [1, 2]}.k[1:] }}{{ dict(k=[1, 2]).k[:1] }}{{ [1, 2][1 if true else 0:] }}{{ [1, 2, 3][{'a': 1}['a']:] }}
"""


# White space, comments and raw text.
LAYOUTS = [
    "a {%- if true %} b {%- endif %} c",
    "a {% if true -%} b {% endif -%} c",
    "  {% if true %}\n  b\n  {% endif %}\nc",
    "a\n  {%+ if true %} b{%+ endif %}\nc",
    "a {# comment #} b{# {{ x }} {% if %} #}c {#- d -#} e",
    "a\n  {# own line #}\nb\n  {#- c -#}\nd",
    "a\n  {# own line -#}\n  b {#+ x +#}\nc",
    "{% raw %}{{ x }}{% if %}{# y #}{% endraw %} z {%- raw %} {{ x }} {% endraw -%} w",
    "{%- raw -%}\n x {{ }} \n{%- endraw %} y",
    "  {% raw %}\n x\n  {% endraw %}\ny",
    "{% raw %}{% generation %}{{ x }}{% endgeneration %}{% endraw %}",
    "{% raw %}a\n{% endraw %}\nb",
    "{{ ' a ' -}}   b {{- ' c' }}",
    "{{- 'x' -}}\n\n y",
    "x\n\n  {{- 'y' }}\n",
    "{{ '%}' }}{{ '}}' }}{{ \"{{\" }}{% if '%}' == '%}' %}y{% endif %}{{ '{#' }}{{ '#}' }}",
    "{{ {'a': {'b': 1}} }}{{ {'a': {}}}}{{ [{}] }}",
    "line one\n{% set x = 1 %}\nline two {{ x }}\n",
    "{{ 'x' }}\n\n{%- set y = 2 %}\n\n{{ y }}\n\n",
    "a{% if true %}\n\nb{% endif %}\n\nc",
    "\t{% if true %}\n\ttab{% endif +%}\nx",
    "{{ messages[0].role\n  ~ '!' }}{% if messages\n  and true %}y{% endif %}{{\n'z'\n}}",
    "# not a comment\n## neither {{ 1 }}\n",
    "a\r\n{% if true %}\r\nb\r\n{% endif %}\r\nc\r\n",
    "a\rb\r\n{{ 'x\r\ny' }}\r{# c\r\n #}\nd",
    "{{ 'a\nb' }}{{ 'a\\\nb' }}",
    "{%- for m in messages %}\n  {{- m.role }}\n{%- endfor %}\n",
    "{% for m in messages -%}\n  {{ m.role }}\n{% endfor -%}\n\nx",
    "  {%- for m in messages -%}  {{ m.role }}  {%- endfor -%}  ",
    "{%if true%}a{%else%}b{%endif%}{{1}}{#x#}{%-if true-%}c{%-endif-%}",
    "{% if true %}a{% endif %} \n b\n {% if true %}\n{% endif %}",
    "{{ 1 }}{% set x = 1 %}{{ x }}\n",
    "",
    "\n",
    "\n\n",
    "a\n",
    "a\n\n",
    "  a  ",
    "{ {% } %}",
    "{",
    "{{",
    "{%",
    "{#",
    "{{}}",
    "{%%}",
    "{% if %}",
    "{% if true %}",
    "{% endif %}",
    "{{ 1 + }}",
    "{{ 'a }}",
    "{% for x in %}",
    "{% nosuchtag %}",
    "}} %} #}",
    "{%}{{ 1 }}%}",
    "{{%}x%}",
    "{%-}x-%}",
    "{% generation %}x{%endgeneration",
    "{% generation %}x",
    "{% endgeneration %}",
    "{%-generation-%} x {%-endgeneration-%} y",
    "{%+ generation %} x {%+ endgeneration %} y",
    "{% generation %}{{ '{% generation %}' }}{# {% endgeneration %} #}{% endgeneration %}",
    "{{ '{% generation %}' }}",
    "{# {% generation %} #}x",
    "x {#- a -#} y{#\n#}\nz",
    "a{#+ b #}\n  {#- c +#}\nd",
    "{{ 1 -}}\n{%- if true -%}\nx\n{%- endif -%}\n{{- 2 }}",
    "a\u2028{{ 'b\u2028c' }}\x0b\x0c{{- 'd' }}\xa0{{- 'e' }}",
]


def expressions(line):
    """The expressions of a line without tags, each as a template."""
    parsed, start = [], line.find("{{")
    while "{%" not in line and start >= 0:
        end = start
        while (end := line.find("}}", end + 1)) >= 0:
            piece = line[start : end + 2]
            try:
                jinja2.Environment().parse(piece)
            except jinja2.TemplateSyntaxError:
                continue
            parsed.append(piece)
            break
        start = line.find("{{", end) if end >= 0 else -1
    return parsed if len(parsed) > 1 else []


def small_templates():
    lines = [line for line in SMALL.strip().split("\n") if not line.startswith("===")]
    every = [template for line in lines for template in [*expressions(line), line]]
    return list(dict.fromkeys([*every, *LAYOUTS]))


def render(template, messages=CONVERSATION, **variables):
    variables = {"tools": None, "documents": None, "bos_token": "<s>", "eos_token": "</s>"} | variables
    variables.setdefault("add_generation_prompt", True)
    try:
        return {"expected": _compile_jinja_template(template).render(messages=messages, **variables)}
    except Exception as error:  # whatever Python raises: templates call anything
        return {"fails": type(error).__name__}


# With a system's turn and without, one turn and several, thoughts, and variables of the template.
CASES = [
    (CONVERSATION[1:2], {}),
    (CONVERSATION, {}),
    (CONVERSATION[1:], {"enable_thinking": False}),
    (CONVERSATION[:3], {"add_generation_prompt": False}),
    (CONVERSATION[1:], {"enable_thinking": True, "reasoning_effort": "high", "add_generation_prompt": False}),
]


def shipped(path):
    # the format in place of the date of the day
    template = re.sub(r"strftime_now\(([^()]*)\)", r"\1", path.read_text(encoding="utf-8"))
    cases = [{"messages": messages, "variables": variables} | render(template, messages, **variables)
             for messages, variables in CASES]
    return {"name": path.stem, "template": template, "cases": cases}


def write(name, rows):
    with open(HERE / name, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def main():
    rows = [{"template": template} | render(template) for template in small_templates()]
    # what differs from run to run cannot be expected
    write("small.jsonl", [row for row in rows if " at 0x" not in row.get("expected", "")])
    if len(sys.argv) > 1:
        write("shipped.jsonl", list(map(shipped, sorted(pathlib.Path(sys.argv[1]).glob("*.jinja")))))


if __name__ == "__main__":
    main()
