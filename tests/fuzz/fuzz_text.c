/* Any text, of graphs or of programs: it is refused with a message, or it is valid, prints, and parses back to the letter. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "frontend/text/text.h"
#include "ir/print.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Texts of programs. One at a time is printed, as a text may hold several. */
static void try_programs(const char *data, size_t size, qn_arena *arena, qn_diags *diags)
{
    int n, one;
    qn_program **programs, **again;
    if (qn_text_parse_programs(data, size, "fuzz.qn", arena, &n, &programs, diags)) {
        if (diags->n_errors == 0)
            abort();
        return;
    }
    for (int i = 0; i < n; i++) {
        const char *text = qn_program_print(programs[i], arena);
        if (qn_text_parse_programs(text, strlen(text), "again.qn", arena, &one, &again, diags) || one != 1)
            abort();
        if (strcmp(qn_program_print(again[0], arena), text) != 0)
            abort();
    }
}

static void try_module(const char *data, size_t size, qn_arena *arena, qn_diags *diags)
{
    qn_module *module, *again;
    if (qn_text_parse(data, size, "fuzz.qn", &module, diags)) {
        if (diags->n_errors == 0)
            abort();
        return;
    }
    const char *text = qn_module_print(module, arena);
    if (qn_text_parse(text, strlen(text), "again.qn", &again, diags))
        abort();
    if (strcmp(qn_module_print(again, arena), text) != 0)
        abort();
    qn_module_free(module);
    qn_module_free(again);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    qn_arena *arena = qn_arena_new();
    qn_diags diags;
    qn_diags_init(&diags, arena);
    if (qn_text_has_programs((const char *)data, size))
        try_programs((const char *)data, size, arena, &diags);
    else
        try_module((const char *)data, size, arena, &diags);
    qn_arena_free(arena);
    return 0;
}
