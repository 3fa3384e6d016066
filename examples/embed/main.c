/* A compiled model in a C program: its header and its object are all that is needed. See README.md. */
#include <stdio.h>
#include <stdlib.h>

#include "xor.h" /* made by: quern compile xor.qn -o xor.so */

int main(void)
{
    float x[4][2] = { { 0, 0 }, { 0, 1 }, { 1, 0 }, { 1, 1 } }, y[4];
    xor_io io = { .x = x[0], .y = y, .dims = { .batch = 4 } };

    int64_t bytes = xor_workspace_bytes(&io.dims); /* a multiple of 64 */
    void *workspace = aligned_alloc(64, (size_t)bytes);
    int status = workspace ? xor_infer(&io, workspace, NULL) : QUERN_ERROR_MEMORY;
    free(workspace);
    if (status) {
        fprintf(stderr, "the model failed: %s\n", quern_status_text(status));
        return 1;
    }
    for (int i = 0; i < 4; i++)
        printf("%g xor %g = %g\n", x[i][0], x[i][1], y[i]);
    return 0;
}
