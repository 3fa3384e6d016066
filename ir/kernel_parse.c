/* The text form of kernels, read; the form is in kernel_text.h. This file reads what is around the body, and starts. */
#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#include "ir/kernel_edit.h"
#include "ir/kernel_parse.h"

static const char *copy_word(qn_kparser *p, qn_kword w)
{
    return qn_arena_printf(p->arena, "%.*s", (int)w.n, w.at);
}

static int take_align(qn_kparser *p, int fallback)
{
    if (!qn_kp_accept(p, "align"))
        return fallback;
    int align = (int)qn_kp_int(p, 1, 1 << 20);
    if (align & (align - 1))
        qn_kp_fail(p, "an alignment is a power of two");
    return align;
}

static const char *checked_name(qn_kparser *p, qn_kword name)
{
    if (!p->failed && isdigit((unsigned char)name.at[0]))
        qn_kp_fail(p, "the name of a buffer or parameter starts with a letter");
    if (!p->failed && (qn_kp_find_value(p, name) || qn_kp_find_buffer(p, name)))
        qn_kp_fail(p, "%%%.*s has two definitions", (int)name.n, name.at);
    return copy_word(p, name);
}

static void parse_arguments(qn_kparser *p)
{
    static const char *const uses[4] = { "unused", "in", "out", "inout" };
    qn_vec(qn_kword) inplace = { 0 };
    qn_kp_skip(p);
    while (*p->at == '%') {
        qn_kword name = qn_kp_name(p), other = { 0 };
        const char *text = checked_name(p, name);
        qn_kp_expect(p, ":");
        qn_dtype dtype = qn_kp_dtype(p);
        int use = qn_kp_choice(p, "use of an argument: in, out, inout or unused", uses, 4);
        if (p->failed)
            return;
        int align = take_align(p, 0);
        qn_kernel_add_buffer(p->k, text, dtype, use & 1, use & 2, align);
        if (qn_kp_accept(p, "inplace"))
            other = qn_kp_name(p);
        qn_vec_push(p->arena, &inplace, other);
        if (!qn_kp_accept(p, ","))
            break;
        qn_kp_skip(p);
    }
    for (size_t i = 0; i < inplace.n && !p->failed; i++) {
        if (inplace.items[i].n == 0)
            continue;
        qn_kbuffer *other = qn_kp_find_buffer(p, inplace.items[i]);
        if (!other)
            qn_kp_fail(p, "there is no buffer %%%.*s", (int)inplace.items[i].n, inplace.items[i].at);
        else
            p->k->buffers[i]->inplace = other->index;
    }
}

static void parse_params(qn_kparser *p)
{
    if (!qn_kp_accept(p, ";"))
        return;
    do {
        const char *name = checked_name(p, qn_kp_name(p));
        int64_t min = INT64_MIN, max = INT64_MAX, multiple = 1;
        if (qn_kp_accept(p, "[")) {
            min = qn_kp_int(p, INT64_MIN, INT64_MAX);
            qn_kp_expect(p, ",");
            max = qn_kp_int(p, min, INT64_MAX);
            qn_kp_expect(p, "]");
        }
        if (qn_kp_accept(p, "multiple"))
            multiple = qn_kp_int(p, 1, INT64_MAX);
        if (!p->failed)
            qn_kernel_add_param(p->k, name, min, max, multiple);
    } while (!p->failed && qn_kp_accept(p, ","));
}

static void parse_scratch(qn_kparser *p)
{
    for (;;) {
        bool local = qn_kp_accept(p, "local");
        if (!local && !qn_kp_accept(p, "shared"))
            return;
        const char *name = checked_name(p, qn_kp_name(p));
        qn_kp_expect(p, ":");
        qn_dtype dtype = qn_kp_dtype(p);
        qn_kp_expect(p, "[");
        int64_t elements = qn_kp_int(p, 0, QN_LOCAL_LIMIT);
        qn_kp_expect(p, "]");
        if (p->failed)
            return;
        qn_kbuffer *buffer = local ? qn_kernel_add_local(p->k, name, dtype, elements)
                                   : qn_kernel_add_shared(p->k, name, dtype, elements);
        buffer->align = take_align(p, 64);
    }
}

/* @plain.name, or @"any text" with \" \\ \n \t \xHH */
static const char *parse_kernel_name(qn_kparser *p)
{
    qn_kp_expect(p, "@");
    if (p->failed || *p->at != '"')
        return copy_word(p, qn_kp_word(p, "the kernel's name"));
    size_t n = 0;
    char *name = qn_arena_alloc(p->arena, strlen(p->at) + 1);
    for (p->at++; *p->at && *p->at != '"' && *p->at != '\n'; p->at++) {
        char c = *p->at;
        if (c == '\\') {
            unsigned code = 0;
            c = *++p->at;
            if (c == 'n' || c == 't') {
                c = c == 'n' ? '\n' : '\t';
            } else if (c == 'x' && isxdigit((unsigned char)p->at[1]) && isxdigit((unsigned char)p->at[2])) {
                char digits[3] = { p->at[1], p->at[2], 0 };
                code = (unsigned)strtoul(digits, NULL, 16);
                c = (char)code;
                p->at += 2;
            } else if (c != '"' && c != '\\') {
                qn_kp_fail(p, "unknown escape in the kernel's name");
                return "";
            }
        }
        name[n++] = c;
    }
    qn_kp_expect(p, "\"");
    return name;
}

static void parse_kernel(qn_kparser *p)
{
    qn_kp_expect(p, "kernel");
    p->k->name = qn_arena_strdup(p->k->arena, parse_kernel_name(p));
    qn_kp_expect(p, "(");
    parse_arguments(p);
    parse_params(p);
    qn_kp_expect(p, ")");
    if (qn_kp_accept(p, "gpu_threads")) {
        p->k->gpu_threads = (int)qn_kp_int(p, 1, 1024);
        p->k->by_thread = qn_kp_accept(p, "each");
    }
    if (qn_kp_accept(p, "flops"))
        p->k->flops = qn_kp_literal(p, QUERN_F64).f;
    if (qn_kp_accept(p, "bytes"))
        p->k->bytes = qn_kp_literal(p, QUERN_F64).f;
    qn_kp_expect(p, "{");
    parse_scratch(p);
    if (!p->failed)
        qn_kp_block(p, p->k->body);
    if (!p->failed && p->k->body->n_yields)
        qn_kp_fail(p, "the body of a kernel yields nothing");
}

static qn_kernel *parse_from(qn_kparser *p)
{
    p->k = qn_kernel_new(p->arena, "");
    p->b = qn_kb_new(p->k);
    parse_kernel(p);
    return p->failed || qn_kernel_verify(p->k, p->diags) ? NULL : p->k;
}

qn_kernel *qn_kernel_parse(const char *text, const char *file, qn_arena *arena, qn_diags *diags)
{
    qn_kparser p = {
        .at = text, .line_start = text, .file = file, .line = 1, .arena = arena, .diags = diags
    };
    qn_kernel *k = parse_from(&p);
    qn_kp_skip(&p);
    if (k && *p.at)
        qn_kp_fail(&p, "expected the end of the text after the kernel");
    return p.failed ? NULL : k;
}

qn_kernel *qn_kernel_parse_at(qn_text_place *place, const char *file, qn_arena *arena, qn_diags *diags)
{
    qn_kparser p = { .at = place->at,
                     .line_start = place->line_start,
                     .line = place->line,
                     .file = file,
                     .arena = arena,
                     .diags = diags };
    qn_kernel *k = parse_from(&p);
    *place = (qn_text_place){ p.at, p.line_start, p.line };
    return k;
}
