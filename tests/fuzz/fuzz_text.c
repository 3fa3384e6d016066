/* Any text: it is refused with a message, or it is a valid module that prints and parses back to the letter. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "frontend/text/text.h"
#include "ir/print.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    qn_arena *arena = qn_arena_new();
    qn_diags diags;
    qn_module *module, *again;
    qn_diags_init(&diags, arena);
    if (qn_text_parse((const char *)data, size, "fuzz.qn", &module, &diags)) {
        if (diags.n_errors == 0)
            abort();
    } else {
        const char *text = qn_module_print(module, arena);
        if (qn_text_parse(text, strlen(text), "again.qn", &again, &diags))
            abort();
        if (strcmp(qn_module_print(again, arena), text) != 0)
            abort();
        qn_module_free(module);
        qn_module_free(again);
    }
    qn_arena_free(arena);
    return 0;
}
