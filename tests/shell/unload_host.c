/* Loads the library of argv[1], runs the model of argv[2] and unloads it again, several times, each in a thread that ends
 * afterwards. */
#include <dlfcn.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>

#include "quern.h"

static char **arguments;

#define FIND(name) __typeof__(name) *const name##_ = (__typeof__(name) *)dlsym(library, #name)

static bool run(void *library)
{
    FIND(quern_load);
    FIND(quern_module_free);
    FIND(quern_compile);
    FIND(quern_model_free);
    FIND(quern_session_new);
    FIND(quern_session_free);
    FIND(quern_session_bind);
    FIND(quern_session_run);
    quern_module *module = NULL;
    quern_model *model = NULL;
    quern_session *session = NULL;
    static const int64_t dims[] = { 8, 64 };
    float x[8 * 64] = { 0 };
    const quern_array array = { .dtype = QUERN_F32, .rank = 2, .dims = dims, .data = x };
    const quern_compile_options options = { .size = sizeof options, .threads = 2, .cache = "" };
    const bool good = !quern_load_(arguments[2], NULL, &module) &&
                      !quern_compile_(module, &options, &model) &&
                      !quern_session_new_(model, NULL, &session) &&
                      !quern_session_bind_(session, 0, &array) && !quern_session_run_(session) &&
                      quern_load_("absent", NULL, &(quern_module *){ NULL }); /* leaves a message */
    quern_session_free_(session);
    quern_model_free_(model);
    quern_module_free_(module);
    return good;
}

static void *load_and_unload(void *unused)
{
    (void)unused;
    void *library = dlopen(arguments[1], RTLD_NOW | RTLD_LOCAL);
    const bool good = library && run(library) && !dlclose(library);
    return good ? arguments : NULL;
}

int main(int argc, char **argv)
{
    if (argc != 3)
        return 2;
    arguments = argv;
    for (int i = 0; i < 5; i++) {
        pthread_t thread;
        void *good = NULL;
        if (pthread_create(&thread, NULL, load_and_unload, NULL) || pthread_join(thread, &good) || !good)
            return 1;
    }
    puts("unloaded");
    return 0;
}
