/* Regular expressions: see regex.h. A pattern is read into a tree, which becomes states that go on by one byte each (Thompson), and
 * those that a string may be in together become one state of the table. Whether a string matches as a whole does not depend on what is
 * greedy or captured, so that is read and forgotten. */
#include "frontend/onnx/regex.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "ir/text_ops.h"

enum {
    MOST_STATES = 1000,   /* of a table */
    MOST_STEPS = 20000,   /* states by single bytes */
    MOST_VISITS = 100000, /* of nodes of the tree: repetitions of nothing make no steps */
    MOST_NESTING = 200,
    MOST_REPEATS = 1000,
    LAST_CHARACTER = 0x10FFFF
};

typedef struct range {
    int32_t from, to;
} range;

typedef qn_vec(range) ranges;

typedef enum kind { NOTHING, SET, JOIN, EITHER, REPEAT, BEGIN, END, BORDER, INNER } kind;

typedef struct tree {
    kind kind;
    ranges set;
    const struct tree *a, *b;
    int least, most; /* REPEAT; most -1: any number */
} tree;

typedef struct reader {
    qn_arena *arena;
    const char *at;
    const char *wrong;
    int depth;
    bool fold, dot_all; /* (?i), (?s) */
} reader;

static void *fail(reader *r, const char *what)
{
    r->wrong = r->wrong ? r->wrong : what;
    return NULL;
}

static tree *node(reader *r, kind kind, const tree *a, const tree *b)
{
    tree *t = QN_NEW(r->arena, tree);
    *t = (tree){ .kind = kind, .a = a, .b = b };
    return t;
}

/* ---- sets of characters ---- */

static void add(reader *r, ranges *set, int32_t from, int32_t to)
{
    const range item = { from, to };
    qn_vec_push(r->arena, set, item);
}

static void add_folded(reader *r, ranges *set, int32_t from, int32_t to)
{
    add(r, set, from, to);
    for (int32_t c = 'a'; r->fold && c <= 'z'; c++) {
        const bool has = (c >= from && c <= to) || (c - 32 >= from && c - 32 <= to);
        if (has)
            add(r, set, c, c), add(r, set, c - 32, c - 32);
        if (has && (c == 'k' || c == 's')) /* the sign of kelvin, the long s */
            add(r, set, c == 'k' ? 0x212A : 0x17F, c == 'k' ? 0x212A : 0x17F);
    }
    if (r->fold && to >= 0x80 && to != LAST_CHARACTER)
        fail(r, "letters beyond ASCII without regard to case (?i)");
}

static int by_start(const void *a, const void *b)
{
    const range *x = a, *y = b;
    return (x->from > y->from) - (x->from < y->from);
}

/* All characters that are not in the set. */
static ranges inverse(reader *r, ranges *set)
{
    ranges out = { 0 };
    int32_t next = 0;
    if (set->n)
        qsort(set->items, set->n, sizeof *set->items, by_start);
    for (size_t i = 0; i < set->n; i++) {
        if (set->items[i].from > next)
            add(r, &out, next, set->items[i].from - 1);
        next = set->items[i].to + 1 > next ? set->items[i].to + 1 : next;
    }
    if (next <= LAST_CHARACTER)
        add(r, &out, next, LAST_CHARACTER);
    return out;
}

/* Those of \d, \w, \s, and [:name:]. */
static bool add_class(reader *r, ranges *set, const char *name, size_t length)
{
    static const struct {
        const char *name, *pairs;
    } classes[] = { { "d", "09" },           { "w", "09AZ__az" },
                    { "s", "\t\n\f\r  " },   { "alnum", "09AZaz" },
                    { "alpha", "AZaz" },     { "ascii", NULL },
                    { "blank", "\t\t  " },   { "cntrl", "\x01\x1F\x7F\x7F" },
                    { "digit", "09" },       { "graph", "!~" },
                    { "lower", "az" },       { "print", " ~" },
                    { "punct", "!/:@[`{~" }, { "space", "\t\r  " },
                    { "upper", "AZ" },       { "word", "09AZ__az" },
                    { "xdigit", "09AFaf" } };
    for (size_t i = 0; i < sizeof classes / sizeof *classes; i++) {
        if (strlen(classes[i].name) != length || strncmp(classes[i].name, name, length))
            continue;
        for (const char *p = classes[i].pairs; p && *p; p += 2)
            add_folded(r, set, p[0], p[1]);
        if (!classes[i].pairs)
            add(r, set, 0, 0x7F);
        return true;
    }
    return false;
}

