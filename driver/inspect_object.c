/* What a shared object of Quern says of itself, as text and JSON: see inspect.h. */
#include <inttypes.h>
#include <string.h>

#include "driver/inspect.h"
#include "driver/output.h"
#include "runtime/model.h"

static const char *const role_names[] = { "input", "output", "state" };

/* Workspace at the least value of each symbol, and these as "n = 1, m = 1"; -1 without the function that knows. */
static int64_t least_workspace(const quern_entry_info *entry, qn_arena *arena, const char **out_with)
{
    int64_t *symbols = QN_NEW_ARRAY(arena, int64_t, entry->n_symbols + 1);
    *out_with = "";
    if (!entry->workspace_bytes)
        return -1;
    for (int i = 0; i < entry->n_symbols; i++) {
        const quern_symbol_info *symbol = qn_symbol_at(entry, i);
        symbols[i] = symbol->min > 0 ? symbol->min : symbol->max > 0;
        if (!symbol->decided)
            *out_with = qn_arena_printf(arena, "%s%s%s = %" PRId64, *out_with, **out_with ? ", " : "",
                                        symbol->name, symbols[i]);
    }
    if (entry->limits)
        entry->limits(symbols);
    return entry->workspace_bytes(symbols);
}

/* A target is triple, CPU, and features if any. "x86-64-v4", or "x86-64-v4 +avx512vnni" of an object that has several. */
static const char *cpu_text(const qn_object_view *view, const char *target)
{
    const char *cpu = strchr(target, ' ');
    cpu = cpu ? cpu + 1 : strchr(target, '\0');
    int n = (int)strcspn(cpu, " ");
    if (view->file.n > 1 && cpu[n] && cpu[n + 1])
        n = (int)strlen(cpu);
    return qn_arena_printf(view->arena, "%.*s", n, cpu);
}

void qn_object_text(const qn_object_view *view, FILE *to)
{
    const quern_model_info *info = view->info;
    qn_arena *arena = view->arena;
    const int n = view->file.n;
    const char *first = n ? view->file.models[0]->target : info->target;
    fprintf(to, "%s, compiled for %.*s", view->path, (int)strcspn(first, " ") + (strchr(first, ' ') != NULL),
            first);
    for (int i = 0; i < (n ? n : 1); i++)
        fprintf(to, "%s%s", i ? ", " : "", cpu_text(view, n ? view->file.models[i]->target : first));
    if (n > 1 && !view->refused)
        fprintf(to, "; here %s", cpu_text(view, info->target));
    fprintf(to, "\n%s%s", view->refused ? view->refused : "", view->refused ? "\n" : "");
    for (int i = 0; i < info->n_entries; i++) {
        const quern_entry_info *entry = qn_entry_at(info, i);
        const char *with;
        fprintf(to, "\nentry %s\n", entry->name);
        for (int k = 0; k < entry->n_buffers; k++) {
            const quern_buffer_info *buffer = qn_buffer_at(entry, k);
            fprintf(to, "  %-6s %s %s\n", role_names[buffer->role], buffer->name, buffer->text);
        }
        for (int k = 0; k < entry->n_symbols; k++) {
            const quern_symbol_info *symbol = qn_symbol_at(entry, k);
            fprintf(to, "  %-6s %s = %" PRId64 "..%" PRId64 "%s\n", "dim", symbol->name, symbol->min,
                    symbol->max, symbol->decided ? ", found by the run" : "");
        }
        const int64_t bytes = least_workspace(entry, arena, &with);
        if (bytes >= 0)
            fprintf(to, "workspace %" PRId64 " bytes%s%s\n", bytes, *with ? " where " : "", with);
    }
    const bool aside = *info->weights_hash && info->weights_bytes > 0;
    fprintf(to, "\nweights %" PRId64 " bytes%s%s\n", info->weights_bytes,
            aside ? " in a side file, hash " : "", aside ? info->weights_hash : "");
}

/* Dim `axis` as its text has it: a number, or a symbol or expression in quotes. */
static void json_dim(const quern_buffer_info *buffer, int axis, FILE *to)
{
    char text[256];
    int depth = 0, at = 0;
    size_t n = 0;
    if (buffer->dims[axis] >= 0) {
        fprintf(to, "%" PRId64, buffer->dims[axis]);
        return;
    }
    for (const char *c = strchr(buffer->text, '['); c && *++c && at <= axis && n + 1 < sizeof text;) {
        depth += (*c == '(') - (*c == ')');
        if (depth == 0 && (*c == ',' || *c == ']'))
            at++;
        else if (at == axis && (n || *c != ' '))
            text[n++] = *c;
    }
    text[n] = '\0';
    qn_json_string(text, to);
}

static void json_buffer(const quern_buffer_info *buffer, FILE *to)
{
    fputs("{\"name\": ", to);
    qn_json_string(buffer->name, to);
    fprintf(to, ", \"role\": \"%s\", \"dtype\": \"%s\", \"dims\": [", role_names[buffer->role],
            quern_dtype_text(buffer->dtype));
    for (int i = 0; i < buffer->rank; i++) {
        fputs(i ? ", " : "", to);
        json_dim(buffer, i, to);
    }
    fputs("]}", to);
}

static void json_entry(const quern_entry_info *entry, qn_arena *arena, FILE *to)
{
    const char *with;
    fputs("\n {\"name\": ", to);
    qn_json_string(entry->name, to);
    fputs(", \"io\": [", to);
    for (int k = 0; k < entry->n_buffers; k++) {
        fputs(k ? ",\n    " : "\n    ", to);
        json_buffer(qn_buffer_at(entry, k), to);
    }
    fputs("],\n  \"symbols\": [", to);
    for (int k = 0; k < entry->n_symbols; k++) {
        const quern_symbol_info *symbol = qn_symbol_at(entry, k);
        fputs(k ? ", {\"name\": " : "{\"name\": ", to);
        qn_json_string(symbol->name, to);
        fprintf(to, ", \"min\": %" PRId64 ", \"max\": %" PRId64 ", \"decided\": %s}", symbol->min,
                symbol->max, symbol->decided ? "true" : "false");
    }
    const int64_t bytes = least_workspace(entry, arena, &with);
    if (bytes < 0)
        fputs("],\n  \"least_workspace_bytes\": null}", to);
    else
        fprintf(to, "],\n  \"least_workspace_bytes\": %" PRId64 "}", bytes);
}

void qn_object_json(const qn_object_view *view, FILE *to)
{
    const quern_model_info *info = view->info;
    fputs("{\"model\": ", to);
    qn_json_string(view->path, to);
    fputs(", \"target\": ", to);
    qn_json_string(info->target, to);
    fputs(", \"targets\": [", to);
    for (int i = 0; i < (view->file.n ? view->file.n : 1); i++) {
        fputs(i ? ", " : "", to);
        qn_json_string(view->file.n ? view->file.models[i]->target : info->target, to);
    }
    fputs("], \"refused\": ", to);
    qn_json_string_or_null(view->refused, to);
    fprintf(to, ", \"weights_bytes\": %" PRId64 ", \"weights_hash\": ", info->weights_bytes);
    qn_json_string(info->weights_hash, to);
    fputs(", \"entries\": [", to);
    for (int i = 0; i < info->n_entries; i++) {
        fputs(i ? "," : "", to);
        json_entry(qn_entry_at(info, i), view->arena, to);
    }
    fputs("]}\n", to);
}
