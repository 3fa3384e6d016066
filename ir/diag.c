/* Diagnostics: collecting, formatting, and the end of the process on a broken invariant. */
#include "ir/diag.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void qn_diags_init(qn_diags *diags, qn_arena *arena)
{
    *diags = (qn_diags){ .arena = arena };
}

/* "model.onnx: /layer1/conv/Conv (Conv, opset 18): ", "x.qn:3:14: ", "". */
static const char *loc_print(qn_arena *arena, const qn_loc *loc)
{
    if (!loc)
        return "";
    const char *text = "";
    if (loc->file && loc->line > 0 && loc->column > 0)
        text = qn_arena_printf(arena, "%s:%d:%d: ", loc->file, loc->line, loc->column);
    else if (loc->file && loc->line > 0)
        text = qn_arena_printf(arena, "%s:%d: ", loc->file, loc->line);
    else if (loc->file)
        text = qn_arena_printf(arena, "%s: ", loc->file);
    if (loc->node && loc->op)
        text = qn_arena_printf(arena, "%s%s (%s): ", text, loc->node, loc->op);
    else if (loc->node || loc->op)
        text = qn_arena_printf(arena, "%s%s: ", text, loc->node ? loc->node : loc->op);
    return text;
}

qn_status qn_error(qn_diags *diags, qn_status status, const qn_loc *loc, const char *format, ...)
{
    if (++diags->n_errors > QN_DIAG_LIMIT)
        return status;
    va_list args;
    va_start(args, format);
    const char *what = qn_arena_vprintf(diags->arena, format, args);
    va_end(args);
    qn_diag *d = QN_NEW(diags->arena, qn_diag);
    d->status = status;
    d->text = qn_arena_printf(diags->arena, "%s%s", loc_print(diags->arena, loc), what);
    if (diags->last)
        diags->last->next = d;
    else
        diags->first = d;
    diags->last = d;
    return status;
}

const char *qn_diags_text(const qn_diags *diags, qn_arena *arena)
{
    if (!diags->first)
        return "";
    size_t length = 64; /* the last line, should there be one more */
    for (const qn_diag *d = diags->first; d; d = d->next)
        length += strlen(d->text) + 1;
    char *text = qn_arena_alloc(arena, length), *at = text;
    for (const qn_diag *d = diags->first; d; d = d->next)
        at += sprintf(at, d->next ? "%s\n" : "%s", d->text);
    if (diags->n_errors > QN_DIAG_LIMIT)
        sprintf(at, "\n… and %d more errors", diags->n_errors - QN_DIAG_LIMIT);
    return text;
}

void qn_diags_move(qn_diags *from, qn_diags *to)
{
    if (to->last)
        to->last->next = from->first;
    else
        to->first = from->first;
    to->last = from->last ? from->last : to->last;
    to->n_errors += from->n_errors;
}

qn_status qn_diags_status(const qn_diags *diags)
{
    return diags->first ? diags->first->status : QUERN_OK;
}

_Noreturn void qn_panic(const char *file, int line, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    fprintf(stderr, "quern: internal error at %s:%d: ", file, line);
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
    va_end(args);
    abort();
}

/* Edits (insert, drop, replace a character) from one word to another; both shorter than 32. */
static int edit_distance(const char *a, size_t n, const char *b, size_t m)
{
    int row[33];
    for (size_t k = 0; k <= m; k++)
        row[k] = (int)k;
    for (size_t i = 1; i <= n; i++) {
        int diagonal = row[0];
        row[0] = (int)i;
        for (size_t k = 1; k <= m; k++) {
            int best = diagonal + (a[i - 1] != b[k - 1]);
            diagonal = row[k];
            best = row[k] + 1 < best ? row[k] + 1 : best;
            row[k] = row[k - 1] + 1 < best ? row[k - 1] + 1 : best;
        }
    }
    return row[m];
}

const char *qn_nearest_word(const char *text, size_t length, const char *const *words, int n)
{
    const char *best = NULL;
    int best_distance = 3;
    for (int i = 0; i < n && length < 32; i++) {
        const size_t m = words[i] ? strlen(words[i]) : 32;
        const int distance = m < 32 ? edit_distance(text, length, words[i], m) : 3;
        if (distance < best_distance && (size_t)distance * 2 <= m) {
            best = words[i];
            best_distance = distance;
        }
    }
    return best;
}