/* ---- reading ---- */

static const tree *read_either(reader *r);

/* The next character of UTF-8; -1 after a failure. */
static int32_t next_character(reader *r)
{
    const unsigned char *b = (const unsigned char *)r->at;
    const int n = b[0] < 0x80 ? 1 : b[0] < 0xC2 ? 0 : b[0] < 0xE0 ? 2 : b[0] < 0xF0 ? 3 : b[0] < 0xF5 ? 4 : 0;
    int32_t c = n == 1 ? b[0] : b[0] & (0x7F >> n);
    bool good = n > 0;
    static const int32_t least[] = { 0, 0, 0x80, 0x800, 0x10000 };
    for (int i = 1; i < n && good; i++) {
        good = (b[i] & 0xC0) == 0x80;
        c = c << 6 | (b[i] & 0x3F);
    }
    good = good && c >= least[n] && c <= LAST_CHARACTER && (c < 0xD800 || c > 0xDFFF);
    r->at += good ? n : 0;
    if (!good)
        fail(r, "it is no UTF-8");
    return good ? c : -1;
}

static int digit_of(char c, int base)
{
    const int value = c >= '0' && c <= '9'                 ? c - '0'
                      : (c | 32) >= 'a' && (c | 32) <= 'f' ? (c | 32) - 'a' + 10
                                                           : 99;
    return value < base ? value : -1;
}

/* Behind "\x": two digits, or {any number of them}. */
static int32_t read_hexadecimal(reader *r)
{
    int32_t c = 0;
    const bool braces = *r->at == '{';
    int n = 0;
    r->at += braces;
    for (; digit_of(*r->at, 16) >= 0 && (braces ? c <= LAST_CHARACTER : n < 2); n++)
        c = c * 16 + digit_of(*r->at++, 16);
    const bool good = (braces ? n > 0 && *r->at == '}' : n == 2) && c <= LAST_CHARACTER;
    r->at += braces && good;
    if (!good)
        fail(r, "\\x has no number of a character behind it");
    return c;
}

