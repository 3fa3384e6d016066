"""Inputs and outputs of imported models that are sequences or optionals: a caller's one is several tensors of the module, or none."""

from ctypes import POINTER, byref

from ._library import OUTPUT, ArgumentError, Group, lib


def _text(shape):
    return "[" + ", ".join(map(str, shape)) + "]"


def shape_text(shape):
    """(2, "n") -> "[2, n]"; [(2,), (3,)] -> "([2], [3])"; None -> "none"; text stays."""
    if shape is None or isinstance(shape, str):
        return shape or "none"
    if isinstance(shape, list):
        return "(" + ", ".join(map(_text, shape)) + ")"
    return _text(shape)


class Side:
    """The inputs, or the outputs."""

    def __init__(self, what, groups, names):
        self.what, self.names = what, names
        self.groups = {g.position: g for g in groups}
        self.count = len(names) - sum(g.n for g in groups) + len(groups)
        self.order = []  # for each of the caller's: its name, and the tensors that it is
        at = 0
        for position in range(self.count):
            group = self.groups.get(position)
            n = group.n if group else 1
            self.order.append((group.name.decode() if group else names[at], range(at, at + n)))
            at += n

    def _parts(self, position, value):
        name, tensors = self.order[position]
        group = self.groups.get(position)
        if group is None:
            return [value]
        if not group.sequence:
            if value is not None:
                raise ArgumentError(f"{self.what} '{name}' was said to have no value")
            return []
        if not isinstance(value, (list, tuple)):
            raise ArgumentError(f"{self.what} '{name}' is a sequence: a list of {len(tensors)} arrays")
        if len(value) != len(tensors):
            raise ArgumentError(f"{self.what} '{name}' was said to be a sequence of {len(tensors)}, not {len(value)}")
        return list(value)

    def spread(self, values):
        """The tensors of a list, or dict by name, of the caller's values."""
        if isinstance(values, dict):
            position = {name: i for i, (name, _) in enumerate(self.order)}
            spread = {}
            for name, value in values.items():
                if name not in position:
                    raise ArgumentError(f"the model has no {self.what} '{name}'; it has {', '.join(map(repr, position))}")
                tensors = self.order[position[name]][1]
                spread.update(zip((self.names[i] for i in tensors), self._parts(position[name], value)))
            return spread
        if not isinstance(values, (list, tuple)) or len(values) != self.count:
            raise ArgumentError(f"the model has {self.count} {self.what}s ({', '.join(name for name, _ in self.order)})")
        return [part for i, value in enumerate(values) for part in self._parts(i, value)]

    def gather(self, values):
        """The caller's values, as a list."""
        gathered = []
        for position, (_, tensors) in enumerate(self.order):
            group, parts = self.groups.get(position), [values[i] for i in tensors]
            gathered.append(parts[0] if group is None else parts if group.sequence else None)
        return gathered


def sides(module, inputs, outputs):
    """Side of the inputs and of the outputs of a module with tensors of these names; None where they are what a caller has."""
    table = POINTER(Group)()
    groups = [table[i] for i in range(lib.quern_module_groups(module.pointer, byref(table)))]
    own = [Group.from_buffer_copy(g) for g in groups]
    keep = [g.name for g in own]  # copied: the module may be gone
    for g, name in zip(own, keep):
        g.name = name
    mine = [[g for g in own if (g.role == OUTPUT) == output] for output in (False, True)]
    return [Side(what, side, names) if side else None
            for what, side, names in zip(("input", "output"), mine, (inputs, outputs))]
