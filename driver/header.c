/* The generated C header: see header.h. What it looks like for a model `mlp` with the entry `infer`:
 *
 *   typedef struct mlp_dims { int64_t batch; } mlp_dims;             where there are symbols
 *   typedef struct mlp_io { const float *x; float *y; mlp_dims dims; } mlp_io;
 *   #define MLP_WORKSPACE_BYTES 4096                                 or mlp_workspace_bytes(&dims)
 *   #define MLP_INPUT_X_ELEMENTS 784                                 or mlp_input_x_elements(&dims)
 *   int mlp_infer(mlp_io *io, void *workspace, quern_ctx *ctx);
 *
 * With several entries the names carry the entry's (mlp_train_step_io). States are members of one structure, mlp_state,
 * that all entries share; mlp_init gives them their initial contents. */
#include <ctype.h>
#include <inttypes.h>
#include <string.h>

#include "driver/header.h"

typedef struct writer {
    FILE *to;
    const qn_header_info *info;
    qn_arena *arena;
    int n_programs;
    qn_program *const *programs;
    const char **entries; /* the programs' names as parts of C identifiers */
} writer;

/* ---- names ---- */

static bool is_reserved(const char *name)
{
    static const char words[] =
        " "
        "alignas alignof and and_eq asm auto bitand bitor bool break case catch char char16_t "
        "char32_t char8_t class co_await co_return co_yield compl concept const const_cast "
        "consteval constexpr constinit continue decltype default delete dims do double "
        "dynamic_cast else enum explicit export extern false float for friend goto if inline int "
        "linux long mutable namespace new noexcept not not_eq NULL nullptr operator or or_eq "
        "private protected public register reinterpret_cast requires restrict return short signed "
        "sizeof static static_assert static_cast struct switch template this thread_local throw "
        "true try typedef typeid typename typeof typeof_unqual union unix unsigned using virtual "
        "void volatile wchar_t while xor xor_eq ";
    const size_t length = strlen(name);
    for (const char *at = strstr(words, name); at; at = strstr(at + 1, name))
        if (at[-1] == ' ' && at[length] == ' ')
            return true;
    return false;
}

/* The name as a C identifier. */
static const char *identifier(const writer *w, const char *name)
{
    char *id =
        qn_arena_printf(w->arena, "%s%s", isdigit((unsigned char)name[0]) || !name[0] ? "_" : "", name);
    for (char *c = id; *c; c++)
        if (!isalnum((unsigned char)*c))
            *c = '_';
    return is_reserved(id) ? qn_arena_printf(w->arena, "%s_", id) : id;
}

static const char *upper(const writer *w, const char *name)
{
    char *copy = qn_arena_strdup(w->arena, name);
    for (char *c = copy; *c; c++)
        *c = (char)toupper((unsigned char)*c);
    return copy;
}

/* Makes ids different where they are the same. */
static void tell_apart(const writer *w, int n, const char **ids)
{
    for (int i = 0; i < n; i++) {
        const char *base = ids[i];
        for (int again = 2, j = 0; j < i; j++)
            if (strcmp(ids[j], ids[i]) == 0) {
                ids[i] = qn_arena_printf(w->arena, "%s_%d", base, again++);
                j = -1;
            }
    }
}

/* Identifiers of a structure's members. */
static const char **identifiers(const writer *w, int n, const char *(*name_of)(const void *, int),
                                const void *items)
{
    const char **ids = QN_NEW_ARRAY(w->arena, const char *, n);
    for (int i = 0; i < n; i++)
        ids[i] = identifier(w, name_of(items, i));
    tell_apart(w, n, ids);
    return ids;
}

/* The same in upper case, as parts of macros. */
static const char **macros(const writer *w, int n, const char *const *ids)
{
    const char **names = QN_NEW_ARRAY(w->arena, const char *, n);
    for (int i = 0; i < n; i++)
        names[i] = upper(w, ids[i]);
    tell_apart(w, n, names);
    return names;
}

/* Does the header call something of its own so, behind the prefix (`of` empty) or an entry's name? */
static bool is_taken(const char *id, const char *of)
{
    static const char *const taken[] = { "query",  "io",        "dims",           "state",          "init",
                                         "limits", "residuals", "residual_bytes", "workspace_bytes" };
    const size_t n = strlen(of);
    if (strncmp(id, of, n) != 0 || (n && id[n] != '_'))
        return false;
    const char *rest = id + n + (n > 0), *end = strrchr(rest, '_');
    for (size_t k = 0; k < sizeof taken / sizeof *taken; k++)
        if (strcmp(rest, taken[k]) == 0)
            return true;
    return end && !strcmp(end, "_elements") && (!strncmp(rest, "input_", 6) || !strncmp(rest, "output_", 7));
}