/* One character behind a backslash; -1 after a failure. */
static int32_t read_escape(reader *r)
{
    static const char names[] = "afnrtv", values[] = "\a\f\n\r\t\v";
    const char c = *r->at;
    const char *name = c ? strchr(names, c) : NULL;
    if (name) {
        r->at++;
        return values[name - names];
    }
    if (c == 'x') {
        r->at++;
        return read_hexadecimal(r);
    }
    if (c == '0' || (digit_of(c, 8) > 0 && digit_of(r->at[1], 8) >= 0)) {
        int32_t value = 0;
        for (int n = 0; n < 3 && digit_of(*r->at, 8) >= 0; n++)
            value = value * 8 + digit_of(*r->at++, 8);
        return value;
    }
    if (digit_of(c, 10) >= 0)
        fail(r, "references to groups (\\1) are not supported: no table can follow them");
    else if (c == 'p' || c == 'P')
        fail(r, "Unicode's classes (\\p) are not supported");
    else if (!c || digit_of(c, 16) >= 0 || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z'))
        fail(r, "a backslash stands in front of what means nothing there");
    else
        return next_character(r);
    return -1;
}

static void add_all(reader *r, ranges *set, ranges found, bool negated)
{
    if (negated)
        found = inverse(r, &found);
    for (size_t i = 0; i < found.n; i++)
        add(r, set, found.items[i].from, found.items[i].to);
}

/* \d, \W, …: true where `at` is behind one. */
static bool read_class(reader *r, ranges *set)
{
    const char c = *r->at, small = (char)(c | 32);
    if (c == 0 || (small != 'd' && small != 'w' && small != 's'))
        return false;
    ranges found = { 0 };
    add_class(r, &found, &small, 1);
    add_all(r, set, found, c != small);
    r->at++;
    return true;
}

/* [:alpha:] or [:^alpha:] in brackets. */
static bool read_named(reader *r, ranges *set)
{
    const bool negated = r->at[2] == '^';
    const char *name = r->at + 2 + negated, *end = strstr(name, ":]");
    ranges found = { 0 };
    if (!end || !add_class(r, &found, name, (size_t)(end - name))) {
        fail(r, "[: names no class");
        return false;
    }
    add_all(r, set, found, negated);
    r->at = end + 2;
    return true;
}

static int32_t read_member(reader *r)
{
    if (*r->at != '\\')
        return *r->at ? next_character(r) : -1;
    r->at++;
    return read_escape(r);
}

/* Behind "[". */
static const tree *read_set(reader *r)
{
    tree *t = node(r, SET, NULL, NULL);
    const bool negated = *r->at == '^';
    r->at += negated;
    for (bool first = true; (first || *r->at != ']') && !r->wrong; first = false) {
        if (!*r->at)
            return fail(r, "[ has no ] behind it");
        if (r->at[0] == '[' && r->at[1] == ':') {
            read_named(r, &t->set);
            continue;
        }
        if (r->at[0] == '\\') {
            r->at++;
            if (read_class(r, &t->set))
                continue;
            r->at--;
        }
        const int32_t from = read_member(r);
        int32_t to = from;
        if (!r->wrong && r->at[0] == '-' && r->at[1] && r->at[1] != ']') {
            r->at++;
            to = read_member(r);
        }
        if (!r->wrong && to < from)
            return fail(r, "a range of characters ends before it begins");
        if (!r->wrong)
            add_folded(r, &t->set, from, to);
    }
    r->at += !r->wrong;
    if (negated)
        t->set = inverse(r, &t->set);
    return t;
}

/* Behind "(?": flags, up to ")" or ":", which it leaves. */
static bool read_flags(reader *r)
{
    bool value = true;
    for (;; r->at++)
        switch (*r->at) {
        case 'i': r->fold = value; break;
        case 's': r->dot_all = value; break;
        case 'U': break;
        case '-': value = false; break;
        case ')':
        case ':': return true;
        case 'm':
            if (value)
                return fail(r, "lines of their own (?m) are not supported") != NULL;
            break;
        default:
            return fail(r, "(? has behind it what is not supported: groups that look ahead or behind, or no "
                           "group at all") != NULL;
        }
}

/* Behind "(". */
static const tree *read_group(reader *r)
{
    const bool fold = r->fold, dot_all = r->dot_all;
    if (r->at[0] == '?' && (r->at[1] == 'P' || r->at[1] == '<') && r->at[r->at[1] == 'P' ? 2 : 1] == '<' &&
        !(r->at[1] == '<' && (r->at[2] == '=' || r->at[2] == '!'))) {
        const char *end = strchr(r->at, '>');
        if (!end)
            return fail(r, "a group's name does not end");
        r->at = end + 1;
    } else if (r->at[0] == '?') {
        r->at++;
        if (!read_flags(r))
            return NULL;
        if (*r->at++ == ')') /* from here on, to the end of what is around */
            return node(r, NOTHING, NULL, NULL);
    }
    if (++r->depth > MOST_NESTING)
        return fail(r, "its groups lie too deep in each other");
    const tree *inside = read_either(r);
    r->depth--;
    if (r->wrong || *r->at != ')')
        return fail(r, "( has no ) behind it");
    r->at++;
    r->fold = fold;
    r->dot_all = dot_all;
    return inside;
}

/* \Q…\E, behind \Q. */
static const tree *read_quoted(reader *r)
{
    const tree *all = node(r, NOTHING, NULL, NULL);
    while (*r->at && strncmp(r->at, "\\E", 2) != 0 && !r->wrong) {
        tree *one = node(r, SET, NULL, NULL);
        const int32_t c = next_character(r);
        add_folded(r, &one->set, c, c);
        all = node(r, JOIN, all, one);
    }
    r->at += *r->at && !r->wrong ? 2 : 0;
    return all;
}

/* {2}, {2,}, {2,5}; anything else is no repetition but characters. */
static bool read_counts(reader *r, int *least, int *most)
{
    const char *at = r->at + 1;
    int values[2] = { 0, -1 };
    if (*r->at != '{' || digit_of(*at, 10) < 0)
        return false;
    for (int i = 0; i < 2; i++) {
        if (digit_of(*at, 10) >= 0)
            values[i] = 0;
        for (; digit_of(*at, 10) >= 0; at++)
            values[i] = values[i] > MOST_REPEATS ? values[i] : values[i] * 10 + digit_of(*at, 10);
        if (i == 0 && *at == '}')
            values[1] = values[0];
        if (*at != ',' || i == 1)
            break;
        at++;
    }
    if (*at != '}')
        return false;
    r->at = at + 1;
    if (values[0] > MOST_REPEATS || values[1] > MOST_REPEATS || (values[1] >= 0 && values[1] < values[0]))
        fail(r, "a repetition ends before it begins, or is of more than 1000");
    *least = values[0];
    *most = values[1];
    return true;
}

static const tree *read_atom(reader *r)
{
    tree *t;
    int least, most;
    if (*r->at == '*' || *r->at == '+' || *r->at == '?' || read_counts(r, &least, &most))
        return fail(r, "a repetition repeats nothing, or another one");
    switch (*r->at) {
    case '(': r->at++; return read_group(r);
    case '[': r->at++; return read_set(r);
    case '^': r->at++; return node(r, BEGIN, NULL, NULL);
    case '$': r->at++; return node(r, END, NULL, NULL);
    case '.':
        r->at++;
        t = node(r, SET, NULL, NULL);
        if (!r->dot_all)
            add(r, &t->set, '\n', '\n');
        t->set = inverse(r, &t->set);
        return t;
    default: t = node(r, SET, NULL, NULL);
    }
    int32_t c;
    if (*r->at == '\\') {
        r->at++;
        static const char places[] = "AzbB";
        static const kind kinds[] = { BEGIN, END, BORDER, INNER };
        const char *place = *r->at ? strchr(places, *r->at) : NULL;
        if (place) {
            r->at++;
            return node(r, kinds[place - places], NULL, NULL);
        }
        if (*r->at == 'Q') {
            r->at++;
            return read_quoted(r);
        }
        if (read_class(r, &t->set))
            return t;
        c = read_escape(r);
    } else {
        c = next_character(r);
    }
    if (!r->wrong)
        add_folded(r, &t->set, c, c);
    return t;
}

static const tree *read_repeated(reader *r)
{
    const tree *t = read_atom(r);
    if (r->wrong)
        return NULL;
    int least = *r->at == '+', most = *r->at == '?' ? 1 : -1;
    bool repeated = *r->at == '*' || *r->at == '+' || *r->at == '?';
    if (repeated)
        r->at++;
    else
        repeated = read_counts(r, &least, &most);
    if (!repeated || r->wrong)
        return t;
    r->at += *r->at == '?'; /* as few as possible: the same strings match */
    tree *all = node(r, REPEAT, t, NULL);
    all->least = least;
    all->most = most;
    return all;
}

static const tree *read_joined(reader *r)
{
    const tree *all = node(r, NOTHING, NULL, NULL);
    while (!r->wrong && *r->at && *r->at != '|' && *r->at != ')')
        all = node(r, JOIN, all, read_repeated(r));
    return all;
}

static const tree *read_either(reader *r)
{
    const tree *all = read_joined(r);
    while (!r->wrong && *r->at == '|') {
        r->at++;
        all = node(r, EITHER, all, read_joined(r));
    }
    return all;
}

/* ---- states by single bytes ---- */

typedef enum way { BYTE, FORK, AT_BEGIN, AT_END, AT_BORDER, INSIDE, MATCHED } way; /* of a word */

typedef struct step {
    way way;
    uint8_t from, to;
    int next, other; /* other: of FORK */
} step;

typedef struct maker {
    qn_arena *arena;
    qn_vec(step) steps;
    int visits;
    bool full;
} maker;

static int make(maker *m, step s)
{
    m->full |= m->steps.n >= MOST_STEPS;
    if (m->full)
        return 0;
    qn_vec_push(m->arena, &m->steps, s);
    return (int)m->steps.n - 1;
}

/* To both; other -1: there is none so far. */
static int branch(maker *m, int next, int other)
{
    return other < 0 ? next : make(m, (step){ .way = FORK, .next = next, .other = other });
}

static int encode(int32_t c, uint8_t *to)
{
    static const uint8_t marks[] = { 0, 0, 0xC0, 0xE0, 0xF0 };
    const int n = c < 0x80 ? 1 : c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
    for (int i = n - 1; i > 0; i--, c >>= 6)
        to[i] = (uint8_t)(0x80 | (c & 0x3F));
    to[0] = (uint8_t)(marks[n] | c);
    return n;
}

/* Characters of a range to `next`, or to where `other` goes: cut until each byte has a range of its own. */
static int make_range(maker *m, int32_t from, int32_t to, int next, int other)
{
    static const int32_t lasts[] = { 0x7F, 0x7FF, 0xD7FF, 0xDFFF, 0xFFFF };
    if (from > to || m->full)
        return other;
    for (size_t i = 0; i < sizeof lasts / sizeof *lasts; i++)
        if (from <= lasts[i] && to > lasts[i])
            return make_range(m, from, lasts[i], next, make_range(m, lasts[i] + 1, to, next, other));
    if (from >= 0xD800 && to <= 0xDFFF) /* halves of pairs are no characters */
        return other;
    for (int bits = 6; bits < 24 && to >= 0x80; bits += 6) {
        const int32_t low = (1 << bits) - 1;
        if ((from & ~low) == (to & ~low))
            break;
        if (from & low)
            return make_range(m, from, from | low, next, make_range(m, (from | low) + 1, to, next, other));
        if ((to & low) != low)
            return make_range(m, from, (to & ~low) - 1, next, make_range(m, to & ~low, to, next, other));
    }
    uint8_t first[4], last[4];
    const int n = encode(from, first);
    encode(to, last);
    for (int i = n - 1; i >= 0; i--)
        next = make(m, (step){ .way = BYTE, .from = first[i], .to = last[i], .next = next });
    return branch(m, next, other);
}

static int make_tree(maker *m, const tree *t, int next)
{
    int at = -1;
    m->full |= ++m->visits > MOST_VISITS;
    if (m->full)
        return 0;
    for (; t->kind == JOIN; t = t->a) /* long patterns are no deep ones */
        next = make_tree(m, t->b, next);
    switch (t->kind) {
    case JOIN:
    case NOTHING: return next;
    case EITHER:
        for (; t->kind == EITHER; t = t->a)
            at = branch(m, make_tree(m, t->b, next), at);
        return branch(m, make_tree(m, t, next), at);
    case BEGIN: return make(m, (step){ .way = AT_BEGIN, .next = next });
    case END: return make(m, (step){ .way = AT_END, .next = next });
    case BORDER: return make(m, (step){ .way = AT_BORDER, .next = next });
    case INNER: return make(m, (step){ .way = INSIDE, .next = next });
    case SET:
        for (size_t i = 0; i < t->set.n; i++)
            at = make_range(m, t->set.items[i].from, t->set.items[i].to, next, at);
        /* of nothing: from where no byte goes on */
        return at >= 0 ? at : make(m, (step){ .way = BYTE, .from = 1, .to = 0, .next = next });
    case REPEAT: break;
    }
    at = next;
    if (t->most < 0) {
        const int loop = make(m, (step){ .way = FORK, .other = next });
        const int inside = make_tree(m, t->a, loop);
        if (m->full)
            return 0;
        m->steps.items[loop].next = inside;
        at = loop;
    }
    for (int i = t->least; i < t->most && !m->full; i++)
        at = make(m, (step){ .way = FORK, .next = make_tree(m, t->a, at), .other = next });
    for (int i = 0; i < t->least && !m->full; i++)
        at = make_tree(m, t->a, at);
    return at;
}

/* ---- states of the table ---- */

typedef struct table {
    qn_arena *arena;
    const step *steps;
    int n_steps;
    bool *in[MOST_STATES];     /* by state: which steps a string may be at */
    bool in_word[MOST_STATES]; /* was the last byte a letter of a word? As far as it matters */
    int n;
    uint16_t *rows;
    int *stack;
} table;

/* What is known of a place in a string. */
typedef struct place {
    bool begin, end, border, inner;
} place;

/* Adds the step and where it goes without a byte. */
static void reach(const table *t, bool *in, int at, place p)
{
    int n = 0;
    t->stack[n++] = at;
    while (n > 0) {
        at = t->stack[--n];
        if (in[at])
            continue;
        in[at] = true;
        const step *s = &t->steps[at];
        if (s->way == FORK)
            t->stack[n++] = s->other;
        if (s->way == FORK || (s->way == AT_BEGIN && p.begin) || (s->way == AT_END && p.end) ||
            (s->way == AT_BORDER && p.border) || (s->way == INSIDE && p.inner))
            t->stack[n++] = s->next;
    }
}

static bool is_letter(int byte)
{
    return (byte >= '0' && byte <= '9') || (byte >= 'A' && byte <= 'Z') || byte == '_' ||
           (byte >= 'a' && byte <= 'z');
}

/* The steps of a state when the next byte, or the end, is known to be of a word or not. */
static bool *settle(const table *t, int state, bool word, bool end)
{
    bool *all = QN_NEW_ARRAY(t->arena, bool, t->n_steps);
    const bool border = t->in_word[state] != word;
    const place p = { .begin = state == 1, .end = end, .border = border, .inner = !border };
    for (int i = 0; i < t->n_steps; i++)
        if (t->in[state][i])
            reach(t, all, i, p);
    return all;
}

/* The number of the state; -1: there are too many. Another one than that where strings begin. */
static int state_of(table *t, const bool *in, bool in_word)
{
    bool matters = false, matched = false;
    for (int i = 0; i < t->n_steps; i++)
        matters |= in[i] && (t->steps[i].way == AT_BORDER || t->steps[i].way == INSIDE);
    in_word &= matters;
    for (int i = 0; i < t->n; i++)
        if (i != 1 && t->in_word[i] == in_word && !memcmp(t->in[i], in, (size_t)t->n_steps * sizeof *in))
            return i;
    if (t->n == MOST_STATES)
        return -1;
    const int state = t->n++;
    t->in[state] = qn_arena_copy(t->arena, in, (size_t)t->n_steps * sizeof *in);
    t->in_word[state] = in_word;
    const bool *last = settle(t, state, false, true);
    for (int i = 0; i < t->n_steps; i++)
        matched |= last[i] && t->steps[i].way == MATCHED;
    t->rows[state * QN_TEXT_COLUMNS + QN_TEXT_COLUMNS - 1] = matched;
    return state;
}

/* The row of a state; false: there are too many states. */
static bool fill(table *t, int state)
{
    bool changes[257] = { true }; /* does anything begin or end at this byte? */
    uint16_t *row = t->rows + state * QN_TEXT_COLUMNS;
    bool *in = QN_NEW_ARRAY(t->arena, bool, t->n_steps);
    const bool *settled[2] = { settle(t, state, false, false), settle(t, state, true, false) };
    for (int i = 0; i < t->n_steps; i++)
        if ((settled[0][i] || settled[1][i]) && t->steps[i].way == BYTE) {
            changes[t->steps[i].from] = true;
            changes[t->steps[i].to + 1] = true;
        }
    for (int byte = 0; byte < 256; byte++) {
        if (!changes[byte] && is_letter(byte) == is_letter(byte - 1)) {
            row[byte] = row[byte - 1];
            continue;
        }
        memset(in, 0, (size_t)t->n_steps * sizeof *in);
        for (int i = 0; i < t->n_steps; i++) {
            const step *s = &t->steps[i];
            if (settled[is_letter(byte)][i] && s->way == BYTE && byte >= s->from && byte <= s->to)
                reach(t, in, s->next, (place){ 0 });
        }
        const int to = state_of(t, in, is_letter(byte));
        if (to < 0)
            return false;
        row[byte] = (uint16_t)to;
    }
    return true;
}

const char *qn_regex_compile(const char *pattern, qn_arena *arena, qn_regex_table *out)
{
    reader r = { .arena = arena, .at = pattern };
    const tree *tree = read_either(&r);
    if (!r.wrong && *r.at)
        fail(&r, ") has no ( in front of it");
    if (r.wrong)
        return r.wrong;
    qn_arena *scratch = qn_arena_new();
    maker m = { .arena = scratch };
    const int last = make(&m, (step){ .way = MATCHED });
    const int first = make_tree(&m, tree, last);
    table t = { .arena = scratch,
                .steps = m.steps.items,
                .n_steps = (int)m.steps.n,
                .rows = QN_NEW_ARRAY(scratch, uint16_t, MOST_STATES *QN_TEXT_COLUMNS),
                .stack = QN_NEW_ARRAY(scratch, int, 2 * m.steps.n + 2) };
    bool *in = QN_NEW_ARRAY(scratch, bool, m.steps.n + 1), good = !m.full;
    if (good) {
        state_of(&t, in, false);
        reach(&t, in, first, (place){ .begin = true });
        state_of(&t, in, false);
    }
    for (int i = 1; i < t.n && good; i++)
        good = fill(&t, i);
    if (good)
        *out = (qn_regex_table){ t.n, qn_arena_copy(arena, t.rows,
                                                    (size_t)t.n * QN_TEXT_COLUMNS * sizeof *t.rows) };
    qn_arena_free(scratch);
    return good ? NULL : "its table would be too large: repetitions of repetitions, or large ones";
}
