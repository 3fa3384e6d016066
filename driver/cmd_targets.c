/* quern targets: what this build compiles for, and what it found here. */
#include <stdio.h>
#include <string.h>

#include "backends/llvm/open.h"
#include "driver/cli.h"
#include "driver/commands.h"
#include "driver/output.h"
#include "runtime/cuda/driver.h"
#include "runtime/pool.h"

static const qn_cli_option options[] = {
    { "json", 0, NULL, "print JSON" },
    { NULL, 0, NULL, NULL },
};

static const char *const triples[] = { "x86_64-unknown-linux-gnu", "aarch64-unknown-linux-gnu" };
enum { N_TRIPLES = sizeof triples / sizeof *triples, MAX_GPUS = 64 };

typedef struct targets {
    qn_cli cli;
    bool json;
    qn_machine cpu;
    const char *name;           /* triple and CPU; NULL where no code can be generated */
    const char *missing;        /* why */
    int n_gpus, gpus[MAX_GPUS]; /* their architectures, 90 for sm_90 */
    const char *no_gpu;         /* why */
} targets;

static int accept(void *user, int option, const char *value)
{
    targets *t = user;
    if (option < 0)
        return qn_cli_usage(&t->cli, "what is '%s'?", value);
    t->json = true;
    return QN_EXIT_OK;
}

static void find_gpus(targets *t, qn_arena *arena)
{
    int n;
    if (qn_cuda_count(&n))
        t->no_gpu = qn_arena_strdup(arena, quern_last_error());
    for (int i = 0; i < n && i < MAX_GPUS; i++) {
        qn_cuda *cuda;
        if (qn_cuda_open(i, &cuda)) {
            t->no_gpu = qn_arena_strdup(arena, quern_last_error());
            break;
        }
        t->gpus[t->n_gpus++] = qn_cuda_arch(cuda);
        qn_cuda_close(cuda);
    }
}

static void print_text(const targets *t)
{
    const qn_machine *m = &t->cpu;
    if (t->missing)
        printf("cpu      only what is in the cache: %s\n", t->missing);
    else
        printf("cpu      machine code: in this process, objects, shared objects (%s)\n", t->name);
    printf("         %d-bit vectors, %d registers%s%s; caches of %lld and %lld kB; %d threads\n",
           8 * m->vector_bytes, m->vector_registers, m->fma ? ", multiply-add" : "",
           m->masked ? ", masks" : "", (long long)m->l1_bytes / 1024, (long long)m->l2_bytes / 1024,
           qn_usable_threads());
    for (int i = 0; i < N_TRIPLES; i++)
        printf("%s%s", i ? ", " : "", triples[i]);
    puts("\n         objects for other machines; --cpu names the CPU\n"
         "nvptx64  PTX for GPUs; --gpu names the architecture");
    for (int i = 0; i < t->n_gpus; i++)
        printf("cuda:%-3d this GPU, from this process (sm_%d)\n", i, t->gpus[i]);
    if (!t->n_gpus)
        printf("cuda     %s\n", t->no_gpu ? t->no_gpu : "there is no GPU");
    puts("interp   the reference interpreter: the definition of every op, slow");
}

static void print_json(const targets *t)
{
    const qn_machine *m = &t->cpu;
    fputs("{\"cpu\": {\"name\": ", stdout);
    qn_json_string_or_null(t->name, stdout);
    fputs(", \"missing\": ", stdout);
    qn_json_string_or_null(t->missing, stdout);
    printf(", \"vector_bits\": %d, \"vector_registers\": %d, \"multiply_add\": %s, \"masks\": %s,\n"
           "  \"l1_bytes\": %lld, \"l2_bytes\": %lld, \"threads\": %d},\n \"triples\": [",
           8 * m->vector_bytes, m->vector_registers, m->fma ? "true" : "false", m->masked ? "true" : "false",
           (long long)m->l1_bytes, (long long)m->l2_bytes, qn_usable_threads());
    for (int i = 0; i < N_TRIPLES; i++) {
        fputs(i ? ", " : "", stdout);
        qn_json_string(triples[i], stdout);
    }
    fputs("],\n \"gpus\": [", stdout);
    for (int i = 0; i < t->n_gpus; i++)
        printf("%s{\"target\": \"cuda:%d\", \"gpu\": \"sm_%d\"}", i ? ", " : "", i, t->gpus[i]);
    fputs("], \"no_gpu\": ", stdout);
    qn_json_string_or_null(t->no_gpu, stdout);
    puts("}");
}

int quern_main_targets(int argc, char **argv)
{
    targets t = { .cli = { .command = "targets",
                           .synopsis = "[options]",
                           .options = options,
                           .no_common = true,
                           .accept = accept } };
    int status = QN_EXIT_OK;
    t.cli.user = &t;
    if (!qn_cli_read(&t.cli, argc, argv, &status))
        return status;
    if (t.cli.model)
        return qn_cli_usage(&t.cli, "what is '%s'?", t.cli.model);
    qn_call call;
    qn_call_begin(&call);
    const qn_target host = { .cpu = "native" };
    if (qn_backend_cpu.describe(&host, call.arena, &t.cpu, &call.diags)) {
        status = qn_cli_fail_diags(&t.cli, &call.diags);
    } else {
        qn_machine named = t.cpu;
        if (qn_llvm_host_text(&named.features, &call.diags))
            t.missing = qn_diags_text(&call.diags, call.arena);
        else
            t.name = qn_machine_name(&named, call.arena);
        find_gpus(&t, call.arena);
        (t.json ? print_json : print_text)(&t);
    }
    qn_call_end(&call, QUERN_OK);
    return status ? status : qn_cli_finish(&t.cli);
}
