/* PTX as text to a module: see ptx.h. */
#include <ctype.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ptx_module.h"

enum { MOST_REGISTERS = 1 << 16 };

static const char *const op_names[N_OPS] = { "abs",      "add", "and",  "bar",   "bfe",  "bra", "clz",
                                             "copysign", "cvt", "cvta", "div",   "fma",  "ld",  "ldmatrix",
                                             "mad",      "max", "min",  "mma",   "mov",  "mul", "neg",
                                             "not",      "or",  "popc", "prmt",  "rcp",  "rem", "ret",
                                             "selp",     "set", "setp", "shf",   "shfl", "shl", "shr",
                                             "sqrt",     "st",  "sub",  "testp", "xor" };

typedef struct reader {
    const char *at;
    int line;
    char *error;
    bool failed;
    ptx_module *module;
    ptx_kernel *kernel;
    struct label {
        char name[64];
        int place;
        struct label *next;
    } *labels;
} reader;

static bool fail(reader *r, const char *format, ...)
{
    if (!r->failed) {
        int n = snprintf(r->error, ERROR_BYTES, "line %d: ", r->line);
        va_list list;
        va_start(list, format);
        vsnprintf(r->error + n, ERROR_BYTES - (size_t)n, format, list);
        va_end(list);
    }
    r->failed = true;
    return false;
}

static void skip(reader *r)
{
    for (;; r->at++) {
        if (r->at[0] == '/' && r->at[1] == '/')
            r->at += strcspn(r->at, "\n");
        if (*r->at == '\n')
            r->line++;
        if (!*r->at || !isspace((unsigned char)*r->at))
            return;
    }
}

static bool accept(reader *r, const char *text)
{
    skip(r);
    size_t n = strlen(text);
    if (strncmp(r->at, text, n) != 0)
        return false;
    r->at += n;
    return true;
}

static bool expect(reader *r, const char *text)
{
    return accept(r, text) || fail(r, "'%s' expected before '%.20s'", text, r->at);
}

/* A word of letters, digits and . _ $ % <, up to 159 of them. */
static bool word(reader *r, char *out)
{
    skip(r);
    size_t n = 0;
    while (isalnum((unsigned char)r->at[n]) || (r->at[n] && strchr("._$%", r->at[n])))
        n++;
    if (n == 0 || n > 159)
        return fail(r, "a word expected before '%.20s'", r->at);
    memcpy(out, r->at, n);
    out[n] = '\0';
    r->at += n;
    return true;
}

static symbol *find_symbol(symbol *s, const char *name)
{
    while (s && strcmp(s->name, name) != 0)
        s = s->next;
    return s;
}

static int find_register(const ptx_kernel *k, const char *name)
{
    size_t letters = strlen(name);
    while (letters > 0 && isdigit((unsigned char)name[letters - 1]))
        letters--;
    for (int i = k->n_kinds - 1; i >= 0; i--) {
        const registers *r = &k->regs[i];
        if (!r->numbered && strcmp(r->name, name) == 0)
            return r->first;
        const int number = atoi(name + letters);
        if (r->numbered && name[letters] && strlen(r->name) == letters &&
            strncmp(r->name, name, letters) == 0 && number < r->n)
            return r->first + number;
    }
    return -1;
}

static void add_registers(ptx_kernel *k, const char *name, bool numbered, int n)
{
    k->regs = realloc(k->regs, (size_t)(k->n_kinds + 1) * sizeof *k->regs);
    registers *r = &k->regs[k->n_kinds++];
    *r = (registers){ .numbered = numbered, .first = k->n_regs, .n = n };
    snprintf(r->name, sizeof r->name, "%s", name);
    k->n_regs += n;
}

static int place_of(reader *r, const char *name)
{
    for (struct label *l = r->labels; l; l = l->next)
        if (strcmp(l->name, name) == 0)
            return l->place;
    return -1;
}

