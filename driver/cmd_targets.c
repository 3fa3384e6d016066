/* quern targets: what this build compiles for, and what it found here. */
#include <stdio.h>
#include <string.h>

#include "backends/llvm/open.h"
#include "driver/cli.h"
#include "driver/commands.h"
#include "runtime/pool.h"

int quern_main_targets(int argc, char **argv)
{
    qn_cli cli = { .command = "targets", .synopsis = "", .no_common = true };
    int status = QN_EXIT_OK;
    if (!qn_cli_read(&cli, argc, argv, &status))
        return status;
    if (cli.model)
        return qn_cli_usage(&cli, "what is '%s'?", cli.model);
    qn_call call;
    qn_machine machine;
    qn_call_begin(&call);
    const qn_target host = { .cpu = "native" };
    if (qn_backend_cpu.describe(&host, call.arena, &machine, &call.diags)) {
        status = qn_cli_fail_diags(&cli, &call.diags);
    } else {
        qn_machine named = machine;
        if (qn_llvm_host_text(&named.features, &call.diags))
            printf("cpu      only what is in the cache: %s\n", qn_diags_text(&call.diags, call.arena));
        else
            printf("cpu      machine code: in this process, objects, shared objects (%s)\n",
                   qn_machine_name(&named, call.arena));
        printf("         %d-bit vectors, %d registers%s%s; caches of %lld and %lld kB; %d threads\n",
               8 * machine.vector_bytes, machine.vector_registers, machine.fma ? ", multiply-add" : "",
               machine.masked ? ", masks" : "", (long long)machine.l1_bytes / 1024,
               (long long)machine.l2_bytes / 1024, qn_usable_threads());
        printf("x86_64-unknown-linux-gnu, aarch64-unknown-linux-gnu\n"
               "         objects for other machines; --cpu names the CPU\n"
               "interp   the reference interpreter: the definition of every op, slow\n");
    }
    qn_call_end(&call, QUERN_OK);
    return status ? status : qn_cli_finish(&cli);
}
