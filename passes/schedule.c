/* Schedules: see schedule.h. */
#include "passes/schedule.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const names[] = {
#define X(knob, name) name,
    QN_KNOBS(X)
#undef X
};

void qn_schedule_site(const char *kernel, qn_dtype dtype, int n, const qn_dim *dims, char out[QN_SITE_SIZE])
{
    int at = snprintf(out, QN_SITE_SIZE, "%.100s %s", kernel, qn_dtype_name(dtype));
    for (int i = 0; i < n; i++) {
        const char *between = i ? "x" : " ";
        const size_t room = QN_SITE_SIZE - (size_t)at;
        at += qn_dim_is_const(dims[i])
                  ? snprintf(out + at, room, "%s%lld", between, (long long)dims[i]->value)
                  : snprintf(out + at, room, "%s?", between);
        QN_ASSERT(at < QN_SITE_SIZE, "schedule: %d dims are too many for a site", n);
    }
}

qn_schedule qn_schedule_find(const qn_pass_options *options, const char *site)
{
    const qn_schedule_book *s = options->schedules;
    qn_schedule found;
    return s && s->find(s->user, site, &found) ? found : (qn_schedule){ { 0 } };
}

int64_t qn_schedule_get(const qn_schedule *schedule, qn_knob knob, int64_t modelled, int64_t most)
{
    const int64_t value = schedule->knobs[knob];
    return value < 1 ? modelled : value < most ? value : most;
}

void qn_schedule_note(const qn_pass_options *options, const char *site, const qn_node *node,
                      qn_schedule given)
{
    const qn_schedule_book *s = options->schedules;
    if (s && s->note)
        s->note(s->user, site, node->loc.node, &given);
}

const char *qn_schedule_print(const qn_schedule *schedule, qn_arena *arena)
{
    const char *text = "";
    for (int i = 0; i < QN_N_KNOBS; i++)
        if (schedule->knobs[i] > 0)
            text = qn_arena_printf(arena, "%s%s%s=%lld", text, *text ? " " : "", names[i],
                                   (long long)schedule->knobs[i]);
    return text;
}

bool qn_schedule_parse(const char *text, qn_schedule *out)
{
    const int64_t most = 1 << 30;
    *out = (qn_schedule){ { 0 } };
    while (*text) {
        const size_t length = strcspn(text, "=");
        int knob = 0;
        while (knob < QN_N_KNOBS && (strlen(names[knob]) != length || memcmp(names[knob], text, length) != 0))
            knob++;
        if (knob == QN_N_KNOBS || !text[length])
            return false;
        char *end;
        const long long value = strtoll(text + length + 1, &end, 10);
        if (end == text + length + 1 || value < 1 || value > most || (*end && *end != ' '))
            return false;
        out->knobs[knob] = value;
        text = end + (*end == ' ');
    }
    return true;
}