static bool read_type(const char *name, type *out)
{
    static const char *const kinds[] = { "b", "s", "u", "f", "bf" };
    static const int bits[] = { 8, 16, 32, 64 };
    char text[8];
    if (strcmp(name, "pred") == 0) {
        *out = (type){ 'p', 1 };
        return true;
    }
    for (int k = 0; k < 5; k++)
        for (int b = 0; b < 4; b++) {
            snprintf(text, sizeof text, "%s%d", kinds[k], bits[b]);
            if (strcmp(name, text) == 0) {
                *out = (type){ k == 4 ? 'B' : kinds[k][0], bits[b] };
                return true;
            }
        }
    return false;
}

/* ".b32 %r<8>", ".b64 %SP" */
static bool read_registers(reader *r)
{
    char kind[160], name[160];
    if (!word(r, kind) || !word(r, name))
        return false;
    if (!accept(r, "<")) {
        add_registers(r->kernel, name, false, 1);
        return expect(r, ";");
    }
    char *end;
    long n = strtol(r->at, &end, 10);
    r->at = end;
    if (n > MOST_REGISTERS)
        return fail(r, "too many registers");
    add_registers(r->kernel, name, true, (int)n);
    return expect(r, ">") && expect(r, ";");
}

/* ".align 4 .b8 name[64] = {1, 2};" in a space */
static bool read_array(reader *r, space space)
{
    char kind[160], name[160];
    type t;
    long align = 1, count = 1;
    char *end;
    if (accept(r, ".align")) {
        align = strtol(r->at, &end, 10);
        r->at = end;
    }
    if (!word(r, kind) || !read_type(kind + 1, &t) || !word(r, name))
        return fail(r, "no type");
    if (accept(r, "[")) {
        count = strtol(r->at, &end, 10);
        r->at = end;
        if (!expect(r, "]"))
            return false;
    }
    ptx_module *m = r->module;
    size_t *total = space == SHARED  ? r->kernel ? &r->kernel->shared_bytes : &m->shared_bytes
                    : space == LOCAL ? &r->kernel->local_bytes
                                     : &m->global_bytes;
    size_t at = (*total + (size_t)align - 1) / (size_t)align * (size_t)align,
           bytes = (size_t)(t.bits / 8 * count);
    *total = at + bytes;
    symbol *s = calloc(1, sizeof *s);
    snprintf(s->name, sizeof s->name, "%s", name);
    s->space = space;
    s->at = at + (space == GLOBAL ? GLOBAL_AT : 0);
    symbol **list = r->kernel ? &r->kernel->symbols : &m->symbols;
    s->next = *list;
    *list = s;
    if (space == GLOBAL) {
        m->globals = realloc(m->globals, m->global_bytes);
        memset(m->globals + at, 0, bytes);
    }
    if (accept(r, "=")) {
        if (space != GLOBAL || !expect(r, "{"))
            return fail(r, "only global memory has contents");
        for (long i = 0; i < count && !accept(r, "}"); i++) {
            skip(r);
            unsigned long long value = strtoull(r->at, &end, 0);
            if (end == r->at)
                return fail(r, "a number expected before '%.20s'", r->at);
            r->at = end;
            memcpy(m->globals + at + (size_t)i * (size_t)t.bits / 8, &value, (size_t)t.bits / 8);
            accept(r, ",");
        }
        accept(r, "}");
    }
    return expect(r, ";");
}

static const char *const specials[] = { "%tid.x", "%ctaid.x", "%ntid.x" };

static bool read_name(reader *r, const char *name, operand *out)
{
    for (int i = 0; i < 3; i++)
        if (strcmp(name, specials[i]) == 0) {
            *out = (operand){ .kind = SPECIAL, .reg = i };
            return true;
        }
    int reg = find_register(r->kernel, name);
    symbol *s = find_symbol(r->kernel->symbols, name);
    s = s ? s : find_symbol(r->module->symbols, name);
    if (reg >= 0)
        *out = (operand){ .kind = REGISTER, .reg = reg };
    else if (s)
        *out = (operand){ .kind = IMMEDIATE, .value = s->at };
    else if (strcmp(name, "_") == 0)
        *out = (operand){ .kind = SINK };
    else if (name[0] == '$' && place_of(r, name) >= 0)
        *out = (operand){ .kind = LABEL, .reg = place_of(r, name) };
    else
        return fail(r, "'%s' is unknown", name);
    return true;
}

