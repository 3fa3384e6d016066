/* Owns what values are called in text. */
#include "ir/print.h"

#include <string.h>

struct qn_names {
    qn_arena *arena;
    size_t capacity; /* of both tables: a power of two, at least twice what they hold */
    const qn_value **values;
    const char **texts; /* of values[i] */
    const char **used;  /* the texts again, by their hash */
    int *next_suffix;   /* of used[i]: the number that its next namesake tries */
};

static size_t hash_pointer(const void *p)
{
    uint64_t x = (uintptr_t)p;
    x *= 0x9e3779b97f4a7c15u;
    return (size_t)(x >> 20);
}

static size_t hash_text(const char *text)
{
    uint64_t h = 0xcbf29ce484222325u;
    for (; *text; text++)
        h = (h ^ (unsigned char)*text) * 0x100000001b3u;
    return (size_t)(h ^ h >> 29);
}

/* Where that text is, or would be. */
static size_t find_text(const qn_names *names, const char *text)
{
    size_t at = hash_text(text) & (names->capacity - 1);
    while (names->used[at] && strcmp(names->used[at], text) != 0)
        at = (at + 1) & (names->capacity - 1);
    return at;
}

static void set(qn_names *names, const qn_value *value, const char *text)
{
    size_t at = hash_pointer(value) & (names->capacity - 1);
    while (names->values[at])
        at = (at + 1) & (names->capacity - 1);
    names->values[at] = value;
    names->texts[at] = text;
}

bool qn_name_is_plain(const char *name)
{
    bool only_digits = true;
    if (!*name)
        return false;
    for (const char *c = name; *c; c++) {
        bool digit = *c >= '0' && *c <= '9';
        if (!digit && !(*c >= 'a' && *c <= 'z') && !(*c >= 'A' && *c <= 'Z') && *c != '_' && *c != '.' &&
            *c != '/')
            return false;
        only_digits = only_digits && digit;
    }
    return !only_digits;
}

static const char *text_of_name(qn_arena *arena, const char *name)
{
    if (qn_name_is_plain(name))
        return qn_arena_printf(arena, "%%%s", name);
    qn_strbuf quoted = { .arena = arena };
    qn_strbuf_puts(&quoted, "%");
    qn_strbuf_quote(&quoted, name);
    return qn_strbuf_text(&quoted);
}

static void add(qn_names *names, const qn_value *value, int *next_number)
{
    if (!value->name || !*value->name) {
        set(names, value, qn_arena_printf(names->arena, "%%%d", (*next_number)++));
        return;
    }
    const char *text = text_of_name(names->arena, value->name);
    size_t first = find_text(names, text), at = first;
    while (names->used[at]) {
        int number = ++names->next_suffix[first];
        text = text_of_name(names->arena, qn_arena_printf(names->arena, "%s_%d", value->name, number));
        at = find_text(names, text);
    }
    names->used[at] = text;
    set(names, value, text);
}

qn_names *qn_names_new(const qn_graph *graph, qn_arena *arena)
{
    size_t n = (size_t)graph->n_inputs;
    QN_FOR_NODES (graph, node)
        n += (size_t)node->n_results;
    qn_names *names = QN_NEW(arena, qn_names);
    names->arena = arena;
    for (names->capacity = 8; names->capacity < 2 * n; names->capacity *= 2)
        ;
    names->values = QN_NEW_ARRAY(arena, const qn_value *, names->capacity);
    names->texts = QN_NEW_ARRAY(arena, const char *, names->capacity);
    names->used = QN_NEW_ARRAY(arena, const char *, names->capacity);
    names->next_suffix = QN_NEW_ARRAY(arena, int, names->capacity);
    int next_number = 0;
    for (int i = 0; i < graph->n_inputs; i++)
        add(names, graph->inputs[i], &next_number);
    QN_FOR_NODES (graph, node)
        for (int i = 0; i < node->n_results; i++)
            add(names, &node->results[i], &next_number);
    return names;
}

const char *qn_names_get(const qn_names *names, const qn_value *value)
{
    if (!value)
        return "%?";
    while (value->forward)
        value = value->forward;
    size_t at = hash_pointer(value) & (names->capacity - 1);
    for (; names->values[at]; at = (at + 1) & (names->capacity - 1))
        if (names->values[at] == value)
            return names->texts[at];
    return "%?";
}
