/* Handwritten digits in a C program: draws ten images that the network has not seen, each beside what the network takes it for,
 * and says how long that took. digits.h and digits.so are all that is needed: quern compile digits.onnx -o digits.so */
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "digits.h"

enum { DIGITS = 10, SIDE = 8, PIXELS = SIDE * SIDE, RUNS = 1000 };

/* The first test image of each digit from 0 to 9 in digits.npz; pixels from 0 (paper) to g, 16 (ink). */
static const char *const images[DIGITS] = {
    "004bf80000dgbd7003gc048006g504800790097004a02f2001gcea00004ee100",
    "001afb70005gggb0006ggg6000cggc0002ggg60002cgc000009gg700003cg200",
    "009ggd1000cdeg7000006g400000de10001ag600007g800002fgc700009egg20",
    "029fgf200bb59g3000009c0000006f1000000e9000000cc000536f7000cgf910",
    "0008f100001ed11000af3fb007g71g8009gdeg5001afge000001ga00000af400",
    "00ccef1001fb650006fc400006b8d60000001d000000093002616e3001bgd800",
    "001ba00000da000003d0000005b0000005ecc70000gc5ba000ab4ac0001cgc30",
    "02agc0000cecg5000204g710004fgga001ggc52000fc100001e4000000g30000",
    "006eg60006gg8f0007eece0000dag600004ga00000bdg20000f5f400008gf100",
    "01egf40004g9bf3006g18g2002eafg60003b8f5000001g500033bf1000dge400",
};

static int value(char pixel)
{
    return pixel <= '9' ? pixel - '0' : pixel - 'a' + 10;
}

static double microseconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return 1e6 * (double)t.tv_sec + 1e-3 * (double)t.tv_nsec;
}

static void draw(int first, int n, const int *guesses)
{
    static const char ink[] = " .:-=+*#@";
    for (int row = 0; row < SIDE; row++, putchar('\n'))
        for (int i = first; i < first + n; i++) {
            for (int column = 0; column < SIDE; column++)
                for (int twice = 0; twice < 2; twice++)
                    putchar(ink[value(images[i][row * SIDE + column]) / 2]);
            printf("  ");
        }
    for (int i = first; i < first + n; i++)
        printf("     a %d%s         ", guesses[i], guesses[i] == i ? " " : "?");
    puts("\n");
}

int main(void)
{
    static float image[DIGITS][PIXELS], logits[DIGITS][10];
    for (int i = 0; i < DIGITS; i++)
        for (int k = 0; k < PIXELS; k++)
            image[i][k] = (float)value(images[i][k]) / 16;

    digits_io io = { .image = image[0], .logits = logits[0], .dims = { .batch = DIGITS } };
    void *workspace = aligned_alloc(64, (size_t)digits_workspace_bytes(&io.dims)); /* a multiple of 64 */
    int status = workspace ? digits_infer(&io, workspace, NULL) : QUERN_ERROR_MEMORY;
    double start = microseconds();
    for (int run = 0; run < RUNS && !status; run++)
        status = digits_infer(&io, workspace, NULL);
    double each = (microseconds() - start) / RUNS;
    free(workspace);
    if (status) {
        fprintf(stderr, "the network failed with status %d\n", status);
        return 1;
    }

    int guesses[DIGITS] = { 0 }, right = 0;
    for (int i = 0; i < DIGITS; i++) {
        for (int c = 1; c < 10; c++)
            if (logits[i][c] > logits[i][guesses[i]])
                guesses[i] = c;
        right += guesses[i] == i;
    }
    for (int first = 0; first < DIGITS; first += 5)
        draw(first, 5, guesses);
    printf("%d of %d right; all of them in %.1f microseconds on one thread\n", right, DIGITS, each);
    return right < DIGITS - 1;
}