/* Names of entries: not the header's own, nor alike in the macros, which are in upper case. */
static const char **entry_names(const writer *w)
{
    const char **ids = QN_NEW_ARRAY(w->arena, const char *, w->n_programs);
    for (int i = 0; i < w->n_programs; i++) {
        const char *base = identifier(w, w->programs[i]->name);
        base = is_taken(base, "") ? qn_arena_printf(w->arena, "%s_", base) : base;
        ids[i] = base;
        for (int again = 2, j = 0; j < i; j++)
            if (strcmp(upper(w, ids[i]), upper(w, ids[j])) == 0 || is_taken(ids[i], ids[j]) ||
                is_taken(ids[j], ids[i])) {
                ids[i] = qn_arena_printf(w->arena, "%s_%d", base, again++);
                j = -1;
            }
    }
    return ids;
}

/* The text in a comment, which it cannot end. */
static const char *remark(const writer *w, const char *text)
{
    char *copy = qn_arena_strdup(w->arena, text);
    for (char *c = copy; *c; c++)
        if ((unsigned char)*c < ' ' || *c == 0x7f || *c == '\\' || (c > copy && *c == '/' && c[-1] == '*') ||
            (c > copy && *c == '*' && c[-1] == '/'))
            *c = '_';
    return copy;
}

static const char *io_name(const void *program, int i)
{
    return ((const qn_program *)program)->io[i].name;
}

static const char *symbol_name(const void *program, int i)
{
    return qn_dims_symbol_at(((const qn_program *)program)->dims, i)->name;
}

static const char *c_type(qn_dtype dtype)
{
    static const char *const names[] = {
        [QUERN_BOOL] = "uint8_t", [QUERN_I8] = "int8_t",     [QUERN_I16] = "int16_t",
        [QUERN_I32] = "int32_t",  [QUERN_I64] = "int64_t",   [QUERN_U8] = "uint8_t",
        [QUERN_U16] = "uint16_t", [QUERN_U32] = "uint32_t",  [QUERN_U64] = "uint64_t",
        [QUERN_F16] = "uint16_t", [QUERN_BF16] = "uint16_t", [QUERN_F32] = "float",
        [QUERN_F64] = "double",
    };
    return names[qn_dtype_carrier(dtype)];
}

/* "mlp", or "mlp_train_step" where there are several entries. */
static const char *stem(const writer *w, int number)
{
    return w->n_programs == 1 ? w->info->prefix
                              : qn_arena_printf(w->arena, "%s_%s", w->info->prefix, w->entries[number]);
}

/* ---- states: one structure for all entries ---- */

typedef struct state {
    const qn_pio *io;
    const char *id;
} state;

static int collect_states(const writer *w, state **out)
{
    int capacity = 0, n = 0;
    for (int p = 0; p < w->n_programs; p++)
        capacity += w->programs[p]->n_io;
    state *states = QN_NEW_ARRAY(w->arena, state, capacity);
    for (int p = 0; p < w->n_programs; p++)
        for (int i = 0; i < w->programs[p]->n_io; i++) {
            const qn_pio *io = &w->programs[p]->io[i];
            bool known = io->role != QUERN_STATE;
            for (int k = 0; k < n && !known; k++)
                known = strcmp(states[k].io->name, io->name) == 0;
            if (known)
                continue;
            const char *id = identifier(w, io->name), *base = id;
            for (int again = 2, k = 0; k < n; k++)
                if (strcmp(states[k].id, id) == 0) {
                    id = qn_arena_printf(w->arena, "%s_%d", base, again++);
                    k = -1;
                }
            states[n++] = (state){ .io = io, .id = id };
        }
    *out = states;
    return n;
}

static const char *state_id(const state *states, int n, const char *name)
{
    for (int i = 0; i < n; i++)
        if (strcmp(states[i].io->name, name) == 0)
            return states[i].id;
    QN_UNREACHABLE("no state %s", name);
}