static bool read_number(reader *r, uint64_t *out)
{
    char *end;
    const bool is_float =
        r->at[0] == '0' && (r->at[1] == 'f' || r->at[1] == 'd' || r->at[1] == 'F' || r->at[1] == 'D');
    *out = is_float ? strtoull(r->at + 2, &end, 16) : (uint64_t)strtoll(r->at, &end, 0);
    if (!is_float && *r->at != '-')
        *out = strtoull(r->at, &end, 0);
    if (end == r->at)
        return fail(r, "a number expected before '%.20s'", r->at);
    r->at = end;
    accept(r, "U");
    return true;
}

static bool read_operand(reader *r, operand *out)
{
    char name[160];
    skip(r);
    if (accept(r, "[")) {
        operand base;
        uint64_t more = 0;
        if (!read_operand(r, &base))
            return false;
        if (accept(r, "+") && (skip(r), !read_number(r, &more)))
            return false;
        if (base.kind != REGISTER && base.kind != IMMEDIATE)
            return fail(r, "this is no address");
        *out = (operand){ .kind = MEMORY,
                          .reg = base.kind == REGISTER ? base.reg : -1,
                          .value = base.value + more };
        return expect(r, "]");
    }
    if (accept(r, "{")) {
        *out = (operand){ .kind = VECTOR };
        do {
            operand part;
            if (out->n == 4 || !read_operand(r, &part) ||
                (part.kind != REGISTER && part.kind != SINK && part.kind != IMMEDIATE))
                return fail(r, "a vector has up to 4 registers or numbers");
            out->values[out->n] = part.value;
            out->parts[out->n++] = part.kind == REGISTER    ? part.reg
                                   : part.kind == IMMEDIATE ? NUMBER
                                                            : NOBODY;
        } while (accept(r, ","));
        return expect(r, "}");
    }
    if (isdigit((unsigned char)*r->at) || *r->at == '-') {
        *out = (operand){ .kind = IMMEDIATE };
        return read_number(r, &out->value);
    }
    return word(r, name) && read_name(r, name, out);
}

static bool is_one_of(const char *text, const char *words)
{
    const size_t n = strlen(text);
    for (const char *w = words; (w = strstr(w, text)) != NULL; w += n)
        if ((w == words || w[-1] == ' ') && (w[n] == ' ' || w[n] == '\0'))
            return true;
    return false;
}

