/* quern cache: how much is kept of what was compiled, where, and less of it. */
#include <inttypes.h>
#include <stdio.h>

#include "driver/cache.h"
#include "driver/cli.h"
#include "driver/commands.h"
#include "driver/output.h"

enum { FOLDER, CLEAR, TRIM, JSON };

static const qn_cli_option options[] = {
    [FOLDER] = { "cache", 0, "FOLDER", "which; $QUERN_CACHE, else quern in the user's cache folder" },
    [CLEAR] = { "clear", 0, NULL, "remove all of it: kernels, programs, what quern tune has found" },
    [TRIM] = { "trim", 0, "BYTES", "remove what was not used for longest, until so much is left: 100M" },
    [JSON] = { "json", 0, NULL, "print JSON" },
    { NULL, 0, NULL, NULL },
};

typedef struct cache {
    qn_cli cli;
    const char *folder;
    int64_t most; /* -1: any number */
    bool json;
} cache;

static int accept(void *user, int option, const char *value)
{
    cache *c = user;
    switch (option) {
    case FOLDER: c->folder = value; return QN_EXIT_OK;
    case CLEAR: c->most = 0; return QN_EXIT_OK;
    case TRIM:
        return qn_read_bytes(value, &c->most)
                   ? QN_EXIT_OK
                   : qn_cli_usage(&c->cli, "--trim %s: a number of bytes, or one with K, M or G behind it",
                                  value);
    default: c->json = true; return QN_EXIT_OK;
    }
}

static void print(const cache *c, int64_t bytes, int64_t entries)
{
    qn_arena *arena = qn_arena_new();
    const char *folder = qn_cache_folder(c->folder, arena);
    if (c->json) {
        fputs("{\"folder\": ", stdout);
        qn_json_string(folder, stdout);
        printf(", \"bytes\": %" PRId64 ", \"entries\": %" PRId64 "}\n", bytes, entries);
    } else if (*folder) {
        printf("%s: %.1f MB in %" PRId64 " entries\n", folder, 1e-6 * (double)bytes, entries);
    } else {
        puts("there is no cache folder");
    }
    qn_arena_free(arena);
}

int quern_main_cache(int argc, char **argv)
{
    cache c = { .cli = { .command = "cache",
                         .synopsis = "[options]",
                         .options = options,
                         .no_common = true,
                         .accept = accept },
                .most = -1 };
    int status = QN_EXIT_OK;
    int64_t bytes, entries;
    c.cli.user = &c;
    if (!qn_cli_read(&c.cli, argc, argv, &status))
        return status;
    if (c.cli.model)
        return qn_cli_usage(&c.cli, "what is '%s'?", c.cli.model);
    if (quern_cache_trim(c.folder, c.most, &bytes, &entries))
        return qn_cli_fail_api(&c.cli);
    print(&c, bytes, entries);
    return qn_cli_finish(&c.cli);
}