static void write_states(const writer *w, int n, const state *states)
{
    const char *prefix = w->info->prefix, *big = upper(w, prefix);
    fprintf(w->to,
            "/* Parameters and other states, which entries update in place. The caller's. */\n"
            "typedef struct %s_state {\n",
            prefix);
    for (int i = 0; i < n; i++)
        fprintf(w->to, "    QUERN_ALIGN(64) %s %s[%" PRId64 "]; /* %s */\n", c_type(states[i].io->type.dtype),
                states[i].id,
                qn_type_elements(&states[i].io->type) > 0 ? qn_type_elements(&states[i].io->type) : 1,
                remark(w, qn_type_print(&states[i].io->type, w->arena)));
    fprintf(w->to, "} %s_state;\n#define %s_STATE_BYTES sizeof(%s_state)\n\n", prefix, big, prefix);
    fprintf(w->to, "/* Gives the states their initial contents.%s */\n",
            w->info->weights_inside ? "" : " weights: those of the side file");
    fprintf(w->to, "static inline void %s_init(%s_state *state%s)\n{\n", prefix, prefix,
            w->info->weights_inside ? "" : ", const void *weights");
    fprintf(w->to, "    const char *from = (const char *)%s;\n",
            w->info->weights_inside
                ? qn_arena_printf(w->arena, "%s_query(QUERN_ABI_VERSION)->weights", prefix)
                : "weights");
    fputs("    memset(state, 0, sizeof *state);\n    (void)from;\n", w->to);
    for (int i = 0; i < n; i++)
        if (states[i].io->initial_offset >= 0)
            fprintf(w->to, "    memcpy(state->%s, from + %" PRId64 ", sizeof state->%s);\n", states[i].id,
                    states[i].io->initial_offset, states[i].id);
    fputs("}\n\n", w->to);
}

/* ---- entries ---- */

static void write_dims(const writer *w, const qn_program *p, const char *name, int n_symbols,
                       const char **symbol_ids)
{
    fprintf(w->to, "typedef struct %s_dims {\n", name);
    for (int i = 0; i < n_symbols; i++) {
        qn_dim symbol = qn_dims_symbol_at(p->dims, i);
        fprintf(w->to, "    int64_t %s; /* %s", symbol_ids[i], remark(w, symbol->name));
        if (i >= p->n_entry_symbols)
            fputs(": found by the run */\n", w->to);
        else
            fprintf(w->to, ": %" PRId64 " to %" PRId64 " */\n", symbol->min, symbol->max);
    }
    fprintf(w->to, "} %s_dims;\n\n", name);
}

static void write_io(const writer *w, const qn_program *p, const char *name, const char **ids, int n_symbols)
{
    static const char *const roles[] = { [QUERN_INPUT] = "input",
                                         [QUERN_OUTPUT] = "output",
                                         [QUERN_STATE] = "state: set by the call" };
    fprintf(w->to, "typedef struct %s_io {\n", name);
    for (int i = 0; i < p->n_io; i++)
        fprintf(w->to, "    %s%s *%s; /* %s, %s */\n", p->io[i].role == QUERN_INPUT ? "const " : "",
                c_type(p->io[i].type.dtype), ids[i], roles[p->io[i].role],
                remark(w, qn_type_print(&p->io[i].type, w->arena)));
    if (n_symbols)
        fprintf(w->to, "    %s_dims dims;\n", name);
    fprintf(w->to, "} %s_io;\n\n", name);
}

static void write_sizes(const writer *w, const qn_program *p, int number, const char *name, const char **ids,
                        int n_symbols)
{
    const char *big = upper(w, name), *prefix = w->info->prefix, **parts = macros(w, p->n_io, ids);
    if (qn_dim_is_const(p->arena_bytes))
        fprintf(w->to, "#define %s_WORKSPACE_BYTES %" PRId64 "\n", big,
                p->arena_bytes->value > 64 ? p->arena_bytes->value : 64);
    for (int i = 0; i < p->n_io; i++) {
        if (p->io[i].role == QUERN_STATE || !qn_type_is_static(&p->io[i].type))
            continue;
        fprintf(w->to, "#define %s_%s_%s_ELEMENTS %" PRId64 "\n", big,
                p->io[i].role == QUERN_INPUT ? "INPUT" : "OUTPUT", parts[i],
                qn_type_elements(&p->io[i].type));
    }
    if (!n_symbols) {
        putc('\n', w->to);
        return;
    }
    fprintf(
        w->to,
        "\n/* Bytes of workspace for these dims; -1 where one is outside its range. */\n"
        "static inline int64_t %s_workspace_bytes(const %s_dims *dims)\n{\n"
        "    return %s_query(QUERN_ABI_VERSION)->entries[%d].workspace_bytes((const int64_t *)dims);\n}\n",
        name, name, prefix, number);
    if (n_symbols > p->n_entry_symbols)
        fprintf(w->to,
                "/* Sets the dims that the run finds to the most that they can be: what outputs need room "
                "for. */\n"
                "static inline void %s_limits(%s_dims *dims)\n{\n"
                "    %s_query(QUERN_ABI_VERSION)->entries[%d].limits((int64_t *)dims);\n}\n",
                name, name, prefix, number);
    for (int i = 0; i < p->n_io; i++) {
        const qn_pio *io = &p->io[i];
        if (io->role == QUERN_STATE || qn_type_is_static(&io->type))
            continue;
        fprintf(w->to,
                "static inline int64_t %s_%s_%s_elements(const %s_dims *dims)\n{\n"
                "    int64_t d[%d], n = 1;\n"
                "    %s_query(QUERN_ABI_VERSION)->entries[%d].shape(%d, (const int64_t *)dims, d);\n"
                "    for (int i = 0; i < %d; i++)\n        n *= d[i];\n    return n;\n}\n",
                name, io->role == QUERN_INPUT ? "input" : "output", ids[i], name, io->type.rank, prefix,
                number, i, io->type.rank);
    }
    putc('\n', w->to);
}