/* "ld.global.v2.b32" */
static bool read_opcode(reader *r, char *text, inst *out)
{
    char *rest, *part = strtok_r(text, ".", &rest);
    int n_types = 0;
    out->op = N_OPS;
    for (int i = 0; i < N_OPS; i++)
        if (strcmp(part, op_names[i]) == 0)
            out->op = (op)i;
    if (strcmp(part, "barrier") == 0)
        out->op = BAR;
    if (out->op == N_OPS)
        return fail(r, "the instruction '%s' is unknown", part);
    while ((part = strtok_r(NULL, ".", &rest)) != NULL) {
        type t;
        if (read_type(part, &t)) { /* of mma: of the sums, then of what is multiplied */
            if (n_types < 2 || out->op != MMA)
                *(n_types ? &out->from : &out->type) = t;
            n_types++;
        } else if (strcmp(part, "global") == 0)
            out->space = GLOBAL;
        else if (strncmp(part, "shared", 6) == 0)
            out->space = SHARED;
        else if (strcmp(part, "local") == 0)
            out->space = LOCAL;
        else if (strcmp(part, "param") == 0)
            out->space = PARAM;
        else if (strcmp(part, "to") == 0)
            out->to_space = true;
        else if (part[0] == 'v' && (part[1] == '2' || part[1] == '4'))
            out->n_vector = part[1] - '0';
        else if (strcmp(part, "wide") == 0)
            out->wide = true;
        else if (strcmp(part, "hi") == 0)
            out->high = true;
        else if (strcmp(part, "NaN") == 0)
            out->nan = true;
        else if (strcmp(part, "sat") == 0)
            out->sat = true;
        else if (out->op == SHF && (strcmp(part, "l") == 0 || strcmp(part, "r") == 0))
            out->left = part[0] == 'l';
        else if (out->op == SHF && (strcmp(part, "wrap") == 0 || strcmp(part, "clamp") == 0))
            out->clamp = part[0] == 'c';
        else if (is_one_of(part, "rz rzi rm rmi rp rpi rn rni")) {
            out->rounding = part[1] == 'z'   ? TO_ZERO
                            : part[1] == 'm' ? DOWN
                            : part[1] == 'p' ? UP
                                             : TO_NEAREST;
            out->to_integer = part[2] == 'i';
        } else if (out->op == SETP && is_one_of(part, "and or xor"))
            snprintf(out->with, sizeof out->with, "%s", part);
        else if ((out->op == SETP || out->op == SET || out->op == TESTP) &&
                 strlen(part) < sizeof out->compare &&
                 is_one_of(part, "eq ne lt le gt ge lo ls hi hs equ neu ltu leu gtu geu num nan"))
            snprintf(out->compare, sizeof out->compare, "%s", part);
        else if (out->op == TESTP && is_one_of(part, "finite infinite number notanumber normal subnormal"))
            snprintf(out->compare, sizeof out->compare, "%.7s", part);
        else if (out->op == LDMATRIX && strcmp(part, "trans") == 0)
            out->turned = true;
        else if (out->op == LDMATRIX && is_one_of(part, "m8n8 x4"))
            ;
        else if (out->op == SHFL && is_one_of(part, "bfly idx"))
            out->turned = part[0] == 'b';
        else if (out->op == MMA && is_one_of(part, "m16n8k16 row col"))
            ;
        else if (!is_one_of(part, "lo uni sync cta aligned volatile nc relaxed gpu sys weak"))
            return fail(r, "'.%s' of %s is unknown", part, op_names[out->op]);
    }
    if (n_types < 2)
        out->from = out->type;
    if (out->rounding != TO_NEAREST && out->op != CVT)
        return fail(r, "%s rounds to nearest only", op_names[out->op]);
    return true;
}

static bool read_inst(reader *r)
{
    ptx_kernel *k = r->kernel;
    char text[160];
    inst x = { .guard = -1, .line = r->line };
    if (accept(r, "@")) {
        x.negated = accept(r, "!");
        if (!word(r, text) || (x.guard = find_register(k, text)) < 0)
            return fail(r, "'%s' is no register", text);
    }
    if (!word(r, text) || !read_opcode(r, text, &x))
        return false;
    while (!accept(r, ";")) {
        if (x.n && !accept(r, ",") && !accept(r, "|"))
            return fail(r, "',' expected before '%.20s'", r->at);
        if (x.n == MOST_OPERANDS || !read_operand(r, &x.x[x.n++]))
            return fail(r, "too many operands");
    }
    if (k->n == k->capacity) {
        k->capacity = k->capacity ? 2 * k->capacity : 256;
        k->code = realloc(k->code, (size_t)k->capacity * sizeof *k->code);
    }
    k->code[k->n++] = x;
    return true;
}

static bool is_label(const char *at)
{
    size_t n = strspn(at, "$_ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789");
    return at[0] == '$' && at[n] == ':';
}

/* Places of the labels, by counting instructions: what is neither label nor directive and ends in ';'. */
static void find_labels(reader *r)
{
    reader ahead = *r;
    int place = 0, depth = 1;
    while (depth > 0 && *(skip(&ahead), ahead.at)) {
        if (*ahead.at == '{' || *ahead.at == '}') {
            depth += *ahead.at++ == '{' ? 1 : -1;
        } else if (is_label(ahead.at)) {
            struct label *l = calloc(1, sizeof *l);
            size_t n = strcspn(ahead.at, ":");
            memcpy(l->name, ahead.at, n < 63 ? n : 63);
            l->place = place;
            l->next = r->labels;
            r->labels = l;
            ahead.at += n + 1;
        } else {
            place += *ahead.at != '.';
            ahead.at += strcspn(ahead.at, ";");
            ahead.at += *ahead.at == ';';
        }
    }
}

