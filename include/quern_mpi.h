/* quern_mpi.h - a communicator (quern_comm) of MPI ranks: libquern_mpi, which links MPI and nothing else of Quern.
 *
 * quern_comm_mpi (quern.h) opens this library at run time; programs that link MPI themselves may call it. Messages go over
 * communicators of its own. Where MPI was started with MPI_THREAD_SERIALIZED or more, as quern_mpi_world does, all_reduces that a
 * run starts go on in a thread of its own while kernels run, and the host calls MPI inside a run only if it has
 * MPI_THREAD_MULTIPLE. Otherwise only the thread that uses the communicator calls MPI, and starting ends them. */
#ifndef QUERN_MPI_H
#define QUERN_MPI_H

#include <mpi.h>

#include "quern_abi.h"

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define QUERN_MPI_API __attribute__((visibility("default")))
#else
#define QUERN_MPI_API
#endif

/* The ranks of an MPI communicator, all of which call this. MPI has been started; free the result (comm->free) before it ends. */
QUERN_MPI_API int quern_mpi_comm(MPI_Comm of, quern_comm **out);
/* All ranks that mpirun started. Starts MPI where that has not been done, and then ends it when the result is freed. */
QUERN_MPI_API int quern_mpi_world(quern_comm **out);
/* Message of the last call above that failed. */
QUERN_MPI_API const char *quern_mpi_error(void);

#ifdef __cplusplus
}
#endif
#endif