static void write_call(const writer *w, const qn_program *p, int number, const char *name, const char **ids,
                       int n_states, const state *states)
{
    const char *prefix = w->info->prefix;
    bool has_state = false;
    for (int i = 0; i < p->n_io; i++)
        has_state |= p->io[i].role == QUERN_STATE;
    fprintf(w->to, "/* workspace: %s, aligned to 64. Gives a quern_status. */\n",
            qn_dim_is_const(p->arena_bytes) ? qn_arena_printf(w->arena, "%s_WORKSPACE_BYTES", upper(w, name))
                                            : qn_arena_printf(w->arena, "%s_workspace_bytes(&dims)", name));
    fprintf(w->to, "static inline int %s_%s(%s_io *io, %s%s%svoid *workspace, quern_ctx *ctx)\n{\n", prefix,
            w->entries[number], name, has_state ? prefix : "", has_state ? "_state *state" : "",
            has_state ? ", " : "");
    for (int i = 0; i < p->n_io; i++)
        if (p->io[i].role == QUERN_STATE)
            fprintf(w->to, "    io->%s = state->%s;\n", ids[i], state_id(states, n_states, p->io[i].name));
    fprintf(w->to, "    return %s_query(QUERN_ABI_VERSION)->entries[%d].run(io, workspace, ctx);\n}\n\n",
            prefix, number);
}

static void write_entry(const writer *w, int number, int n_states, const state *states)
{
    const qn_program *p = w->programs[number];
    const char *name = stem(w, number);
    int n_symbols = qn_dims_symbol_count(p->dims);
    const char **ids = identifiers(w, p->n_io, io_name, p);
    fprintf(w->to, "/* ---- %s ---- */\n\n", remark(w, p->name));
    if (n_symbols)
        write_dims(w, p, name, n_symbols, identifiers(w, n_symbols, symbol_name, p));
    write_io(w, p, name, ids, n_symbols);
    write_sizes(w, p, number, name, ids, n_symbols);
    write_call(w, p, number, name, ids, n_states, states);
}

/* ---- a step in parts: what forward leaves for backward lies in one stretch of memory ---- */

static int find_program(const writer *w, const char *name)
{
    for (int i = 0; i < w->n_programs; i++)
        if (strcmp(w->programs[i]->name, name) == 0)
            return i;
    return -1;
}

static int find_io(const qn_program *p, const char *name)
{
    for (int i = 0; i < p->n_io; i++)
        if (strcmp(p->io[i].name, name) == 0)
            return i;
    return -1;
}

static void write_residuals(const writer *w)
{
    const int from = find_program(w, "forward"), to = find_program(w, "backward");
    if (from < 0 || to < 0)
        return;
    const qn_program *forward = w->programs[from], *backward = w->programs[to];
    const char **ids = identifiers(w, forward->n_io, io_name, forward);
    const char **backward_ids = identifiers(w, backward->n_io, io_name, backward), *prefix = w->info->prefix;
    const char *sum = "", *places = "";
    bool is_static = true;
    for (int i = 0; i < forward->n_io; i++) {
        const qn_pio *io = &forward->io[i];
        const int other = find_io(backward, io->name);
        if (strncmp(io->name, "residual.", 9) != 0 || other < 0)
            continue;
        is_static &= qn_type_is_static(&io->type);
        const char *elements =
            qn_type_is_static(&io->type)
                ? qn_arena_printf(w->arena, "%" PRId64, qn_type_elements(&io->type))
                : qn_arena_printf(w->arena, "%s_forward_output_%s_elements(dims)", prefix, ids[i]);
        const char *bytes = qn_arena_printf(w->arena, "(%s * (int64_t)sizeof(%s) + 63) / 64 * 64", elements,
                                            c_type(io->type.dtype));
        sum = qn_arena_printf(w->arena, "%s%s%s", sum, *sum ? " + " : "", bytes);
        places =
            qn_arena_printf(w->arena, "%s    backward->%s = forward->%s = (%s *)(void *)at;\n    at += %s;\n",
                            places, backward_ids[other], ids[i], c_type(io->type.dtype), bytes);
    }
    fputs("/* ---- what forward leaves for backward ---- */\n\n", w->to);
    if (is_static)
        fprintf(w->to, "#define %s_RESIDUAL_BYTES (%s)\n", upper(w, prefix), *sum ? sum : "0");
    else
        fprintf(
            w->to,
            "static inline int64_t %s_residual_bytes(const %s_forward_dims *dims)\n{\n    return %s;\n}\n",
            prefix, prefix, sum);
    fprintf(
        w->to,
        "/* Lets both put and find it in `memory`: so many bytes, aligned to 64, of the caller. */\n"
        "static inline void %s_residuals(%s_forward_io *forward, %s_backward_io *backward, void *memory)\n{\n"
        "    char *at = (char *)memory;\n%s%s    (void)at;\n    (void)forward;\n    (void)backward;\n}\n\n",
        prefix, prefix, prefix,
        is_static ? ""
                  : qn_arena_printf(w->arena, "    const %s_forward_dims *dims = &forward->dims;\n", prefix),
        places);
}