static bool read_body(reader *r)
{
    int depth = 1;
    find_labels(r);
    while (!r->failed && depth > 0) {
        skip(r);
        if (accept(r, "}"))
            depth--;
        else if (accept(r, "{"))
            depth++;
        else if (accept(r, ".reg"))
            read_registers(r);
        else if (accept(r, ".shared"))
            read_array(r, SHARED);
        else if (accept(r, ".local"))
            read_array(r, LOCAL);
        else if (*r->at == '.' && strncmp(r->at, ".pragma", 7) == 0)
            r->at += strcspn(r->at, ";") + 1;
        else if (is_label(r->at))
            r->at += strcspn(r->at, ":") + 1;
        else
            read_inst(r);
    }
    while (r->labels) {
        struct label *l = r->labels;
        r->labels = l->next;
        free(l);
    }
    return !r->failed;
}

/* "name(.param .u64 a, .param .u64 b) .maxntid 256 { … }" */
static bool read_kernel(reader *r)
{
    ptx_kernel *k = calloc(1, sizeof *k);
    k->module = r->module;
    k->next = r->module->kernels;
    k->threads = 1024;
    r->module->kernels = r->kernel = k;
    if (!word(r, k->name) || !expect(r, "("))
        return false;
    while (!accept(r, ")")) {
        char text[160] = "";
        symbol *s = calloc(1, sizeof *s);
        s->next = k->symbols;
        k->symbols = s;
        s->space = PARAM;
        s->at = (uint64_t)(8 * k->n_params++);
        do /* the last word before the comma is the name */
            if (isdigit((unsigned char)*(skip(r), r->at)))
                r->at += strspn(r->at, "0123456789");
            else if (!word(r, text))
                return false;
        while (*(skip(r), r->at) != ',' && *r->at != ')');
        snprintf(s->name, sizeof s->name, "%s", text);
        accept(r, ",");
    }
    while (!accept(r, "{")) {
        char text[160];
        if (!word(r, text))
            return false;
        if (strcmp(text, ".maxntid") == 0) {
            skip(r);
            k->threads = (int)strtol(r->at, NULL, 10);
        }
        r->at += strspn(r->at, " 0123456789,");
    }
    k->shared_bytes = r->module->shared_bytes;
    bool done = read_body(r);
    r->kernel = NULL;
    return done;
}

ptx_module *ptx_parse(const char *text, char *error)
{
    reader r = { .at = text, .line = 1, .error = error, .module = calloc(1, sizeof(ptx_module)) };
    while (!r.failed && *(skip(&r), r.at)) {
        if (accept(&r, ".visible") || accept(&r, ".version") || accept(&r, ".target") ||
            accept(&r, ".address_size")) {
            if (r.at[-1] != 'e' || strncmp(r.at - 8, ".visible", 8) != 0)
                r.at += strcspn(r.at, "\n");
        } else if (accept(&r, ".entry"))
            read_kernel(&r);
        else if (accept(&r, ".global") || accept(&r, ".const"))
            read_array(&r, GLOBAL);
        else if (accept(&r, ".shared"))
            read_array(&r, SHARED);
        else
            fail(&r, "'%.20s' is unknown", r.at);
    }
    if (!r.failed)
        return r.module;
    ptx_free(r.module);
    return NULL;
}

static void free_symbols(symbol *s)
{
    while (s) {
        symbol *next = s->next;
        free(s);
        s = next;
    }
}

void ptx_free(ptx_module *m)
{
    while (m->kernels) {
        ptx_kernel *k = m->kernels;
        m->kernels = k->next;
        free_symbols(k->symbols);
        free(k->regs);
        free(k->code);
        free(k);
    }
    free_symbols(m->symbols);
    free(m->globals);
    free(m);
}

const ptx_kernel *ptx_find(const ptx_module *m, const char *name)
{
    const ptx_kernel *k = m->kernels;
    while (k && strcmp(k->name, name) != 0)
        k = k->next;
    return k;
}

int ptx_threads(const ptx_kernel *k)
{
    return k->threads;
}

int ptx_params(const ptx_kernel *k)
{
    return k->n_params;
}
