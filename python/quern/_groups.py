"""Inputs and outputs of imported models that are sequences, optionals or strings: a caller's one is several tensors of the module,
none, or numbers."""

from ctypes import POINTER, byref, c_char_p, c_int64, c_size_t, string_at

import numpy as np

from ._library import OUTPUT, ArgumentError, Group, check, lib


def _text(shape):
    if not isinstance(shape, (tuple, list)):
        raise ArgumentError(f"{shape!r} is no shape: write (2, 'n'), of a sequence [(2, 'n'), (3, 'n')]")
    return "[" + ", ".join(map(str, shape)) + "]"


def shape_text(shape):
    """(2, "n") -> "[2, n]"; [(2,), (3,)] -> "([2], [3])"; None -> "none"; text stays."""
    if shape is None or isinstance(shape, str):
        return shape or "none"
    if isinstance(shape, list):
        return "(" + ", ".join(map(_text, shape)) + ")"
    return _text(shape)


def _decode(text):
    """Bytes that are no UTF-8 stay what they are."""
    return text.decode(errors="surrogateescape")


class Words:
    """The strings that a call has and the model does not. Their numbers are those of the session's table where it has one (its model
    makes strings), else they are counted here."""

    def __init__(self, table):
        self._table = table  # lives as long as the session
        self._numbers = {}

    def clear(self):
        self._numbers.clear()
        if self._table:
            lib.quern_strings_clear(self._table)

    def limit(self, size):
        if self._table:
            lib.quern_strings_limit(self._table, size)

    def number(self, text, count):
        """Of a string that is none of the model's, which are `count`."""
        if text in self._numbers:
            return self._numbers[text]
        number = c_int64(count + len(self._numbers))
        if self._table:
            raw = text.encode(errors="surrogateescape")
            check(lib.quern_strings_number(self._table, raw, len(raw), byref(number)))
        self._numbers[text] = number.value
        return number.value

    def texts(self, numbers, strings):
        """A dict of the strings that have these numbers; `strings` are the model's."""
        if self._table is None:
            known = strings + list(self._numbers)
            if numbers and not 0 <= min(numbers) <= max(numbers) < len(known):
                raise ArgumentError(f"an output of strings has a number that no string has: there are {len(known)}")
            return {i: known[i] for i in numbers}
        length, found = c_size_t(), {}
        for i in numbers:
            at = lib.quern_strings_text(self._table, i, byref(length))
            if not at:
                raise ArgumentError(f"an output of strings has the number {i}, which no string has")
            found[i] = _decode(string_at(at, length.value))
        return found


class Side:
    """The inputs, or the outputs. `words` are the Words of a call."""

    def __init__(self, what, groups, names, strings):
        self.what, self.names = what, names
        self.strings = strings
        self.numbers = {text: i for i, text in enumerate(strings)} if what == "input" else None
        self.groups = {g.position: g for g in groups}
        self.count = len(names) - sum(g.n for g in groups) + len(groups)
        self.order = []  # for each of the caller's: its name, and the tensors that it is
        at = 0
        for position in range(self.count):
            group = self.groups.get(position)
            n = group.n if group else 1
            self.order.append((group.name.decode() if group else names[at], range(at, at + n)))
            at += n

    def _numbers(self, name, value, words):
        """Of an array of strings; outputs, and what is numbers already, stay."""
        value = np.asarray(value)
        if self.numbers is None or value.dtype == np.int64:
            return value
        if value.dtype.kind not in "OSU" and value.size:
            raise ArgumentError(f"input '{name}' is of strings, not {value.dtype}")
        number = np.empty(value.shape, np.int64)
        for i, text in enumerate(value.flat):
            text = _decode(text) if isinstance(text, bytes) else str(text)
            found = self.numbers.get(text)
            number.flat[i] = words.number(text, len(self.strings)) if found is None else found
        return number

    def _texts(self, numbers, words):
        flat = np.ravel(numbers).tolist()
        known = words.texts(set(flat), self.strings)
        texts = np.empty(len(flat), object)
        texts[:] = [known[i] for i in flat]
        return texts.reshape(np.shape(numbers))

    def _parts(self, position, value, words):
        name, tensors = self.order[position]
        group = self.groups.get(position)
        if group is None:
            return [value]
        if group.strings and not group.sequence:
            return [self._numbers(name, value, words)]
        if not group.sequence:
            if value is not None:
                raise ArgumentError(f"{self.what} '{name}' was said to have no value")
            return []
        if not isinstance(value, (list, tuple)):
            raise ArgumentError(f"{self.what} '{name}' is a sequence: a list of {len(tensors)} arrays")
        if len(value) != len(tensors):
            raise ArgumentError(f"{self.what} '{name}' was said to be a sequence of {len(tensors)}, not {len(value)}")
        return [self._numbers(name, x, words) for x in value] if group.strings else list(value)

    def spread(self, values, words, complete=False):
        """The tensors of a list, or dict by name, of the caller's values; of all of them if complete."""
        if isinstance(values, dict):
            position = {name: i for i, (name, _) in enumerate(self.order)}
            spread = {}
            for name, value in values.items():
                if name not in position:
                    raise ArgumentError(f"the model has no {self.what} '{name}'; it has {', '.join(map(repr, position))}")
                tensors = self.order[position[name]][1]
                spread.update(zip((self.names[i] for i in tensors), self._parts(position[name], value, words)))
            missing = [name for name, tensors in self.order if complete and len(tensors) and name not in values]
            if missing:
                raise ArgumentError(f"{self.what} {', '.join(map(repr, missing))} is missing")
            return spread
        if isinstance(values, np.ndarray) and self.count == 1:
            values = [values]
        if not isinstance(values, (list, tuple)) or len(values) != self.count:
            raise ArgumentError(f"the model has {self.count} {self.what}{'s' * (self.count != 1)} "
                                f"({', '.join(name for name, _ in self.order)})")
        return [part for i, value in enumerate(values) for part in self._parts(i, value, words)]

    def gather(self, values, words):
        """The caller's values, as a list."""
        gathered = []
        for position, (_, tensors) in enumerate(self.order):
            group, parts = self.groups.get(position), [values[i] for i in tensors]
            if group and group.strings:
                parts = [self._texts(x, words) for x in parts]
            single = group is None or group.strings
            gathered.append(parts if group and group.sequence else parts[0] if single else None)
        return gathered


def sides(module, inputs, outputs):
    """Side of the inputs and of the outputs of a module with tensors of these names; None where they are what a caller has."""
    table, texts = POINTER(Group)(), POINTER(c_char_p)()
    count = lib.quern_module_groups(module.pointer, byref(table))
    if count == 0:
        return None, None
    groups = [Group.from_buffer_copy(table[i]) for i in range(count)]
    for g in groups:
        g.name = bytes(g.name)  # copied: the module may be gone
    strings = [_decode(texts[i]) for i in range(lib.quern_module_strings(module.pointer, byref(texts)))]
    mine = ([g for g in groups if (g.role == OUTPUT) == output] for output in (False, True))
    return [Side(what, side, names, strings) if side else None
            for what, side, names in zip(("input", "output"), mine, (inputs, outputs))]
