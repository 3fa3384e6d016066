/* The communicator of MPI. By itself this program starts mpirun with itself as the ranks, and looks at what they say. Skipped
 * where there is no MPI. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "quern.h"

/* ---- what a rank does ---- */

static float number(int rank, int64_t i)
{
    return (float)((i * 31 + rank * 17) % 101) / 7;
}

static bool equals(const char *what, const float *found, const float *expected, int64_t n)
{
    if (memcmp(found, expected, (size_t)n * sizeof *found) == 0)
        return true;
    printf("%s of %lld differs\n", what, (long long)n);
    return false;
}

/* All four collectives, of few elements and of more than go at once; the bits are those of sums in the order of the ranks. */
static bool check_collectives(quern_comm *comm, int64_t n)
{
    const int ranks = comm->ranks;
    float *in = malloc((size_t)(n * ranks) * sizeof *in), *out = malloc((size_t)(n * ranks) * sizeof *in);
    float *expected = malloc((size_t)(n * ranks) * sizeof *in);
    bool good = in && out && expected;
    for (int64_t i = 0; good && i < n * ranks; i++) {
        double sum = 0;
        for (int r = 0; r < ranks; r++)
            sum += number(r, i);
        in[i] = number(comm->rank, i);
        expected[i] = (float)(sum / ranks);
    }
    good = good && !comm->start_all_reduce(comm, in, out, n, QUERN_F32, QUERN_COMBINE_MEAN) &&
           !comm->start_all_reduce(comm, in, out + n, n * (ranks - 1), QUERN_F32, QUERN_COMBINE_MIN) &&
           !comm->wait(comm) && equals("started all_reduce", out, expected, n) && !comm->wait(comm) &&
           !quern_comm_all_reduce(comm, in, out, n, QUERN_F32, QUERN_COMBINE_MEAN) &&
           equals("all_reduce", out, expected, n) &&
           !quern_comm_reduce_scatter(comm, in, out, n, QUERN_F32, QUERN_COMBINE_MEAN) &&
           equals("reduce_scatter", out, expected + comm->rank * n, n);
    for (int64_t i = 0; good && i < n * ranks; i++)
        expected[i] = number((int)(i / n), i % n);
    good = good && !quern_comm_all_gather(comm, in, out, n, QUERN_F32) &&
           equals("all_gather", out, expected, n * ranks) &&
           !quern_comm_broadcast(comm, in, n, QUERN_F32, ranks - 1) &&
           equals("broadcast", in, expected + (ranks - 1) * n, n) &&
           !quern_comm_all_reduce(comm, in, in, n, QUERN_F32,
                                  QUERN_COMBINE_MAX) && /* in place; all have the same */
           equals("maximum", in, expected + (ranks - 1) * n, n);
    free(in);
    free(out);
    free(expected);
    return good;
}

static int rank_of(const char *what)
{
    quern_comm *comm;
    float x[8] = { 0 };
    if (quern_comm_mpi(&comm)) {
        printf("%s\n", quern_last_error());
        return 1;
    }
    bool good = true;
    if (strcmp(what, "collectives") == 0) {
        static const int64_t counts[] = { 0, 1, 5, 4000, 70001, 1500000 };
        for (size_t i = 0; good && i < sizeof counts / sizeof *counts; i++)
            good = check_collectives(comm, counts[i]);
        printf("rank %d of %d: %s\n", comm->rank, comm->ranks, good ? "right" : quern_last_error());
    } else if (strcmp(what, "sizes") == 0) {
        good = !quern_comm_all_reduce(comm, x, x, comm->rank == 1 ? 5 : 8, QUERN_F32, QUERN_COMBINE_SUM);
        printf("rank %d: %s\n", comm->rank, quern_last_error());
    } else if (strcmp(what, "leaving") == 0) {
        for (int i = 0; good && i < (comm->rank == 1 ? 2 : 5); i++)
            good = !quern_comm_all_reduce(comm, x, x, 8, QUERN_F32, QUERN_COMBINE_SUM);
        if (!good)
            printf("rank %d: %s\n", comm->rank, quern_last_error());
        fflush(stdout);
        if (comm->rank != 1)
            sleep(1); /* the other one prints, too, before mpirun ends it */
    } else if (strcmp(what, "started") == 0 && comm->rank != 2) {
        /* rank 2 never comes: neither does rank 1 wait for it when it fails, nor rank 0 when it hears of that */
        for (int i = 0; good && i < 5; i++)
            good = !comm->start_all_reduce(comm, x, x, 8, QUERN_F32, QUERN_COMBINE_SUM);
        if (comm->rank == 1)
            (comm->fail)(comm, "no data");
        good = good && !comm->wait(comm);
        printf("rank %d: %s\n", comm->rank, comm->error(comm));
        fflush(stdout);
        sleep(1);
    } else if (strcmp(what, "started") == 0) {
        sleep(1);
        good = false;
    } else if (comm->rank == 1) {
        (comm->fail)(comm, "no data");
        sleep(1); /* the others hear of it, and aren't ended before they say so */
        good = false;
    } else {
        good = !quern_comm_all_reduce(comm, x, x, 8, QUERN_F32, QUERN_COMBINE_SUM);
        printf("rank %d: %s\n", comm->rank, quern_last_error());
        fflush(stdout);
        sleep(2);
    }
    fflush(stdout);
    quern_comm_free(comm);
    return good ? 0 : 1;
}