/* ---- the file ---- */

/* As a C string: bytes that are not letters, digits and the like in octal. */
static void write_string(const writer *w, const char *text)
{
    fputc('"', w->to);
    for (const unsigned char *c = (const unsigned char *)text; *c; c++)
        if (*c < ' ' || *c >= 0x7f || strchr("\"\\?", *c))
            fprintf(w->to, "\\%03o", *c);
        else
            fputc(*c, w->to);
    fputc('"', w->to);
}

static void write_strings(const writer *w, const char *big)
{
    if (!w->info->n_strings)
        return;
    fprintf(
        w->to,
        "/* The strings that elements of int64_t stand for where the model has strings, by number:\n"
        " * static const char *const strings[] = %s_STRINGS; Others have numbers from %s_N_STRINGS on. */\n"
        "#define %s_N_STRINGS %d\n#define %s_STRINGS \\\n    { ",
        big, big, big, w->info->n_strings, big);
    for (int i = 0; i < w->info->n_strings; i++) {
        fputs(i ? ", \\\n      " : "", w->to);
        write_string(w, w->info->strings[i]);
    }
    fputs(" }\n\n", w->to);
}

void qn_header_write(FILE *to, const qn_header_info *info, int n_programs, qn_program *const *programs)
{
    writer w = {
        .to = to, .info = info, .arena = qn_arena_new(), .n_programs = n_programs, .programs = programs
    };
    const char *prefix = info->prefix, *big = upper(&w, prefix);
    w.entries = entry_names(&w);
    state *states;
    int n_states = collect_states(&w, &states);
    fprintf(to,
            "/* %s - %s, compiled by Quern " QN_VERSION_STRING
            ". Generated; link %s, nothing else of Quern is needed. */\n"
            "#ifndef QUERN_MODEL_%s_H\n#define QUERN_MODEL_%s_H\n\n%s",
            remark(&w, info->name), remark(&w, info->source), remark(&w, info->object), big, big,
            n_states ? "#include <string.h>\n\n" : ""); /* freestanding compilers have none */
    fputs(qn_abi_header, to);
    fprintf(to,
            "\n#ifndef QUERN_ALIGN\n#ifdef __cplusplus\n#define QUERN_ALIGN(n) alignas(n)\n#else\n"
            "#define QUERN_ALIGN(n) _Alignas(n)\n#endif\n#endif\n\n"
            "#ifdef __cplusplus\nextern \"C\" {\n#endif\n\n"
            "/* The tables that describe the model; NULL for an ABI version that it does not know. */\n"
            "const quern_model_info *%s_query(uint32_t abi_version);\n\n",
            prefix);
    if (!info->weights_inside)
        fprintf(to,
                "/* The weights lie in a side file, %s.safetensors: map it and let quern_ctx.weights point "
                "to its data,\n"
                " * which begins behind 8 bytes (the header's length, little endian) and the header. */\n"
                "#define %s_WEIGHTS_BYTES %" PRId64 "\n\n",
                remark(&w, info->object), big, info->weights_bytes);
    write_strings(&w, big);
    if (n_states)
        write_states(&w, n_states, states);
    for (int i = 0; i < n_programs; i++)
        write_entry(&w, i, n_states, states);
    write_residuals(&w);
    fputs("#ifdef __cplusplus\n}\n#endif\n#endif\n", to);
    qn_arena_free(w.arena);
}