/* ---- mpirun ---- */

static const char *self;

/* What the ranks print; they end well, or don't. */
static char *run(int ranks, const char *what, bool well)
{
    static char said[1 << 16];
    char command[4096];
    snprintf(command, sizeof command,
             "exec timeout 60 mpirun --allow-run-as-root --oversubscribe --bind-to none -n %d '%s' %s 2>&1",
             ranks, self, what);
    FILE *out = popen(command, "r");
    assert_non_null(out);
    const size_t n = fread(said, 1, sizeof said - 1, out);
    said[n] = 0;
    if ((pclose(out) == 0) != well)
        fail_msg("%s", said);
    return said;
}

static void collectives(void **state)
{
    (void)state;
    static const int counts[] = { 1, 2, 3, 4 };
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
        const char *said = run(counts[i], "collectives", true);
        for (int r = 0; r < counts[i]; r++) {
            char expected[64];
            snprintf(expected, sizeof expected, "rank %d of %d: right", r, counts[i]);
            if (!strstr(said, expected))
                fail_msg("%s", said);
        }
    }
}

static void sizes_differ(void **state)
{
    (void)state;
    const char *said = run(3, "sizes", false);
    if (!strstr(said, "ranks have to ask for the same: rank 0 for all_reduce of 8 f32 (sum), rank 1 for "
                      "all_reduce of 5 f32 (sum)"))
        fail_msg("%s", said);
}

static void a_rank_fails(void **state)
{
    (void)state;
    const char *said = run(3, "failure", false);
    if (!strstr(said, "rank 0: rank 1 failed: no data") || !strstr(said, "rank 2: rank 1 failed: no data"))
        fail_msg("%s", said);
}

static void a_rank_fails_beside(void **state)
{
    (void)state;
    const char *said = run(3, "started", false);
    if (!strstr(said, "rank 0: rank 1 failed: no data") || !strstr(said, "rank 1: rank 1 failed: no data"))
        fail_msg("%s", said);
}

static void a_rank_leaves(void **state)
{
    (void)state;
    const char *said = run(3, "leaving", false);
    if (!strstr(said, "rank 0: rank 1 has left") || !strstr(said, "rank 2: rank 1 has left"))
        fail_msg("%s", said);
}

int main(int argc, char **argv)
{
    setenv("QUERN_MPI", QN_BUILD_DIR "/libquern_mpi.so", 0);
    if (argc > 1)
        return rank_of(argv[1]);
    self = argv[0];
    if (access(QN_BUILD_DIR "/libquern_mpi.so", R_OK) != 0 ||
        system("mpirun --version > /dev/null 2>&1") != 0) {
        fputs("no MPI here\n", stderr);
        return 77;
    }
    setenv("ASAN_OPTIONS", "detect_leaks=0", 1); /* MPI's own */
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(collectives),   cmocka_unit_test(sizes_differ),
        cmocka_unit_test(a_rank_fails),  cmocka_unit_test(a_rank_fails_beside),
        cmocka_unit_test(a_rank_leaves),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
